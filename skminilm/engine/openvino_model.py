"""A BERT-shaped checkpoint on OpenVINO: float32, bfloat16 and int8 on CPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files

import numpy as np
import torch

from .._folders import cache_folder
from ..checkpoints import Checkpoint, tokenize
from ..checkpoints.token_batch import TokenBatch
from ._names import HIDDEN_MASKED
from ._openvino_import import check_installed, import_silently
from .forward import embed
from .packing import Pack, make_pack, plan_padded
from .pooling import pool, unit_length
from .streaming import StreamingModel

_BATCH_TOKENS = 2048
_LENGTH_STEP = 8  # lengths are rounded up to it: each shape that OpenVINO meets is prepared once
_CALIBRATION_TOKENS = 128
_CPU = torch.device("cpu")


class OpenVINOModel(StreamingModel):
    """Runs a BERT-shaped checkpoint on OpenVINO, in batches of like length.

    Parameters
    ----------
    checkpoint : Checkpoint
    weights : mapping of str to Tensor
        Under the names of :func:`~skminilm.engine.packed_model.fused_weights`.
    precision : {"fp32", "bf16", "int8"}
    calibration : sequence of str or None
        Texts for ``"int8"``; None takes those that ship.
    """

    default_batch_tokens = _BATCH_TOKENS

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Mapping[str, torch.Tensor],
        precision: str,
        calibration: Sequence[str] | None = None,
    ) -> None:
        check_installed(precision)
        ov = import_silently("openvino")
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.hidden_size = checkpoint.hidden_size
        self._embeddings = {n: t for n, t in weights.items() if n.startswith("embeddings.")}
        graph = self._graph(weights, precision, calibration)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # joblib's workers limit torch's threads, not OpenVINO's.
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._compiled = ov.Core().compile_model(graph, "CPU", options)
        self._requests = threading.local()  # one a thread: a request computes one batch at a time

    def _graph(self, weights: Mapping[str, torch.Tensor], precision: str, calibration: Sequence[str] | None):
        from .openvino_graph import build_graph, quantize_graph, quantized_folder, read_graph, write_graph

        if precision != "int8":
            return build_graph(weights, self.checkpoint.config)
        texts = list(calibration) if calibration is not None else calibration_texts()
        folder = quantized_folder(cache_folder(), self.checkpoint.fingerprint, texts)
        graph = read_graph(folder)
        if graph is None:
            samples = list(self._calibration_samples(texts))
            graph = quantize_graph(build_graph(weights, self.checkpoint.config), samples)
            write_graph(graph, folder)
        return graph

    def _calibration_samples(self, texts: Sequence[str]) -> Iterator[list[np.ndarray]]:
        defaults = self.checkpoint.defaults
        settings = replace(defaults, max_length=min(_CALIBRATION_TOKENS, defaults.max_length))
        batch = tokenize(self.tokenizer, texts, None, settings)
        for row in range(len(texts)):
            pack = self._pack(batch, batch.offsets, np.array([row]))
            yield list(self._padded(pack, int(pack.lengths[0]))[:2])

    def plan(self, lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
        """Yield the rows of each batch, padding counted. See :meth:`StreamingModel.plan`."""
        return plan_padded(lengths, max_tokens, _LENGTH_STEP)

    def start(
        self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        """Compute a batch. See :meth:`StreamingModel.start`."""
        with torch.inference_mode():
            pack = self._pack(batch, offsets, rows)
            longest = -(-int(pack.lengths[0]) // _LENGTH_STEP) * _LENGTH_STEP
            embeddings, mask, slots = self._padded(pack, longest)
            if not hasattr(self._requests, "request"):
                self._requests.request = self._compiled.create_infer_request()
            request = self._requests.request
            hidden = request.infer([embeddings, mask], share_inputs=True, share_outputs=True)[0]
            states = torch.from_numpy(hidden).view(-1, self.hidden_size)[slots]
            pooled = pool(states, pack, pooling)
            return (unit_length(pooled) if normalize else pooled).numpy

    def _pack(self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray) -> Pack:
        return make_pack(batch, offsets, rows, _CPU, max_waste=0.0)

    def _padded(self, pack: Pack, longest: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """Return embeddings and mask, padded to `longest`, and where in them each token is."""
        n_texts = len(pack.rows)
        embedded = embed(self._embeddings, pack, self.checkpoint.config.layer_norm_eps, torch.float32)
        sequence = torch.repeat_interleave(torch.arange(n_texts, device=_CPU), pack.lengths)
        slots = sequence * longest + pack.position_ids[: pack.n_tokens]
        padded = embedded.new_zeros(n_texts * longest, self.hidden_size)
        padded[slots] = embedded[: pack.n_tokens]
        mask = embedded.new_full((n_texts * longest,), HIDDEN_MASKED)
        mask[slots] = 0
        return (
            padded.view(n_texts, longest, self.hidden_size).numpy(),
            mask.view(n_texts, 1, 1, longest).numpy(),
            slots,
        )


def calibration_texts() -> list[str]:
    """Return real texts: requests in 16 languages, alone and joined, and prose with all the signs of prose.

    Signs matter: without percentages, parentheses and quotation marks among
    these texts, those that have them were the ones with the worst vectors.
    """
    from .. import datasets

    requests = datasets.load_support_requests().data
    prose = files(datasets).joinpath("data", "calibration_texts.txt").read_text(encoding="utf-8").splitlines()

    def joined(size: int) -> list[str]:
        return [" ".join(requests[start : start + size]) for start in range(0, len(requests), size)]

    return prose + requests[::16] + joined(4)[::2] + joined(12)
