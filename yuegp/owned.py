"""Folders that the program created for itself, and safe removal from them.

A folder is ours if it contains the mark we put there when we created it. A folder that existed before is never ours,
whatever its name: we then use another name beside it. We remove only names that we gave, and a link only as such:
nothing is ever deleted through one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from pathlib import Path

from .errors import LibraryError
from .files import patiently, read_bytes
from .files import remove as remove_file

MARK = ".made-by-yuegp"

MARKED = b"yuegp made this folder for its own use, and removes from it what it put there. Keep nothing else in it.\n"

CACHED = re.compile(r"[0-9a-f]{64}")
"""Name of a folder in which Gradio keeps a file: its SHA-256."""


def is_link(path: Path) -> bool:
    """Whether a path is a symbolic link or a Windows junction."""
    try:
        state = os.lstat(path)
    except OSError:
        return False
    junction: int = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
    return stat.S_ISLNK(state.st_mode) or getattr(state, "st_reparse_tag", 0) == junction


def is_ours(folder: Path) -> bool:
    """Whether a folder has our mark."""
    try:
        return not is_link(folder) and read_bytes(folder / MARK, len(MARKED)) == MARKED
    except (OSError, ValueError):
        return False


def make(folder: Path) -> None:
    """Create a folder of ours. Raises OSError, and FileExistsError when anything of that name exists."""
    folder.mkdir()
    (folder / MARK).write_bytes(MARKED)


def folder_in(parent: Path, name: str) -> Path:
    """Our folder in `parent`, created if needed: `name`, or `name-2` and so on if that is not ours. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if is_ours(folder):
            return folder
        with contextlib.suppress(FileExistsError):
            make(folder)
            return folder
    raise AssertionError("counting does not end")


def remove(path: Path) -> None:
    """Remove a file or a link, or the files and links in a folder and then the folder. Subfolders stay, and so does
    whatever cannot be removed. The name must be one that we gave."""
    with contextlib.suppress(OSError, LibraryError):
        if path.is_dir() and not is_link(path):
            for inside in path.iterdir():
                if is_link(inside) or inside.is_file():
                    _unlink(inside)
            patiently(path.rmdir, path, "removed")
        else:
            _unlink(path)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError, LibraryError):
        if not is_link(path):
            remove_file(path)
            return
        try:
            path.unlink()
        except PermissionError:  # a junction is a folder to Windows; removing that leaves what it leads to
            os.rmdir(path)


def newest(path: Path) -> float:
    """Time of the last change of a file or of anything in a folder, in seconds since 1970. Does not follow links."""
    times = [os.lstat(path).st_mtime]
    if not is_link(path) and path.is_dir():
        times += [os.lstat(inside).st_mtime for inside in path.iterdir()]
    return max(times)


def looks_like_uploads(folder: Path) -> bool:
    """Whether a folder's files are laid out as Gradio keeps uploads."""
    try:
        return any(CACHED.fullmatch(path.name) and path.is_dir() for path in folder.iterdir())
    except OSError:
        return False


def size(folder: Path) -> int:
    """Bytes of the files in a folder and below. Does not follow links."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
