from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from yuegp.errors import LibraryError, RequestError
from yuegp.library import catalog
from yuegp.library.catalog import (
    TRASH,
    SongSummary,
    entries,
    find,
    get,
    pick,
    rate,
    rename,
    restore,
    search,
    trash,
    trashed,
)
from yuegp.library.store import Song, create, open_song
from yuegp.locks import LOCK, song_lock
from yuegp.song.schema import Section, SongRequest, Span, Stage, TakeInfo

REQUEST = SongRequest((Section("verse", "paper lanterns"), Section("chorus", "over the bay")), "pop, airy vocal")


def make(root: Path, title: str = "Rain", seconds: float = 0, created: str = "", **changes: Any) -> Song:
    """A song; with `seconds`, one that has a take of that length."""
    song = create(replace(REQUEST, title=title, **changes), root)
    if seconds:
        take = song.new_take(TakeInfo(number=0, request=song.request))
        take.save_info(replace(take.info, stage=Stage.STAGE1, spans=(Span(0, 0, int(seconds * 50), True),)))
    if created:
        song.save_info(replace(song.info, created=created))
    return song


def damage(song: Song, **cover: Any) -> None:
    """Change values on the cover page without care."""
    path = song.folder / "song.json"
    data = json.loads(path.read_text("utf-8"))
    data["song"] |= cover
    path.write_text(json.dumps(data), "utf-8")


def names(found: list[SongSummary]) -> list[str]:
    return [entry.title for entry in found]


# Listing


def test_a_song_is_listed_as_it_is(tmp_path: Path) -> None:
    song = make(tmp_path, "Rain", seconds=2.5)
    song.new_take(TakeInfo(number=0, request=song.request))
    rate(song, 4)
    pick(song, 1)
    (entry,) = entries(tmp_path)
    assert entry == SongSummary(
        song.folder,
        "Rain",
        "pop, airy vocal",
        "paper lanterns\nover the bay",
        song.info.created,
        4,
        2.5,
        Stage.STAGE1,
        2,
    )
    assert entry.language == "en" and entry.name == "Rain" and entry.broken is None


def test_a_list_changes_nothing_on_disk(tmp_path: Path) -> None:
    make(tmp_path, seconds=1)
    (make(tmp_path).folder / "song.json").write_text("{")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(entries(tmp_path)) == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_is_no_song_is_not_listed(tmp_path: Path) -> None:
    assert entries(tmp_path / "absent") == []
    (tmp_path / "2026-01-01-interrupted-abcdef").mkdir()
    (tmp_path / "2026-01-01-interrupted-abcdef" / ".song.json.1234.tmp").write_text("{")
    (tmp_path / "notes.txt").write_text("x")
    shutil.copytree(make(tmp_path).folder, tmp_path / ".hidden")
    assert len(entries(tmp_path)) == 1
    with pytest.raises(LibraryError, match=r"notes\.txt cannot be read") as caught:
        entries(tmp_path / "notes.txt")
    assert caught.value.hint


def test_songs_without_takes_and_half_begun_takes(tmp_path: Path) -> None:
    song = make(tmp_path)
    (song.folder / "takes" / "001").mkdir(parents=True)
    (entry,) = entries(tmp_path)
    assert (entry.takes, entry.stage, entry.seconds, entry.broken) == (0, None, 0, None)


def test_a_song_of_format_1_is_listed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "fixtures" / "song-format-1", tmp_path / "2026-01-02-old-abcdef")
    (entry,) = entries(tmp_path)
    assert entry.title == "Format one" and entry.takes == 1 and entry.seconds > 0 and not entry.broken
    assert entry.created == "2026-01-02", "the folder's date stands in for the time it lacks"


