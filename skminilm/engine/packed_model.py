"""A BERT-shaped checkpoint, loaded on a device in one precision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..checkpoints import BertConfig, Checkpoint
from ..checkpoints._checkpoint import WORD_EMBEDDINGS
from ..checkpoints.q4 import dequantize_q4
from ..checkpoints.tokenizer import TokenBatch
from ._names import layer_prefix
from .forward import embed, encoder_layer
from .linear import fast_linear, plain_linear
from .packing import Pack, make_pack
from .pooling import pool, unit_length
from .streaming import StreamingModel

# Measured: of 1,024, 2,048, 4,096 and 8,192 tokens the best on a CPU.
CPU_BATCH_TOKENS = {torch.float32: 2048, torch.bfloat16: 4096}
CUDA_BATCH_TOKENS = 65_536
# On a CPU equal lengths alone measured fastest; a GPU, where each call costs more than its
# arithmetic, gets fewer and larger ones.
_MAX_WASTE = {"cpu": 0.0, "cuda": 0.25}
_MAX_WASTE_TRAINING = 0.25

WORD, WORD_ROWS = "embeddings.word", "embeddings.word.rows"
_LAYER_PARTS = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def fuse_weights(
    weights: Mapping[str, torch.Tensor], config: BertConfig, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Rename the weights of transformers' ``BertModel`` and join what is used together.

    Queries, keys and values become one matrix; the type embedding, which is
    type 0 for every token, is added to the positions. The layers' weights are
    returned in `dtype`.
    """
    fused = {
        WORD: weights[WORD_EMBEDDINGS],
        "embeddings.position": weights["embeddings.position_embeddings.weight"].float()
        + weights["embeddings.token_type_embeddings.weight"][0].float(),
        "embeddings.norm.weight": weights["embeddings.LayerNorm.weight"].float(),
        "embeddings.norm.bias": weights["embeddings.LayerNorm.bias"].float(),
    }
    for layer in range(config.num_hidden_layers):
        old, new = f"encoder.layer.{layer}.", layer_prefix(layer)
        for kind in ("weight", "bias"):
            parts = [weights[f"{old}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            fused[f"{new}qkv.{kind}"] = torch.cat(parts).to(dtype)
            for part, old_part in _LAYER_PARTS.items():
                fused[f"{new}{part}.{kind}"] = weights[f"{old}{old_part}.{kind}"].to(dtype)
    return fused


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


def with_tuned(weights: Mapping[str, torch.Tensor], tuned: TunedWeights) -> dict[str, torch.Tensor]:
    """Return `weights` with those that fine-tuning changed in their place."""
    # Copies: the arrays may be read-only memory maps.
    replaced = {name: torch.from_numpy(np.array(array)) for name, array in tuned.arrays.items()}
    if WORD in replaced:
        rows, values = replaced.pop(WORD_ROWS), replaced.pop(WORD)
        table = dense_rows(weights[WORD], slice(None))
        table[rows] = values
        replaced[WORD] = table
    return {**weights, **replaced}


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
    weights : mapping of str to Tensor
        Under the names of :func:`fuse_weights`.
    device : torch.device
    dtype : torch.dtype
        Of the layers. Embeddings are summed in float32.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.device = device
        self.dtype = dtype
        self.hidden_size = checkpoint.hidden_size
        self.default_batch_tokens = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS[dtype]
        self._max_pack_tokens: int | None = None  # once a GPU's memory was too small for more
        self.weights = {
            name: tensor.to(device, dtype if name.startswith("layers.") else None)
            for name, tensor in weights.items()
        }

        self._linear = plain_linear(self.weights)

    def prepack(self) -> PackedModel:
        """Turn this model into one for inference alone, with its matrices as products like them.

        Where torch can lay matrices out for its products, only that copy of
        them is kept.
        """
        self._linear, used_up = fast_linear(self.weights)
        self.weights = {name: tensor for name, tensor in self.weights.items() if name not in used_up}
        return self

    def make_training_pack(self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray) -> Pack:
        """Gather the texts of a training step into a pack; its rows are sorted, longest first."""
        rows = rows[np.argsort(-batch.lengths[rows], kind="stable")]
        return make_pack(batch.input_ids, offsets, rows, self.device, _MAX_WASTE_TRAINING)

    def hidden_states(
        self,
        pack: Pack,
        weights: Mapping[str, torch.Tensor] | None = None,
        *,
        frozen_layers: int = 0,
        frozen_embeddings: bool = True,
    ) -> torch.Tensor:
        """Return the last hidden states of a pack, (n_slots, hidden_size).

        Of this model, or of one with other weights under the same names. No
        gradients are kept for the embeddings and the lowest layers where they
        are frozen.
        """
        linear = self._linear if weights is None else plain_linear(weights)
        weights = self.weights if weights is None else weights
        epsilon, n_heads = self.config.layer_norm_eps, self.config.num_attention_heads
        dtype = weights[layer_prefix(0) + "attention_norm.weight"].dtype
        keep_gradients = torch.is_grad_enabled()
        with torch.set_grad_enabled(keep_gradients and not frozen_embeddings):
            hidden = embed(weights, pack, epsilon, dtype)
        for layer in range(self.config.num_hidden_layers):
            with torch.set_grad_enabled(keep_gradients and layer >= frozen_layers):
                prefix = layer_prefix(layer)
                hidden = encoder_layer(hidden, weights, prefix, pack.groups, n_heads, epsilon, linear)
        return hidden

    def start(
        self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        """Compute a pack; see :meth:`StreamingModel.start`.

        A GPU computes on while the next pack is prepared. A pack that does not
        fit in its memory is halved, and later ones keep to that size.
        """
        n_tokens = int(offsets[rows + 1].sum() - offsets[rows].sum())
        if len(rows) > 1 and self._max_pack_tokens and n_tokens > self._max_pack_tokens:
            return self._start_halves(batch, offsets, rows, pooling, normalize)
        try:
            with torch.inference_mode():
                pack = make_pack(batch.input_ids, offsets, rows, self.device, _MAX_WASTE[self.device.type])
                pooled = pool(self.hidden_states(pack), pack, pooling)
                return _bring_home(unit_length(pooled) if normalize else pooled)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise MemoryError(
                    f"One text of {n_tokens} tokens does not fit in the memory of {self.device}. Free "
                    "memory there, or use precision='bf16', a lower max_length or device='cpu'."
                ) from error
        # Outside of the handler, which holds on to the tensors of the failed attempt.
        torch.cuda.empty_cache()
        self._max_pack_tokens = n_tokens // 2
        return self._start_halves(batch, offsets, rows, pooling, normalize)

    def _start_halves(
        self, batch: TokenBatch, offsets: np.ndarray, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        middle = (len(rows) + 1) // 2
        halves = [
            self.start(batch, offsets, part, pooling, normalize) for part in (rows[:middle], rows[middle:])
        ]
        return lambda: np.concatenate([half() for half in halves])


def _bring_home(vectors: torch.Tensor) -> Callable[[], np.ndarray]:
    """Return a function that waits for vectors and returns them."""
    if vectors.device.type == "cpu":
        return vectors.numpy
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(vectors.device))

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait
