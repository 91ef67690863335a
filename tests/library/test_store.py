from __future__ import annotations

import errno
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yuegp.errors import LibraryError, RequestError
from yuegp.files import check_writable, write_atomic
from yuegp.library import store
from yuegp.library.store import SLUG_BYTES, Take, create, open_song, slug
from yuegp.paths import songs_dir
from yuegp.song.schema import MadeWith, Reference, Sampling, Section, SongRequest, Span, Stage, TakeInfo

REQUEST = SongRequest(sections=(Section("verse", "la la\nlo"), Section("outro")), tags="pop, female", title="My Söng")


FRESH = TakeInfo(number=0, request=REQUEST)


def codes(books: int, frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 1024, (2, books, frames), dtype=np.int16)


def until(stop: int, **more: Any) -> TakeInfo:
    request = more.pop("request", REQUEST)
    return TakeInfo(number=1, request=request, stage=Stage.STAGE1, spans=(Span(0, 0, stop, True),), **more)


@pytest.fixture
def take(tmp_path: Path) -> Take:
    return create(REQUEST, tmp_path).new_take(FRESH)


def reopened(take: Take) -> Take:
    return open_song(take.folder.parent.parent).take(take.info.number)


# Places


def test_songs_lie_in_the_home_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUEGP_HOME", str(tmp_path))
    assert songs_dir() == tmp_path / "songs" and songs_dir("x") == Path("x")
    monkeypatch.delenv("YUEGP_HOME")
    monkeypatch.chdir(tmp_path)
    assert songs_dir() == tmp_path / "songs"


# Songs


def test_a_song_reads_back_as_it_was_written(tmp_path: Path) -> None:
    song = create(REQUEST, tmp_path / "my songs", "[verse]\r\nla la\nlo")
    assert open_song(song.folder) == song and song.request == REQUEST
    assert (song.folder / "lyrics.txt").read_bytes() == b"[verse]\r\nla la\nlo"
    assert "My-Söng" in song.folder.name
    assert sorted(path.name for path in song.folder.iterdir()) == ["lyrics.txt", "song.json"]


def test_a_song_opens_elsewhere_with_its_reference(tmp_path: Path) -> None:
    vocal, backing = tmp_path / "a b.WAV", tmp_path / "backing"
    vocal.write_bytes(b"voice")
    backing.write_bytes(b"band")
    request = SongRequest((), "pop", reference=Reference(vocal=str(vocal), instrumental=str(backing), end=9.5))
    song = create(request, tmp_path / "songs")
    vocal.unlink()
    stored = json.loads((song.folder / "song.json").read_text("utf-8"))["request"]["reference"]
    assert stored["vocal"] == "references/vocal.wav" and stored["mix"] is None and str(tmp_path) not in str(stored)

    moved = tmp_path / "elsewhere"
    shutil.move(song.folder, moved)
    reference = open_song(moved).request.reference
    assert reference and reference.end == 9.5 and reference.vocal and reference.instrumental
    assert Path(reference.vocal).read_bytes() == b"voice" and Path(reference.instrumental).read_bytes() == b"band"
    assert Path(reference.vocal).is_relative_to(moved)