def test_damaged_songs_are_listed_with_the_reason_and_the_others_as_ever(tmp_path: Path) -> None:
    make(tmp_path, "Whole")
    (make(tmp_path, "Cut").folder / "song.json").write_text('{"format": 2, "song"')
    newer = make(tmp_path, "Newer").folder / "song.json"
    newer.write_text(newer.read_text().replace('"format": 3', '"format": 99'))
    (make(tmp_path, "Gone", seconds=1).folder / "song.json").unlink()
    (make(tmp_path, "Take", seconds=1).folder / "takes" / "001" / "take.json").write_text("[]")
    damage(make(tmp_path, "Picked", seconds=1), picked=7)
    broken = {entry.folder.name[11:-7]: entry for entry in entries(tmp_path)}
    assert len(broken) == 6 and broken.pop("Whole").broken is None
    for title, reason in (
        ("Cut", "song.json is damaged and was left as it is"),
        ("Newer", "made by a newer yuegp (format 99"),
        ("Gone", "has takes, but no song.json"),
        ("Take", "take.json is damaged and was left as it is"),
        ("Picked", "has no take 7"),
    ):
        assert reason in (broken[title].broken or "") and str(broken[title].folder) in (broken[title].broken or "")
        assert broken[title].created, "even so it has a place in the order"
    assert broken["Take"].title == "Take" and broken["Cut"].name == broken["Cut"].folder.name


@pytest.mark.parametrize(
    "cover", [{"title": 5}, {"title": None}, {"created": []}, {"rating": "good"}, {"rating": True}, {"picked": "x"}]
)
def test_values_of_the_wrong_kind_do_not_upset_the_list(tmp_path: Path, cover: dict[str, Any]) -> None:
    make(tmp_path, "Whole")
    song = make(tmp_path, "Odd")
    damage(song, **cover)
    broken = [entry for entry in entries(tmp_path) if entry.broken]
    assert [entry.folder for entry in broken] == [song.folder] and "is damaged" in (broken[0].broken or "")
    for order in catalog.SORTS:
        assert len(search(entries(tmp_path), "", sort=order)) == 2
    with pytest.raises(LibraryError, match="is damaged"):
        get(tmp_path, song.folder.name)


def test_a_take_of_odd_values_does_not_upset_the_list(tmp_path: Path) -> None:
    path = make(tmp_path, seconds=1).folder / "takes" / "001" / "take.json"
    path.write_text(path.read_text().replace('"stop": 50', '"stop": "far"'))
    assert "spans[0].stop is 'far', not a whole number" in (entries(tmp_path)[0].broken or "")


