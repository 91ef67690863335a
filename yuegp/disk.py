"""Files that appear whole or not at all, and errors that say in words why one cannot be read or written.

Windows moves and removes no file that another program has open, and some program always has: virus scanners, indexers
and sync clients open whatever is new for a moment. So files are put in place, moved and removed by the functions here,
which wait for such a program and then name the file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import numpy as np

from .errors import LibraryError

T = TypeVar("T")


class InUse(LibraryError):
    """A file cannot be put in place, moved or removed, because another program has it open."""


PAUSES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.4)
"""Seconds between tries at a file that another program has open: one in all."""

LONG = 230
"""Characters of a path beyond which Windows may refuse one of ours: it allows 259, and temporary names are longer."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before, even if the power fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
        sync_folder(path.parent)
    except OSError as exc:
        raise cannot_write(path, exc) from exc
    finally:
        discard(temporary)


def put(temporary: Path, path: Path) -> None:
    """Give a file that is written and closed its name, so that `path` holds all of it or what it held before, even if
    the power fails. OSError, and InUse when another program has one of them open: both are as they were."""
    with patiently(lambda: temporary.open("rb+"), path, "written") as file:  # Windows flushes what may be written
        os.fsync(file.fileno())
    replace(temporary, path)
    sync_folder(path.parent)


def replace(source: Path, target: Path) -> None:
    """`os.replace`, which waits for a program that has either open; then InUse, and both are as they were."""
    patiently(lambda: os.replace(source, target), target, "written")


def remove(path: Path) -> None:
    """Remove a file, or nothing when it is gone. Waits, and raises, as `replace`."""
    patiently(lambda: path.unlink(missing_ok=True), path, "removed")


def discard(path: Path) -> None:
    """Remove a file or a folder of ours that is of no use any more, if that can be: what cannot go stays."""
    with contextlib.suppress(OSError, LibraryError):
        remove_tree(path) if path.is_dir() and not path.is_symlink() else remove(path)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it. Waits for each file, and raises, as `replace`: the rest is still there
    then."""

    def again(act: Callable[[str], object], path: str, exc: BaseException) -> None:
        if act not in (os.unlink, os.rmdir):
            raise exc
        patiently(lambda: act(path), Path(path), "removed")

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=again)
    else:
        shutil.rmtree(folder, onerror=lambda act, path, info: again(act, path, info[1]))


def patiently(action: Callable[[], T], path: Path, done: str) -> T:
    """Do what another program may hinder for a moment, for about a second; then InUse says that `path` cannot be
    `done`. Any other OSError is raised as it is."""
    for pause in PAUSES:
        try:
            return action()
        except OSError as exc:
            if not in_use(exc):
                raise
            if _read_only(path):
                break
        sleep(pause)
    try:
        return action()
    except OSError as exc:
        if not in_use(exc):
            raise
        if _read_only(path) and done != "read":
            hint = "Take that mark away (right click, Properties, Read-only), then try again."
            raise InUse(f"{path} cannot be {done}: it is marked as read-only.", hint) from exc
        surely = getattr(exc, "winerror", None) in (32, 33, 1224)
        raise InUse(
            f"{path} cannot be {done}: another program has it open{'' if surely else ', or you have no right to it'}.",
            "Close what uses it, such as a player, a virus scanner or a sync program, then try again.",
        ) from exc


def in_use(exc: OSError) -> bool:
    """Whether Windows refused because somebody has a file open: access denied (5), a sharing violation (32), a lock
    (33), or a mapped file (1224). What goes through the C library there is told by its `errno` alone."""
    code = getattr(exc, "winerror", None)
    return code in (5, 32, 33, 1224) or (code is None and os.name == "nt" and exc.errno == errno.EACCES)


def _read_only(path: Path) -> bool:
    return path.is_file() and not path.stat().st_mode & stat.S_IWRITE


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
    discard(probe)
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
        with patiently(lambda: path.open("rb"), path, "read") as data, np.load(data, allow_pickle=False) as file:
            return [file[name] for name in names]
    except OSError as exc:
        raise cannot_read(path, exc) from exc
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
        raise damaged(path, f"{type(exc).__name__} {exc}") from exc


def read_bytes(path: Path) -> bytes:
    """What a file holds. Waits while another program puts a new one in its place; OSError, and InUse, as `replace`."""
    return patiently(path.read_bytes, path, "read")


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
    code = getattr(exc, "winerror", None)
    if code == 206 or (exc.errno == errno.ENOENT and len(str(path.absolute())) > LONG and path.parent.is_dir()):
        cause, hint = "the path is too long for Windows", "Choose a folder with a shorter path with --out."
    elif code in (123, 267) or (code is None and exc.errno == errno.EINVAL):
        cause, hint = "this disk allows no such name", 'Choose a name without < > : " | ? * and not one of a device.'
    return LibraryError(f"{path} cannot be written: {cause}.", hint)


def free_bytes(path: Path) -> int | None:
    """Free bytes where `path` lies, or would lie; None when nobody knows."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
