"""A BERT-shaped checkpoint on OpenVINO: float32, bfloat16 and int8 on CPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

import numpy as np
import torch

from .._shipped_texts import calibration_texts
from ..checkpoints import Checkpoint, EncodingSettings, tokenize
from ..checkpoints.token_batch import TokenBatch
from . import kernels
from .attention import attention
from .forward import gather_word_embeddings
from .interrupts import deferred_interrupts
from .modes import own_modes
from .openvino_graph import (
    AttentionNodes,
    build_graphs,
    join_graphs,
    ov,
    quantize_graph,
    quantized_folder,
    read_graphs,
    write_graphs,
)
from .packing import Pack, make_pack, plan_packs
from .pooling import pool
from .streaming import StreamingModel
from .varlen import can_use_varlen
from .weights import WORD

_BATCH_TOKENS = 1024
_MAX_WORKERS = 4  # each holds the layers' weights
_SMALLEST_SHARE = 64  # tokens that are worth a worker of their own
_CALIBRATION_TOKENS = 128
_CPU = torch.device("cpu")


class OpenVINOModel(StreamingModel):
    """Runs a BERT-shaped checkpoint on OpenVINO, several packs at a time.

    OpenVINO computes what a layer does token by token; attention is that of
    the torch backend. A pack has few threads, or one: more would wait for
    each other, as OpenVINO's and those of attention are not the same.

    Parameters
    ----------
    checkpoint : Checkpoint
    weights : mapping of str to Tensor
        Under the names of :func:`~skminilm.engine.weights.fused_weights`.
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
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.hidden_size = checkpoint.hidden_size
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._word_embeddings = weights[WORD]
        has_kernel = can_use_varlen(_CPU, self._dtype, checkpoint.config.head_size)
        self._max_padding = None if has_kernel else 0.0
        n_threads = torch.get_num_threads()  # joblib's workers limit torch's threads, not OpenVINO's
        self._n_workers = self.max_results_under_way = min(n_threads, _MAX_WORKERS)
        self._threads_each = n_threads // self._n_workers
        graphs = self._graphs(weights, precision, calibration)
        # In float32 a graph may take the threads of others: one text alone takes a third less time, and many the
        # same. In bfloat16 and int8 many take 3 to 15 % more, and one 10 to 20 % less.
        threads_of_graph = n_threads if precision == "fp32" else self._threads_each
        n_heads = checkpoint.config.num_attention_heads
        # Each worker has a graph of its own: shared ones take a quarter more time.
        self._idle: SimpleQueue[_Network] = SimpleQueue()
        for _ in range(self._n_workers):
            attend = _Attend(self._threads_each, n_heads)
            self._idle.put(_Network(graphs, self._dtype, threads_of_graph, attend))
        self._workers = ThreadPoolExecutor(self._n_workers, thread_name_prefix="openvino")
        self._compute_once()

    def _compute_once(self) -> None:
        """Compute a text on this thread: two workers that use NumPy through OpenVINO for the first time can lock up."""
        batch = tokenize(self.tokenizer, ["a"], None, self.checkpoint.defaults)
        self._compute(self._pack(batch, np.arange(1)), "mean", normalize=False)

    def _graphs(self, weights: Mapping[str, torch.Tensor], precision: str, calibration: Sequence[str] | None):
        config = self.checkpoint.config
        if precision != "int8":
            return build_graphs(weights, config, self._dtype)
        texts = list(calibration) if calibration is not None else calibration_texts()
        defaults = self.checkpoint.defaults
        settings = replace(defaults, max_length=min(_CALIBRATION_TOKENS, defaults.max_length))
        parts = settings.prompt, settings.max_length, tuple(texts)
        folder = quantized_folder(self.checkpoint.fingerprint, parts)
        graphs = read_graphs(folder, config.num_hidden_layers + 1)
        if graphs is None:
            graphs = self._quantized(build_graphs(weights, config, self._dtype), texts, settings)
            write_graphs(graphs, folder)
        return graphs

    @own_modes(inference=True)
    def _quantized(self, graphs: Sequence, texts: Sequence[str], settings: EncodingSettings) -> list:
        """Quantise each graph by what it gets where those before it compute in float32."""
        batch = tokenize(self.tokenizer, texts, None, settings)
        packs = [self._pack(batch, rows) for rows in plan_packs(batch.lengths, _BATCH_TOKENS)]
        inputs = [self._inputs(pack) for pack in packs]
        quantized = []
        for graph in graphs:
            samples = [[x.numpy() for x in some] for some in inputs]
            quantized.append(quantize_graph(graph, samples))
            if len(quantized) < len(graphs):
                compiled = _compiled(graph, self._dtype, torch.get_num_threads())
                inputs = [
                    self._next_inputs(compiled(sample).values(), pack)
                    for sample, pack in zip(samples, packs, strict=True)
                ]
        return quantized

    def _next_inputs(self, outputs: Iterable[np.ndarray], pack: Pack) -> list[torch.Tensor]:
        hidden, qkv = outputs
        attended = attention(torch.from_numpy(qkv), pack, self.checkpoint.config.num_attention_heads)
        return [attended, torch.from_numpy(hidden)]

    def plan(self, lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
        """Yield the rows of each pack, one at least for each worker. See :meth:`StreamingModel.plan`."""
        share = max(_SMALLEST_SHARE, math.ceil(lengths.sum() / self._n_workers))
        return plan_packs(lengths, min(max_tokens, share))

    def start(
        self, batch: TokenBatch, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        """Begin to compute a pack. See :meth:`StreamingModel.start`."""
        return self._workers.submit(self._compute, self._pack(batch, rows), pooling, normalize).result

    @own_modes(inference=True)
    def _compute(self, pack: Pack, pooling: str, normalize: bool) -> np.ndarray:
        network = self._idle.get()
        try:
            with kernels.on_threads(self._threads_each):
                hidden = network.hidden_states(self._inputs(pack), pack)
                return pool(hidden, pack, pooling, normalize).numpy()
        finally:
            self._idle.put(network)

    def _pack(self, batch: TokenBatch, rows: np.ndarray) -> Pack:
        return make_pack(batch, rows, _CPU, self._max_padding)

    def _inputs(self, pack: Pack) -> list[torch.Tensor]:
        """Return what the first graph takes."""
        return [gather_word_embeddings(self._word_embeddings, pack.input_ids), pack.position_ids]


class _Network:
    """The layers as one compiled graph, for one pack at a time."""

    def __init__(self, graphs: Sequence, dtype: torch.dtype, n_threads: int, attend: _Attend) -> None:
        self._attend = attend
        self._nodes = AttentionNodes()
        with deferred_interrupts():  # inside OpenVINO it would leak the graph, and come out as RuntimeError
            graph = join_graphs(graphs, attend, self._nodes)
            self._request = _compiled(graph, dtype, n_threads).create_infer_request()

    def hidden_states(self, inputs: Sequence[torch.Tensor], pack: Pack) -> torch.Tensor:
        """Return the last ones, float32 (n_slots, hidden_size), in memory that the next pack takes."""
        self._attend.pack = pack
        outputs = self._request.infer([x.numpy() for x in inputs], share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0])


class _Attend:
    """Attention inside the sequences of the pack that a graph computes at the time."""

    pack: Pack

    def __init__(self, n_threads: int, n_heads: int) -> None:
        self._n_threads = n_threads
        self._n_heads = n_heads

    @own_modes(inference=True)
    def __call__(self, qkv: torch.Tensor) -> torch.Tensor:
        with kernels.on_threads(self._n_threads):  # here, for this may be a thread of OpenVINO's
            return attention(qkv, self.pack, self._n_heads)


def _compiled(graph, dtype: torch.dtype, n_threads: int):
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": n_threads,
        "ENABLE_CPU_PINNING": False,  # other processes and packs need the same processors
    }
    return ov.Core().compile_model(graph, "CPU", options)