def test_a_song_deleted_while_it_is_listed_is_just_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "Stays")
    gone = make(tmp_path, "Goes").folder
    real = catalog._folders

    def folders(root: Path) -> list[Path]:
        found = real(root)
        shutil.rmtree(gone)
        return found

    monkeypatch.setattr(catalog, "_folders", folders)
    assert names(entries(tmp_path)) == ["Stays"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_song_that_may_not_be_read_is_listed_with_the_reason(tmp_path: Path) -> None:
    for mode in (0o000, 0o400):
        folder = make(tmp_path, f"mode {mode:o}").folder
        folder.chmod(mode)
    assert all("cannot be read: Permission denied" in (entry.broken or "") for entry in entries(tmp_path))
    assert len(entries(tmp_path)) == 2


@pytest.mark.skipif(os.name == "nt", reason="needs links that everybody may make")
@pytest.mark.parametrize("part", ["song.json", "takes", "takes/001", "takes/001/stage1.npz", "references"])
def test_a_link_out_of_a_song_is_named_and_not_followed(tmp_path: Path, part: str) -> None:
    outside = make(tmp_path / "elsewhere", "Secret", seconds=1).folder
    song = make(tmp_path / "songs", "Trap", seconds=1)
    target = song.folder / part
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    target.symlink_to(outside / part)
    (entry,) = entries(tmp_path / "songs")
    assert f"{target} is a link to {outside / part}" in (entry.broken or "") and entry.title == ""
    with pytest.raises(LibraryError, match="was not followed") as caught:
        get(tmp_path / "songs", str(song.folder))
    assert "copy" in caught.value.hint
    assert trash(song.folder, tmp_path / "songs").is_dir() and outside.is_dir()


@pytest.mark.skipif(os.name == "nt", reason="needs links that everybody may make")
def test_a_link_within_a_song_is_fine(tmp_path: Path) -> None:
    song = make(tmp_path, seconds=1)
    (song.folder / "best").symlink_to(song.folder / "takes" / "001")
    assert entries(tmp_path)[0].broken is None and get(tmp_path, "Rain").folder == song.folder


@given(st.text())
def test_the_shown_name_is_one_plain_line(title: str) -> None:
    name = SongSummary(Path("folder"), title).name
    assert name and "\n" not in name and "\x1b" not in name and "\u202e" not in name


def test_names_keep_emoji_and_every_script() -> None:
    for title in ("👩‍👩‍👧 family", "夜曲", "שיר", "R&B/Soul: a?"):
        assert SongSummary(Path("folder"), title).name == title
    assert SongSummary(Path("folder"), "\u202eabc\x1b[2J\n d").name == "abc[2J d"


# Searching


@pytest.fixture
def shelf_of_four(tmp_path: Path) -> Path:
    """Made on four days, of which the clock got one wrong."""
    rate(make(tmp_path, "rain", 10, "2026-01-01T00:00:00+00:00", tags="jazz piano slightly smoky vocal male"), 3)
    rate(make(tmp_path, "Ärger", 30, "2026-01-03T00:00:00+00:00", tags="Hip-Hop female"), 5)
    make(tmp_path, "夜曲", 20, "2026-01-02T00:00:00+00:00", sections=(Section("verse", "月亮代表我的心"),))
    make(tmp_path, "Zoo", created="1970-01-01T00:00:00+00:00")
    return tmp_path


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("newest", ["Ärger", "夜曲", "rain", "Zoo"]),
        ("title", ["rain", "Zoo", "Ärger", "夜曲"]),
        ("rating", ["Ärger", "rain", "夜曲", "Zoo"]),
        ("length", ["Ärger", "夜曲", "rain", "Zoo"]),
    ],
)
def test_orders(shelf_of_four: Path, order: str, expected: list[str]) -> None:
    assert names(search(entries(shelf_of_four), sort=order)) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"text": "LANTERNS bay"}, ["Ärger", "rain", "Zoo"]),
        ({"text": "A\u0308RGER"}, ["Ärger"]),
        ({"text": "月亮"}, ["夜曲"]),
        ({"text": "smoky"}, ["rain"]),
        ({"text": "no such word"}, []),
        ({"rating": 3}, ["Ärger", "rain"]),
        ({"rating": 4}, ["Ärger"]),
        ({"tag": "hip hop"}, ["Ärger"]),
        ({"tag": "male"}, ["rain"]),
        ({"tag": "smoky vocal"}, ["rain"]),
        ({"tag": "airy vocal"}, ["夜曲", "Zoo"]),
        ({"tag": ""}, []),
        ({"language": "zh"}, ["夜曲"]),
        ({"language": "EN", "rating": 1, "text": "bay"}, ["Ärger", "rain"]),
    ],
)
def test_search(shelf_of_four: Path, wanted: dict[str, Any], expected: list[str]) -> None:
    assert names(search(entries(shelf_of_four), **wanted)) == expected


def test_damaged_songs_are_found_by_their_folders_name(tmp_path: Path) -> None:
    song = make(tmp_path, "Cut")
    (song.folder / "song.json").write_text("{")
    assert len(search(entries(tmp_path), "cut")) == 1 and search(entries(tmp_path), language="en") == []


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(RequestError, match="sorted by 'mood'") as caught:
        search([], sort="mood")
    assert "newest, title, rating, length" in caught.value.hint


