"""Looking through folders of strangers: links, circles, things that are no files, crowds, and disks that hang."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from yuegp.checkpoints import wander
from yuegp.checkpoints.wander import ask, is_folder, read_small


def names(*roots: Path) -> list[str]:
    return [folder.name for folder, _ in wander.wander(roots)]


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", "a/b"), make(tmp_path / "two", "c")
    (one / "a" / "other disk").symlink_to(two)
    (one / "a" / "b" / "up").symlink_to(one)
    (two / "c" / "across").symlink_to(one / "a")
    (two / "c" / "self").symlink_to(two / "c" / "self")
    assert sorted(names(one, one, two)) == ["a", "b", "c", "one", "two"]


def test_the_shorter_way_counts_where_two_lead_to_a_folder(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "1/2/3/4/deep/x/y")
    (root / "z").symlink_to(root / "1" / "2" / "3" / "4" / "deep")
    assert {"x", "y"} <= set(names(root)) and "y" not in names(root / "1")


def test_only_ordinary_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "r", "folder.safetensors")
    (root / "file").write_bytes(b"1")
    (root / "link").symlink_to("file")
    (root / "nowhere").symlink_to("gone")
    os.mkfifo(root / "pipe")
    (root / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as open_socket:
        monkeypatch.chdir(root)  # a socket's path has at most 107 bytes
        open_socket.bind("socket")
        assert dict(wander.wander([root]))[root] == {"file", "link"}


def test_pipes_devices_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "large", tmp_path):
        assert read_small(path, 4) is None
    assert read_small(tmp_path / "large", 5) == b"12345"


def test_pythons_and_crowds_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "r", "env/lib/x", "node_modules/a", ".git/b", "models")
    (root / "env" / "pyvenv.cfg").touch()
    assert sorted(names(root)) == ["env", "models", "r"]
    make(root, *(f"many/{k}" for k in range(50)))
    monkeypatch.setattr(wander, "MOST_FOLDERS", 20)
    assert len(names(root)) == 20
    monkeypatch.setattr(wander, "MOST_ENTRIES", 10)
    assert len(names(root / "many")) == 11


def test_a_search_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a", "b")
    clock = iter(range(0, 100, 20))
    monkeypatch.setattr(wander.time, "monotonic", lambda: next(clock, 1000))
    assert len(names(tmp_path)) < 3


def test_what_is_forbidden_or_vanishes_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scan = make(tmp_path / "r", "forbidden/x", "goes", "stays"), os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("forbidden"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    seen = []
    for folder, _ in wander.wander([root, tmp_path / "never there", Path("a\0b")]):
        seen.append(folder.name)
        shutil.rmtree(root / "goes", ignore_errors=True)
    assert seen == ["r", "stays"]


def test_a_name_that_is_no_text_is_a_name(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    assert "caf\udce9" in names(tmp_path)


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A folder `dead` on a drive that gives no answer until the test is over; what it was asked."""
    over, asked, look = threading.Event(), list[str](), os.scandir

    def hang(path: str, real: object) -> object:
        if "dead" in os.path.realpath(path):
            asked.append(str(path))
            over.wait()
        return real(path)  # type: ignore[operator]

    monkeypatch.setattr(wander, "PATIENCE", 0.2)
    monkeypatch.setattr(wander, "_asker", wander._Asker())
    monkeypatch.setattr(wander.os, "scandir", lambda path: hang(path, look))
    monkeypatch.setattr(wander.os.path, "isdir", lambda path: hang(path, lambda p: os.path.exists(p)))
    yield asked
    over.set()


def test_a_drive_that_does_not_answer_holds_nobody_up(tmp_path: Path, dead: list[str]) -> None:
    root = make(tmp_path / "r", "a", "dead/x", "z/y")
    (root / "a" / "link").symlink_to(root / "dead")
    assert sorted(names(root)) == ["a", "r", "y", "z"]
    assert not is_folder(root / "dead") and ask(os.path.exists, root / "z")
    before = len(dead)
    assert not is_folder(root / "dead") and len(dead) == before, "it is not asked again at once"
