"""Folders that we made for our own use, and what may be removed from them.

A folder is ours when the mark lies in it that was put there when we made it. One that was there before is never ours,
whatever it is called: another name beside it is taken. Only names that we gave are removed, and a link is removed as
such or not at all: nothing is ever deleted through one.
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
"""A folder in which Gradio keeps a file: the SHA-256 of what is in it."""


def is_link(path: Path) -> bool:
    """Whether a path is a symbolic link, or what Windows calls a junction."""
    try:
        state = os.lstat(path)
    except OSError:
        return False
    junction: int = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
    return stat.S_ISLNK(state.st_mode) or getattr(state, "st_reparse_tag", 0) == junction


def is_ours(folder: Path) -> bool:
    """Whether we made a folder."""
    try:
        return not is_link(folder) and read_bytes(folder / MARK, len(MARKED)) == MARKED
    except (OSError, ValueError):
        return False


def make(folder: Path) -> None:
    """A new folder of ours. OSError, FileExistsError when anything of that name is there."""
    folder.mkdir()
    (folder / MARK).write_bytes(MARKED)


def folder_in(parent: Path, name: str) -> Path:
    """A folder of ours in `parent`: called `name`, or `name-2` and so on where that is somebody else's. OSError."""
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
    """Remove a file or a link, or the files and links of a folder and then the folder. Folders in it stay, and so does
    what cannot be removed. The name must be one that we gave."""
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
        if is_link(path) and path.is_dir():  # a junction is a folder to Windows; removing that leaves what it leads to
            with contextlib.suppress(PermissionError):
                path.unlink()
                return
            os.rmdir(path)
        else:
            remove_file(path)


def newest(path: Path) -> float:
    """When something in a folder, or a file, last changed: seconds since 1970. Links are not followed."""
    times = [os.lstat(path).st_mtime]
    if not is_link(path) and path.is_dir():
        times += [os.lstat(inside).st_mtime for inside in path.iterdir()]
    return max(times)


def looks_like_uploads(folder: Path) -> bool:
    """Whether files lie in a folder the way Gradio keeps them."""
    try:
        return any(CACHED.fullmatch(path.name) and path.is_dir() for path in folder.iterdir())
    except OSError:
        return False


def size(folder: Path) -> int:
    """Bytes of the files in a folder and below; links are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
