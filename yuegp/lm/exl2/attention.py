"""Attention over a pool of pages, which replaces `flash_attn_with_kvcache` on machines without flash-attn.

ExLlamaV2 0.3.2 without flash-attn silently falls back to an attention without a causal mask: logits are off by 40 % and
more. Its paged code, however, only calls flash-attn's function by a module-global name, so our function under that name
corrects it. This one is torch's scaled dot product, row by row, with explicit masks.

Query heads that share a key head are treated as further query positions (as in `llama/network.py`): keys and values are
never copied to the number of query heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Query positions per product in a prefill: bounds the mask to 64 x heads-per-key-head x length."""


@dataclass(frozen=True)
class AttentionWindow:
    """The positions that the rows of one pass attend to; the same for every layer.

    `index` (rows * n,) says where in the pool the new positions go. `rows` holds for each row its slice of the pool and
    the mask (n, positions) over it, None without masking."""

    index: Tensor
    rows: tuple[tuple[slice, Tensor | None], ...]


def sight(
    starts: Sequence[int], lengths: Tensor, n: int, widths: Sequence[int], exact: bool, begins: Tensor
) -> AttentionWindow:
    """The attention window of rows that begin at `starts` in the pool, hold `lengths` (rows,) ids and get `n` more.

    `widths` is how many positions from its start each row attends to. With `exact` that is the row's end after this
    pass, so a single new position needs no mask. Otherwise it is an upper bound, and the mask comes from `lengths` on
    the device: the same recorded operations then serve growing rows. Unwritten positions are read and masked, so they
    must be finite (ExLlamaV2's caches begin as zeros). `begins` is `starts` as a tensor beside `lengths`."""
    ahead = torch.arange(n, device=lengths.device)
    rows = []
    for row, (start, width) in enumerate(zip(starts, widths, strict=True)):
        mask = None
        if n > 1 or not exact:
            mask = torch.arange(width, device=lengths.device) <= (lengths[row] + ahead)[:, None]
        rows.append((slice(start, start + width), mask))
    return AttentionWindow(((begins + lengths)[:, None] + ahead).flatten().long(), tuple(rows))


class PagedAttention:
    """A callable with the arguments ExLlamaV2 gives to `flash_attn_with_kvcache`. Set `sight` before each pass."""

    def __init__(self) -> None:
        self.sight: AttentionWindow | None = None

    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        *,
        softmax_scale: float,
        causal: bool,
        cache_seqlens: Tensor | None = None,
        block_table: Tensor | None = None,
    ) -> Tensor:
        """Attention of `q` (rows, n, heads, head_dim) over the pool, in the shape of `q`.

        First writes `k` and `v` (rows, n, kv_heads, head_dim) into the pool; None when they are there already. Pools
        are (pages, page, kv_heads, head_dim). Lengths and pages come from `sight`; flash-attn's own arguments for them
        are accepted and ignored."""
        if self.sight is None or not causal:
            raise RuntimeError("paged attention was called outside of a pass")
        keys, values = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
        if k is not None and v is not None:
            keys.index_copy_(0, self.sight.index, k.flatten(0, 1))
            values.index_copy_(0, self.sight.index, v.flatten(0, 1))
        out = torch.empty_like(q)
        for row, (part, mask) in enumerate(self.sight.rows):
            for first in range(0, q.shape[1], BLOCK):
                block = slice(first, first + BLOCK)
                seen = None if mask is None else mask[block]
                out[row, block] = _attend(q[row, block], keys[part], values[part], seen, softmax_scale)
        return out


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention (n, heads, width) of `q` (n, heads, width) over keys and values (length, kv_heads, width)."""
    n, heads, width = q.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    folded = q.view(n, kv_heads, group, width).permute(1, 2, 0, 3).reshape(1, kv_heads, group * n, width)
    mixed = F.scaled_dot_product_attention(
        folded,
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=None if mask is None else mask.repeat(group, 1),
        scale=scale,
    )
    return mixed.view(kv_heads, group, n, width).permute(2, 0, 1, 3).reshape(n, heads, width)
