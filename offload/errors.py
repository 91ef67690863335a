"""What this folder refuses. The border to yuegp, `yuegp/generation/memory.py`, turns it into that program's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import MemoryPlan, MemoryRequest


class OffloadError(Exception):
    """`what` is refused, with the actual values, and `hint`: one thing to do about it."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what}\n{hint}")
        self.what, self.hint = what, hint


class NoSuchSize(OffloadError):
    """A text is no amount of memory."""


class NoSuchDevice(OffloadError):
    """The device that was asked for is not here."""


class NothingSmaller(OffloadError):
    """Memory ran out, and no smaller plan is left."""


class DoesNotFit(OffloadError):
    """There is not enough memory. `shortfall` is what is missing at least, in bytes; `nearest` what would fit."""

    def __init__(self, what: str, hint: str, shortfall: int, nearest: tuple[MemoryRequest, MemoryPlan] | None) -> None:
        super().__init__(what, hint)
        self.shortfall, self.nearest = shortfall, nearest
