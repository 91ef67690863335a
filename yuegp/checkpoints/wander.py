"""Walks folders without changing anything: follows links and junctions but no circles, in bounded time even on a huge
disk or one that does not answer.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

DEPTH = 5
"""Levels searched below a root: ComfyUI's nodes keep their models four folders down."""

CACHE_DEPTH = 3
"""Further levels in a hub cache, whose repositories keep each commit in a folder of its own."""

MOST_FOLDERS, MOST_ENTRIES = 20_000, 20_000
"""Most folders read, and most names read of each."""

PATIENCE, LONGEST = 3.0, 30.0
"""Seconds that one answer of a disk may take, and a whole search."""

FORGIVEN = 60.0
"""Seconds before a disk that did not answer is asked again."""

_SKIPPED = {"node_modules", "site-packages", "__pycache__", "blobs"}
"""Names of folders with many files and no models."""

_ENVIRONMENTS = {"pyvenv.cfg", "conda-meta"}
"""Names that mark a folder as a Python environment."""


# Asking a disk that may not answer


class _Asker:
    """A thread that queries a disk. One that hangs on a dead network drive is abandoned, and a new one begins."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._questions: queue.SimpleQueue[Any] | None = None
        self._silent: dict[str, float] = {}

    def ask(self, function: Callable[[str], T], path: str) -> T | None:
        """`function(path)`, or None when that raises OSError or takes longer than `PATIENCE`."""
        with self._guard:
            if time.monotonic() < self._silent.get(path, 0.0):
                return None
            if self._questions is None:
                self._questions = queue.SimpleQueue()
                threading.Thread(target=_answer, args=(self._questions,), name="yuegp disk", daemon=True).start()
            reply: queue.SimpleQueue[T | None] = queue.SimpleQueue()
            self._questions.put((function, path, reply))
            try:
                return reply.get(timeout=PATIENCE)
            except queue.Empty:
                self._questions.put(None)
                self._questions = None
                self._silent[path] = time.monotonic() + FORGIVEN
                return None


def _answer(questions: queue.SimpleQueue[Any]) -> None:
    while (asked := questions.get()) is not None:
        function, path, reply = asked
        try:
            reply.put(function(path))
        except (OSError, ValueError):  # ValueError: a NUL in the name
            reply.put(None)


_asker = _Asker()


def ask(function: Callable[[str], T], path: str | Path) -> T | None:
    """`function(path)`, or None when it raises OSError or the disk does not answer in time."""
    return _asker.ask(function, str(path))


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder on a disk that answers."""
    return bool(ask(os.path.isdir, path))


def read_small(path: Path, most: int = 1 << 20) -> bytes | None:
    """Contents of an ordinary file of at most `most` bytes; None for anything else, including devices and pipes."""

    def read(name: str) -> bytes | None:
        about = os.stat(name)
        if not stat.S_ISREG(about.st_mode) or about.st_size > most:
            return None
        with open(name, "rb") as file:
            return file.read(most)

    return ask(read, path)


# Walking


def wander(
    roots: Iterable[Path], more: Callable[[Path, frozenset[str]], Iterable[Path]] = lambda folder, files: ()
) -> Iterator[tuple[Path, frozenset[str]]]:
    """Yield folders at and below `roots`, each once, nearest first, with the names of their ordinary files. `more` may
    add roots for a folder's contents."""
    todo = deque((Path(root), 0) for root in roots)
    seen = set[tuple[int, int] | str]()
    end = time.monotonic() + LONGEST
    while todo and len(seen) < MOST_FOLDERS and time.monotonic() < end:
        folder, depth = todo.popleft()
        if (looked := ask(_look, folder)) is None:
            continue
        key, below, names, links = looked
        if key in seen:
            continue
        seen.add(key)
        for name in links:
            if (about := ask(os.stat, folder / name)) is not None:
                below += [name] * stat.S_ISDIR(about.st_mode)
                names += [name] * stat.S_ISREG(about.st_mode)
        files = frozenset(names)
        yield folder, files
        todo.extend((root, 0) for root in more(folder, files))
        deepest = DEPTH + CACHE_DEPTH * any(part.startswith("models--") for part in folder.parts[-2:])
        if depth < deepest and not _ENVIRONMENTS & {*below, *files}:
            todo.extend((folder / name, depth + 1) for name in sorted(below) if _worth(name))


def _worth(name: str) -> bool:
    return not name.startswith((".", "datasets--", "spaces--")) and name not in _SKIPPED


def _look(folder: str) -> tuple[tuple[int, int] | str, list[str], list[str], list[str]]:
    """A folder's identity, and the names of its folders, ordinary files and links. Does not follow links: each may lead
    to another disk."""
    about = os.stat(folder)
    key = (about.st_dev, about.st_ino) if about.st_ino else os.path.realpath(folder)
    below, files, links = list[str](), list[str](), list[str]()
    with os.scandir(folder) as entries:
        for entry in islice(entries, MOST_ENTRIES):
            try:
                if entry.is_symlink():
                    links.append(entry.name)
                elif entry.is_dir():
                    below.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
            except OSError:
                continue  # removed meanwhile, or not accessible
    return key, below, files, links
