"""Weights in four bits: NF4, sixteen levels that are equally likely under a normal distribution, times the largest
weight of every block. Level table and format: QLoRA (arXiv 2305.14314) and bitsandbytes, which multiplies on cards
where it computes right (`nf4_kernels`). Elsewhere plain torch decodes, with the same numbers.

A stored weight is, by bitsandbytes' names: `X.weight` uint8, two levels per byte, the first in the high half, along the
flattened (out, in) weight; `.absmax`, per block, float32, or uint8 when it is quantized once more (`.nested_absmax`,
`.nested_quant_map`); `.quant_map`, the levels; `.quant_state.bitsandbytes__nf4`, JSON as bytes: sizes and offset.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yuegp.errors import ModelError

from .nf4_kernels import kernels

BLOCK = 64
"""Weights per block when quantizing; other sizes can be read."""

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

STATE = ".quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class Nf4:
    """See `Packed`. `codes` uint8 (out, in / 2), `peaks` float32 (out, in / block): largest weights."""

    codes: Tensor
    peaks: Tensor

    @classmethod
    def quantize(cls, weight: Tensor, block: int = BLOCK) -> Nf4:
        """Quantize a weight (out, in) of which `in` is a multiple of `block`."""
        blocks = weight.float().view(len(weight), -1, block)
        peaks = blocks.abs().amax(-1)
        scaled = (blocks / peaks.clamp(min=1e-38)[..., None]).clamp_(-1, 1)
        levels = torch.tensor(LEVELS, device=weight.device)
        nearest = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)
        pairs = nearest.view(len(weight), -1, 2)
        return cls((pairs[..., 0] << 4) | pairs[..., 1], peaks)

    @property
    def block(self) -> int:
        return 2 * self.codes.shape[1] // self.peaks.shape[1]

    def times(self, x: Tensor) -> Tensor:
        library = kernels(x.device, x.dtype, self.block)
        return F.linear(x, self.floats(x.dtype)) if library is None else multiply(library, x, self)

    def floats(self, dtype: torch.dtype) -> Tensor:
        return (_unpack(self.codes).view(*self.peaks.shape, -1) * self.peaks[..., None]).to(dtype).flatten(1)

    def rows(self, order: Tensor) -> Nf4:
        return self.map(lambda tensor: tensor[order])

    def under(self, other: Nf4) -> Nf4:
        return Nf4(torch.cat([self.codes, other.codes]), torch.cat([self.peaks, other.peaks]))

    def tensors(self) -> list[Tensor]:
        return [self.codes, self.peaks]

    def map(self, change: Callable[[Tensor], Tensor]) -> Nf4:
        return Nf4(change(self.codes), change(self.peaks))


@functools.cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(LEVELS, device=device)


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """The two levels each byte encodes, (256, 2)."""
    levels, byte = _levels(device), torch.arange(256, device=device)
    return torch.stack([levels[byte >> 4], levels[byte & 15]], 1)


def _unpack(codes: Tensor) -> Tensor:
    """Bytes of any shape as levels, float32, flat."""
    return F.embedding(codes.reshape(-1).int(), _pairs(codes.device)).view(-1)


def multiply(library: Any, x: Tensor, weight: Nf4) -> Tensor:
    """`Nf4.times` computed by bitsandbytes, given as `library` because it must be tested first (`nf4_kernels`)."""
    state = library.functional.QuantState(
        absmax=weight.peaks.view(-1),
        shape=torch.Size((weight.codes.shape[0], 2 * weight.codes.shape[1])),
        code=_levels(x.device),
        blocksize=weight.block,
        quant_type="nf4",
        dtype=x.dtype,
    )
    product: Tensor = library.matmul_4bit(x, weight.codes.view(-1, 1).t(), state)
    return product


def stored(name: str, shape: tuple[int, ...], raw: Callable[[str], Tensor]) -> Tensor | Nf4:
    """The stored weight `name` ("….weight"); `raw` reads a tensor by name. Returns floats where blocks cross rows,
    which happens in models far narrower than YuE's."""
    try:
        state = json.loads(bytes(raw(name + STATE).cpu().numpy()))
        block, offset = int(state["blocksize"]), float(state.get("nested_offset", 0.0))
        found = tuple(state["shape"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ModelError(
            f"The description of the nf4 tensor {name} cannot be read: {exc}.", "Download the model again."
        ) from exc
    codes, peaks = raw(name).view(-1), raw(name + ".absmax")
    if found != shape or codes.dtype != torch.uint8 or 2 * codes.numel() != math.prod(shape):
        raise ModelError(
            f"The nf4 tensor {name} has shape {found}, but config.json asks for {shape}.",
            "The weights and config.json come from different models; download both again.",
        )
    if not torch.allclose(raw(name + ".quant_map").float(), _levels(codes.device), atol=1e-6):
        raise ModelError(f"The tensor {name} uses other levels than NF4.", "Use the unquantized model.")
    if peaks.dtype == torch.uint8:
        map_, outer = raw(name + ".nested_quant_map").float(), raw(name + ".nested_absmax").float()
        each = outer.repeat_interleave(int(state["nested_blocksize"]))[: peaks.numel()]
        peaks = map_[peaks.int()] * each + offset
    peaks = peaks.float().view(-1)
    if shape[1] % block:
        each = peaks.repeat_interleave(block)[: math.prod(shape)]
        return (_unpack(codes)[: each.numel()] * each).view(shape)
    return Nf4(codes.view(shape[0], -1), peaks.view(shape[0], -1))
