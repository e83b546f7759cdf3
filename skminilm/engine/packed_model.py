"""A BERT-shaped checkpoint, loaded on a device in one precision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ..checkpoints import BertConfig, Checkpoint
from ..checkpoints._checkpoint import WORD_EMBEDDINGS
from ..checkpoints.q4 import BLOCK, dequantize_q4
from ..checkpoints.token_batch import TokenBatch
from ._names import LAYER_PARTS, layer_prefix
from .forward import embed
from .kernels.layers import state_dtype
from .layers import new_layers
from .modes import own_modes
from .packing import Pack, make_pack
from .pooling import pool, unit_length
from .streaming import StreamingModel
from .varlen import can_use_varlen

# Measured: of 1,024, 2,048, 4,096 and 8,192 tokens the best on a CPU; in int16 of 512 to 4,096, which were level.
CPU_BATCH_TOKENS = {torch.float32: 2048, torch.bfloat16: 4096, torch.int16: 2048, torch.int8: 2048}
CUDA_BATCH_TOKENS = 65_536
# On a CPU equal lengths alone measured fastest; a GPU, where each call costs more than its
# arithmetic, gets fewer and larger ones.
MAX_WASTE = {"cpu": 0.0, "cuda": 0.25}

# Low-rank adapters: weight + LORA_SCALE * lora_B @ lora_A.
LORA_RANK = 8
LORA_SCALE = 2.0
WORD, WORD_ROWS = "embeddings.word", "embeddings.word.rows"
Reduce = Callable[[torch.Tensor, Pack], torch.Tensor]
Result = TypeVar("Result")


def fused_weights(
    weights: Mapping[str, torch.Tensor], config: BertConfig, first_layer: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    """Rename the weights of transformers' ``BertModel`` and join what is used together.

    Queries, keys and values become one matrix; the type embedding, which is
    type 0 for every token, is added to the positions. All but the word
    embeddings are in float32. One by one, so that no more than one is held
    twice where `weights` reads each when it is asked for. Layers below
    `first_layer`, and with them the embeddings, are not read.

    Raises
    ------
    KeyError
        A weight is missing.
    ValueError
        A weight has another shape than `config` says.
    """
    size, wide = config.hidden_size, config.intermediate_size
    if first_layer == 0:
        yield from _fused_embeddings(weights, config)
    shapes = {"intermediate": (wide, size), "output": (size, wide)}
    for layer in range(first_layer, config.num_hidden_layers):
        old, new = f"encoder.layer.{layer}.", layer_prefix(layer)
        for kind in ("weight", "bias"):
            for part, old_parts in LAYER_PARTS.items():
                shape = shapes.get(part, (size, size))
                if kind == "bias" or part.endswith("norm"):
                    shape = shape[:1]
                tensors = [_checked(weights, f"{old}{old_part}.{kind}", shape) for old_part in old_parts]
                joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
                yield f"{new}{part}.{kind}", joined.float()


def _fused_embeddings(
    weights: Mapping[str, torch.Tensor], config: BertConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    size = config.hidden_size
    table = weights[WORD_EMBEDDINGS]
    width = table.shape[1] * BLOCK if table.dtype == torch.uint8 else table.shape[1]
    if (len(table), width) != (config.vocab_size, size):
        raise ValueError(
            f"{WORD_EMBEDDINGS} has the shape {(len(table), width)}, and the configuration says "
            f"{(config.vocab_size, size)}"
        )
    yield WORD, table
    positions = (config.max_position_embeddings, size)
    position = _checked(weights, "embeddings.position_embeddings.weight", positions).float()
    types = _checked(weights, "embeddings.token_type_embeddings.weight", (config.type_vocab_size, size))
    yield "embeddings.position", position + types[0].float()
    yield "embeddings.norm.weight", _checked(weights, "embeddings.LayerNorm.weight", (size,)).float()
    yield "embeddings.norm.bias", _checked(weights, "embeddings.LayerNorm.bias", (size,)).float()


def _checked(weights: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = weights[name]
    if tensor.shape != shape:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, and the configuration says {shape}")
    return tensor


def dense_rows(table: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    """Return a copy of rows of an embedding table in float32, dequantised where it is in 4 bits."""
    selected = table[rows]
    return dequantize_q4(selected) if table.dtype == torch.uint8 else selected.float().clone()


@dataclass(frozen=True)
class TunedWeights:
    """What fine-tuning changed in an encoder.

    Attributes
    ----------
    arrays : mapping of str to ndarray
        Weights by name, and for the embedding table the changed rows
        (:data:`WORD`) and their numbers (:data:`WORD_ROWS`).
    digest : str
        sha256 of the arrays, see :func:`weights_digest`.
    """

    arrays: Mapping[str, np.ndarray]
    digest: str

    @property
    def has_adapters(self) -> bool:
        """Whether these are low-rank adapters, to be added to the weights."""
        return any(name.endswith(".lora_A") for name in self.arrays)

    @property
    def n_frozen_layers(self) -> int:
        """How many of the lowest layers are as in the checkpoint, if the embeddings are."""
        layers = [int(name.split(".")[1]) for name in self.arrays if name.startswith("layers.")]
        return min(layers) if len(layers) == len(self.arrays) else 0


def replaced_weights(
    weights: Iterable[tuple[str, torch.Tensor]], tuned: TunedWeights
) -> Iterator[tuple[str, torch.Tensor]]:
    """Put what fine-tuning changed in its place among named weights."""
    for name, tensor in weights:
        down = tuned.arrays.get(f"{name}.lora_A")
        if down is not None:
            delta = _tensor(tuned.arrays[f"{name}.lora_B"]) @ _tensor(down)
            yield name, tensor + LORA_SCALE * delta
            continue
        if name not in tuned.arrays:
            yield name, tensor
            continue
        values = _tensor(tuned.arrays[name])
        if name == WORD:
            table = dense_rows(tensor, slice(None))
            table[torch.from_numpy(np.array(tuned.arrays[WORD_ROWS]))] = values
            values = table
        yield name, values


def _tensor(array: np.ndarray) -> torch.Tensor:
    # A copy: the array may be a read-only memory map.
    return torch.from_numpy(np.array(array, dtype=np.float32))


def merge_weights(
    earlier: Mapping[str, np.ndarray], later: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return what two fits in a row changed: the later weights, and rows of the embedding table of both."""
    merged = {**earlier, **later}
    if WORD_ROWS in earlier and WORD_ROWS in later:
        only_earlier = ~np.isin(earlier[WORD_ROWS], later[WORD_ROWS])
        rows = np.concatenate([earlier[WORD_ROWS][only_earlier], later[WORD_ROWS]])
        values = np.concatenate([earlier[WORD][only_earlier], later[WORD]])
        order = np.argsort(rows)
        merged[WORD_ROWS], merged[WORD] = rows[order], values[order]
    return merged


