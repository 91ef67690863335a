"""Recognises errors of running out of memory from any library, and turns them into a DeviceError.

Every library words them differently and Windows translates its own, so error numbers count where there are any. Sources
of the words: torch (`CUDACachingAllocator.cpp`, `alloc_cpu.cpp`, `MapAllocator.cpp`, `CUDAException`), the status names
of cuBLAS, cuDNN and their HIP twins, Rust's `io::Error` as safetensors prints it, Win32's error codes, and C++'s
`bad_alloc` as each compiler words it."""

from __future__ import annotations

import errno
import re
import sys

from .errors import DeviceError, YueGPError

CARD = re.compile(
    r"out of memory|out_?of_?memory|error_?memory_?allocation|status_?alloc_?failed|cufft_alloc_failed|"
    r"device_allocation_failed|status_memory_error|hsa_status_error_out_of_resources"
)
"""Words of a card's driver and libraries, in lower case. `out of memory` alone is the driver's message."""

WIN32 = (8, 14, 1450, 1455)
"""ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_NO_SYSTEM_RESOURCES, ERROR_COMMITMENT_LIMIT ("The paging file is
too small for this operation to complete", in the language of the system)."""

RAM = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|unable to allocate|bad allocation|bad_alloc|"
    r"memory allocation (of \d+ bytes )?failed|\bmemoryerror\b|paging file is too small|host_allocation_failed|"
    r"os error (1450|1455)\b|winerror (8|14|1450|1455)\b|error code: <(8|14|1450|1455)>|errno 12\b"
)

QUOTED = re.compile(r"""(?<!\w)'[^']*'|"[^"]*\"""")
"""Names of files, which may be songs called Out Of Memory."""

PAGE_FILE = (
    "Let Windows choose the page file: press Windows+R, enter SystemPropertiesPerformance, then Advanced, Virtual "
    'memory, Change; tick "Automatically manage paging file size for all drives", and restart the computer.'
)


def shortage(error: BaseException | None) -> str:
    """The memory that ran out according to an error or its causes: `card` or `RAM`; else empty."""
    while error is not None:
        if isinstance(error, MemoryError):
            return "RAM"
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno == errno.ENOMEM or getattr(error, "winerror", None) in WIN32:
                return "RAM"
        elif type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            return "card"
        elif not isinstance(error, YueGPError) and (kind := shortage_in(str(error))):
            return kind
        error = error.__cause__
    return ""


def shortage_in(text: str) -> str:
    """The same for a program's output."""
    said = QUOTED.sub("", text.lower())
    return "RAM" if RAM.search(said) else "card" if CARD.search(said) else ""


def named(error: Exception, where: str = "") -> Exception:
    """The error itself, or when memory ran out and it is no DeviceError yet, a DeviceError that says where."""
    kind = "" if isinstance(error, DeviceError) else shortage(error)
    if not kind:
        return error
    place = f" {where}" if where else ""
    if kind == "card":
        return DeviceError(
            f"The graphics card ran out of memory{place}.",
            "Close other programs that use the card: games, browsers with video, other AI programs.",
        )
    hint = f"Close other programs. {PAGE_FILE}" if sys.platform == "win32" else "Close other programs, then try again."
    return DeviceError(f"The computer ran out of memory (RAM){place}.", hint)
