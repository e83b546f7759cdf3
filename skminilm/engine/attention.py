"""Scaled dot-product attention inside each sequence of a pack, with or without gradients."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .packing import AttentionGroup, Pack
from .varlen import varlen_attention

# torch's fused attention computes what is left after whole vectors of keys number by number: on short
# sequences a few hidden keys more take half the time.
_VECTOR_LENGTH = 16
_MAX_FILLED_LENGTH = 384
_MAX_PLAIN_LENGTH = 256


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
    # On a CPU the backward pass of torch's fused kernel takes ten times as long as its forward
    # pass; plain matrix products do not, at the price of keeping length x length probabilities.
    # In inference they lose: each shape that oneDNN meets for the first time costs more than it saves.
    if qkv.requires_grad and qkv.device.type == "cpu" and pack.max_length <= _MAX_PLAIN_LENGTH:
        return _AttentionByProducts.apply(qkv, pack.groups, n_heads)
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
            mask = group.is_token[:, None, None, :]
        heads = tokens.view(*shape, 3, n_heads, hidden_size // n_heads).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        attended = _fused(query, key, value, mask)
        attended = attended.transpose(1, 2).reshape(-1, hidden_size)
        outputs.append(attended if group.slots is None else attended[group.slots])
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Softmax(q k' / sqrt(d)) v, each of shape (n_sequences, n_heads, length, head_size)."""
    length = query.shape[-2]
    fill = -length % _VECTOR_LENGTH
    if query.device.type == "cpu" and 0 < fill <= _VECTOR_LENGTH // 2 and length < _MAX_FILLED_LENGTH:
        key, value = (F.pad(x, (0, 0, 0, fill)) for x in (key, value))
        present = torch.ones(1, 1, 1, length, dtype=torch.bool) if mask is None else mask
        mask = F.pad(present, (0, fill), value=False)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class _AttentionByProducts(torch.autograd.Function):
    """The same as matrix products over sequences and heads, in float32.

    One function for all groups of a pack: its operations are few, as each of
    them is small. Products this small are not faster in bfloat16, and softmax
    is three times slower.
    """

    @staticmethod
    def forward(ctx, qkv, groups, n_heads):
        hidden_size = qkv.shape[1] // 3
        head_size = hidden_size // n_heads
        scale = 1 / math.sqrt(head_size)
        attended = qkv.new_empty(len(qkv), hidden_size)
        kept = []
        for group in groups:
            own = attended[group.start : group.stop]
            if group.max_length == 0:
                own.zero_()
                continue
            shape = (group.n_sequences, group.max_length)
            tokens = _spread(qkv, group).view(*shape, 3, n_heads, head_size)
            heads = _as_float32(tokens.permute(2, 0, 3, 1, 4)).view(3, -1, shape[1], head_size)
            query, key, value = heads.unbind(0)
            scores = torch.baddbmm(heads.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scale)
            if group.slots is not None:
                scores.view(shape[0], n_heads, shape[1], shape[1]).add_(group.key_bias[:, None, None, :])
            probabilities = scores.softmax(dim=-1)
            by_head = torch.bmm(probabilities, value).view(shape[0], n_heads, shape[1], head_size)
            _gather(by_head.transpose(1, 2), group, own)
            kept += [heads, probabilities]
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.n_heads = groups, n_heads
        return attended

    @staticmethod
    def backward(ctx, gradient):
        n_tokens, hidden_size = gradient.shape
        head_size = hidden_size // ctx.n_heads
        scale = 1 / math.sqrt(head_size)
        of_qkv = gradient.new_empty(n_tokens, 3 * hidden_size)
        kept = iter(ctx.saved_tensors)
        for group in ctx.groups:
            own = of_qkv[group.start : group.stop]
            if group.max_length == 0:
                own.zero_()
                continue
            heads, probabilities = next(kept), next(kept)
            query, key, value = heads.unbind(0)
            shape = (group.n_sequences, group.max_length)
            tokens = _spread(gradient, group, zeros=True).view(*shape, ctx.n_heads, head_size)
            of_attended = _as_float32(tokens.transpose(1, 2)).view(-1, shape[1], head_size)
            of_heads = torch.empty_like(heads)
            of_query, of_key, of_value = of_heads.unbind(0)
            torch.bmm(probabilities.transpose(1, 2), of_attended, out=of_value)
            of_probabilities = torch.bmm(of_attended, value.transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, torch.float32)
            torch.baddbmm(of_query, of_scores, key, beta=0, alpha=scale, out=of_query)
            torch.baddbmm(of_key, of_scores.transpose(1, 2), query, beta=0, alpha=scale, out=of_key)
            _gather(
                of_heads.view(3, shape[0], ctx.n_heads, shape[1], head_size).permute(1, 3, 0, 2, 4),
                group,
                own,
            )
        return of_qkv, None, None


def _spread(tokens: torch.Tensor, group: AttentionGroup, *, zeros: bool = False) -> torch.Tensor:
    """Return the tokens of a group laid out in its shape, (n_sequences * max_length, n_columns).

    What is no token is 0 where that is asked for, and else any token.
    """
    if group.slots is None:
        return tokens[group.start : group.stop]
    if not zeros:
        return tokens.index_select(0, group.sources)
    padded = tokens.new_zeros(group.n_sequences * group.max_length, tokens.shape[1])
    return padded.index_copy_(0, group.slots, tokens[group.start : group.stop])


def _gather(padded: torch.Tensor, group: AttentionGroup, out: torch.Tensor) -> None:
    """Write to `out` the tokens of a group that are laid out in its shape, (n_sequences, max_length, ...)."""
    if group.slots is None:
        out.view(padded.shape).copy_(padded)
        return
    rows = torch.empty(padded.shape, dtype=out.dtype, device=out.device).copy_(padded)
    torch.index_select(rows.view(-1, out.shape[1]), 0, group.slots, out=out)


def _as_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32, memory_format=torch.contiguous_format).contiguous()  # `to` alone may return x
