"""BERT's forward pass over packed sequences, with or without gradients.

Post-norm transformer encoder (Devlin et al., 2018, arXiv:1810.04805) on one
matrix of tokens (n_tokens, hidden_size): no padding outside attention.
Inference and fine-tuning run the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from ..checkpoints import BertConfig
from ..checkpoints.q4 import dequantize_q4
from . import kernels
from .attention import attention
from .linear import Linear
from .packing import Pack
from .weights import layer_prefix

Weights = Mapping[str, torch.Tensor]


def gather_word_embeddings(table: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Return rows of the embedding table, float32 (n_tokens, hidden_size).

    A table in 4 bits (uint8 blocks) is dequantised row by row.
    """
    if table.dtype != torch.uint8:
        return F.embedding(input_ids, table).float()
    if input_ids.device.type == "cpu" and kernels.has_gather_q4():
        return kernels.gather_q4(table, input_ids)
    return dequantize_q4(table[input_ids])


def embed(weights: Weights, pack: Pack, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
    """Sum of word, position and type embeddings, normalised: (n_tokens, hidden_size)."""
    word = gather_word_embeddings(weights["embeddings.word"], pack.input_ids)
    hidden = word + F.embedding(pack.position_ids, weights["embeddings.position"])
    norm_weight, norm_bias = weights["embeddings.norm.weight"], weights["embeddings.norm.bias"]
    return F.layer_norm(hidden, hidden.shape[-1:], norm_weight, norm_bias, epsilon).to(dtype)


def encoder_layer(
    hidden: torch.Tensor, weights: Weights, layer: int, pack: Pack, config: BertConfig, linear: Linear
) -> torch.Tensor:
    """One transformer layer: attention inside each sequence, then feed-forward."""
    prefix = layer_prefix(layer)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, config.layer_norm_eps)

    attended = attention(linear(hidden, prefix + "qkv"), pack, config.num_attention_heads)
    hidden = norm(linear(attended, prefix + "attention_output", residual=hidden), "attention_norm")
    return norm(linear.feed_forward(hidden, prefix), "output_norm")