def weights_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the hexadecimal sha256 of named arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


class PackedModel(StreamingModel):
    """Runs a BERT-shaped checkpoint on packed sequences.

    Parameters
    ----------
    checkpoint : Checkpoint
    weights : iterable of (str, Tensor)
        See :func:`fused_weights`.
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
        self._max_waste = None if has_kernel else MAX_WASTE[device.type]
        self._max_pack_tokens: int | None = None  # once a GPU's memory was too small for more
        self._layers = new_layers(self.config, device, dtype)
        self.weights: dict[str, torch.Tensor] = {}  # of the embeddings
        for name, tensor in weights:
            if name.startswith("layers."):
                self._layers.add(name, tensor)
            else:
                self.weights[name] = tensor.to(device)

    def make_pack(self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray) -> Pack:
        """Gather texts, sorted longest first, into a pack on this model's device."""
        return make_pack(batch, offsets, rows, self.device, self._max_waste)

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

    def last_hidden_state(self, pack: Pack, batch: TokenBatch, offsets: np.ndarray) -> torch.Tensor:
        """Return the hidden states after the last layer; `batch` and `offsets` are what `pack` is made of."""
        return self.hidden_states(pack)

    def start(
        self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        """Compute the vectors of a pack; see :meth:`StreamingModel.start`."""

        def pooled(hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
            vectors = pool(hidden, pack, pooling)
            return unit_length(vectors) if normalize else vectors

        return self.start_reduced(batch, offsets, rows, pooled)

    def start_reduced(
        self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray, reduce: Reduce
    ) -> Callable[[], np.ndarray]:
        """Begin to compute what `reduce` makes of the hidden states of the sequences `rows`.

        A GPU computes on while the next pack is prepared.

        Parameters
        ----------
        batch : TokenBatch
        offsets : ndarray of int64
            Those of `batch`.
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
                pack = self.make_pack(batch, offsets, part)
                return _bring_home(reduce(self.last_hidden_state(pack, batch, offsets), pack))

        started = self.in_parts_that_fit(offsets, rows, start_part)
        return started[0] if len(started) == 1 else lambda: np.concatenate([result() for result in started])

    def in_parts_that_fit(
        self, offsets: np.ndarray, rows: np.ndarray, compute: Callable[[np.ndarray], Result]
    ) -> list[Result]:
        """Return what `compute` returns of the sequences `rows`, all at once where they fit in the memory.

        Those that do not fit in a GPU's memory are halved, and later ones
        keep to that size.

        Parameters
        ----------
        offsets : ndarray of int64
            Those of the batch.
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
        n_tokens = int(offsets[rows + 1].sum() - offsets[rows].sum())
        if len(rows) == 1 or not self._max_pack_tokens or n_tokens <= self._max_pack_tokens:
            try:
                return [compute(rows)]
            except torch.OutOfMemoryError as error:
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
        return [result for half in halves for result in self.in_parts_that_fit(offsets, half, compute)]


def _bring_home(vectors: torch.Tensor) -> Callable[[], np.ndarray]:
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