def test_a_clock_that_goes_backwards_misplaces_a_song_and_nothing_more(tmp_path: Path) -> None:
    odd = ("2026-05-05T10:00:00+00:00", "2025-01-01T00:00:00", "9999-99-99", "yesterday", "1970-01-01T00:00:00+00:00")
    for number, created in enumerate(odd):
        make(tmp_path, str(number), 1, created)
    assert sorted(names(entries(tmp_path))) == list("01234")
    song = get(tmp_path, "4")
    take = song.new_take(TakeInfo(number=0, request=song.request, created="1960-01-01T00:00:00"))
    assert take.info.number == 2 and song.chosen().info.number == 2


# Finding one


def test_a_song_is_found_by_path_name_id_title_and_beginnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song = make(tmp_path / "songs", "Paper Lanterns").folder
    make(tmp_path / "songs", "Rain")
    monkeypatch.chdir(tmp_path)
    by = [str(song), f"songs/{song.name}", song.name, song.name[-6:], "paper lanterns", "Paper L", song.name[:14]]
    for name in (*by, "  Paper Lanterns ", "paper-l", "ＰＡＰＥＲ lanterns", f"{song}/"):
        assert find(tmp_path / "songs", name) == song, name
    moved = shutil.copytree(song, tmp_path / "a cópy")
    assert find(tmp_path / "songs", "a cópy") == moved
    assert get(tmp_path / "songs", "paper").request.title == "Paper Lanterns"


def test_a_title_comes_before_the_beginning_of_another(tmp_path: Path) -> None:
    make(tmp_path, "Rainbow")
    rain = make(tmp_path, "Rain").folder
    assert find(tmp_path, "rain") == rain


def test_an_ambiguous_name_lists_who_is_meant(tmp_path: Path) -> None:
    for number in range(7):
        make(tmp_path, f"Rain {number}")
    with pytest.raises(LibraryError, match="'Rain' can mean 7 songs: ") as caught:
        find(tmp_path, "Rain")
    assert "(Rain 6)" in caught.value.what and "and 2 more" in caught.value.what and caught.value.hint


AWKWARD = [
    *(
        "nothing",
        "../..",
        'a/b\\c:d*e?f"g<h>i|j',
        ".hidden",
        "..",
        ".",
        "/",
        "~who/x",
        "[",
        "*",
        "-",
        "\n",
        "\0",
        "\ud800",
    ),
    *("x" * 300, "歌" * 300, "🎵", "שיר", "\u202e", "CON", "nul.txt", "COM1"),
]


@pytest.mark.parametrize("name", AWKWARD, ids=ascii)
def test_a_name_of_no_song_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    make(tmp_path / "songs")
    with pytest.raises(LibraryError) as caught:
        find(tmp_path / "songs", name)
    assert caught.value.hint and len(caught.value.what) < 300 + len(str(tmp_path))
    assert caught.value.what.startswith(("There is no song", "No song was named")) and "\n" not in caught.value.what


def test_a_name_almost_right_gets_a_suggestion(tmp_path: Path) -> None:
    song = make(tmp_path, "Paper Lanterns")
    with pytest.raises(LibraryError) as caught:
        find(tmp_path, "papre lanterns")
    assert "Paper Lanterns" in caught.value.hint and song.folder.name in caught.value.hint


def test_titles_of_every_kind_are_found_again(tmp_path: Path) -> None:
    for title in ("CON", 'a/b\\c:d*e?f"g<h>i|j', ".hidden", "x" * 300, "👩‍👩‍👧", "שיר", "歌" * 300, "tab\tline"):
        song = make(tmp_path, title)
        assert find(tmp_path, title) == song.folder
        rename(song, f"new {title[:200]}")
        assert get(tmp_path, f"new {title[:200]}").folder == song.folder


# Changing


def test_renaming_changes_the_title_and_keeps_the_folder(tmp_path: Path) -> None:
    song = make(tmp_path, "Rain", seconds=1)
    before = (song.folder / "takes" / "001" / "take.json").read_bytes()
    rename(song, "  Heavy\n Rain/Snow ")
    again = open_song(song.folder)
    assert again.info.title == song.info.title == "Heavy Rain/Snow" and again.request.title == "Rain"
    assert (song.folder / "takes" / "001" / "take.json").read_bytes() == before


