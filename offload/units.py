"""Amounts of memory, in bytes and in words. A GB of memory is 2^30 bytes here, as the makers of cards and RAM count it;
files and downloads are counted in 10^9 (`yuegp/units.py`)."""

from __future__ import annotations

MIB, GIB = 1 << 20, 1 << 30


def gigabytes(count: float, digits: int = 2) -> str:
    """An amount of memory in GB, however small."""
    return f"{count / GIB:.{digits}f} GB"


def memory_size(count: float) -> str:
    """An amount of memory in GB, or in MB below one GB."""
    return gigabytes(count, 1) if count >= GIB else f"{count / MIB:.0f} MB"
