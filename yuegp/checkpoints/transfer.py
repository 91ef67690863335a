"""One file from the hub, whatever happens on the way: gone on with at the byte where it stopped, checked, put in place.

It arrives under its name with `.part` added and gets its name when its checksum is the hub's; so what has its name is
whole. Whole checkpoints are `download`'s.
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
"""Times in a row that a file may fail without a single new byte."""

PAUSE = 1.0
"""Seconds before the second try; doubled for each further one."""

LONGEST = 30.0
"""Seconds that a hub may ask us to wait; when it is more, the user decides."""

POINTER = b"version https://git-lfs"
"""How the note begins that git keeps in the place of a large file."""


def part_of(path: Path) -> Path:
    """Where a file is gathered."""
    return path.with_name(path.name + ".part")


@dataclass
class Transfer:
    """The transfer of one file of a repository, at one commit, to `target`."""

    repo: str
    commit: str
    file: HubFile
    target: Path
    stop: threading.Event
    """Nothing is written once this is set."""
    count: Callable[[int], None]
    """Told how many bytes of the file are there."""
    ways: Ways = field(default_factory=Ways)
    """How large files come. One for all files of a download: what is measured with one holds for the others."""

    def run(self) -> str | None:
        """Fetch the file, again and again as long as bytes arrive; its SHA-256, or None when it was stopped.
        HubUnreachable after `TRIES` tries in vain; ModelError when the hub refuses, the disk does, or the checksum is
        wrong: the file is then kept aside under the name in the message."""
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
                self.ways.drop()  # plain HTTP goes on from here
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
        """Append to the part what is missing from it, keeping the digest in step with what is on disk."""
        with _opened(part) as data:
            self._catch_up(data, digest)
            if digest.size >= self.file.size:
                return
            way, most = self.ways.pick(self.file, self.file.size - digest.size)
            begun, at = time.monotonic(), digest.size
            opened = xet.stream if way == xet.XET else hub.stream
            with opened(self.repo, self.commit, self.file, digest.size) as (start, blocks):
                if start != digest.size:  # this server knows no ranges
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
        """Read what the part already holds, beyond what was digested."""
        data.seek(digest.size)
        while not self.stop.is_set() and (block := data.read(1 << 22)):
            digest.update(block)
            self.count(min(digest.size, self.file.size))


class Digest:
    """The checksum of a file as it grows: SHA-256 for our notes, and what the hub gave to compare with."""

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
        """What does not agree with the hub's listing; empty when all does."""
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
    """Give a file that is not what it should be another name. Nothing is ever deleted unasked."""
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
    """Say in words why a file cannot be written."""
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
