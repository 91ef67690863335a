"""The Create page in a real browser against the demo set: write, make, see it grow, hear it, stop it, come back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import PATIENCE_SECONDS, PageServer

from yuegp.generation.options import ModelOptions
from yuegp.jobs.queue import Queue
from yuegp.library import store
from yuegp.song.schema import Reference, Sampling, Section, SongRequest, Stage, TakeInfo

pytestmark = pytest.mark.browser

SHORT = "[verse]\nla la\n\n[chorus]\nlo lo\n"


@pytest.fixture(scope="module")
def expect() -> Callable[..., Any]:
    """playwright's assertions, which wait."""
    from playwright.sync_api import expect as found

    found.set_options(timeout=PATIENCE_SECONDS * 1000)
    return found


SLOW_MEMORY = """
const open = new Promise((resolve) => { window.openMemory = resolve; });
window.yuegp = { set memory(real) {
  const slow = { ...real, load: async (...asked) => { await open; return real.load(...asked); } };
  Object.defineProperty(window.yuegp, "memory", { value: slow });
} };
"""
"""For a browser context: what the page kept comes back when `openMemory()` is called, as on a slow machine."""


def write(page: Any, text: str) -> None:
    """Type lyrics into the one text box."""
    page.click("#words-view-text")
    page.fill("#words-text", text)
    page.click("#words-view-cards")


def labels(page: Any) -> list[str]:
    return [field.input_value() for field in page.query_selector_all(".y-label")]


def text_of(page: Any) -> str:
    page.click("#words-view-text")
    text = page.input_value("#words-text")
    page.click("#words-view-cards")
    return text


def tone(path: Path, seconds: float, loud: float = 0.3) -> Path:
    wave = loud * np.sin(np.arange(int(seconds * 22050)) * 2 * np.pi * 220 / 22050)
    soundfile.write(path, wave.astype(np.float32), 22050)
    return path


def make_short(page: Any, expect: Callable[..., Any], title: str, words: str = SHORT) -> str:
    """Ask for a short song and wait until it is in hand; the folder's name."""
    write(page, words)
    expect(page.locator(".y-card")).to_have_count(words.count("["))
    page.fill("#tags-line", "pop piano happy female bright vocal")
    page.fill("#create-title input", title)
    expect(page.locator("#create-plan dt")).to_have_count(6)
    page.click("#create-make")
    expect(page.locator("#running-title")).to_have_text(title)
    return page.input_value("#open-song input, #open-song textarea")


