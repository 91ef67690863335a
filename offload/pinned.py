"""Main memory that a card is fed from: pinned, and no more of it than asked for.

torch rounds every pinned allocation up to a power of two (`CachingHostAllocator.h`): a layer of Stage 1 in 16 bits
takes 537 MB instead of 346, and all weights of Stage 2 a third more. So a run of bytes is kept in pieces that are
powers of two already.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from .ram import ram

LARGEST, SMALLEST = 64 << 20, 1 << 20
"""Bytes of a piece; what is left of a run in the end may be less."""


def pieces(size: int) -> list[int]:
    """Sizes of the pieces of a run."""
    found = []
    while size >= SMALLEST:
        found.append(min(LARGEST, 1 << (size.bit_length() - 1)))
        size -= found[-1]
    return found + [size] * (size > 0)


class PinnedBuffer:
    """A run of bytes in main memory, pinned if a card shall be fed from it, as long as no more than half of all RAM is:
    beyond, and where the system pins no more, it is plain memory, which feeds a card too, slower."""

    _all_pinned = 0
    """Bytes of the pinned runs there are."""

    def __init__(self, size: int, pinned: bool) -> None:
        self.size = size
        self.pinned = pinned and PinnedBuffer._all_pinned + size <= ram().pinned
        if self.pinned:
            try:
                self._pieces = _allocate(size, True)
                PinnedBuffer._all_pinned += size
                weakref.finalize(self, _unpinned, size)
                return
            except RuntimeError:  # such as WSL's refusals, which are not all about memory
                self.pinned = False
        self._pieces = _allocate(size, False)

    def take(self, source: Tensor) -> None:
        """Copy all of `source` (bytes, flat) here, and wait until that is done."""
        for here, there in self._pairs(source):
            here.copy_(there)

    def send(self, target: Tensor) -> None:
        """Copy all of it to `target` (bytes, flat). From pinned memory this returns before it is done, in the order of
        the current stream."""
        for here, there in self._pairs(target):
            there.copy_(here, non_blocking=self.pinned)

    def _pairs(self, other: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self._pieces, other.split([len(piece) for piece in self._pieces]), strict=True))


def _allocate(size: int, pinned: bool) -> list[Tensor]:
    return [torch.empty(piece, dtype=torch.uint8, pin_memory=pinned) for piece in pieces(size)]


def _unpinned(size: int) -> None:
    PinnedBuffer._all_pinned -= size
