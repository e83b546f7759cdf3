"""A BERT-shaped checkpoint, loaded on a device in one precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch

from ..checkpoints import Checkpoint
from ..checkpoints.token_batch import TokenBatch
from .forward import embed
from .hardware import is_out_of_memory
from .kernels.layers import state_dtype
from .layers import new_layers
from .modes import own_modes
from .packing import Pack, make_pack
from .pooling import pool
from .streaming import StreamingModel
from .varlen import can_use_varlen

# Measured: of 1,024, 2,048, 4,096 and 8,192 tokens the best on a CPU; in int16 of 512 to 4,096, which were level.
CPU_BATCH_TOKENS = {torch.float32: 2048, torch.bfloat16: 4096, torch.int16: 2048, torch.int8: 2048}
CUDA_BATCH_TOKENS = 65_536
# On a CPU equal lengths alone measured fastest; a GPU, where each call costs more than its
# arithmetic, gets fewer and larger ones.
MAX_PADDING = {"cpu": 0.0, "cuda": 0.25}
_MAX_SEQUENCES = 65_535  # of one call: what a GPU's grid of threads allows in its second dimension
Reduce = Callable[[torch.Tensor, Pack], torch.Tensor]
Result = TypeVar("Result")


class PackedModel(StreamingModel):
    """Runs a BERT-shaped checkpoint on packed sequences.

    Parameters
    ----------
    checkpoint : Checkpoint
    weights : iterable of (str, Tensor)
        See :func:`~skminilm.engine.weights.fused_weights`.
    device : torch.device
    dtype : torch.dtype
        Of the layers' weights. Embeddings are summed in float32.

    Attributes
    ----------
    dtype : torch.dtype
        Of the hidden states: that of the weights, but bfloat16 for int8, and float32 for int16.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Iterable[tuple[str, torch.Tensor]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.device = device
        self.weights_dtype = dtype
        self.dtype = state_dtype(dtype)
        self.hidden_size = checkpoint.hidden_size
        self.default_batch_tokens = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS[dtype]
        has_kernel = can_use_varlen(device, self.dtype, self.config.head_size)
        self._max_padding = None if has_kernel else MAX_PADDING[device.type]
        self._max_pack_tokens: int | None = None  # once a GPU's memory was too small for more
        self._layers = new_layers(self.config, device, dtype)
        self.weights: dict[str, torch.Tensor] = {}  # of the embeddings
        for name, tensor in weights:
            if name.startswith("layers."):
                self._layers.add(name, tensor)
            else:
                self.weights[name] = tensor.to(device)

    def make_pack(self, batch: TokenBatch, rows: np.ndarray) -> Pack:
        """Gather sequences, longest first, into a pack on this model's device."""
        return make_pack(batch, rows, self.device, self._max_padding)

    def hidden_states(self, pack: Pack, *, n_layers: int | None = None) -> torch.Tensor:
        """Return the hidden states of a pack after all layers or the first few, (n_slots, hidden_size)."""
        hidden = embed(self.weights, pack, self.config.layer_norm_eps, self.dtype)
        return self.run_layers(hidden, pack, stop_layer=n_layers)

    def run_layers(
        self, hidden: torch.Tensor, pack: Pack, *, first_layer: int = 0, stop_layer: int | None = None
    ) -> torch.Tensor:
        """Return what some of the layers make of hidden states, both (n_slots, hidden_size)."""
        stop = self.config.num_hidden_layers if stop_layer is None else stop_layer
        return self._layers.run(hidden, pack, range(first_layer, stop))

    def last_hidden_state(self, pack: Pack) -> torch.Tensor:
        """Return the hidden states of a pack after the last layer, (n_slots, hidden_size)."""
        return self.hidden_states(pack)

    def start(
        self, batch: TokenBatch, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        """Compute the vectors of a pack; see :meth:`StreamingModel.start`."""
        return self.start_reduced(batch, rows, lambda hidden, pack: pool(hidden, pack, pooling, normalize))

    def start_reduced(self, batch: TokenBatch, rows: np.ndarray, reduce: Reduce) -> Callable[[], np.ndarray]:
        """Begin to compute what `reduce` makes of the hidden states of the sequences `rows`.

        A GPU computes on while the next pack is prepared.

        Parameters
        ----------
        batch : TokenBatch
        rows : ndarray of int64
            Longest first.
        reduce : callable
            Takes the last hidden states (n_slots, hidden_size) and the Pack;
            returns a Tensor with one row a sequence.

        Returns
        -------
        callable
            Waits for the result and returns it as an ndarray.
        """

        def start_part(part: np.ndarray) -> Callable[[], np.ndarray]:
            with own_modes(inference=True):
                pack = self.make_pack(batch, part)
                return _copy_to_host(reduce(self.last_hidden_state(pack), pack))

        started = self.in_parts_that_fit(batch, rows, start_part)
        return started[0] if len(started) == 1 else lambda: np.concatenate([result() for result in started])

    def in_parts_that_fit(
        self, batch: TokenBatch, rows: np.ndarray, compute: Callable[[np.ndarray], Result]
    ) -> list[Result]:
        """Return what `compute` returns of the sequences `rows`, all at once where they fit in the memory.

        Those that do not fit in a GPU's memory are halved, and later ones
        keep to that size.

        Parameters
        ----------
        batch : TokenBatch
        rows : ndarray of int64
        compute : callable
            Takes some of `rows`.

        Returns
        -------
        list
            Of the parts, in the order of `rows`.

        Raises
        ------
        MemoryError
            One sequence alone does not fit.
        """
        n_tokens = int(batch.lengths[rows].sum())
        fits = not self._max_pack_tokens or n_tokens <= self._max_pack_tokens
        if len(rows) == 1 or (fits and len(rows) <= _MAX_SEQUENCES):
            try:
                return [compute(rows)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise MemoryError(
                        f"One text of {n_tokens} tokens does not fit in the memory of {self.device}. Free "
                        "memory there, or use precision='bf16', a lower max_length or device='cpu'."
                    ) from error
            # Outside of the handler, which holds on to the tensors of the failed attempt.
            torch.cuda.empty_cache()
            self._max_pack_tokens = n_tokens // 2
        middle = (len(rows) + 1) // 2
        halves = (rows[:middle], rows[middle:])
        return [result for half in halves for result in self.in_parts_that_fit(batch, half, compute)]


def _copy_to_host(vectors: torch.Tensor) -> Callable[[], np.ndarray]:
    """Return a function that waits for vectors and returns them."""
    if vectors.device.type == "cpu":
        return vectors.numpy
    host = torch.empty(vectors.shape, dtype=vectors.dtype, device="cpu", pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(vectors.device))

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait
