"""The Library page in a real browser: found, heard, named, rated, thrown away and back, begun again; and that a list
which has not changed is not read twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import PageServer
from songs import SECONDS, add_song

from ui.context import AppContext
from ui.pages import library as library_page
from ui.pages.library import Listing
from ui.texts import Texts
from yuegp.jobs.queue import Queue
from yuegp.library import catalog, export, store
from yuegp.song.schema import Section, SongRequest, Span, Stage, TakeInfo


@pytest.fixture
def expect() -> Callable[..., Any]:
    from playwright.sync_api import expect as found

    found.set_options(timeout=20_000)
    return found


@pytest.fixture
def songs(page_server: PageServer) -> Path:
    """A songs folder with three songs and nothing else."""
    if page_server.songs.exists():
        for path in (*page_server.songs.iterdir(), *(page_server.songs / catalog.TRASH).glob("*")):
            if path.name != catalog.TRASH:
                path.rename(page_server.home / f"gone-{path.name}-{id(path)}")
    add_song(page_server.songs, "Paper lanterns", "pop female piano", "float above the water", 4)
    add_song(page_server.songs, "Harbour", "rock male guitar", "slowly home", 2)
    add_song(page_server.songs, "雨の手紙", "jazz female", "雨が降る街で")
    return page_server.songs


@pytest.fixture
def page(songs: Path, browser_page: Any) -> Any:
    browser_page.click("#tab-library-button")
    browser_page.wait_for_selector("#library-list > li")
    return browser_page


def titles(page: Any) -> list[str]:
    return page.locator("#library-list .y-song-title").all_text_contents()


@pytest.mark.browser
def test_songs_are_searched_sorted_and_filtered(page: Any, expect: Callable[..., Any]) -> None:
    rows = page.locator("#library-list > li")
    expect(rows).to_have_count(3)
    page.fill("#library-search", "WATER")
    expect(rows).to_have_count(1)
    assert titles(page) == ["Paper lanterns"]
    expect(page.locator("#library-count")).to_have_text("1 of 3 songs")
    page.fill("#library-search", "")
    expect(rows).to_have_count(3)
    page.select_option("#library-rating", "3")
    expect(rows).to_have_count(1)
    page.select_option("#library-rating", "0")
    page.select_option("#library-language", "ja")
    expect(rows).to_have_count(1)
    page.select_option("#library-tag", "rock")
    expect(page.locator("#library-empty")).to_contain_text("No song fits")
    page.click("#library-clear")
    expect(rows).to_have_count(3)
    page.select_option("#library-sort", "title")
    expect(rows.first).to_contain_text("Harbour")


@pytest.mark.browser
def test_a_song_is_heard_in_place_and_stays_while_the_list_changes(page: Any, expect: Callable[..., Any]) -> None:
    page.get_by_role("button", name="Play Harbour", exact=True).click()
    player = page.locator("#library-player")
    expect(player).to_be_visible()
    page.wait_for_function("document.querySelector('#library-player').currentTime > 0.1")
    assert player.evaluate("node => node.duration") == pytest.approx(SECONDS, abs=0.05)
    page.fill("#library-search", "lanterns")
    expect(page.locator("#library-list > li")).to_have_count(1)
    assert not player.evaluate("node => node.error")
    page.fill("#library-search", "")
    page.wait_for_function("document.querySelector('#library-player').ended")
    expect(page.get_by_role("button", name="Play Harbour", exact=True)).to_be_visible()


@pytest.mark.browser
def test_renaming_and_rating_by_keyboard_reach_the_disk(page: Any, songs: Path, expect: Callable[..., Any]) -> None:
    page.get_by_role("button", name="Rename Harbour").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="New title")).to_be_focused()
    page.keyboard.type("Harbour at night")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Rename Harbour at night")).to_be_focused()
    page.get_by_role("radiogroup", name="Rating of Harbour at night").get_by_role("radio", checked=True).focus()
    page.keyboard.press("ArrowRight")
    expect(
        page.get_by_role("radiogroup", name="Rating of Harbour at night").get_by_role("radio", checked=True)
    ).to_have_attribute("aria-label", "3 of 5 stars")
    assert [(e.title, e.rating) for e in catalog.entries(songs) if "Harbour" in e.title] == [("Harbour at night", 3)]


@pytest.mark.browser
def test_a_song_goes_to_the_trash_and_comes_back_twice(page: Any, songs: Path, expect: Callable[..., Any]) -> None:
    rows = page.locator("#library-list > li")
    page.get_by_role("button", name="Put Harbour in the trash").click()
    expect(rows).to_have_count(2)
    page.click("#library-undo")
    expect(rows).to_have_count(3)
    page.get_by_role("button", name="Put Harbour in the trash").click()
    expect(rows).to_have_count(2)
    page.click("#library-trash")
    expect(rows).to_have_count(1)
    assert len(catalog.trashed(songs)) == 1
    page.get_by_role("button", name="Restore Harbour").click()
    expect(page.locator("#library-empty")).to_contain_text("The trash is empty")
    page.click("#library-songs")
    expect(rows).to_have_count(3)


@pytest.mark.browser
def test_a_song_that_appears_on_disk_appears_on_the_page(page: Any, songs: Path, expect: Callable[..., Any]) -> None:
    add_song(songs, "From elsewhere")
    expect(page.locator("#library-list > li")).to_have_count(4)


@pytest.mark.browser
def test_opening_a_song_shows_it(page: Any, expect: Callable[..., Any]) -> None:
    page.get_by_role("button", name="Open Harbour", exact=True).click()
    expect(page.locator("#song-page")).to_be_visible()
    expect(page.locator("#song-page")).to_contain_text("Harbour")


@pytest.mark.browser
def test_an_exported_file_begins_a_song_with_its_settings(
    page: Any, songs: Path, tmp_path: Path, expect: Callable[..., Any]
) -> None:
    song = store.open_song(next(entry.folder for entry in catalog.entries(songs) if entry.title == "Harbour"))
    (file,) = (path for path in export.export(song, song.chosen(), tmp_path, "mp3", ("mix",)) if path.suffix == ".mp3")
    page.set_input_files("#library-import input[type=file]", file)
    expect(page.locator("#create")).to_be_visible()
    expect(page.locator("#tags-line")).to_have_value("rock male guitar")
    expect(page.locator("#create-title input, #create-title textarea").first).to_have_value("Harbour")
    page.get_by_role("radio", name="Advanced").check()
    expect(page.locator("#create-seed input")).to_have_value("99")


@pytest.mark.browser
def test_a_file_without_settings_is_refused_in_words(page: Any, tmp_path: Path, expect: Callable[..., Any]) -> None:
    soundfile.write(tmp_path / "plain.wav", np.zeros(1000), 44100)
    page.set_input_files("#library-import input[type=file]", tmp_path / "plain.wav")
    toast = page.locator("[data-testid=toast-text]")
    expect(toast).to_contain_text("plain.wav carries no settings of yuegp")
    assert "uploads" not in toast.text_content()


# Without a browser


def test_of_a_thousand_songs_only_those_are_read_again_that_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song = add_song(tmp_path, "One")
    add_song(tmp_path, "Two")
    reads: list[Path] = []
    read = catalog.read_entry
    monkeypatch.setattr(catalog, "read_entry", lambda folder: reads.append(folder) or read(folder))
    listing = Listing(tmp_path)
    assert len(listing.entries()) == len(listing.entries()) == 2 and len(reads) == 2
    for changed, titles in (
        (lambda: catalog.rename(song, "Other"), {"Other", "Two"}),
        (lambda: song.take(1).save_info(song.take(1).info), {"Other", "Two"}),
        (lambda: song.new_take(TakeInfo(number=0, request=song.request)), {"Other", "Two"}),
        (lambda: add_song(tmp_path, "Three"), {"Other", "Two", "Three"}),
    ):
        reads.clear()
        changed()
        assert {entry.title for entry in listing.entries()} == titles
        assert len(reads) == 1, titles
    catalog.trash(song.folder, tmp_path)
    assert {entry.title for entry in listing.entries()} == {"Two", "Three"} and len(reads) == 1
    assert listing.entries() == [entry for entry in listing.entries() if entry in catalog.entries(tmp_path)]


def act(context: AppContext, **wish: Any) -> dict[str, Any]:
    return library_page.handle_action(context, wish, Texts())


@pytest.mark.parametrize("do", ["rename", "rate", "trash", "restore", "hear"])
@pytest.mark.parametrize(
    "name", ["", "..", "../songs", "/etc", ".trash", "a/b", "x" * 3000, None, 7, {"a": 1}], ids=range(10)
)
def test_no_name_from_a_browser_leads_out_of_the_songs_folder(tmp_path: Path, do: str, name: Any) -> None:
    (tmp_path / "songs").mkdir()
    (tmp_path / "song.json").write_text("{}")
    assert act(AppContext(tmp_path / "songs", Queue()), do=do, name=name, value="x")["error"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["song.json", "songs"]


def test_a_song_that_is_being_made_is_not_thrown_away(tmp_path: Path) -> None:
    song, context = add_song(tmp_path, "One"), AppContext(tmp_path, Queue())
    context.make(song, song.take(1))
    assert "being made" in act(context, do="trash", name=song.folder.name)["error"]
    assert song.folder.is_dir()


def test_a_damaged_song_is_listed_with_the_reason_and_the_others_still_play(tmp_path: Path) -> None:
    add_song(tmp_path, "Whole")
    broken = add_song(tmp_path, "Broken").folder
    (broken / "song.json").write_text("{")
    answer = library_page.render(
        AppContext(tmp_path, Queue()), Listing(tmp_path), Listing(tmp_path / ".trash"), {}, Texts()
    )
    by_name = {row["name"]: row for row in answer["rows"]}
    assert by_name[broken.name]["broken"] and not by_name[broken.name]["heard"]
    assert [row["heard"] for row in answer["rows"] if not row["broken"]] == [True]


@pytest.mark.parametrize("asked", [None, 7, [], {"rating": "5"}, {"rating": True}, {"sort": "x"}, {"text": 7}])
def test_nonsense_from_a_browser_is_answered(tmp_path: Path, asked: Any) -> None:
    add_song(tmp_path, "One")
    answer = library_page.render(
        AppContext(tmp_path, Queue()), Listing(tmp_path), Listing(tmp_path / ".trash"), asked, Texts()
    )
    assert set(answer) == {"rows", "found", "all", "tags", "trash", "error"}


def test_settings_of_a_model_that_is_not_here_come_without_it(tmp_path: Path) -> None:
    request = SongRequest(sections=(Section("verse", "la"),), tags="pop", model="somebodys-own")
    song = store.create(request, tmp_path)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    add = add_song(tmp_path, "Sound").take(1)
    for path in ("mix", "vocal", "instrumental"):
        getattr(take, path).write_bytes(getattr(add, path).read_bytes())
    take.save_stage1(
        np.zeros((2, 1, 100), np.int16), TakeInfo(1, song.request, Stage.RENDERED, (Span(0, 0, 100, True),))
    )
    (file,) = (path for path in export.export(song, take, tmp_path / "out", "flac", ("mix",)) if path.suffix == ".flac")
    text, notes = library_page.settings_of(str(file), Texts())
    assert json.loads(text)["model"] == "" and any("somebodys-own" in note for note in notes)
