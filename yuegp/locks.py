"""One process makes a song at a time: the lock on a song's folder.

The operating system holds the lock, on `<song>/.lock`, and releases it when its holder ends, however it ends: a file
left over, or copied along with the folder, locks nothing. The file's contents (process, host, start) only serve the
message. Only on disks without locks, such as some network shares, do they count as the lock, as long as that process
lives; two processes that begin in the same instant are not told apart there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import files
from .errors import LibraryError

LOCK = ".lock"

LONGEST = 1000
"""Most bytes that we write into it."""

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of a file system without locks."""

_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

_held: set[str] = set()
"""Folders locked by this process. Some systems grant a process a lock it already has; two jobs must not share one."""
_guard = threading.Lock()


@contextlib.contextmanager
def song_lock(folder: Path, doing: str = "made") -> Iterator[None]:
    """Lock a song until the block ends. Raises LibraryError that names the process holding it, or says why the folder
    cannot be locked. `doing` is the work on the folder, for that message."""
    path = folder / LOCK
    key = os.path.normcase(os.path.realpath(folder))
    with _guard:
        if key in _held:
            raise _taken(folder, _owner(path), doing)
        _held.add(key)
    try:
        handle = _acquire(path, doing)
        try:
            yield
        finally:
            _release(handle, path)
    finally:
        with _guard:
            _held.discard(key)


def _acquire(path: Path, doing: str) -> int:
    """Open and lock the file. Returns its handle."""
    while True:
        try:
            if path.is_symlink():
                raise OSError(errno.ELOOP, "it is a link, and links are not followed")
            handle = os.open(path, _OPEN, 0o666)
        except OSError as exc:
            raise _cannot_lock(path, exc) from exc
        try:
            locks = lock_handle(handle)
            if not locks and _lives(owner := _owner(path)):
                raise _taken(path.parent, owner, doing)
            if _is_at(handle, path):  # else the holder before us removed it between our opening and our locking it
                _sign(handle, needed=not locks)
                return handle
        except BlockingIOError as exc:
            os.close(handle)
            raise _taken(path.parent, _owner(path), doing) from exc
        except OSError as exc:
            os.close(handle)
            raise _cannot_lock(path, exc) from exc
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _release(handle: int, path: Path) -> None:
    """Remove the file if it is still ours, then release the lock. Windows removes no open file: there the order is
    reversed, and a file that another process has opened meanwhile stays."""
    ours = _is_at(handle, path)
    with contextlib.suppress(OSError):  # a remaining file locks nothing
        ours = ours and _is_signature(handle)
        if sys.platform == "win32":
            os.close(handle)
        if ours:
            files.discard(path)
    if sys.platform != "win32":
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether `path` is the open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    def lock_handle(handle: int) -> bool:
        """Lock the file: True, False where the disk knows no locks, BlockingIOError where another has it."""
        os.lseek(handle, 1 << 30, os.SEEK_SET)  # others cannot read a locked range: lock a byte behind the text
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as exc:
            raise BlockingIOError(*exc.args) from exc
        except OSError as exc:
            if exc.errno in NO_LOCKS:
                return False
            raise
        return True

    def _is_running(pid: int) -> bool:
        import ctypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        process = kernel.OpenProcess(0x1000, False, pid)  # the right to ask, PROCESS_QUERY_LIMITED_INFORMATION
        if not process:
            return ctypes.get_last_error() == 5  # refused: it is there, and another user's
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(process, ctypes.byref(code))
        kernel.CloseHandle(process)
        return code.value == 259  # STILL_ACTIVE

else:
    import fcntl

    def lock_handle(handle: int) -> bool:
        """Lock the file: True, False where the disk knows no locks, BlockingIOError where another has it."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno in NO_LOCKS:
                return False
            raise
        return True

    def _is_running(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except (ProcessLookupError, OverflowError):
            return False
        return True


def _sign(handle: int, needed: bool) -> None:
    """Write our process into the file. On a full disk an unsigned lock still holds, if the disk supports locks."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        if not _is_signature(handle):
            raise OSError(errno.EEXIST, "it is another program's file")
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(owner).encode())
    except OSError:
        if needed:
            raise


def _is_signature(handle: int) -> bool:
    """Whether a lock file is empty or has our signature: any other is another program's, and stays as it is."""
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, LONGEST + 1)
    return len(text) <= LONGEST and (not text.strip(b"\0") or text.startswith(b'{"pid"'))


def _owner(path: Path) -> dict[str, Any]:
    """The signature in a lock file; empty when the file is empty, damaged or gone."""
    try:
        owner = json.loads(files.read_bytes(path, LONGEST))
        since = datetime.fromisoformat(owner["since"]).astimezone()
        return {"pid": int(owner["pid"]), "host": str(owner["host"]), "since": f"{since:%Y-%m-%d %H:%M}"}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the signer may still be running; on another host we cannot know. Our own process number belongs to an
    earlier process, since `_held` lists our locks."""
    if not owner or owner["host"] != socket.gethostname():
        return bool(owner)
    return owner["pid"] > 0 and owner["pid"] != os.getpid() and _is_running(owner["pid"])


def _taken(folder: Path, owner: dict[str, Any], doing: str) -> LibraryError:
    hint = "Wait until it is done, or stop it there."
    if not owner:
        return LibraryError(f"{folder} is being {doing} by another process.", hint)
    who = f"process {owner['pid']} on {owner['host']}"
    if owner["host"] != socket.gethostname():
        hint = f"Wait until it is done. If nobody works on it any more, delete {folder / LOCK}."
    elif owner["pid"] == os.getpid():
        who += " (this program)"
    return LibraryError(f"{folder} is being {doing} by {who} since {owner['since']}.", hint)


def _cannot_lock(path: Path, exc: OSError) -> LibraryError:
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        return LibraryError(f"The song folder {path.parent} is not there any more.", "Put it back, or restore it.")
    hint = {
        errno.ELOOP: "Delete the link.",
        errno.ENOSPC: "Free some space, then try again.",
    }.get(exc.errno or 0, "Change the folder's permissions, or work on a copy of it elsewhere.")
    return LibraryError(f"{path} cannot be written: {exc.strerror or exc}.", hint)
