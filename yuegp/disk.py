"""Files that appear whole or not at all, and errors that say in words why one cannot be read or written."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .errors import LibraryError


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before, even if the power fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as exc:
        raise cannot_write(path, exc) from exc
    finally:
        with contextlib.suppress(OSError):  # must not hide why the writing failed
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can do so: Windows and some network disks
    cannot, and the file is in place either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(root: Path, needed_bytes: int = 0) -> None:
    """Make sure, before any work, that songs can be saved under `root` and that `needed_bytes` are free."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise cannot_write(root, exc) from exc
    probe = root / f".yuegp-{secrets.token_hex(4)}"
    write_atomic(probe, b"")
    with contextlib.suppress(OSError):
        probe.unlink()
    if (free := free_bytes(root)) is not None and free < needed_bytes:
        raise LibraryError(
            f"The disk of {root} has {_megabytes(free)} free, and this song needs about {_megabytes(needed_bytes)}.",
            "Free some space, or choose another folder with --out.",
        )


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays by name, packed, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays by name. LibraryError says why they cannot be had."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except OSError as exc:
        raise cannot_read(path, exc) from exc
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
        raise damaged(path, f"{type(exc).__name__} {exc}") from exc


def damaged(path: Path, why: str) -> LibraryError:
    """That a file is not what it should be, and what to do about it."""
    hint = "Restore the file from a copy, or make a new take."
    if path.name == "stage2.npz":
        hint = "Move the file away and resume: what it held is computed again from the codes of Stage 1."
    return LibraryError(f"{path} is damaged and was left as it is: {why}.", hint)


def cannot_read(path: Path, exc: OSError) -> LibraryError:
    """Why a file could not be read, in words."""
    return LibraryError(f"{path} cannot be read: {exc.strerror or exc}.", "Check that the song folder is complete.")


def cannot_write(path: Path, exc: OSError) -> LibraryError:
    """Why a file could not be written, in words, and what to do about it."""
    free = free_bytes(path)
    left = "" if free is None else f" ({_megabytes(free)} free)"
    cause, hint = {
        errno.ENOSPC: (f"the disk is full{left}", "Free some space, then resume the song."),
        errno.EDQUOT: (f"your disk quota is used up{left}", "Free some space, then resume the song."),
        errno.EROFS: ("this disk is read-only", "Choose another folder with --out."),
        errno.EACCES: ("you may not write there", "Choose another folder with --out, or change its permissions."),
        errno.EPERM: ("you may not write there", "Choose another folder with --out, or change its permissions."),
        errno.ENOENT: ("its folder does not exist", "Put the folder back, or choose another with --out."),
        errno.EEXIST: ("a file of that name is in the way", "Choose another folder with --out."),
        errno.ENOTDIR: ("part of that path is a file", "Choose another folder with --out."),
        errno.ENAMETOOLONG: ("the path is too long", "Choose a folder with a shorter path with --out."),
    }.get(exc.errno or 0, (exc.strerror or str(exc), "Check the disk, or choose another folder with --out."))
    return LibraryError(f"{path} cannot be written: {cause}.", hint)


def free_bytes(path: Path) -> int | None:
    """Free bytes where `path` lies, or would lie; None when nobody knows."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
