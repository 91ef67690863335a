"""The main memory that this program may count on, which is not always what the computer has: a container may have been
given less, and Windows commits no more than RAM and page files hold together."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PINNED_SHARE = 0.5
"""Share of all RAM that CUDA pins under Windows and in WSL at most; no more is asked for anywhere."""


@dataclass(frozen=True)
class Ram:
    """Bytes of main memory."""

    total: int
    free: int
    """What a new allocation could use now without anything else being swapped out."""
    page_file: int | None = None
    """Size of Windows' page files now."""
    page_file_grows: bool = False
    """Windows makes them larger by itself where the disk has room."""
    commit_free: int | None = None
    """What Windows would still commit: every private byte counts, used or not, and so does a weights file that is
    mapped to be written to."""

    @property
    def pinned(self) -> int:
        """The most that may be pinned."""
        return int(self.total * PINNED_SHARE)


def ram() -> Ram:
    """The memory as it is now."""
    if sys.platform == "win32":
        return of_status(*_memory_status(), _paging_files())
    if sys.platform == "linux":
        return of_linux(Path("/"))
    return of_mac(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _vm_stat())


# Windows


def of_status(total: int, free: int, commit_total: int, commit_free: int, paging_files: Sequence[str] = ()) -> Ram:
    """From `ullTotalPhys`, `ullAvailPhys`, `ullTotalPageFile`, `ullAvailPageFile` of GlobalMemoryStatusEx (Win32,
    MEMORYSTATUSEX). The two last, in spite of their names, are the limit of RAM and page files together and what of it
    this process may still commit: a process in a job object may have been given less than the system."""
    page_file = max(0, commit_total - total)
    return Ram(min(total, commit_total), min(free, commit_free), page_file, grows(paging_files), commit_free)


def grows(paging_files: Sequence[str]) -> bool:
    """Whether one of the page files that the registry's `PagingFiles` lists is left to Windows: `?:\\pagefile.sys` for
    all drives, or sizes of 0 for one. Others have a first and a largest size in MB."""
    return any(entry.startswith("?:") or entry.split()[1:] == ["0", "0"] for entry in paging_files)


if sys.platform == "win32":
    import ctypes
    import winreg

    class _MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "commit_total", "commit_free", "a", "b", "c")),
        )

    def _memory_status() -> tuple[int, int, int, int]:
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.total), int(status.free), int(status.commit_total), int(status.commit_free)

    def _paging_files() -> list[str]:
        with contextlib.suppress(OSError):
            place = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management"
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                return [str(entry) for entry in winreg.QueryValueEx(key, "PagingFiles")[0]]
        return []


# Linux, containers, WSL (which is a Linux with the memory that Windows gave it)


def of_linux(root: Path) -> Ram:
    """From `proc` and the control groups (both versions) below `root`, which is `/`."""
    entries = {}
    for line in (root / "proc/meminfo").read_text("ascii", "replace").splitlines():
        if found := re.match(r"(\w+):\s+(\d+) kB", line):
            entries[found[1]] = int(found[2]) * 1024
    total = entries["MemTotal"]
    free = entries.get("MemAvailable", entries.get("MemFree", 0) + entries.get("Cached", 0))
    if _number(root / "proc/sys/vm/overcommit_memory") == 2:
        free = min(free, max(0, entries.get("CommitLimit", free) - entries.get("Committed_AS", 0)))
    for limit, used in _groups(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Ram(total, free)


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit, and what is used of it and cannot be reclaimed, of each control group that we are in and that has one."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "":
                base, files, cache = root / "sys/fs/cgroup", ("memory.max", "memory.current"), "inactive_file"
            elif "memory" in controllers.split(","):
                base, files = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
                cache = "total_inactive_file"
            else:
                continue
            inside = PurePosixPath(name.lstrip("/"))
            for group in (inside, *inside.parents):  # a container often sees its own group as the root
                limit, used = (_number(base / group / file) for file in files)
                if limit is not None and used is not None:
                    yield limit, used - _entry(base / group / "memory.stat", cache)


def _number(path: Path) -> int | None:
    """The number in a file; None when there is none, as in `max`."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text("ascii"))
    return None


def _entry(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        if found := re.search(rf"(?m)^{name} (\d+)$", path.read_text("ascii", "replace")):
            return int(found[1])
    return 0


# macOS


def of_mac(total: int, answer: str) -> Ram:
    """From what `vm_stat` answers: pages that are free, set aside, or were not touched for long. Half where it does not
    answer."""
    size = re.search(r"page size of (\d+) bytes", answer)
    pages = {name: int(count) for name, count in re.findall(r"(?m)^Pages (\w+):\s+(\d+)\.", answer)}
    if size is None or "free" not in pages:
        return Ram(total, total // 2)
    return Ram(total, min(total, sum(pages.get(n, 0) for n in ("free", "speculative", "inactive")) * int(size[1])))


def _vm_stat() -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["vm_stat"], capture_output=True, encoding="utf-8", errors="replace", timeout=10).stdout
    return ""