@pytest.mark.parametrize(
    ("title", "said"),
    [
        (" \n ", "is empty"),
        ("\u202e", "is empty"),
        ("x" * 301, "has 301 characters; the limit is 300"),
        ("a\x1b[2J", r"control character U\+001B"),
        ("\ud800", r"U\+D800"),
    ],
)
def test_titles_that_cannot_be_shown_are_refused(tmp_path: Path, title: str, said: str) -> None:
    song = make(tmp_path)
    with pytest.raises(RequestError, match=said) as caught:
        rename(song, title)
    assert caught.value.hint and open_song(song.folder).info.title == "Rain"


def test_rating_can_be_given_and_taken_back(tmp_path: Path) -> None:
    song = make(tmp_path)
    for rating in (1, 5, None):
        rate(song, rating)
        assert open_song(song.folder).info.rating == rating
    for wrong in (0, 6, True, 2.5, "5"):
        with pytest.raises(RequestError, match="The rating is") as caught:
            rate(song, wrong)  # type: ignore[arg-type]
        assert caught.value.hint


def test_picking_a_take(tmp_path: Path) -> None:
    song = make(tmp_path, seconds=1)
    song.new_take(TakeInfo(number=0, request=song.request))
    pick(song, 1)
    assert open_song(song.folder).chosen().info.number == 1
    pick(song, None)
    assert open_song(song.folder).chosen().info.number == 2
    with pytest.raises(LibraryError, match="has no take 3") as caught:
        pick(song, 3)
    assert "1, 2" in caught.value.hint and open_song(song.folder).info.picked is None


def test_two_windows_do_not_undo_each_others_changes(tmp_path: Path) -> None:
    one, two = make(tmp_path), entries(tmp_path)[0]
    other = open_song(two.folder)
    rate(one, 5)
    rename(other, "Snow")
    assert (open_song(one.folder).info.rating, open_song(one.folder).info.title) == (5, "Snow")


def test_a_song_that_is_gone_cannot_be_changed(tmp_path: Path) -> None:
    song = make(tmp_path)
    shutil.rmtree(song.folder)
    for change in (lambda: rate(song, 3), lambda: rename(song, "x"), lambda: pick(song, 1)):
        with pytest.raises(LibraryError) as caught:
            change()
        assert caught.value.hint
    assert not song.folder.exists()


# The trash


def test_a_trashed_song_comes_back_whole(tmp_path: Path) -> None:
    song = make(tmp_path, "Rain", seconds=2)
    before = {p.relative_to(song.folder): p.read_bytes() for p in song.folder.rglob("*") if p.is_file()}
    lies = trash(song.folder, tmp_path)
    assert lies == tmp_path / TRASH / song.folder.name and not song.folder.exists()
    assert entries(tmp_path) == [] and names(trashed(tmp_path)) == ["Rain"]
    with pytest.raises(LibraryError, match="There is no song 'Rain'"):
        find(tmp_path, "Rain")
    assert restore("rain", tmp_path) == song.folder and trashed(tmp_path) == []
    after = {p.relative_to(song.folder): p.read_bytes() for p in song.folder.rglob("*") if p.is_file()}
    assert {path: data for path, data in after.items() if path.name != LOCK} == before


def test_neither_trash_nor_restore_overwrite(tmp_path: Path) -> None:
    """Inherited fault: outputs overwritten by the next run."""
    song = make(tmp_path, "Rain").folder
    copies = shutil.copytree(song, tmp_path.parent / f"{tmp_path.name} copy")
    first = trash(song, tmp_path)
    shutil.copytree(copies, song)
    second = trash(song, tmp_path)
    shutil.copytree(copies, song)
    (song / "lyrics.txt").write_text("mine")
    assert first != second and len(trashed(tmp_path)) == 2
    assert restore(first.name, tmp_path).name == f"{song.name}-2"
    assert (song / "lyrics.txt").read_text() == "mine" and len(entries(tmp_path)) == 2


