"""Sizes of files and downloads in words. A GB of them is 10^9 bytes, as hubs and shops count it; a GB of memory is 2^30
(`offload/units.py`)."""

from __future__ import annotations


def file_size(count: float) -> str:
    """Bytes on a disk or on their way to one, in GB, or in MB below one GB."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