def test_an_absent_reference_leaves_no_song_behind(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere"):
        create(SongRequest((), "pop", reference=Reference(mix="nowhere.wav")), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outside", ["../../secret.wav", "/etc/passwd"])
def test_a_reference_outside_the_song_is_refused(tmp_path: Path, outside: str) -> None:
    song = create(REQUEST, tmp_path)
    data = json.loads((song.folder / "song.json").read_text("utf-8"))
    data["request"]["reference"] = {"mix": outside}
    (song.folder / "song.json").write_text(json.dumps(data))
    with pytest.raises(LibraryError, match="outside the song folder"):
        open_song(song.folder)


def test_a_failure_while_creating_is_not_hidden_by_its_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inherited fault: an error hidden by its own clean-up."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "unlink", full)
    with pytest.raises(LibraryError, match=r"song\.json cannot be written: the disk is full"):
        create(REQUEST, tmp_path)


def test_a_name_that_is_taken_is_never_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inherited fault: outputs overwritten by the next run."""
    first = create(REQUEST, tmp_path)
    ids = iter([first.folder.name[-6:], "fresh1", "x", "x"])
    monkeypatch.setattr(store.secrets, "token_hex", lambda _: next(ids))
    assert create(REQUEST, tmp_path).folder.name.endswith("-fresh1")
    assert open_song(first.folder) == first


def _make_ten(root: str) -> list[str]:
    return [create(REQUEST, Path(root)).folder.name for _ in range(10)]


def test_two_processes_never_share_a_song(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        made = [name for names in pool.map(_make_ten, [str(tmp_path)] * 2) for name in names]
    assert len(set(made)) == 20 == len(list(tmp_path.iterdir()))


def test_two_threads_never_share_a_take(tmp_path: Path) -> None:
    song = create(REQUEST, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        numbers = [take.info.number for take in pool.map(lambda _: song.new_take(FRESH), range(20))]
    assert sorted(numbers) == list(range(1, 21)) == song.take_numbers()


AWKWARD = [
    *("CON", "nul.txt", "..", ".hidden", 'a/b\\c:d*e?f"g<h>i|j', "tab\tline\nfeed\0", " ", "", "\u202eright to left"),
    *("R&B/Soul", "歌" * 300, "👩‍👩‍👧 family", "x" * 300, "trailing. ", "שיר", "é" * 60, "\ud800"),
]


@pytest.mark.parametrize("title", AWKWARD, ids=ascii)
def test_any_title_makes_a_folder_that_every_system_accepts(tmp_path: Path, title: str) -> None:
    song = create(SongRequest((), "pop", title=title), tmp_path)
    name = song.folder.name
    assert open_song(song.folder).request.title == title
    assert not set(name) & set('<>:"/\\|?*') and name.isprintable() and len(name.encode()) <= SLUG_BYTES + 18
    assert name.split(".")[0].upper() not in {"CON", "NUL"} and name[0] not in ". " and name[-1] not in ". "


@given(st.text())
def test_a_slug_is_short_and_plain(title: str) -> None:
    text = slug(title)
    assert 0 < len(text.encode()) <= SLUG_BYTES
    assert slug(text) == text and not set(text) & set('<>:"/\\|?* ') and min(text) >= " "


def test_slugs_keep_words_of_any_script() -> None:
    assert slug("Hello, World!") == "Hello,-World!" and slug("夜曲 🎵") == "夜曲-🎵" and slug("???") == "song"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b'{"format": 1}', "damaged"),
        (b'{"format": "1", "request": {}}', "damaged"),
        (b'{"format": 1, "request": {"sections": 5}}', "damaged"),
        (b'{"format": 2, "song": {}, "request": {"sections": [], "sampling": {}, "tags": "", "mood": 1}}', "mood"),
        (b'{"format": 4, "request": {}}', r"made by a newer yuegp \(format 4; this one reads up to 3\)"),
    ],
)
def test_a_damaged_song_json_is_named_and_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    path = create(REQUEST, tmp_path).folder / "song.json"
    path.write_bytes(content)
    with pytest.raises(LibraryError, match=message) as caught:
        open_song(path.parent)
    assert str(path) in caught.value.what and path.read_bytes() == content


def test_a_folder_that_is_no_song_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"no song\.json in it"):
        open_song(tmp_path)
    with pytest.raises(LibraryError, match="is not a song"):
        open_song(tmp_path / "absent")


# Takes


def test_a_take_reads_back_as_it_was_written(take: Take) -> None:
    made = MadeWith("0.1", "demo", "torch", "cpu", "2.13")
    info = until(50, request=replace(REQUEST, seed=7, sampling=Sampling(top_k=0)), made_with=made, seconds={"a": 1.5})
    take.save_stage1(codes(1, 50), info)
    mask = np.arange(100).reshape(2, 50) < 70
    take.save_stage2(codes(8, 50), mask, info)
    again = reopened(take)
    assert again == take and again.info == info and again.frames == 50
    assert np.array_equal(again.load_stage1(), codes(1, 50)) and again.load_stage1().dtype == np.int16
    loaded = again.load_stage2()
    assert np.array_equal(loaded[0], codes(8, 50)) and np.array_equal(loaded[1], mask)
    assert [p.name for p in (again.vocal, again.instrumental, again.mix)] == [
        "vocal.flac",
        "instrumental.flac",
        "mix.flac",
    ]
    assert {path.name for path in take.folder.iterdir()} == {"take.json", "stage1.npz", "stage2.npz"}


def test_a_new_take_is_on_disk_at_once_and_empty(take: Take) -> None:
    again = reopened(take)
    assert again.info == replace(FRESH, number=1, created=again.info.created) and again.info.created
    assert again.load_stage1().shape == (2, 1, 0) and [a.shape for a in again.load_stage2()] == [(2, 8, 0), (2, 0)]


def test_a_take_can_begin_with_codes_of_another(take: Take) -> None:
    song = open_song(take.folder.parent.parent)
    mask, leads = np.ones((2, 50), bool), codes(8, 32)[None]
    begun = song.new_take(until(50, seams=(20,), parent=1), codes(1, 50), (codes(8, 50), mask), leads)
    again = song.take(2)
    assert again == begun and again.info.parent == 1 and again.info.number == 2
    assert np.array_equal(again.load_stage1(), codes(1, 50)) and np.array_equal(again.load_stage2()[0], codes(8, 50))
    assert np.array_equal(again.load_leads(), leads)


def test_what_is_not_refined_is_unmarked(take: Take) -> None:
    take.save_stage1(codes(1, 50), until(50))
    take.save_stage2(codes(8, 50), np.ones((2, 50), bool), until(50))
    take.save_stage1(codes(1, 90), until(90))
    refined, mask = take.load_stage2()
    assert mask[:, :50].all() and not mask[:, 50:].any() and refined.shape == (2, 8, 90)


def test_the_chosen_take_is_the_picked_or_the_newest_rendered_one(take: Take) -> None:
    song = open_song(take.folder.parent.parent)
    assert song.chosen().info.number == 1
    take.save_info(replace(take.info, stage=Stage.RENDERED))
    song.new_take(FRESH)
    assert song.chosen().info.number == 1
    song.save_info(replace(song.info, picked=2, rating=4))
    again = open_song(song.folder)
    assert again.chosen().info.number == 2 and again.info.rating == 4 and again.request == song.request


def test_a_song_of_format_1_opens_and_is_written_anew_only_when_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "old song"
    shutil.copytree(Path(__file__).resolve().parents[1] / "fixtures" / "song-format-1", folder)
    before = (folder / "song.json").read_bytes()
    song = open_song(folder)
    old = song.take(1)
    assert song.info.title == "Format one" and song.info.picked is None
    spans = [(s.section, s.start, s.stop, s.take, s.seed) for s in old.info.spans]
    assert spans == [(0, 0, 50, 1, 11), (1, 50, 100, 1, 11)]
    assert old.info.request.seed == 11 and old.info.stage is Stage.RENDERED
    refined, mask = old.load_stage2()
    assert mask.shape == (2, 100) and mask.all() and (refined[:, :1] == old.load_stage1()).all()
    assert (folder / "song.json").read_bytes() == before
    song.save_info(replace(song.info, rating=5))
    assert json.loads((folder / "song.json").read_text())["format"] == 3
    assert open_song(folder).take(1).info == old.info


def test_takes_are_numbered_and_name_their_parent(take: Take) -> None:
    song = open_song(take.folder.parent.parent)
    second = song.new_take(replace(FRESH, parent=1))
    assert second.folder.name == "002" and song.take(2).info.parent == 1 and song.take_numbers() == [1, 2]
    with pytest.raises(LibraryError, match="has no take 3") as caught:
        song.take(3)
    assert "1, 2" in caught.value.hint


def test_a_take_whose_creation_was_interrupted_is_passed_over(take: Take) -> None:
    song = open_song(take.folder.parent.parent)
    (song.folder / "takes" / "002").mkdir()
    assert song.take_numbers() == [1] and song.new_take(FRESH).info.number == 3


def test_after_a_crash_between_codes_and_spans_the_spans_are_the_truth(
    take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    take.save_stage1(codes(1, 50), until(50))
    monkeypatch.setattr(Take, "save_info", lambda *_: None)
    take.save_stage1(codes(1, 90), until(90))
    assert np.array_equal(reopened(take).load_stage1(), codes(1, 90)[:, :, :50])


@pytest.mark.parametrize("name", ["stage1.npz", "stage2.npz"])
@pytest.mark.parametrize("keep", [0, 10, 60, -30])
def test_a_truncated_npz_is_named_and_left_alone(take: Take, name: str, keep: int) -> None:
    take.save_stage1(codes(1, 50), until(50))
    take.save_stage2(codes(8, 50), np.ones((2, 50), bool), until(50))
    path = take.folder / name
    cut = path.read_bytes()[:keep]
    path.write_bytes(cut)
    damaged, whole = (take.load_stage1, take.load_stage2)[:: 1 if name == "stage1.npz" else -1]
    with pytest.raises(LibraryError, match=rf"{name} (is damaged and was left as it is|cannot be read)"):
        damaged()
    assert path.read_bytes() == cut
    whole()


def test_a_flipped_byte_is_noticed(take: Take) -> None:
    take.save_stage1(codes(1, 50), until(50))
    path = take.folder / "stage1.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(LibraryError, match="damaged"):
        take.load_stage1()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (codes(1, 50) + np.int16(1000), "the values reach from 10"),
        (np.full((2, 1, 50), -1, np.int16), "the values reach from -1"),
        (codes(1, 50).astype(np.float32), "float32"),
        (codes(1, 50).astype(np.int64), "int64, not int16"),
        (codes(8, 50), r"shape is \(2, 8, 50\)"),
        (codes(1, 49), "49 frames, but take.json lists 50"),
        (np.array([{"a": 1}], dtype=object), "damaged"),
    ],
)
def test_codes_that_are_none_are_refused(take: Take, array: np.ndarray, message: str) -> None:
    take.save_stage1(codes(1, 50), until(50))
    np.savez(take.folder / "stage1.npz", codes=array)
    with pytest.raises(LibraryError, match=message):
        take.load_stage1()


def test_arrays_under_other_names_are_refused(take: Take) -> None:
    take.save_info(until(50))
    np.savez(take.folder / "stage1.npz", x=codes(1, 50))
    with pytest.raises(LibraryError, match="damaged"):
        take.load_stage1()
    np.savez(take.folder / "stage2.npz", codes=codes(8, 50), mask=np.ones(3))
    with pytest.raises(LibraryError, match="mask is float64"):
        take.load_stage2()


def test_our_own_mistakes_are_not_written(take: Take) -> None:
    for wrong in (codes(1, 40), codes(8, 50), codes(1, 50) + np.int16(1024), codes(1, 50) / 2):
        with pytest.raises(ValueError):
            take.save_stage1(wrong, until(50))
    with pytest.raises(ValueError):
        take.save_stage2(codes(8, 50), np.ones((2, 50)), until(50))
    assert sorted(path.name for path in take.folder.iterdir()) == ["stage1.npz", "take.json"]


def test_a_damaged_take_json_is_named(take: Take) -> None:
    (take.folder / "take.json").write_text('{"format": 1, "take": {"stage": "half"')
    with pytest.raises(LibraryError, match=r"take\.json is damaged"):
        reopened(take)


# Files


def test_writing_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"first, longer")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "cause", "hint"),
    [
        (errno.ENOSPC, r"the disk is full \([\d.]+ [GM]B free\)", "resume the song"),
        (errno.EDQUOT, "disk quota", "Free some space"),
        (errno.EROFS, "read-only", "--out"),
        (errno.EACCES, "may not write there", "permissions"),
        (errno.EIO, "Input/output error", "Check the disk"),
    ],
)
def test_a_failed_write_keeps_the_old_file_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, cause: str, hint: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "song.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(LibraryError, match=rf"song\.json cannot be written: .*{cause}") as caught:
        write_atomic(path, b"new")
    assert hint in caught.value.hint and isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_stop_in_the_middle_of_a_write_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_song_folder_that_vanished_is_said(take: Take) -> None:
    shutil.rmtree(take.folder)
    with pytest.raises(LibraryError, match="its folder does not exist"):
        take.save_info(take.info)


def test_a_good_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "songs", 1000)
    assert list((tmp_path / "new" / "songs").iterdir()) == []


def test_too_little_space_is_noticed_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"[GM]B free, and this song needs about 1000000000.00 GB"):
        check_writable(tmp_path, 10**18)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "songs").write_text("x")
    for root in (tmp_path / "songs", tmp_path / "songs" / "deeper"):
        for attempt in (check_writable, lambda place: create(REQUEST, place)):
            with pytest.raises(LibraryError, match=r"cannot be written: (a file of that name|part of that path)"):
                attempt(root)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LibraryError, match="you may not write there"):
        check_writable(tmp_path)
