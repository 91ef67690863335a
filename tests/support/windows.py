"""Windows' rules for files, laid over the calls of this system: the fixture `windows_rules`.

They hold below one folder, the test's own, and raise what Python raises on Windows: functions of `os` carry a
`winerror`; `open` and `os.open`, which go through the C library there, have an `errno` alone. Which files are open or
mapped is asked of the system itself (/proc), so libraries that open files past Python (libsndfile, safetensors, torch)
are seen too. Sources: Win32's CreateFile (sharing modes), MoveFileEx, FlushFileBuffers, "Naming files, paths, and
namespaces"; the C library's `_commit`; CPython's table from Win32 errors to `errno` (PC/errmap.h). What other programs
do is added by hand: `scan` is a virus scanner, `exfat` a memory stick."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fnmatch
import io
import os
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TEXTS = {
    1: (errno.EINVAL, "Incorrect function"),
    5: (errno.EACCES, "Access is denied"),
    32: (errno.EACCES, "The process cannot access the file because it is being used by another process"),
    87: (errno.EINVAL, "The parameter is incorrect"),
    123: (errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect"),
    145: (errno.ENOTEMPTY, "The directory is not empty"),
    183: (errno.EEXIST, "Cannot create a file when that file already exists"),
    206: (errno.ENOENT, "The filename or extension is too long"),
    267: (errno.ENOTDIR, "The directory name is invalid"),
    1314: (errno.EINVAL, "A required privilege is not held by the client"),
}

PORTS = [f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"]
DEVICES = frozenset(["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *PORTS])

ROOT = r"C:\Users\Somebody\yuegp"
"""What the test's folder counts as where lengths are limited."""

LONGEST, LONGEST_FOLDER = 259, 247
"""Characters of a path without long path support, its terminating zero not counted; a folder leaves room for 8.3."""


def windows_error(code: int, *paths: Any) -> OSError:
    """The exception that functions of `os` raise on Windows for a Win32 error."""
    number, text = TEXTS[code]
    first, *second = map(os.fspath, paths)
    exc = OSError(number, text, first, None, *second)
    exc.winerror = code
    return exc


def c_error(number: int, path: Any) -> OSError:
    """The exception that `open` raises: of the C library's error alone."""
    return OSError(number, os.strerror(number), os.fspath(path))


