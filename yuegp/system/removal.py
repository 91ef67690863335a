"""Finds the files in a checkpoint's folder that we may delete: those named in its pin, unfinished downloads, and files
converted here. All others in the folder are not ours."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from yuegp.checkpoints import locate
from yuegp.checkpoints.locate import Pin
from yuegp.checkpoints.registry import Checkpoint
from yuegp.codec.convert import source_of
from yuegp.errors import ModelError
from yuegp.owned import is_link

_ARRIVING = re.compile(r"(.+)\.(?:part|[0-9a-f]{8}(?:-\d+)?\.bad)")
"""Names that `transfer` gives to unfinished and damaged files."""


def ours(checkpoint: Checkpoint, pin: Pin) -> list[Path]:
    """The files that we put into a checkpoint's own folder, without those changed since. Counts links, which a download
    may put in place of a file, and never follows them."""
    folder = locate.own_folder(checkpoint)
    written = locate.pin_path(checkpoint).stat().st_mtime
    return [path for path in _files(folder) if _is_ours(path, folder, checkpoint, pin, written)]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_link(path):
            yield from _files(path)
        else:
            yield path


def _is_ours(path: Path, folder: Path, checkpoint: Checkpoint, pin: Pin, written: float) -> bool:
    name = path.relative_to(folder).as_posix()
    if name in pin.files:
        return is_link(path) or _as_downloaded(path, *pin.files[name], written)
    if match := _ARRIVING.fullmatch(name):
        return match[1] in pin.files or _is_wanted(checkpoint, match[1])
    source = path.with_suffix(".pth").relative_to(folder).as_posix()
    if path.suffix == ".safetensors" and source in pin.files:
        with contextlib.suppress(ModelError, OSError, ValueError):
            return source_of(path) == pin.files[source][1]
    return False


def _is_wanted(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a download of the checkpoint includes a file of that name."""
    return name in checkpoint.files if checkpoint.files else checkpoint.wanted([name]) == [name]


def _as_downloaded(path: Path, size: int, sha256: str, written: float) -> bool:
    """Whether a file is as the pin says: of its size, and not newer than the pin, or else of its checksum."""
    with contextlib.suppress(OSError):
        state = os.lstat(path)
        if state.st_size != size:
            return False
        if state.st_mtime <= written:
            return True
        with path.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest() == sha256
    return False
