"""A BERT-shaped checkpoint on OpenVINO: float32, bfloat16 and int8 on CPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.resources import files
from queue import SimpleQueue
from types import ModuleType

import numpy as np
import torch

from .._folders import cache_folder
from ..checkpoints import Checkpoint, tokenize
from ..checkpoints.token_batch import TokenBatch
from . import kernels
from ._openvino_import import check_installed, import_silently
from .attention import attention
from .forward import gather_word_embeddings
from .packed_model import WORD
from .packing import Pack, make_pack, plan_packs
from .pooling import pool, unit_length
from .streaming import StreamingModel
from .varlen import can_use_varlen

_BATCH_TOKENS = 1024
_MAX_WORKERS = 4  # each holds the layers' weights
_SMALLEST_SHARE = 64  # tokens that are worth a worker of their own
_CALIBRATION_TOKENS = 128
_CPU = torch.device("cpu")
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# Tokens of a pack that a graph takes at once: each graph keeps memory for what lies between its operations. Fewer
# cost 2 % of the speed in float32 and int8 and save a third of the memory of all, but 10 % in bfloat16.
_TOKENS_AT_ONCE = {torch.float32: 256, torch.bfloat16: 1024}


class OpenVINOModel(StreamingModel):
    """Runs a BERT-shaped checkpoint on OpenVINO, several packs at a time.

    OpenVINO computes what a layer does token by token; attention between is
    that of the torch backend. A pack has few threads, or one: more would
    wait for each other, as OpenVINO's and those of attention are not the same.

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
    survives_fork = False  # its threads do not

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Mapping[str, torch.Tensor],
        precision: str,
        calibration: Sequence[str] | None = None,
    ) -> None:
        check_installed(precision)
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.hidden_size = checkpoint.hidden_size
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._word_embeddings = weights[WORD]
        has_kernel = can_use_varlen(_CPU, self._dtype, checkpoint.config.head_size)
        self._max_waste = None if has_kernel else 0.0
        n_threads = torch.get_num_threads()  # joblib's workers limit torch's threads, not OpenVINO's
        self._n_workers = self.max_results_under_way = min(n_threads, _MAX_WORKERS)
        self._threads_each = n_threads // self._n_workers
        graphs = self._graphs(weights, precision, calibration)
        # Each worker has graphs of its own: shared ones take a quarter more time.
        self._idle: SimpleQueue[_Stages] = SimpleQueue()
        for _ in range(self._n_workers):
            self._idle.put(self._stages(graphs))
        self._workers = ThreadPoolExecutor(self._n_workers, thread_name_prefix="openvino")

    def _stages(self, graphs: Sequence) -> _Stages:
        return _Stages(graphs, self._dtype, self._threads_each, self.checkpoint.config.num_attention_heads)

    def _graphs(self, weights: Mapping[str, torch.Tensor], precision: str, calibration: Sequence[str] | None):
        from .openvino_graph import build_graphs, quantized_folder, read_graphs, write_graphs

        config = self.checkpoint.config
        if precision != "int8":
            return build_graphs(weights, config, self._dtype)
        texts = list(calibration) if calibration is not None else calibration_texts()
        folder = quantized_folder(cache_folder(), self.checkpoint.fingerprint, texts)
        graphs = read_graphs(folder, config.num_hidden_layers + 1)
        if graphs is None:
            graphs = self._quantized(build_graphs(weights, config, self._dtype), texts)
            write_graphs(graphs, folder)
        return graphs

    @torch.inference_mode()
    def _quantized(self, graphs: Sequence, texts: Sequence[str]) -> list:
        """Quantise each graph by what it gets where those before it compute in float32."""
        from .openvino_graph import quantize_graph

        defaults = self.checkpoint.defaults
        settings = replace(defaults, max_length=min(_CALIBRATION_TOKENS, defaults.max_length))
        batch = tokenize(self.tokenizer, texts, None, settings)
        packs = [self._pack(batch, batch.offsets, rows) for rows in plan_packs(batch.lengths, _BATCH_TOKENS)]
        inputs = [self._inputs(pack) for pack in packs]
        stages = self._stages(graphs)
        quantized = []
        for graph, stage in zip(graphs, stages.stages, strict=True):
            quantized.append(quantize_graph(graph, [[x.numpy() for x in some] for some in inputs]))
            outputs = [stage(some) for some in inputs]
            if len(quantized) < len(graphs):
                inputs = [stages.next_inputs(*some, pack) for some, pack in zip(outputs, packs, strict=True)]
        return quantized

    def plan(self, lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
        """Yield the rows of each pack, one at least for each worker. See :meth:`StreamingModel.plan`."""
        share = max(_SMALLEST_SHARE, math.ceil(lengths.sum() / self._n_workers))
        return plan_packs(lengths, min(max_tokens, share))

    def start(
        self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        """Begin to compute a pack. See :meth:`StreamingModel.start`."""
        return self._workers.submit(
            self._compute, self._pack(batch, offsets, rows), pooling, normalize
        ).result

    @torch.inference_mode()
    def _compute(self, pack: Pack, pooling: str, normalize: bool) -> np.ndarray:
        stages = self._idle.get()
        try:
            with kernels.on_threads(self._threads_each):
                pooled = pool(stages.run(self._inputs(pack), pack), pack, pooling)
        finally:
            self._idle.put(stages)
        return (unit_length(pooled) if normalize else pooled).numpy()

    def _pack(self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray) -> Pack:
        return make_pack(batch, offsets, rows, _CPU, self._max_waste)

    def _inputs(self, pack: Pack) -> list[torch.Tensor]:
        """Return what the first graph takes."""
        return [gather_word_embeddings(self._word_embeddings, pack.input_ids), pack.position_ids]


class _Stages:
    """The graphs one after the other with attention between, for one pack at a time."""

    def __init__(self, graphs: Sequence, dtype: torch.dtype, n_threads: int, n_heads: int) -> None:
        ov = import_silently("openvino")
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": n_threads,
            "ENABLE_CPU_PINNING": False,  # other processes and packs need the same processors
        }
        core = ov.Core()
        self.stages = [
            _Stage(ov, core.compile_model(graph, "CPU", options), _TOKENS_AT_ONCE[dtype]) for graph in graphs
        ]
        self._n_heads = n_heads
        self._buffers: dict[tuple, torch.Tensor] = {}

    def run(self, inputs: list[torch.Tensor], pack: Pack) -> torch.Tensor:
        """Return the last hidden states, float32 (n_slots, hidden_size)."""
        for i, stage in enumerate(self.stages):
            outputs = stage(inputs, partial(self._buffer, i % 2))  # the next stage reads what this one writes
            if i + 1 < len(self.stages):
                inputs = self.next_inputs(*outputs, pack)
        return outputs[0]

    def next_inputs(self, hidden: torch.Tensor, qkv: torch.Tensor, pack: Pack) -> list[torch.Tensor]:
        """Return what a graph takes, given what the one before it returned."""
        return [attention(qkv, pack, self._n_heads), hidden]

    def _buffer(self, owner: int, part: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Return memory for an output; what is new each time would be cleared each time."""
        name, size = (owner, part, dtype), math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = _new(part, (size,), dtype)
        return self._buffers[name][:size].view(shape)


def _new(part: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=_CPU)


class _Stage:
    """A compiled graph on Tensors, whose memory it shares."""

    def __init__(self, ov: ModuleType, compiled, tokens_at_once: int) -> None:
        self._ov = ov
        self._tokens_at_once = tokens_at_once
        self._request = compiled.create_infer_request()
        self._outputs = [
            (output.partial_shape[1].get_length(), _DTYPES[output.element_type.to_string()])
            for output in compiled.outputs
        ]

    def __call__(self, inputs: Sequence[torch.Tensor], new_output: Callable = _new) -> list[torch.Tensor]:
        """Compute the outputs, (n_slots, n_columns), in memory that `new_output` gives."""
        n_slots = len(inputs[0])
        outputs = [
            new_output(part, (n_slots, width), dtype) for part, (width, dtype) in enumerate(self._outputs)
        ]
        for start in range(0, n_slots, self._tokens_at_once):
            rows = slice(start, start + self._tokens_at_once)
            for i, x in enumerate(inputs):
                self._request.set_input_tensor(i, self._shared(x[rows]))
            for i, y in enumerate(outputs):
                self._request.set_output_tensor(i, self._shared(y[rows]))
            self._request.infer()
        return outputs

    def _shared(self, x: torch.Tensor):
        if x.dtype == torch.bfloat16:  # which NumPy does not know
            return self._ov.Tensor(x.view(torch.int16).numpy(), x.shape, self._ov.Type.bf16)
        return self._ov.Tensor(x.numpy(), shared_memory=True)


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
