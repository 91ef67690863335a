"""KV caches, and two ways for new positions to attend to them.

`RaggedView` slices each row to its length: the fewest operations, but the host must know the lengths. `StaticView`
always attends to a fixed stretch and masks what is not written yet: shapes never change and lengths live on the card,
as a captured CUDA graph needs. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from yuegp.checkpoints.config import LlamaConfig

ROOM = 256
"""Capacities of fixed-shape caches are rounded up to this many positions, which keeps their splits aligned."""

STRETCH = 512
"""Positions by which a stretch grows; each size is another captured graph."""

BUSY = 64
"""Attention problems (rows times key heads) that keep a card busy without splitting them along positions."""

SPLITS = 16
"""Pieces along positions into which fewer problems are split."""


class KVCache:
    """KV caches of several rows of equal capacity, in one tensor (layers, 2, rows, kv_heads, capacity, head_dim): keys,
    then values.

    A `fixed` cache is for `StaticView`: its capacity is rounded up and zeroed, because masked positions are multiplied
    by zero and must be finite."""

    def __init__(self, config: LlamaConfig, rows: int, capacity: int, like: Tensor, fixed: bool = False) -> None:
        self.capacity = capacity
        self.lengths = [0] * rows
        room = -(-capacity // ROOM) * ROOM if fixed else capacity
        shape = (config.layers, 2, rows, config.kv_heads, room, config.head_dim)
        self.kv = like.new_zeros(shape) if fixed else like.new_empty(shape)

    def row(self, index: int) -> KVCache:
        """A view of one row as a cache with a length of its own."""
        alone = object.__new__(KVCache)
        alone.capacity, alone.lengths = self.capacity, [self.lengths[index]]
        alone.kv = self.kv[:, :, index : index + 1]
        return alone


class CacheView(Protocol):
    """The past as attention sees it during one pass."""

    rotation: Tensor
    """Rotations of the new positions: complex, (rows or 1, n, 1, head_dim / 2)."""

    def mix(self, index: int, q: Tensor, kv: Tensor) -> Tensor:
        """Store keys and values `kv` (rows, n, 2, kv_heads, head_dim) of layer `index` and return the attention
        (rows, n, heads * head_dim) of `q` (rows, n, heads, head_dim)."""
        ...


@dataclass(frozen=True)
class _Span:
    """Rows of one cache that attend together because they are equally long; `batch` are their indices in the call.

    Per layer: where new keys and values go, and views of all keys and values including them."""

    batch: slice
    fresh: tuple[Tensor, ...]
    past: tuple[Tensor, ...]
    causal: Tensor | None


class RaggedView:
    """The past of rows whose lengths the host knows, in as few spans as their lengths allow."""

    def __init__(self, banks: Sequence[KVCache], n: int, table: Tensor) -> None:
        starts = [length for bank in banks for length in bank.lengths]
        if len(set(starts)) == 1:
            self.rotation = table[None, starts[0] : starts[0] + n, None]
        else:
            self.rotation = torch.stack([table[start : start + n, None] for start in starts])
        self._spans = list(_spans(banks, n))

    def mix(self, index: int, q: Tensor, kv: Tensor) -> Tensor:
        kv = kv.permute(2, 0, 3, 1, 4)
        mixed = []
        for span in self._spans:
            span.fresh[index].copy_(kv[:, span.batch])
            keys, values = span.past[index]
            mixed.append(attend(q[span.batch], keys, values, span.causal))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _spans(banks: Sequence[KVCache], n: int) -> Iterator[_Span]:
    offset = 0
    for bank in banks:
        rows = len(bank.lengths)
        together = len(set(bank.lengths)) == 1
        for first, stop in [(0, rows)] if together else [(i, i + 1) for i in range(rows)]:
            start, end = bank.lengths[first], bank.lengths[first] + n
            past = bank.kv[:, :, first:stop, :, :end]
            causal: Tensor | None = None
            if n > 1 and past.is_cuda:
                causal = causal_lower_right(n, end)  # no mask in memory: 16 million values for a long prompt
            elif n > 1:
                causal = torch.ones(n, end, dtype=torch.bool, device=past.device).tril_(start)
            batch = slice(offset + first, offset + stop)
            yield _Span(batch, past[..., start:, :].unbind(), past.unbind(), causal)
        offset += rows


def attend(q: Tensor, keys: Tensor, values: Tensor, causal: Tensor | None) -> Tensor:
    """Attention (rows, n, heads * head_dim) of `q` (rows, n, heads, head_dim) over keys and values (rows, kv_heads,
    length, head_dim). `causal` is the mask (n, length) of the last n positions; None when n is 1."""
    rows, n, heads, width = q.shape
    kv_heads = keys.shape[1]
    if n == 1:
        grouped = q.reshape(rows, kv_heads, heads // kv_heads, width)
        return F.scaled_dot_product_attention(grouped, keys, values).view(rows, 1, heads * width)
    if q.is_cuda and heads != kv_heads and torch.cuda.get_device_capability(q.device) < (8, 0):
        # Cards before Ampere have no flash attention; the remaining kernel needs as many key heads as query heads.
        keys, values = (x.repeat_interleave(heads // kv_heads, 1) for x in (keys, values))
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=causal, enable_gqa=heads != keys.shape[1]
    )
    return mixed.transpose(1, 2).reshape(rows, n, heads * width)


def stretches(banks: Sequence[KVCache], n: int) -> tuple[int, ...]:
    """For each fixed cache, the stretch `StaticView` needs to cover `n` more positions of every row."""
    reach = []
    for bank in banks:
        room, wanted = bank.kv.shape[4], -(-(max(bank.lengths) + n) // STRETCH) * STRETCH
        reach.append(room if _pieces(bank) > 1 else min(room, wanted))
    return tuple(reach)


def _pieces(bank: KVCache) -> int:
    return 1 if len(bank.lengths) * bank.kv.shape[3] >= BUSY else SPLITS


class StaticView:
    """The past of rows whose lengths (rows,) int64 live on the device, in stretches of fixed size."""

    def __init__(
        self,
        config: LlamaConfig,
        banks: Sequence[KVCache],
        lengths: Tensor,
        n: int,
        reach: Sequence[int],
        table: Tensor,
    ) -> None:
        positions = lengths[:, None] + torch.arange(n, device=lengths.device)
        self.rotation = table[positions][:, :, None]
        self._parts = []
        group = config.heads // config.kv_heads
        offset = 0
        for bank, stretch in zip(banks, reach, strict=True):
            rows = len(bank.lengths)
            batch = slice(offset, offset + rows)
            offset += rows
            hidden = torch.arange(stretch, device=lengths.device) > positions[batch, :, None]
            mask = torch.zeros(hidden.shape, device=lengths.device).masked_fill_(hidden, -torch.inf)
            places = (torch.arange(rows, device=lengths.device)[:, None], positions[batch])
            mask = mask[:, :, None].expand(-1, -1, group, -1).flatten(1, 2)[:, None]  # heads of a group as positions
            self._parts.append((bank, batch, places, stretch, mask))

    def mix(self, index: int, q: Tensor, kv: Tensor) -> Tensor:
        mixed = []
        for bank, batch, places, stretch, mask in self._parts:
            held = bank.kv[index]
            held.permute(1, 3, 0, 2, 4).index_put_(places, kv[batch])
            keys, values = held[..., :stretch, :]
            mixed.append(attend_masked(q[batch], keys, values, mask, _pieces(bank)))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def attend_masked(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, pieces: int) -> Tensor:
    """`attend` with float32 `mask` (rows, 1, n * heads / kv_heads, length), 0 or minus infinity, in plain products.

    Scores and softmax are in single precision. The second product runs along positions: with few rows it is cut into
    `pieces`, which the card computes in parallel."""
    (rows, n, heads, width), kv_heads = q.shape, keys.shape[1]
    many = heads // kv_heads * n
    grouped = q.reshape(rows, n, kv_heads, -1, width).transpose(1, 2).reshape(rows * kv_heads, many, width)
    keys, values = (x.view(rows * kv_heads, -1, width) for x in (keys, values))
    scores = _product32(grouped, keys.transpose(1, 2)).view(rows, kv_heads, many, -1)
    weights = torch.add(mask, scores, alpha=width**-0.5).softmax(-1).view(rows * kv_heads, many, pieces, -1)
    weights = weights.transpose(1, 2).to(q.dtype, memory_format=torch.contiguous_format).flatten(0, 1)
    mixed = torch.bmm(weights, values.view(rows * kv_heads * pieces, -1, width))
    if pieces > 1:
        mixed = mixed.view(rows * kv_heads, pieces, many, width).sum(1)
    return mixed.view(rows, kv_heads, n, -1, width).transpose(1, 2).reshape(rows, n, heads * width)


def _product32(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product in single precision."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a, b).float()
