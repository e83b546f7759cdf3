"""BERT's forward pass over packed sequences, with or without gradients.

Post-norm transformer encoder (Devlin et al., 2018, arXiv:1810.04805) on one
matrix of tokens (n_tokens, hidden_size): no padding outside attention.
Inference and fine-tuning run the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from ..checkpoints import BertConfig
from ..checkpoints.q4 import dequantize_q4
from ._names import layer_prefix
from .linear import Linear
from .packing import Pack
from .varlen import varlen_attention

_MAX_PLAIN_LENGTH = 256
# torch's fused attention computes what is left after whole vectors of keys number by number: on short
# sequences a few hidden keys more take half the time.
_VECTOR_LENGTH = 16
_MAX_FILLED_LENGTH = 384
_FEW_TOKENS = 64
Weights = Mapping[str, torch.Tensor]


def gather_word_embeddings(table: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Return rows of the embedding table, float32 (n_tokens, hidden_size).

    A table in 4 bits (uint8 blocks) is dequantised row by row, each row once.
    """
    if table.dtype != torch.uint8:
        return F.embedding(input_ids, table).float()
    if len(input_ids) <= _FEW_TOKENS:  # finding those that repeat takes longer
        return dequantize_q4(table[input_ids])
    unique, inverse = torch.unique(input_ids, return_inverse=True)
    return dequantize_q4(table[unique])[inverse]


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


def attention(qkv: torch.Tensor, pack: Pack, n_heads: int) -> torch.Tensor:
    """Scaled dot-product attention of every sequence to itself.

    Parameters
    ----------
    qkv : Tensor, shape (n_tokens, 3 * hidden_size)
        Queries, keys and values side by side.
    pack : Pack
    n_heads : int

    Returns
    -------
    Tensor, shape (n_tokens, hidden_size)
    """
    if pack.groups is None:
        return varlen_attention(qkv, pack.cu_seqlens, pack.max_length, n_heads)
    groups, hidden_size = pack.groups, qkv.shape[1] // 3
    outputs = []
    # split and unbind, not indexing: their backward passes fill no zeros. (Tensor.split takes 10 us more.)
    parts = qkv.split_with_sizes([group.stop - group.start for group in groups])
    for group, tokens in zip(groups, parts, strict=True):
        if group.max_length == 0:
            outputs.append(tokens.new_zeros(len(tokens), hidden_size))
            continue
        shape = (group.n_sequences, group.max_length)
        mask = None
        if group.slots is not None:
            padded = tokens.new_zeros(math.prod(shape), 3 * hidden_size)
            tokens = padded.index_copy(0, group.slots, tokens)
            mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=qkv.device)
            mask = mask.index_fill(0, group.slots, True).view(shape)[:, None, None, :]
        heads = tokens.view(*shape, 3, n_heads, hidden_size // n_heads).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        attended = _attend(query, key, value, mask)
        attended = attended.transpose(1, 2).reshape(-1, hidden_size)
        outputs.append(attended if group.slots is None else attended[group.slots])
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Softmax(q k' / sqrt(d)) v, each of shape (n_sequences, n_heads, length, head_size)."""
    shape = query.shape
    length, head_size = shape[-2:]
    # On a CPU the backward pass of torch's fused kernel takes ten times as long as its forward
    # pass; plain matrix products do not, at the price of keeping length x length probabilities.
    # In inference they lose: each shape that oneDNN meets for the first time costs more than it saves.
    by_products = query.device.type == "cpu" and torch.is_grad_enabled() and length <= _MAX_PLAIN_LENGTH
    if not by_products:
        fill = -length % _VECTOR_LENGTH
        if query.device.type == "cpu" and 0 < fill <= _VECTOR_LENGTH // 2 and length < _MAX_FILLED_LENGTH:
            key, value = (F.pad(x, (0, 0, 0, fill)) for x in (key, value))
            present = torch.ones(1, 1, 1, length, dtype=torch.bool) if mask is None else mask
            mask = F.pad(present, (0, fill), value=False)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    query, key, value = (x.reshape(-1, length, head_size) for x in (query, key, value))
    return _AttentionByProducts.apply(query, key, value, mask).view(-1, shape[1], length, head_size)


class _AttentionByProducts(torch.autograd.Function):
    """Attention as matrix products, one batch dimension for sequences and heads.

    Of what the backward pass needs, the probabilities are kept in the
    precision of the computation, and nothing in float32.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask):
        scale = 1 / math.sqrt(query.shape[-1])
        scores = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scale)
        if mask is not None:
            n_heads = len(scores) // len(mask)
            scores.unflatten(0, (-1, n_heads)).masked_fill_(~mask, -math.inf)
        # In float32: torch's softmax over few bfloat16 numbers is three times slower than with both casts.
        probabilities = scores.float().softmax(dim=-1).to(scores.dtype)
        attended = torch.bmm(probabilities, value)
        ctx.save_for_backward(query, key, value, probabilities, attended)
        return attended

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, probabilities, attended = ctx.saved_tensors
        scale = 1 / math.sqrt(query.shape[-1])
        of_value = torch.bmm(probabilities.transpose(1, 2), gradient)
        of_scores = torch.bmm(gradient, value.transpose(1, 2)).float()
        # The sum over a row of probabilities times their gradients is that of outputs times theirs
        # (Dao et al., 2022, arXiv:2205.14135, appendix B.2).
        inner = torch.linalg.vecdot(gradient.float(), attended.float()).unsqueeze(-1)
        of_scores = of_scores.sub_(inner).mul_(probabilities).to(query.dtype)
        empty = query.new_empty(1)
        of_query = torch.baddbmm(empty, of_scores, key, beta=0, alpha=scale)
        of_key = torch.baddbmm(empty, of_scores.transpose(1, 2), query, beta=0, alpha=scale)
        return of_query, of_key, of_value, None
