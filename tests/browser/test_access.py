"""Can everybody use the page: every tab seen by axe-core in both themes, reached by keyboard, read at 390 px."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browser import PageServer
from songs import add_song

from yuegp.jobs.queue import Queue
from yuegp.library.store import Song

pytestmark = pytest.mark.browser

TABS = ("create", "song", "library", "queue", "setup")

SERIOUS = ("serious", "critical")

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def song(page_server: PageServer) -> Song:
    """A song to look at, and one in the queue that nobody makes."""
    add_song(page_server.songs, "Harbour", "rock male guitar", rating=2)
    song = add_song(page_server.songs, "Paper lanterns", "pop female piano", "float above the water", 4)
    queue = Queue(page_server.home)
    queue.pause(queue.add(song.folder, 1).number)
    return song


def show(page: Any, tab: str, song: Song | None = None) -> None:
    """Open a tab as a person does, with a song open on the Song page."""
    if tab == "song" and song:
        page.click("#tab-library-button")
        page.get_by_role("button", name=f"Open {song.info.title}", exact=True).click()
        page.wait_for_selector("#song-page h2, #song-page h3")
    else:
        page.click(f"#tab-{tab}-button")
    page.wait_for_timeout(300)  # Gradio fades a tab in; half-faded text has no contrast


def complaints(page: Any) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}}).response["violations"]
    return [
        f"{violation['id']} ({violation['impact']}): {node['target']} {node['html'][:160]}"
        for violation in found
        if violation["impact"] in SERIOUS
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(new_person: Callable[..., Any], song: Song, scheme: str) -> None:
    page = new_person(color_scheme=scheme)
    found = {}
    for tab in TABS:
        show(page, tab, song)
        found[tab] = complaints(page)
    assert {tab: said for tab, said in found.items() if said} == {}


def test_nothing_is_wider_than_a_narrow_window(new_person: Callable[..., Any], song: Song) -> None:
    page = new_person(viewport={"width": 390, "height": 844})
    for tab in TABS:
        show(page, tab, song)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab


def test_axe_would_find_a_fault(new_person: Callable[..., Any]) -> None:
    page = new_person()
    page.evaluate("document.querySelector('#tabs').append(document.createElement('button'))")
    assert any(complaint.startswith("button-name") for complaint in complaints(page))


@pytest.mark.parametrize("tab", ["library", "queue", "setup"])
def test_the_tab_key_reaches_everything_that_can_be_clicked(
    new_person: Callable[..., Any], song: Song, tab: str
) -> None:
    """In the order in which it stands; each with a ring that can be seen."""
    page = new_person()
    show(page, tab)
    page.wait_for_selector(f"#{tab} button:visible")
    wanted = page.evaluate(
        """tab => [...document.querySelectorAll(`#${tab} :is(button, input, select, summary, a[href])`)]
          .filter(e => e.checkVisibility({visibilityProperty: true}) && !e.disabled && e.tabIndex >= 0)
          .map((e, i) => (e.dataset.seen = i, i))""",
        tab,
    )
    page.focus(f"#tab-{tab}-button")
    met: list[int] = []
    for _ in range(len(wanted) + 20):
        if len(met) == len(wanted):
            break
        page.keyboard.press("Tab")
        seen = page.evaluate("document.activeElement.dataset.seen")
        if seen is not None:
            met.append(int(seen))
            ring = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
            assert ring not in ("0px", ""), page.evaluate("document.activeElement.outerHTML")
    assert met == wanted


def test_the_page_says_its_language_and_its_name(new_person: Callable[..., Any]) -> None:
    page = new_person()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.title() == "yuegp"
    assert page.locator("h1").count() == 1
