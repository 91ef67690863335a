"""Matrices of a network: plain tensors (in, out), or packed ones of the formats in `int8.py` and `nf4.py`.

Only this file tells the two kinds apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, Self

import torch
from torch import Tensor


class Packed(Protocol):
    """A quantized weight (out, in)."""

    def times(self, x: Tensor) -> Tensor:
        """`x` (rows, in) or (rows, n, in) times the transposed weight, in the type of `x`."""
        ...

    def floats(self, dtype: torch.dtype) -> Tensor:
        """The weight as plain numbers, (out, in)."""
        ...

    def rows(self, order: Tensor) -> Self:
        """The same weight with its output rows in another order."""
        ...

    def under(self, other: Self) -> Self:
        """The output rows of this weight, then those of `other`."""
        ...

    def tensors(self) -> list[Tensor]: ...

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same weight with `change` applied to each tensor, in the order of `tensors`."""
        ...


Matrix = Tensor | Packed


def product(x: Tensor, weight: Matrix) -> Tensor:
    return x @ weight if isinstance(weight, Tensor) else weight.times(x)


def add_product(base: Tensor, x: Tensor, weight: Matrix) -> Tensor:
    """`base` + `x` times `weight`, all two-dimensional."""
    return torch.addmm(base, x, weight) if isinstance(weight, Tensor) else base + weight.times(x)


def tensors_of(weight: Matrix) -> Iterator[Tensor]:
    if isinstance(weight, Tensor):
        yield weight
    else:
        yield from weight.tensors()


def with_tensors(weight: Matrix, change: Callable[[Tensor], Tensor]) -> Matrix:
    return change(weight) if isinstance(weight, Tensor) else weight.map(change)
