"""Scaled dot-product attention inside each sequence of a pack, with or without gradients."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .packing import AttentionGroup, Pack
from .varlen import varlen_attention

# torch's fused attention takes the keys after the last whole vector one by one: with a few masked keys more, short
# sequences take half the time.
_VECTOR_LENGTH = 16
_MAX_FILLED_LENGTH = 384
_MAX_PLAIN_LENGTH = 192


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
    by_fused_kernel, by_products = pack.groups, []
    if qkv.requires_grad and qkv.device.type == "cpu":
        # The backward pass of torch's fused kernel takes ten times as long as its forward pass; plain
        # products do not, at the price of keeping length x length probabilities.
        n_long = sum(group.max_length > _MAX_PLAIN_LENGTH for group in pack.groups)
        by_fused_kernel, by_products = pack.groups[:n_long], pack.groups[n_long:]  # longest first
    sizes = [group.stop - group.start for group in by_fused_kernel]
    # split, not indexing: its backward pass fills no zeros. (Tensor.split takes 10 us more.)
    *parts, rest = qkv.split_with_sizes([*sizes, len(qkv) - sum(sizes)])
    outputs = [
        _attention_of_group(tokens, group, n_heads)
        for tokens, group in zip(parts, by_fused_kernel, strict=True)
    ]
    if by_products:
        outputs.append(_AttentionByProducts.apply(rest, by_products, n_heads))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _attention_of_group(tokens: torch.Tensor, group: AttentionGroup, n_heads: int) -> torch.Tensor:
    hidden_size = tokens.shape[1] // 3
    if group.max_length == 0:
        return tokens.new_zeros(len(tokens), hidden_size)
    shape = (group.n_sequences, group.max_length)
    mask = None
    if group.slots is not None:
        tokens = tokens.index_select(0, group.sources)
        mask = group.is_token[:, None, None, :]
    heads = tokens.view(*shape, 3, n_heads, hidden_size // n_heads).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind(0)
    attended = _fused_kernel(query, key, value, mask)
    attended = attended.transpose(1, 2).reshape(-1, hidden_size)
    return attended if group.slots is None else attended[group.slots]


def _fused_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Softmax(q k' / sqrt(d)) v, each of shape (n_sequences, n_heads, length, head_size)."""
    length = query.shape[-2]
    fill = -length % _VECTOR_LENGTH
    if query.device.type == "cpu" and 0 < fill <= _VECTOR_LENGTH // 2 and length < _MAX_FILLED_LENGTH:
        key, value = (F.pad(x, (0, 0, 0, fill)) for x in (key, value))
        present = torch.ones(1, 1, 1, length, dtype=torch.bool, device=query.device) if mask is None else mask
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
        sizes = [group.stop - group.start for group in groups]
        attended = qkv.new_empty(len(qkv), hidden_size)
        kept = []
        for group, tokens, own in zip(groups, qkv.split(sizes), attended.split(sizes), strict=True):
            if group.max_length == 0:
                own.zero_()
                continue
            shape = (group.n_sequences, group.max_length)
            if group.slots is not None:
                tokens = tokens.index_select(0, group.sources)
            tokens = tokens.view(*shape, 3, n_heads, head_size)
            heads = _copy(tokens.permute(2, 0, 3, 1, 4), torch.float32).view(3, -1, shape[1], head_size)
            query, key, value = heads.unbind(0)
            scores = torch.baddbmm(heads.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scale)
            if group.slots is not None:
                scores.view(shape[0], n_heads, shape[1], shape[1]).add_(group.key_bias[:, None, None, :])
            probabilities = scores.softmax(dim=-1)
            by_head = torch.bmm(probabilities, value).view(shape[0], n_heads, shape[1], head_size)
            _gather(by_head.transpose(1, 2), group, own)
            kept += [heads, probabilities]
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.sizes, ctx.n_heads = groups, sizes, n_heads
        return attended

    @staticmethod
    def backward(ctx, gradient):
        n_tokens, hidden_size = gradient.shape
        head_size = hidden_size // ctx.n_heads
        scale = 1 / math.sqrt(head_size)
        of_qkv = gradient.new_empty(n_tokens, 3 * hidden_size)
        kept = iter(ctx.saved_tensors)
        parts = zip(ctx.groups, gradient.split(ctx.sizes), of_qkv.split(ctx.sizes), strict=True)
        for group, tokens, own in parts:
            if group.max_length == 0:
                own.zero_()
                continue
            heads, probabilities = next(kept), next(kept)
            query, key, value = heads.unbind(0)
            shape = (group.n_sequences, group.max_length)
            if group.slots is not None:  # what is no token has no gradient
                padded = tokens.new_zeros(math.prod(shape), hidden_size)
                tokens = padded.index_copy_(0, group.slots, tokens)
            tokens = tokens.reshape(*shape, ctx.n_heads, head_size)
            of_attended = _copy(tokens.transpose(1, 2), torch.float32).view(-1, shape[1], head_size)
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


def _gather(padded: torch.Tensor, group: AttentionGroup, out: torch.Tensor) -> None:
    """Write to `out` the tokens of a group that are laid out in its shape, (n_sequences, max_length, ...)."""
    if group.slots is None:
        out.view(padded.shape).copy_(padded)
        return
    rows = _copy(padded, out.dtype)
    torch.index_select(rows.view(-1, out.shape[1]), 0, group.slots, out=out)


def _copy(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Lay a view out anew, in another precision, in one pass."""
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)
