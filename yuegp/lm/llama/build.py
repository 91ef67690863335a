"""Builds a network from released tensors: fused, transposed, quantized, each layer on its device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from yuegp.checkpoints.config import LlamaConfig
from yuegp.lm.weights.int8 import Int8
from yuegp.lm.weights.nf4 import BLOCK, Nf4
from yuegp.lm.weights.packed import Matrix

from .network import Layer, Llama, pair_rotary_rows, rotary_order


class Source(Protocol):
    """Released tensors by name and shape; matrices are (out, in)."""

    def floats(self, name: str, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """The tensor as plain numbers, on `device` or the source's default device."""
        ...

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """The matrix as stored: packed or plain."""
        ...


@dataclass(frozen=True)
class Plain:
    """A `Source` from a function that returns plain tensors."""

    read: Callable[[str, tuple[int, ...]], Tensor]

    def floats(self, name: str, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        return self.read(name, shape).to(device)

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        return self.read(name, shape)


FAMILY = {"int8": Int8, "bnb8": Int8, "nf4": Nf4}
"""Packed class by `EngineConfig.weights`; bitsandbytes' 8-bit format is ours with other scales."""


def build(
    config: LlamaConfig,
    source: Source,
    weights: str = "float32",
    place: Callable[[Iterable[Layer]], Iterable[Layer]] = list,
    head_device: torch.device | None = None,
) -> Llama:
    """Build a network from the tensors of `source`.

    The seven matrices of a layer get the format `weights`; everything else stays floats. `place` takes the layers one
    by one as they are built, and returns the iterable the network uses. The output layer goes to `head_device`, unless
    it is the embedding."""
    shapes = config.tensors()

    def floats(name: str, device: torch.device | None = None) -> Tensor:
        return source.floats(name, shapes[name], device)

    def matrix(prefix: str, *names: str) -> Matrix:
        parts = []
        for name in names:
            full = f"{prefix}{name}.weight"
            part = hold(source.matrix(full, shapes[full]), weights)
            if name in ("q_proj", "k_proj"):
                part = _paired(part, config.head_dim)
            parts.append(part)
        return joined(parts)

    def layers() -> Iterable[Layer]:
        for i in range(config.layers):
            layer = f"model.layers.{i}."
            yield Layer(
                input_norm=floats(layer + "input_layernorm.weight"),
                qkv=matrix(layer + "self_attn.", "q_proj", "k_proj", "v_proj"),
                out=matrix(layer + "self_attn.", "o_proj"),
                mlp_norm=floats(layer + "post_attention_layernorm.weight"),
                gate_up=matrix(layer + "mlp.", "gate_proj", "up_proj"),
                down=matrix(layer + "mlp.", "down_proj"),
            )

    embedding = floats("model.embed_tokens.weight")
    head = embedding.t() if config.tied else _turned([floats("lm_head.weight", head_device)])
    return Llama(config, embedding, place(layers()), floats("model.norm.weight"), head)


def hold(weight: Matrix, weights: str) -> Matrix:
    """A weight (out, in) in the format `weights`. A weight already in that format is returned unchanged."""
    kind = FAMILY.get(weights)
    if kind is None:
        return weight if isinstance(weight, Tensor) else weight.floats(getattr(torch, weights))
    if isinstance(weight, kind):
        return weight
    plain = weight if isinstance(weight, Tensor) else weight.floats(torch.float32)
    if kind is Nf4 and plain.shape[1] % BLOCK:
        return plain  # narrower than any released model: blocks would cross rows
    return kind.quantize(plain)


def joined(parts: list[Matrix]) -> Matrix:
    """Weights (out, in) of one common input, joined: (in, sum of out), or packed."""
    packed = [part for part in parts if not isinstance(part, Tensor)]
    if len(packed) == len(parts):
        return reduce(lambda above, below: above.under(below), packed)
    dtype = next(part.dtype for part in parts if isinstance(part, Tensor))
    return _turned([part if isinstance(part, Tensor) else part.floats(dtype) for part in parts])


def _turned(weights: list[Tensor]) -> Tensor:
    """Weights (out, in), side by side, transposed to one (in, out) matrix. On a processor products are fastest when the
    transposed matrix is contiguous, on a card when it is a view."""
    if weights[0].is_cuda:
        return torch.cat(weights).t()
    return torch.cat([weight.t() for weight in weights], dim=1)


def _paired(weight: Matrix, head_dim: int) -> Matrix:
    if isinstance(weight, Tensor):
        return pair_rotary_rows(weight, head_dim)
    first = weight.tensors()[0]
    return weight.rows(rotary_order(first.shape[0], head_dim).to(first.device))
