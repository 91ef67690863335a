"""Weights in eight bits: an integer from -127 to 127 per weight and one scale per output row.

Two stored formats say the same thing. Ours keeps the scale, `X.weight.scale`, float16, (out,), beside `X.weight`, int8,
(out, in), and names itself in config.json (`METHOD`). bitsandbytes keeps 127 times the scale, `X.SCB`, float32 (its
`Linear8bitLt`). Activations stay as they are: only weights are rounded, in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

METHOD = "yuegp-int8"
"""`quant_method` of our folders, in config.json's `quantization_config`."""

FULL = 127


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (out, in) as int8 values of that shape and float16 scales (out,): value times scale is the weight.

    The error of a weight is at most half a scale. A row of zeros gets the smallest scale there is."""
    wanted = weight.abs().amax(1).float() / FULL
    tiny = torch.finfo(torch.float16).tiny
    scale = wanted.clamp(min=tiny).to(torch.float16)
    values = (weight.float() / scale.float()[:, None]).round_().clamp_(-FULL, FULL).to(torch.int8)
    return values, scale


@dataclass(frozen=True)
class Int8:
    """See `Packed`. `values` int8 (out, in), `scale` float32 (out, 1)."""

    values: Tensor
    scale: Tensor

    @classmethod
    def quantize(cls, weight: Tensor) -> Int8:
        values, scale = quantize(weight)
        return cls(values, scale.float()[:, None])

    def times(self, x: Tensor) -> Tensor:
        return F.linear(x, self.floats(x.dtype))

    def floats(self, dtype: torch.dtype) -> Tensor:
        return torch.mul(self.values, self.scale).to(dtype)

    def rows(self, order: Tensor) -> Int8:
        return self.map(lambda tensor: tensor[order])

    def under(self, other: Int8) -> Int8:
        return Int8(torch.cat([self.values, other.values]), torch.cat([self.scale, other.scale]))

    def tensors(self) -> list[Tensor]:
        return [self.values, self.scale]

    def map(self, change: Callable[[Tensor], Tensor]) -> Int8:
        return Int8(change(self.values), change(self.scale))