class WindowsRules:
    """The rules, and the knobs for what a test wants to happen besides."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.exfat = False
        """The disk knows no second names (hard links)."""
        self.links = False
        """Whether this user may make symbolic links: not without developer mode."""
        self.long_paths = False
        self.pauses: list[float] = []
        """What the program waited, instead of waiting."""
        self.refused: Counter[str] = Counter()
        """How often each call was refused for a file in use."""
        self._scans: list[tuple[str, int, int]] = []
        self._scanned: Counter[tuple[str, ...]] = Counter()
        self._real = {name: getattr(os, name) for name in PATCHED}
        self._open = io.open

    def scan(self, pattern: str = "*", times: int = 2, winerror: int = 32) -> None:
        """From now on another program has each file open whose name fits, for so many tries to move or remove it."""
        self._scans.append((pattern, times, winerror))

    # What is so

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int) or not isinstance(path, str | bytes | os.PathLike):
            return False
        full = os.path.abspath(os.fsdecode(path))
        return full.startswith(self.root + os.sep)

    def path(self, path: Any) -> str:
        """The path that Windows means: names without trailing dots and blanks, in the letters they are stored in."""
        at = self.root
        for name in os.path.relpath(os.path.abspath(os.fsdecode(path)), self.root).split(os.sep):
            name = name.rstrip(" .") or name
            if not self._real["lstat_exists"](os.path.join(at, name)):
                with contextlib.suppress(OSError):
                    name = next((n for n in self._real["listdir"](at) if n.casefold() == name.casefold()), name)
            at = os.path.join(at, name)
        return at

    def _fault(self, path: Any, folder: bool = False) -> tuple[int, int] | None:
        """Why Windows would not make a file or folder of this name: the Win32 error and the C library's."""
        names = os.path.relpath(os.path.abspath(os.fsdecode(path)), self.root).split(os.sep)
        if any(ord(c) < 32 or c in '<>:"|?*\\' for name in names for c in name):
            return 123, errno.EINVAL  # a colon would name another stream of the file: nothing of ours means that
        if any(name.rstrip(" .").split(".")[0].rstrip().upper() in DEVICES for name in names):
            return (267 if folder else 87), errno.ENOENT
        length = len("\\".join([ROOT, *names]).encode("utf-16-le", "surrogatepass")) // 2
        if not self.long_paths and length > (LONGEST_FOLDER if folder else LONGEST):
            return 206, errno.ENOENT
        return None

    def _uses(self) -> Iterator[tuple[str, bool]]:
        """Files this process has open, or (True) mapped into its memory."""
        for number in self._real["listdir"]("/proc/self/fd"):
            with contextlib.suppress(OSError):
                yield self._real["readlink"](f"/proc/self/fd/{number}"), False
        with self._open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                if (at := line.find("/")) > 0:
                    yield line[at:].rstrip("\n"), True

    def in_use(self, path: str) -> bool:
        """Whether a file, or one in that folder, is open or mapped here."""
        inside = path + os.sep
        return any(used == path or used.startswith(inside) for used, _ in self._uses())

    def mapped(self, path: str) -> bool:
        return any(used == path for used, mapped in self._uses() if mapped)

    def _scanning(self, call: str, *paths: str) -> None:
        for pattern, times, code in self._scans:
            if any(fnmatch.fnmatch(os.path.basename(path), pattern) for path in paths):
                self._scanned[(pattern, call, *paths)] += 1
                if self._scanned[(pattern, call, *paths)] <= times:
                    raise self._refusal(call, code, *paths)

    def _refusal(self, call: str, code: int, *paths: str) -> OSError:
        self.refused[call] += 1
        return windows_error(code, *paths)

    def _read_only(self, path: str) -> bool:
        return stat.S_ISREG(self._real["lstat"](path).st_mode) and not self._real["lstat"](path).st_mode & stat.S_IWUSR

    # What is done

    def open(self, file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        if self._inside(file):
            if fault := self._fault(file):
                raise c_error(fault[1], file)
            path = self.path(file)
            if os.path.isdir(path):
                raise c_error(errno.EACCES, file)
            if "w" in mode and self.mapped(path):
                raise c_error(errno.EINVAL, file)
            if os.fsdecode(file) != path and named.get("opener") is None:
                file = path
        return self._open(file, mode, *args, **named)

    def os_open(self, path: Any, flags: int, *args: Any, **named: Any) -> int:
        if self._inside(path):
            if fault := self._fault(path):
                raise c_error(fault[1], path)
            path = self.path(path)
            if os.path.isdir(path):
                raise c_error(errno.EACCES, path)
        return int(self._real["open"](path, flags, *args, **named))

    def fsync(self, handle: Any) -> None:
        import fcntl

        number = handle if isinstance(handle, int) else handle.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._real["fsync"](number)

    def truncate(self, call: str, path: Any, length: int) -> None:
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.realpath(path)
        if self.mapped(where):
            raise c_error(errno.EINVAL, where)
        self._real[call](path, length)

    def move(self, call: str, source: Any, target: Any, **named: Any) -> None:
        if not self._inside(source) and not self._inside(target):
            return self._real[call](source, target, **named)
        if fault := self._fault(target, folder=os.path.isdir(source)):
            raise windows_error(fault[0], source, target)
        old, new = self.path(source), self.path(target)
        self._scanning(call, old, new)
        if self.in_use(old):
            raise self._refusal(call, 5 if os.path.isdir(old) else 32, old, new)
        if os.path.lexists(new) and old != new:
            if call == "rename":
                raise windows_error(183, source, target)
            if os.path.isdir(new) or os.path.isdir(old) or self.in_use(new) or self._read_only(new):
                raise self._refusal(call, 5, old, new)
        if old == new:  # other letters of the same name
            new = os.path.join(os.path.dirname(new), os.path.basename(os.fsdecode(target)).rstrip(" ."))
        self._real[call](old, new)

    def unlink(self, call: str, path: Any, **named: Any) -> None:
        if self._inside(path):
            where = self.path(path)
            if os.path.lexists(where):
                self._scanning("unlink", where)
                if os.path.isdir(where) and not os.path.islink(where):
                    raise windows_error(5, path)
                if self.in_use(where):
                    raise self._refusal("unlink", 5 if self.mapped(where) else 32, path)
                if self._read_only(where):
                    raise windows_error(5, path)
            path = where
        self._real[call](path, **named)

    def rmdir(self, path: Any, **named: Any) -> None:
        if self._inside(path):
            where = self.path(path)
            self._scanning("rmdir", where)
            if os.path.isdir(where) and self._real["listdir"](where):
                raise windows_error(145, path)
            path = where
        self._real["rmdir"](path, **named)

    def mkdir(self, path: Any, *args: Any, **named: Any) -> None:
        if self._inside(path):
            if fault := self._fault(path, folder=True):
                raise windows_error(fault[0], path)
            if os.path.lexists(where := self.path(path)):
                raise windows_error(183, path)
            path = where
        self._real["mkdir"](path, *args, **named)

    def link(self, call: str, source: Any, target: Any, *args: Any, **named: Any) -> None:
        if self._inside(target):
            if call == "symlink" and not self.links:
                raise windows_error(1314, source, target)
            if self.exfat:
                raise windows_error(1, source, target)
            if fault := self._fault(target):
                raise windows_error(fault[0], source, target)
            if os.path.lexists(self.path(target)):
                raise windows_error(183, source, target)
        self._real[call](source, target, *args, **named)

    def look(self, call: str, path: Any, *args: Any, **named: Any) -> os.stat_result:
        if self._inside(path) and not named.get("dir_fd"):
            path = self.path(path)
        return self._real[call](path, *args, **named)  # type: ignore[no-any-return]


PATCHED = ("fsync", "open", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link", "symlink", "truncate",
           "ftruncate", "stat", "lstat", "listdir", "readlink")  # fmt: skip

MODULES = ("yuegp.files", "yuegp.locks", "yuegp.library.catalog")
"""Modules of ours that ask which system this is while they work."""


class As:
    """A module with some other values in it."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self.__dict__.update(changed)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.fixture
def windows_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WindowsRules]:
    """This system with Windows' rules for everything in the test's folder; pauses are noted and not waited."""
    if sys.platform != "linux":
        pytest.skip("asks Linux' /proc which files are open")
    rules = WindowsRules(tmp_path)
    lstat = os.lstat

    def exists(path: str) -> bool:
        try:
            lstat(path)
        except (OSError, ValueError):
            return False
        return True

    rules._real["lstat_exists"] = exists

    def bound(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        return lambda *args, **named: method(name, *args, **named)

    for name, call in {
        "open": rules.os_open,
        "fsync": rules.fsync,
        "rmdir": rules.rmdir,
        "mkdir": rules.mkdir,
        **{name: bound(rules.move, name) for name in ("replace", "rename")},
        **{name: bound(rules.unlink, name) for name in ("unlink", "remove")},
        **{name: bound(rules.link, name) for name in ("link", "symlink")},
        **{name: bound(rules.truncate, name) for name in ("truncate", "ftruncate")},
        **{name: bound(rules.look, name) for name in ("stat", "lstat")},
    }.items():
        monkeypatch.setattr(os, name, call)
    monkeypatch.setattr(builtins, "open", rules.open)
    monkeypatch.setattr(io, "open", rules.open)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    for module in MODULES:
        monkeypatch.setattr(f"{module}.os", As(os, name="nt"))
        monkeypatch.setattr(f"{module}.sys", As(sys, platform="win32"), raising=False)
    monkeypatch.setattr("yuegp.files.sleep", rules.pauses.append, raising=False)
    yield rules
