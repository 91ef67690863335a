"""How long work reports how far it is, and is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""progress(what, done, total): `done` of `total` units of `what`, such as a file's bytes or a track's frames. It may
raise `Cancelled`, which stops the work; what was finished stays."""


def quiet(what: str, done: int, total: int) -> None:
    """Reports nothing."""