def test_a_song_that_is_being_made_stays(tmp_path: Path) -> None:
    song = make(tmp_path).folder
    with song_lock(song), pytest.raises(LibraryError, match="is being made by process"):
        trash(song, tmp_path)
    assert song.exists() and trashed(tmp_path) == []


def test_damaged_songs_can_be_thrown_away(tmp_path: Path) -> None:
    song = make(tmp_path).folder
    (song / "song.json").write_text("{")
    trash(find(tmp_path, song.name), tmp_path)
    (entry,) = trashed(tmp_path)
    assert entry.broken and restore(song.name, tmp_path) == song


def test_only_songs_of_this_folder_are_thrown_away(tmp_path: Path) -> None:
    song = make(tmp_path / "songs").folder
    for folder in (
        make(tmp_path / "elsewhere").folder,
        song / "takes",
        tmp_path / "songs",
        tmp_path / "songs" / "absent",
    ):
        with pytest.raises(LibraryError) as caught:
            trash(folder, tmp_path / "songs")
        assert caught.value.hint
    if os.name != "nt":
        (tmp_path / "songs" / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(LibraryError, match="is a link to a song elsewhere"):
            trash(tmp_path / "songs" / "link", tmp_path / "songs")
    assert not (tmp_path / "songs" / TRASH).exists() and song.exists()


def test_what_is_not_in_the_trash_is_not_restored(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(LibraryError, match=r"There is no song 'Rain' in .*\.trash"):
        restore("Rain", tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EXDEV, errno.ENOSPC])
def test_a_song_that_cannot_be_moved_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    song = make(tmp_path).folder

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(LibraryError, match=f"cannot be moved to .*{os.strerror(number)}") as caught:
        trash(song, tmp_path)
    assert caught.value.hint and names(entries(tmp_path)) == ["Rain"]
    assert list((tmp_path / TRASH).iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    song = make(tmp_path, seconds=1)
    song.folder.chmod(0o500)
    tmp_path.chmod(0o500)
    try:
        for change in (lambda: rate(song, 3), lambda: rename(song, "x"), lambda: trash(song.folder, tmp_path)):
            with pytest.raises(LibraryError, match=r"cannot be (written|moved)") as caught:
                change()
            assert caught.value.hint
        assert names(entries(tmp_path)) == ["Rain"]
    finally:
        tmp_path.chmod(0o700)
        song.folder.chmod(0o700)


# Many


def test_a_thousand_songs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the time (`pytest -s`); 0.2 s on one quiet core of a small server of 2026."""
    line = "the quick brown fox jumps over lazy dogs tonight again"
    sections = tuple(Section(label, "\n".join([line] * 5)) for label in ("verse", "chorus", "verse", "chorus"))
    song = make(tmp_path, "Song", 120, sections=sections)
    song.new_take(TakeInfo(number=0, request=song.request))
    files = {path.relative_to(song.folder): path.read_bytes() for path in song.folder.rglob("*.json")}
    for number in range(999):
        for path, data in files.items():
            target = tmp_path / f"2026-01-01-song-{number:06x}" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    began, spent = time.perf_counter(), time.process_time()
    found = entries(tmp_path)
    wall, cpu = time.perf_counter() - began, time.process_time() - spent
    with capsys.disabled():
        print(f"\n1,000 songs of two takes listed in {wall:.2f} s ({cpu:.2f} s of one core)")
    assert len(found) == 1000 and not any(entry.broken for entry in found)
    assert len(search(found, "fox", tag="pop")) == 1000


def test_a_shelf_needs_no_torch() -> None:
    code = "import sys; import yuegp.library.catalog; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.stdout.strip() == "False", answer.stderr
