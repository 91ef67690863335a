from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from yuegp import locks
from yuegp.errors import LibraryError
from yuegp.locks import LOCK, song_lock


@pytest.fixture
def song(tmp_path: Path) -> Path:
    folder = tmp_path / "my sóngs" / "a song"
    folder.mkdir(parents=True)
    return folder


HOLD = """
import sys
from pathlib import Path
from yuegp.locks import song_lock
with song_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which makes the song until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_the_second_process_hears_who_makes_the_song(song: Path) -> None:
    with other_process(song) as process:
        with pytest.raises(LibraryError) as caught, song_lock(song):
            pass
        who = f"{song} is being made by process {process.pid} on {socket.gethostname()} since 20"
        assert caught.value.what.startswith(who) and caught.value.hint
        process.communicate("")
    with song_lock(song):
        pass


def test_a_killed_process_keeps_nobody_out(song: Path) -> None:
    with other_process(song) as process:
        process.kill()
        process.wait()
        assert (song / LOCK).exists()
        with song_lock(song):
            assert json.loads((song / LOCK).read_text())["pid"] == os.getpid()


def test_a_copy_of_a_song_that_is_being_made_opens(song: Path) -> None:
    with other_process(song):
        copy = shutil.copytree(song, song.parent / "copy")
        assert (copy / LOCK).exists() or os.name == "nt"
        with song_lock(copy):
            pass


def test_two_jobs_of_one_process_never_share_a_song(song: Path) -> None:
    def attempt(_: int) -> str:
        try:
            with song_lock(song):
                return "locked"
        except LibraryError as exc:
            return exc.what

    with song_lock(song), ThreadPoolExecutor(1) as pool:
        assert f"process {os.getpid()}" in attempt(0) and "this program" in attempt(0)
        assert "this program" in pool.submit(attempt, 0).result()
        with song_lock(song.parent):
            pass
    assert attempt(0) == "locked"


def test_a_lock_ends_with_its_block_and_leaves_no_file(song: Path) -> None:
    with pytest.raises(ZeroDivisionError), song_lock(song):
        raise ZeroDivisionError
    assert list(song.iterdir()) == []
    with song_lock(song):
        assert set(json.loads((song / LOCK).read_text())) == {"pid", "host", "since"}


GARBAGE = [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 2000, b'{"pid":1,"host":2,"since":3}']


@pytest.mark.parametrize("content", GARBAGE)
def test_what_stands_in_the_file_only_serves_the_message(song: Path, content: bytes) -> None:
    (song / LOCK).write_bytes(content)
    with song_lock(song):
        pass
    with other_process(song):
        if os.name != "nt":
            (song / LOCK).write_bytes(content)
            with pytest.raises(LibraryError, match="is being made by another process"), song_lock(song):
                pass


def test_a_file_that_its_holder_removes_while_we_open_it_is_not_taken_for_the_lock(
    song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = locks.lock_handle, []

    def lock(handle: int) -> bool:
        calls.append(handle)
        if len(calls) == 1:
            (song / LOCK).unlink()
        return real(handle)

    monkeypatch.setattr(locks, "lock_handle", lock)
    with song_lock(song):
        assert len(calls) == 2 and (song / LOCK).exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder in which a file is open")
def test_a_song_moved_while_it_is_made_leaves_the_lock_of_its_successor_alone(song: Path) -> None:
    with song_lock(song):
        song.rename(song.parent / "moved")
        song.mkdir()
        (song / LOCK).write_text("another's")
    assert (song / LOCK).read_text() == "another's"


def test_a_song_deleted_while_it_is_made_ends_the_lock_quietly(song: Path) -> None:
    with song_lock(song):
        if os.name != "nt":
            shutil.rmtree(song)
    if os.name != "nt":
        with pytest.raises(LibraryError, match="is not there any more"), song_lock(song):
            pass


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs links that everybody may make")
def test_a_lock_that_is_a_link_is_named_and_not_followed(song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = song.parent / "precious"
    precious.write_text("text")
    (song / LOCK).symlink_to(precious)
    for _ in range(2):
        with pytest.raises(LibraryError, match=r"\.lock cannot be written: .*link") as caught, song_lock(song):
            pass
        assert caught.value.hint == "Delete the link."
        monkeypatch.setattr(Path, "is_symlink", lambda path: False)  # it became one after we looked
    assert precious.read_text() == "text"


@pytest.mark.parametrize(
    ("number", "said", "hint"),
    [
        (errno.EROFS, "Read-only", "permissions"),
        (errno.EACCES, "Permission denied", "permissions"),
        (errno.ENOSPC, "No space", "Free some space"),
    ],
)
def test_a_folder_that_cannot_be_locked_says_why(
    song: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, hint: str
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(LibraryError, match=said) as caught, song_lock(song):
        pass
    assert hint in caught.value.hint
    monkeypatch.undo()
    with song_lock(song):
        pass


def test_a_full_disk_does_not_keep_a_song_from_being_locked(song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A song must be movable to the trash just then."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with song_lock(song):
        pass
    monkeypatch.setattr(locks, "lock_handle", lambda handle: False)
    with pytest.raises(LibraryError, match="No space left"), song_lock(song):
        pass


# Disks without locks


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name == "nt":
        monkeypatch.setattr(locks, "lock_handle", lambda handle: False)
        return

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)


def sign(song: Path, pid: int, host: str | None = None) -> None:
    owner = {"pid": pid, "host": host or socket.gethostname(), "since": "2026-01-01T12:00:00+00:00"}
    (song / LOCK).write_text(json.dumps(owner))


def test_on_a_disk_without_locks_a_living_process_is_believed(song: Path, no_locks: None) -> None:
    with other_process(song) as process:
        with pytest.raises(LibraryError, match=f"by process {process.pid} on"), song_lock(song):
            pass
        process.kill()
        process.wait()
        with song_lock(song):
            assert json.loads((song / LOCK).read_text())["pid"] == os.getpid()
            with pytest.raises(LibraryError, match="this program"), song_lock(song):
                pass
    assert list(song.iterdir()) == []


def test_on_a_disk_without_locks_another_host_is_believed_and_the_way_out_named(song: Path, no_locks: None) -> None:
    sign(song, 1, "elsewhere")
    with pytest.raises(LibraryError, match="process 1 on elsewhere since 2026-01-01") as caught, song_lock(song):
        pass
    assert f"delete {song / LOCK}" in caught.value.hint
    (song / LOCK).unlink()
    with song_lock(song):
        pass


@pytest.mark.parametrize(
    "pid", [0, -1, os.getpid(), 2**22 + 1, 2**70], ids=["zero", "negative", "own", "large", "huge"]
)
def test_on_a_disk_without_locks_numbers_of_no_process_keep_nobody_out(song: Path, no_locks: None, pid: int) -> None:
    sign(song, pid)
    with song_lock(song):
        pass
