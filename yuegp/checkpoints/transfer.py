"""Downloads one file from the hub, resuming after interruptions, and verifies its checksum.

The file grows under its name with `.part` added and gets its name once its checksum is the hub's: a file with its name
is complete. `download` handles whole checkpoints.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from yuegp import files
from yuegp.errors import LibraryError, ModelError

from . import hub, xet
from .hub import HubFile, HubUnreachable
from .xet import Ways

TRIES = 5
"""Consecutive tries without a new byte before a download fails."""

PAUSE = 1.0
"""Seconds before the second try; doubles with each further one."""

LONGEST = 30.0
"""Longest wait in seconds that the hub may ask for; beyond, the download fails and the user decides."""

POINTER = b"version https://git-lfs"
"""First bytes of a git-lfs pointer."""


def part_of(path: Path) -> Path:
    """Path of the unfinished file."""
    return path.with_name(path.name + ".part")


@dataclass
class Transfer:
    """Downloads one file of a repository, at one commit, to `target`."""

    repo: str
    commit: str
    file: HubFile
    target: Path
    stop: threading.Event
    """Nothing is written once this is set."""
    count: Callable[[int], None]
    """Called with the number of bytes on disk."""
    ways: Ways = field(default_factory=Ways)
    """Choice between HTTP and Xet for large files. Shared by all files of a download, and so are its measurements."""

    def run(self) -> str | None:
        """Download the file, retrying as long as bytes arrive. Returns its SHA-256, or None when stopped.

        Raises HubUnreachable after `TRIES` tries without a new byte, ModelError when the hub refuses, the disk fails,
        or the checksum is wrong (the message names the file it was set aside as)."""
        part, digest, failed = part_of(self.target), Digest(self.file), 0
        with writing(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
        while not self.stop.is_set():
            before = digest.size
            try:
                with hub.hub_errors(self.repo, self.commit):
                    self._stream(part, digest)
                if digest.size >= self.file.size:
                    break
            except xet.Failed:
                self.ways.drop()  # plain HTTP continues from here
            except HubUnreachable as exc:
                failed = 1 if digest.size > before else failed + 1
                if failed >= TRIES or hub.offline() or exc.after > LONGEST:
                    raise
                self.stop.wait(max(PAUSE * 2 ** (failed - 1), exc.after))
        if self.stop.is_set():
            return None
        if complaint := digest.wrong():
            aside = set_aside(part, digest.sha256.hexdigest()[:8])
            raise ModelError(
                f"{self.file.source} of {self.repo} arrived damaged: {complaint}. It was put aside as {aside}.",
                "Start the download again to fetch this file anew.",
            )
        with writing(self.target):
            files.put(part, self.target)
        return digest.sha256.hexdigest()

    def _stream(self, part: Path, digest: Digest) -> None:
        """Append missing bytes to the unfinished file and to its digest."""
        with _opened(part) as data:
            self._catch_up(data, digest)
            if digest.size >= self.file.size:
                return
            way, most = self.ways.pick(self.file, self.file.size - digest.size)
            begun, at = time.monotonic(), digest.size
            opened = xet.stream if way == xet.XET else hub.stream
            with opened(self.repo, self.commit, self.file, digest.size) as (start, blocks):
                if start != digest.size:  # this server does not support ranges
                    digest.reset()
                    data.seek(0)
                    data.truncate()
                for block in blocks:
                    if self.stop.is_set():
                        return
                    if not digest.size and block.startswith(POINTER) and self.file.size > len(block):
                        raise _pointer(self.repo, self.file)
                    with writing(part):
                        data.write(block)
                        data.flush()
                    digest.update(block)
                    self.count(digest.size)
                    if digest.size > self.file.size:
                        return
                    if digest.size - at >= most:
                        break
                self.ways.measured(way, digest.size - at, time.monotonic() - begun)
        if digest.size < self.file.size and digest.size - at < most:
            raise HubUnreachable(
                f"{self.file.source} of {self.repo} ended after {digest.size:,} of {self.file.size:,} bytes.",
                "Check the connection and start again; what has arrived is kept.",
            )

    def _catch_up(self, data: BinaryIO, digest: Digest) -> None:
        """Digest the bytes already on disk that were not digested yet."""
        data.seek(digest.size)
        while not self.stop.is_set() and (block := data.read(1 << 22)):
            digest.update(block)
            self.count(min(digest.size, self.file.size))


class Digest:
    """Checksums of a growing file: SHA-256 for the pin, and the kind the hub announced."""

    def __init__(self, file: HubFile) -> None:
        self.file = file
        self.reset()

    def reset(self) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.blob = hashlib.sha1(f"blob {self.file.size}\0".encode(), usedforsecurity=False)

    def update(self, block: bytes) -> None:
        self.size += len(block)
        self.sha256.update(block)
        if not self.file.sha256:
            self.blob.update(block)

    def wrong(self) -> str:
        """The difference from the hub's listing, in words; empty when all agrees."""
        if self.size != self.file.size:
            return f"{self.size:,} bytes instead of {self.file.size:,}"
        announced = self.file.sha256 or self.file.blob or ""
        have = self.sha256.hexdigest() if self.file.sha256 else self.blob.hexdigest()
        return "" if have.startswith(announced) else f"checksum {have[:12]}… instead of {announced[:12]}…"


def _pointer(repo: str, file: HubFile) -> ModelError:
    return ModelError(
        f"In the place of {file.source} of {repo} comes git-lfs' note about it; the file itself is not there.",
        "If HF_ENDPOINT names a mirror, it is not complete: unset it or choose another.",
    )


# Files


def set_aside(path: Path, why: str) -> Path:
    """Rename a wrong file instead of deleting it. Returns its new path."""
    stem = f"{path.name.removesuffix('.part')}.{why}"
    aside = path.with_name(f"{stem}.bad")
    for number in itertools.count(2):
        if not os.path.lexists(aside):
            break
        aside = path.with_name(f"{stem}-{number}.bad")
    with writing(path):
        files.replace(path, aside)
    return aside


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn OSErrors of writing a file into a ModelError."""
    try:
        yield
    except LibraryError as exc:
        hint = exc.hint if isinstance(exc, files.InUse) else "Set YUEGP_MODELS to a folder that can be written."
        raise ModelError(exc.what, hint) from exc
    except OSError as exc:
        raise cannot(path, exc) from exc


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with writing(path):
        data = path.open("r+b")
    with data:
        yield data


def cannot(path: Path, exc: OSError) -> ModelError:
    full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else exc.strerror or str(exc)
    hint = (
        "Free some space and start again: what has arrived is kept."
        if full
        else "Change the folder's permissions, or set YUEGP_MODELS to a folder that can be written."
    )
    return ModelError(f"{path} cannot be written or read: {reason}.", hint)
