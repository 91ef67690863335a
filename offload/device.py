"""What the machine has, and where a model should run: each answer with its reason."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from yuegp.errors import DeviceError

SMALL = 500_000_000
"""Parameters up to which a CPU computes in float32: 2 GB, exact, and fast enough. Above, bfloat16 halves the RAM."""


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a model runs."""

    device: str
    dtype: str
    reason: str


def place(parameters: int, device: str = "auto") -> Placement:
    """The placement of a model of so many parameters. `device` is auto, cpu or cuda; DeviceError when there is no
    such device here."""
    import torch

    present = torch.cuda.is_available()
    if device == "cuda" and not present:
        raise DeviceError(
            f"No CUDA card can be used here: torch {torch.__version__} finds none.",
            "Use --device cpu, or run `python launch.py` again on a machine with an NVIDIA driver.",
        )
    if device != "cpu" and present:
        return Placement("cuda", "bfloat16", f"{torch.cuda.get_device_name()} is here")
    reason = "no CUDA card is here" if device == "auto" else "asked for"
    if parameters <= SMALL:
        return Placement("cpu", "float32", f"{reason}, and the model is small")
    return Placement("cpu", "bfloat16", f"{reason}; bfloat16 halves the memory of a large model")


def free_bytes(device: str) -> int:
    """Memory a new allocation could use now: free VRAM, or available RAM (reclaimable caches included)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _windows_available()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _windows_available() -> int:
    """`ullAvailPhys` of GlobalMemoryStatusEx (Win32 documentation, MEMORYSTATUSEX)."""
    import ctypes

    class MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "a", "b", "c", "d", "e")),
        )

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.available)
