"""The Llama network in plain torch: weights in, logits out, with KV caches that callers own.

Every model of the YuE family is a Llama: RMS norm, rotary positions, grouped-query attention, gated MLP, no biases.
This file knows the arithmetic; `torch_lm.py` knows files, devices and rows.

Three things differ from a textbook implementation, all for fewer operations per step, because decoding one id at a
time is bound by the number of operations for small models and by weight traffic for large ones:

- query, key and value weights are one matrix, and so are gate and up;
- rotary pairs lie side by side (the rows of the query and key weights are permuted at load), so a rotation is one
  complex product in place; attention scores do not notice a permutation applied to both sides;
- the query heads that share a key head are treated as further query positions, so keys and values are never copied
  to the number of query heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import LlamaConfig


@dataclass(frozen=True)
class Layer:
    """One block's weights. Matrices are (in, out), the transpose of the released ones: a product with two rows is a
    fifth faster that way round on a CPU. `qkv` is (heads + 2 kv_heads) * head_dim wide, `gate_up` 2 * ffn."""

    input_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class KVBank:
    """KV caches of several rows of equal capacity, in one tensor (layers, rows, 2 * kv_heads, capacity, head_dim).

    Keys are the first `kv_heads` of the third axis, values the rest, so that one copy writes both."""

    def __init__(self, config: LlamaConfig, rows: int, capacity: int, like: Tensor) -> None:
        self.capacity = capacity
        self.lengths = [0] * rows
        self.kv = like.new_empty((config.layers, rows, 2 * config.kv_heads, capacity, config.head_dim))


@dataclass(frozen=True)
class _Span:
    """Rows of one bank that can attend together, because they are equally long: `batch` of the call.

    For each layer: where the new keys and values go, and all keys and all values with them in place."""

    batch: slice
    fresh: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    causal: Tensor | None


class Llama:
    """The network. Holds weights and the rotation table; keeps no state between calls.

    `embedding` is (vocabulary, hidden), `head` (hidden, vocabulary)."""

    def __init__(self, config: LlamaConfig, embedding: Tensor, layers: list[Layer], norm: Tensor, head: Tensor) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self.rotation = rotation_table(config).to(embedding.device)

    def hidden(self, ids: Tensor, banks: list[KVBank]) -> Tensor:
        """Append `ids` (rows, n) to the rows of `banks`, in order. Returns the last position's hidden state
        (rows, hidden) after the final norm, and advances the banks' lengths."""
        c = self.config
        (rows, n), n_qk = ids.shape, c.heads + c.kv_heads
        spans = list(_spans(banks, n, c.kv_heads))
        rotation = self._rotation([length for bank in banks for length in bank.lengths], n)
        x = F.embedding(ids, self.embedding)
        for index, layer in enumerate(self.layers):
            normed = F.rms_norm(x, (c.hidden,), layer.input_norm, c.eps)
            qkv = (normed @ layer.qkv).view(rows, n, n_qk + c.kv_heads, c.head_dim)
            rotate_(qkv[:, :, :n_qk], rotation)
            q, kv = qkv[:, :, : c.heads], qkv[:, :, c.heads :].transpose(1, 2)
            mixed = []
            for span in spans:
                span.fresh[index].copy_(kv[span.batch])
                mixed.append(attend(q[span.batch], span.keys[index], span.values[index], span.causal))
            attended = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
            if n > 1 and index == c.layers - 1:  # from here on only the last position is wanted
                attended, x = attended[:, -1:], x[:, -1:]
            x = torch.addmm(x.reshape(-1, c.hidden), attended.reshape(-1, c.heads * c.head_dim), layer.out)
            gate, up = (F.rms_norm(x, (c.hidden,), layer.mlp_norm, c.eps) @ layer.gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), layer.down).view(rows, -1, c.hidden)
        for bank in banks:
            bank.lengths = [length + n for length in bank.lengths]
        return F.rms_norm(x[:, -1], (c.hidden,), self.norm, c.eps)

    def _rotation(self, starts: list[int], n: int) -> Tensor:
        """Rotations of n positions from each start: complex, (rows or 1, n, 1, head_dim / 2)."""
        if len(set(starts)) == 1:
            return self.rotation[None, starts[0] : starts[0] + n, None]
        return torch.stack([self.rotation[start : start + n, None] for start in starts])


def rotation_table(config: LlamaConfig) -> Tensor:
    """Rotary rotations e^(i position theta^(-2j / head_dim)), complex64, (context, head_dim / 2)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)


def pair_rotary_rows(weight: Tensor, head_dim: int) -> Tensor:
    """A released query or key weight, whose rotary pairs lie half a head apart, with the pairs side by side."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rotate_(x: Tensor, rotation: Tensor) -> None:
    """Rotate (rows, n, heads, head_dim) in place, in single precision whatever the type of `x`."""
    pairs = x.unflatten(-1, (-1, 2))
    if x.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(rotation)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotation))


def attend(q: Tensor, keys: Tensor, values: Tensor, causal: Tensor | None) -> Tensor:
    """Attention of `q` (rows, n, heads, head_dim) over keys and values (rows, kv_heads, length, head_dim); returns
    (rows, n, heads * head_dim). `causal` is the mask (n, length) of the last n positions; None when n is 1."""
    rows, n, heads, width = q.shape
    kv_heads = keys.shape[1]
    if n == 1:
        grouped = q.reshape(rows, kv_heads, heads // kv_heads, width)
        return F.scaled_dot_product_attention(grouped, keys, values).view(rows, 1, heads * width)
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=causal, enable_gqa=heads != kv_heads
    )
    return mixed.transpose(1, 2).reshape(rows, n, heads * width)


def _spans(banks: list[KVBank], n: int, kv_heads: int) -> Iterator[_Span]:
    """The rows of all banks, in order, in as few spans as their lengths allow, with room for n more ids."""
    offset = 0
    for bank in banks:
        rows = len(bank.lengths)
        together = len(set(bank.lengths)) == 1
        for first, stop in [(0, rows)] if together else [(i, i + 1) for i in range(rows)]:
            start, end = bank.lengths[first], bank.lengths[first] + n
            past = bank.kv[:, first:stop, :, :end]
            causal = None
            if n > 1:
                causal = torch.ones(n, end, dtype=torch.bool, device=past.device).tril_(start)
            yield _Span(
                slice(offset + first, offset + stop),
                past[:, :, :, start:].unbind(),
                past[:, :, :kv_heads].unbind(),
                past[:, :, kv_heads:].unbind(),
                causal,
            )
        offset += rows