def test_cards_and_text_are_two_views_of_the_same_words(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    write(page, "[verse]\none two\n\n[chorus]\nthree\n")
    expect(page.locator(".y-card")).to_have_count(2)
    assert labels(page) == ["verse", "chorus"]
    page.locator(".y-card-words").first.fill("one two three\nfour")
    expect(page.locator(".y-count").first).to_contain_text("4 words")
    assert text_of(page) == "[verse]\none two three\nfour\n\n[chorus]\nthree\n"
    page.click("#words-add")
    expect(page.locator(".y-card")).to_have_count(3)
    page.keyboard.type("five")
    assert text_of(page).endswith("\n\n[verse]\nfive\n")


def test_a_label_line_typed_into_a_card_opens_a_card(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    write(page, "[verse]\none\n")
    expect(page.locator(".y-card")).to_have_count(1)
    page.locator(".y-card-words").first.fill("one\n\n[bridge]\ntwo")
    expect(page.locator(".y-card")).to_have_count(2)
    assert labels(page) == ["verse", "bridge"]


def test_sections_move_by_keyboard_and_keep_the_focus(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    write(page, "[verse]\none\n\n[chorus]\ntwo\n\n[outro]\nthree\n")
    expect(page.locator(".y-card")).to_have_count(3)
    page.locator(".y-card-words").nth(2).focus()
    page.keyboard.press("Alt+ArrowUp")
    page.keyboard.press("Alt+ArrowUp")
    assert labels(page) == ["outro", "verse", "chorus"]
    assert page.evaluate("document.activeElement.value") == "three"
    page.keyboard.press("Alt+ArrowDown")
    assert labels(page) == ["verse", "outro", "chorus"]


def test_a_deleted_section_comes_back_whole(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    text = "[verse]\none\n\n[chorus]\ntwo\n"
    write(page, text)
    expect(page.locator(".y-card")).to_have_count(2)
    page.get_by_role("button", name="Delete section 1").click()
    expect(page.locator(".y-card")).to_have_count(1)
    page.click("#words-undo-delete")
    expect(page.locator(".y-card")).to_have_count(2)
    assert text_of(page) == text
    page.get_by_role("button", name="Duplicate section 2").click()
    assert labels(page) == ["verse", "chorus", "chorus"]


def test_an_example_over_ones_own_words_can_be_undone(browser_page: Any, expect: Callable[..., Any]) -> None:
    """Lyrics lost by a click are the oldest complaint about programs of this kind."""
    page = browser_page
    write(page, "[verse]\nmy own words\n")
    expect(page.locator(".y-card")).to_have_count(1)
    page.click("#example-lanterns")
    expect(page.locator(".y-card")).to_have_count(3)
    page.click("#words-undo")
    expect(page.locator(".y-card")).to_have_count(1)
    assert "my own words" in text_of(page)


def test_what_would_not_be_sung_is_said_before_the_click(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    write(page, "[start_of_segment]\none [whisper] two\n\n[zither]\nthree\n")
    expect(page.locator("#words-notes .unsung").first).to_be_visible()
    notes = page.inner_text("#words-notes")
    assert "[start_of_segment]" in notes and "[whisper]" in notes
    expect(page.locator(".y-hint").nth(1)).to_contain_text("unusual")
    write(page, "[verse]\n" + "word " * 120)
    expect(page.locator(".y-card.y-crowded")).to_have_count(1)


def test_tags_are_picked_dropped_searched_and_judged(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    page.fill("#tags-line", "jazz male")
    expect(page.locator("#tags-chips [data-tag=jazz]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#tags-hints")).to_contain_text("mood")
    page.click("#tags-chips [data-tag=jazz]")
    expect(page.locator("#tags-line")).to_have_value("male")
    page.fill("#tags-search", "femal")
    page.click("#tags-chips [data-tag=female]")
    expect(page.locator("#tags-line")).to_have_value("male female")
    expect(page.locator("#tags-hints")).to_contain_text("a man and a woman")
    page.fill("#tags-search", "hurdy-gurdy swing")
    page.click("#tags-chips .y-own")
    expect(page.locator("#tags-line")).to_have_value("male female hurdy-gurdy swing")
    page.fill("#tags-line", "pop, piano")
    page.click("[data-category=mood]")
    page.click("#tags-chips [data-tag=happy]")
    expect(page.locator("#tags-line")).to_have_value("pop, piano, happy")


def test_chinese_words_bring_the_offer_of_a_language(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    write(page, "[主歌]\n末班车穿过安静的城\n")
    page.fill("#tags-line", "pop piano")
    page.locator("#tags-hints button", has_text="Cantonese").click()
    expect(page.locator("#tags-line")).to_have_value("pop piano Cantonese")
    expect(page.locator("#create-plan")).to_contain_text("yue-zh-cot")


def test_instrumental_needs_no_words_and_minds_voices(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    page.fill("#tags-line", "folk guitar calm female")
    page.check("#create-instrumental input")
    expect(page.locator("#tags-hints")).to_contain_text("no voice")
    expect(page.locator("#create-plan")).to_contain_text("5 sections")


def test_a_bad_request_is_refused_in_words_and_nothing_is_queued(
    browser_page: Any, page_server: PageServer, expect: Callable[..., Any]
) -> None:
    page = browser_page
    before = sorted(page_server.songs.glob("*")) if page_server.songs.exists() else []
    write(page, "[verse]\nla\n")
    page.click("#create-make")
    expect(page.locator("[data-testid=toast-text]").first).to_contain_text("There are no tags")
    page.fill("#tags-line", "pop")
    page.get_by_label("Advanced").check()
    page.fill("#create-temperature input", "77")
    page.press("#create-temperature input", "Tab")
    expect(page.locator("#plan-error")).to_contain_text("temperature is 77")
    page.click("#create-make")
    expect(page.locator("[data-testid=toast-text]").last).to_contain_text("0 to 5")
    assert (sorted(page_server.songs.glob("*")) if page_server.songs.exists() else []) == before


def test_a_song_grows_section_by_section_and_sounds(
    browser_page: Any, page_server: PageServer, expect: Callable[..., Any]
) -> None:
    page = browser_page
    name = make_short(page, expect, "Grows")
    expect(page.locator("#running-sections li")).to_have_count(2)
    seen: set[str] = set()
    for _ in range(6000):
        if "Done" in page.inner_text("#running-status") or page.is_visible("#running-message"):
            break
        seen |= {row.get_attribute("data-state") for row in page.query_selector_all("#running-sections li")}
        page.wait_for_timeout(100)
    seen |= {row.get_attribute("data-state") for row in page.query_selector_all("#running-sections li")}
    assert {"waiting", "ready"} <= seen <= {"waiting", "writing", "written", "refining", "ready"}
    expect(page.locator("#running-figures")).to_have_text("100 %")
    page.locator("#running-player").evaluate("player => { player.preload = 'auto'; player.load(); }")
    page.wait_for_function("document.querySelector('#running-player').duration > 1")
    take = store.open_song(page_server.songs / name).take(1)
    assert take.info.stage is Stage.RENDERED
    length = page.evaluate("document.querySelector('#running-player').duration")
    assert length == pytest.approx(take.frames / 50, abs=0.1)
    wave, _ = soundfile.read(take.mix)
    assert np.sqrt(np.mean(wave**2)) > 1e-3
    page.locator("#running-sections button").nth(1).click()
    page.wait_for_function("document.querySelector('#running-hear').currentTime > 0.2")
    begin = take.info.spans[1].start / 50
    assert page.evaluate("document.querySelector('#running-hear').currentTime") >= begin
    page.click("#running-open")
    expect(page.locator("#tab-song-button")).to_have_attribute("aria-selected", "true")


def test_a_reload_finds_song_and_draft_and_stop_keeps_what_is_there(
    browser_page: Any, page_server: PageServer, expect: Callable[..., Any]
) -> None:
    page = browser_page
    words = "".join(f"[{label}]\nla la la la la la la la\n\n" for label in ["verse", "chorus"] * 4)
    name = make_short(page, expect, "Stopped", words)
    page.wait_for_function("document.querySelectorAll('#running-sections li:not([data-state=waiting])').length > 0")
    page.reload()
    expect(page.locator("#running-title")).to_have_text("Stopped")
    expect(page.locator("#create-title input")).to_have_value("Stopped")
    expect(page.locator(".y-card")).to_have_count(8)
    page.click("#running-stop")
    expect(page.locator("#running-status")).to_contain_text(re.compile("Stopped|Done|Not finished"))
    expect(page.locator("#running-go-on")).to_be_visible()
    assert store.open_song(page_server.songs / name).take(1).info.stage is not Stage.RENDERED
    page.click("#running-go-on")
    expect(page.locator("#running-stop")).to_be_visible()
    page.click("#running-stop")
    expect(page.locator("#running-stop")).to_be_hidden()


def test_who_is_quicker_than_a_slow_page_keeps_what_they_wrote(
    new_person: Callable[..., Any], expect: Callable[..., Any]
) -> None:
    page = new_person()
    page.context.add_init_script(SLOW_MEMORY)
    page.reload()
    page.fill("#tags-line", "jazz male")
    write(page, "[verse]\nmine\n")
    expect(page.locator("#create-plan dt")).to_have_count(6)
    page.evaluate("openMemory()")
    page.wait_for_function("sessionStorage.getItem('yuegp-kept').includes('mine')")
    page.fill("#create-title input", "Quick")
    page.wait_for_function("sessionStorage.getItem('yuegp-kept').includes('Quick')")
    expect(page.locator("#tags-line")).to_have_value("jazz male")

    page.reload()
    page.fill("#tags-line", "folk")
    expect(page.locator("#tags-chips [data-tag=folk]")).to_have_attribute("aria-pressed", "true")
    page.fill("#tags-line", "folk, ballad")
    page.evaluate("openMemory()")
    expect(page.locator("#create-title input")).to_have_value("Quick")
    expect(page.locator(".y-card")).to_have_count(1)
    assert "mine" in text_of(page)
    expect(page.locator("#tags-line")).to_have_value("folk, ballad")
    page.reload()
    page.evaluate("openMemory()")
    expect(page.locator("#tags-line")).to_have_value("folk, ballad")


def test_a_second_tab_is_a_second_person(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page
    write(page, "[verse]\nmine\n")
    expect(page.locator(".y-card")).to_have_count(1)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#words-total")).to_contain_text("No words yet")
    write(other, "[verse]\nhers\n\n[chorus]\nhers too\n")
    expect(other.locator(".y-card")).to_have_count(2)
    page.reload()
    expect(page.locator(".y-card")).to_have_count(1)
    assert "mine" in text_of(page)
    other.close()
    page.close()


def test_a_tab_that_was_closed_is_found_again(new_person: Callable[..., Any], expect: Callable[..., Any]) -> None:
    page = new_person()
    write(page, "[verse]\nnot lost\n")
    expect(page.locator(".y-card")).to_have_count(1)
    page.wait_for_function("JSON.stringify(localStorage).includes('not lost')")
    context, address = page.context, page.url
    page.close()
    again = context.new_page()
    again.goto(address)
    expect(again.locator(".y-card")).to_have_count(1)
    assert "not lost" in text_of(again)


def test_a_reference_is_drawn_and_its_window_goes_into_the_song(
    browser_page: Any, page_server: PageServer, expect: Callable[..., Any], tmp_path: Path
) -> None:
    page = browser_page
    page.click("#reference button")
    page.set_input_files("#reference-mix input[type=file]", tone(tmp_path / "my song.wav", 8))
    expect(page.locator("#reference-wave canvas")).to_be_visible()
    page.fill("#reference-length", "3")
    page.locator("#reference-start").fill("2")
    expect(page.locator("#reference-wave .y-window")).to_have_text("0:02 to 0:05")
    page.click("#reference-play")
    expect(page.locator("#reference-play")).to_have_text("Stop playing")
    page.click("#reference-play")
    name = make_short(page, expect, "With a recording", "[verse]\nla\n")
    reference = store.open_song(page_server.songs / name).request.reference
    assert reference is not None and (reference.start, reference.end) == (2.0, 5.0)
    assert Path(str(reference.mix)).is_relative_to(page_server.songs)
    page.click("#running-stop")


def test_a_songs_settings_are_taken_over_with_its_reference_and_the_machines_are_chosen(
    browser_page: Any, page_server: PageServer, expect: Callable[..., Any], tmp_path: Path
) -> None:
    """The files are those in the song's own folder: the browser names the song, and no path."""
    reference = Reference(mix=str(tone(tmp_path / "theirs.wav", 8)), start=1.0, end=4.0)
    sampling = Sampling(penalize_end=False, guidance=1.0, guidance_later=1.0, repetition_penalty=1.2)
    request = SongRequest((Section("verse", "la"),), "pop piano", model="demo", reference=reference, sampling=sampling)
    song = store.create(request, page_server.songs)
    song.new_take(TakeInfo(0, song.request))
    page = browser_page
    page.evaluate(
        """(wish) => { const box = document.querySelector("#copy-from textarea, #copy-from input");
            box.value = wish; box.dispatchEvent(new Event("input", { bubbles: true })); }""",
        f"{song.folder.name}/1",
    )
    expect(page.locator(".y-label")).to_have_count(1)
    page.click("#reference button")
    expect(page.locator("#reference-wave .y-window")).to_have_text("0:01 to 0:04")
    page.get_by_label("Advanced").check()
    expect(page.locator("#create-penalize-end input")).not_to_be_checked()
    page.click("#create-kv input")
    page.get_by_role("option", name="q8: 8 bits").click()
    expect(page.locator("#plan-error")).to_contain_text("KV cache")
    page.click("#create-kv input")
    page.get_by_role("option", name="automatic").click()
    page.click("#create-weights input")
    page.get_by_role("option", name="nf4: 4 bits").click()
    expect(page.locator("#create-plan")).to_contain_text("large model: nf4")
    page.fill("#create-title input", "Taken over")
    page.click("#create-make")
    expect(page.locator("#running-title")).to_have_text("Taken over")
    made = store.open_song(page_server.songs / page.input_value("#open-song input, #open-song textarea"))
    copied = made.request.reference
    assert copied is not None and (copied.start, copied.end) == (1.0, 4.0)
    assert Path(str(copied.mix)).read_bytes() == (tmp_path / "theirs.wav").read_bytes()
    assert made.request.sampling == sampling and Path(str(copied.mix)).is_relative_to(made.folder)
    (job,) = (job for job in Queue(page_server.home).jobs() if job.song == str(made.folder))
    assert job.wishes == ModelOptions(weights="nf4")
    page.click("#running-stop")  # takes a job that has not begun off the list


def test_a_model_that_came_meanwhile_can_be_chosen_and_one_that_went_cannot(
    browser_page: Any, page_server: PageServer, tiny_set: Path, expect: Callable[..., Any]
) -> None:
    """Without a restart: models are fetched and removed on the Set-up page, one tab further on."""
    page, folder = browser_page, page_server.home / "models" / "just-fetched"
    write(page, SHORT)
    page.fill("#tags-line", "pop")
    page.get_by_label("Advanced").check()

    def leave_and_return() -> None:
        page.click("#tab-setup-button")
        expect(page.locator("#setup-models li").first).to_be_visible()
        page.click("#tab-create-button")
        expect(page.locator("#create-model input")).to_be_visible()

    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(tiny_set)
    title = json.loads((tiny_set / "set.json").read_text())["title"]
    try:
        leave_and_return()
        page.click("#create-model input")
        page.get_by_role("option", name=title).click()
        expect(page.locator("#create-plan")).to_contain_text(title)
    finally:
        folder.unlink()
    leave_and_return()
    expect(page.locator("#create-model input")).to_have_value("Automatic")
    expect(page.locator("#create-plan")).not_to_contain_text(title)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("silent", "is silent"),
        ("text", "cannot be read as sound"),
        ("short", "needs at least"),
        ("half", "belong together"),
    ],
)
def test_a_bad_reference_is_named_as_the_user_knows_it(
    browser_page: Any, expect: Callable[..., Any], tmp_path: Path, kind: str, sentence: str
) -> None:
    page = browser_page
    path = tmp_path / f"my {kind}.wav"
    if kind == "text":
        path.write_text("no sound at all")
    else:
        tone(path, 0.4 if kind == "short" else 4, 0.0 if kind == "silent" else 0.3)
    page.click("#reference button")
    page.set_input_files(f"#reference-{'vocal' if kind == 'half' else 'mix'} input[type=file]", path)
    complaint = page.locator("#reference-wave .y-bad")
    expect(complaint).to_contain_text(sentence)
    assert "/" not in complaint.inner_text()


def test_the_main_path_needs_no_mouse(browser_page: Any, expect: Callable[..., Any]) -> None:
    page = browser_page

    def tab_to(name: str) -> None:
        for _ in range(200):
            if page.evaluate("document.activeElement.id") == name:
                return
            page.keyboard.press("Tab")
        pytest.fail(f"{name} cannot be reached by Tab")

    tab_to("example-lanterns")
    page.keyboard.press("Enter")
    expect(page.locator("#create-plan dt")).to_have_count(6)
    tab_to("words-add")
    page.keyboard.press("Enter")
    expect(page.locator(".y-card")).to_have_count(4)
    page.keyboard.type("la la")
    tab_to("tags-search")
    page.keyboard.type("guitar")
    page.keyboard.press("Enter")
    expect(page.locator("#tags-line")).to_have_value(re.compile("uitar$"))
    tab_to("create-make")
    page.keyboard.press("Enter")
    expect(page.locator("#running-title")).to_have_text("Paper lanterns")
    tab_to("running-stop")
    page.keyboard.press("Enter")
    expect(page.locator("#running-stop")).to_be_hidden()


def test_there_is_no_serious_fault_of_accessibility(browser_page: Any, expect: Callable[..., Any]) -> None:
    checker = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = browser_page
    page.click("#example-lanterns")
    page.get_by_label("Advanced").check()
    page.click("#reference button")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("#create-plan dt")).to_have_count(6)
        page.wait_for_timeout(300)  # colours change over a moment
        found = checker.Axe().run(page).response["violations"]
        assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_narrow_pages_do_not_scroll_sideways(new_person: Callable[..., Any], expect: Callable[..., Any]) -> None:
    page = new_person(viewport={"width": 390, "height": 800})
    page.click("#example-lanterns")
    expect(page.locator(".y-card")).to_have_count(3)
    page.get_by_label("Advanced").check()
    page.click("#reference button")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
