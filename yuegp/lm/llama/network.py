"""The Llama network in plain torch: weights in, logits out, with KV caches that callers own.

Every model of the YuE family is a Llama: RMS norm, rotary positions, grouped-query attention, gated MLP, no biases.
This file holds the arithmetic; `cache.py` the past, `weights/packed.py` packed weights, `engine.py` devices and rows.

Three things differ from a textbook implementation, all for fewer operations per step, because decoding one id at a
time is bound by the number of operations for small models and by weight traffic for large ones:

- query, key and value weights are one matrix, and so are gate and up;
- rotary pairs lie side by side (the rows of the query and key weights are permuted at load), so a rotation is one
  complex product in place; attention scores do not notice a permutation applied to both sides;
- the query heads that share a key head are treated as further query positions, so keys and values are never copied
  to the number of query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yuegp.checkpoints.config import LlamaConfig
from yuegp.lm.weights.packed import Matrix, add_product, product, tensors_of, with_tensors

from .cache import CacheView


@dataclass(frozen=True)
class Layer:
    """One block's weights. Matrices are (in, out), the transpose of the released ones, or packed. `qkv` is
    (heads + 2 kv_heads) * head_dim wide, `gate_up` 2 * ffn."""

    input_norm: Tensor
    qkv: Matrix
    out: Matrix
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix

    def tensors(self) -> list[Tensor]:
        """Every tensor of the layer, those inside packed matrices too."""
        return [tensor for weight in vars(self).values() for tensor in tensors_of(weight)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Layer:
        """The same layer made of other tensors: `change` of each, in the order of `tensors`."""
        changed: dict[str, Any] = {name: with_tensors(weight, change) for name, weight in vars(self).items()}
        return Layer(**changed)


class Llama:
    """The network. Holds weights and the rotation table; keeps no state between calls.

    `embedding` is (vocabulary, hidden), `head` (hidden, vocabulary), possibly on another device. Each pass iterates
    over `layers` once, in order."""

    def __init__(
        self, config: LlamaConfig, embedding: Tensor, layers: Iterable[Layer], norm: Tensor, head: Tensor
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self.rotation = rotation_table(config).to(embedding.device)

    def hidden(self, ids: Tensor, past: CacheView) -> Tensor:
        """Append `ids` (rows, n) to the rows of `past`. Returns the last position's hidden state (rows, hidden) after
        the final norm."""
        c = self.config
        (rows, n), n_qk = ids.shape, c.heads + c.kv_heads
        x = F.embedding(ids, self.embedding)
        for index, layer in enumerate(self.layers):
            normed = F.rms_norm(x, (c.hidden,), layer.input_norm, c.eps)
            qkv = product(normed, layer.qkv).view(rows, n, n_qk + c.kv_heads, c.head_dim)
            rotate_(qkv[:, :, :n_qk], past.rotation)
            attended = past.mix(index, qkv[:, :, : c.heads], qkv[:, :, c.heads :].unflatten(2, (2, c.kv_heads)))
            if n > 1 and index == c.layers - 1:  # from here on only the last position matters
                attended, x = attended[:, -1:], x[:, -1:]
            x = add_product(x.reshape(-1, c.hidden), attended.reshape(-1, c.heads * c.head_dim), layer.out)
            gate, up = product(F.rms_norm(x, (c.hidden,), layer.mlp_norm, c.eps), layer.gate_up).chunk(2, dim=-1)
            x = add_product(x, F.silu(gate).mul_(up), layer.down).view(rows, -1, c.hidden)
        return F.rms_norm(x[:, -1], (c.hidden,), self.norm, c.eps)


def rotation_table(config: LlamaConfig) -> Tensor:
    """Rotary rotations e^(i position theta^(-2j / head_dim)), complex64, (context, head_dim / 2)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)


def pair_rotary_rows(weight: Tensor, head_dim: int) -> Tensor:
    """A released query or key weight with its rotary pairs, half a head apart there, moved side by side."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rotary_order(rows: int, head_dim: int) -> Tensor:
    """The row order of `pair_rotary_rows`, (rows,) int64."""
    return pair_rotary_rows(torch.arange(rows)[:, None], head_dim)[:, 0]


def rotate_(x: Tensor, rotation: Tensor) -> None:
    """Rotate (rows, n, heads, head_dim) in place, in single precision whatever the type of `x`."""
    pairs = x.unflatten(-1, (-1, 2))
    if x.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(rotation)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotation))
