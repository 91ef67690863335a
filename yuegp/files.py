"""Writes files whole or not at all, reads them up to a size limit, and words errors. `checked` checks their contents.

Windows moves and removes no file that another program has open, and virus scanners, indexers and sync clients open
every new file for a moment. So only the functions here put files in place, move and remove them: they wait for such a
program and then name the file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import secrets
import shutil
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import numpy as np

from yuegp.units import file_size

from .checked import Fault, parse
from .errors import LibraryError

T = TypeVar("T")


class InUse(LibraryError):
    """A file cannot be put in place, moved or removed, because another program has it open."""


PAUSES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.4)
"""Seconds between tries at a file that another program has open; one second in all."""

LONG = 230
"""Characters of a path beyond which Windows may refuse it: it allows 259, and temporary names are longer."""
JSON_BYTES = 8 << 20
"""Most bytes of a JSON file. A song's have a few thousand."""

NPZ_BYTES = 160 << 20
"""Most bytes of a file of codes, and of each unpacked array: a day of music (`schema.LONGEST_FRAMES`) fits."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` has either all of it or its old contents, even if the power fails."""
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
    """Rename a written and closed file to `path`, which then has all of it or its old contents, even if the power
    fails. Raises OSError, or InUse when another program has one of them open; both files are then unchanged."""
    with patiently(lambda: temporary.open("rb+"), path, "written") as file:  # Windows flushes what may be written
        os.fsync(file.fileno())
    replace(temporary, path)
    sync_folder(path.parent)


def replace(source: Path, target: Path) -> None:
    """`os.replace` that waits for a program with either file open. Raises InUse; both files are then unchanged."""
    patiently(lambda: os.replace(source, target), target, "written")


def remove(path: Path) -> None:
    """Remove a file if it exists. Waits and raises as `replace`."""
    patiently(lambda: path.unlink(missing_ok=True), path, "removed")


def discard(path: Path) -> None:
    """Remove a file or folder of ours that is no longer needed, as far as possible, without raising."""
    with contextlib.suppress(OSError, LibraryError):
        remove_tree(path) if path.is_dir() and not path.is_symlink() else remove(path)


def remove_tree(folder: Path) -> None:
    """Remove a folder with its contents. Waits for each file and raises as `replace`, leaving the rest."""

    def again(act: Callable[[str], object], path: str, exc: BaseException) -> None:
        if act not in (os.unlink, os.rmdir):
            raise exc
        patiently(lambda: act(path), Path(path), "removed")

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=again)
    else:
        shutil.rmtree(folder, onerror=lambda act, path, info: again(act, path, info[1]))


def patiently(action: Callable[[], T], path: Path, done: str) -> T:
    """Run `action`, retrying for about a second while another program has the file open. Then raises InUse, which says
    that `path` cannot be `done`; other OSErrors pass unchanged."""
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
    """Whether Windows refused because a program has a file open: access denied (5), a sharing violation (32), a lock
    (33), or a mapped file (1224). Errors from its C library have only an `errno`."""
    code = getattr(exc, "winerror", None)
    return code in (5, 32, 33, 1224) or (code is None and os.name == "nt" and exc.errno == errno.EACCES)


def _read_only(path: Path) -> bool:
    return path.is_file() and not path.stat().st_mode & stat.S_IWRITE


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut where the system can: Windows and some network disks cannot; the
    file is in place either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(root: Path, needed_bytes: int = 0) -> None:
    """Raise LibraryError, before any work, unless songs can be saved under `root` and `needed_bytes` are free."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise cannot_write(root, exc) from exc
    probe = root / f".yuegp-{secrets.token_hex(4)}"
    write_atomic(probe, b"")
    discard(probe)
    if (free := free_bytes(root)) is not None and free < needed_bytes:
        raise LibraryError(
            f"The disk of {root} has {file_size(free)} free, and this song needs about {file_size(needed_bytes)}.",
            "Free some space, or choose another folder with --out.",
        )


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays by name, compressed, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Read arrays by name from a file of `write_npz`. Raises LibraryError. Ignores other entries, unpickles nothing,
    and decompresses an array only after its header shows an acceptable size."""
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path, NPZ_BYTES))) as file:
            return [_read_array(file, f"{name}.npy") for name in names]
    except OSError as exc:
        raise cannot_read(path, exc) from exc
    except Fault as exc:
        raise damaged(path, str(exc)) from exc
    except NOT_NPZ as exc:
        raise damaged(path, f"{type(exc).__name__} {exc}") from exc


NOT_NPZ = (
    ValueError, KeyError, IndexError, TypeError, EOFError, OverflowError, RuntimeError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip
"""Exceptions of Python's zip reader for an invalid file."""

_ARRAY = re.compile(
    rb"\{'descr': '([<|][biuf][1248])', 'fortran_order': (True|False), 'shape': \(((?:\d{1,9},? ?){0,5})\), ?\} *\n"
)
"""The header of an array of numbers, as numpy writes it. Source: numpy.lib.format."""


def _read_array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    found = [member for member in file.infolist() if member.filename == name]
    if len(found) != 1:
        raise Fault(f"it holds {len(found)} arrays called {name}")
    (member,) = found
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Fault(f"{name} is encrypted, or packed in another way than ours")
    with file.open(member) as data:
        start = data.read(10)
        if start[:8] != b"\x93NUMPY\1\0":
            raise Fault(f"{name} is no array")
        head = data.read(int.from_bytes(start[8:], "little"))
        if not (match := _ARRAY.fullmatch(head)):
            raise Fault(f"{name} is no array of numbers")
        dtype, shape = np.dtype(match[1].decode()), tuple(int(n) for n in re.findall(rb"\d+", match[3]))
        size = math.prod(shape) * dtype.itemsize
        if size > NPZ_BYTES:
            raise Fault(f"{name} is to have {size:,} bytes")
        values = data.read(size)
        if len(values) != size or data.read(1):
            raise Fault(f"{name} has another size than the {size:,} bytes it announces")
    return np.frombuffer(bytearray(values), dtype).reshape(shape, order="F" if match[2] == b"True" else "C")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Raises OSError when it cannot be read; Fault, without waiting,
    when it is larger or a folder, pipe or device; InUse when another program keeps it locked."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = patiently(lambda: os.open(path, flags), path, "read")
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise Fault("it is no ordinary file")
        if state.st_size > most:
            raise Fault(f"it has {state.st_size:,} bytes, and at most {most:,} are read")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(state.st_size + 1)  # as much as it reserves memory for
    finally:
        os.close(handle)
    if len(data) > state.st_size:
        raise Fault("it became longer while it was read")
    return data


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """The values in a JSON file. Raises OSError and Fault as `read_bytes` and `checked.parse`."""
    return parse(read_bytes(path, most))


def damaged(path: Path, why: str) -> LibraryError:
    """The error for a damaged file, with a next step."""
    hint = "Restore the file from a copy, or make a new take."
    if path.name == "stage2.npz":
        hint = "Move the file away and resume: what it held is computed again from the codes of Stage 1."
    return LibraryError(f"{path} is damaged and was left as it is: {why}.", hint)


def cannot_read(path: Path, exc: OSError) -> LibraryError:
    """The error for a file that could not be read."""
    return LibraryError(f"{path} cannot be read: {exc.strerror or exc}.", "Check that the song folder is complete.")


def cannot_write(path: Path, exc: OSError) -> LibraryError:
    """The error for a file that could not be written, with a next step."""
    free = free_bytes(path)
    left = "" if free is None else f" ({file_size(free)} free)"
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
    """Free bytes on the disk of `path`, which need not exist; None if unknown."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None
