"""The Queue page: what it tells of jobs, what may be done to them, and the whole of it in a browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import PageServer
from songs import add_song

from ui.context import AppContext
from ui.pages import progress
from ui.pages import queue as queue_page
from ui.texts import Texts
from yuegp.jobs.queue import JobProgress, Queue, State

T = Texts()


@pytest.fixture
def context(tmp_path: Path) -> AppContext:
    """A context with three jobs that wait."""
    context = AppContext(tmp_path / "songs", Queue(tmp_path))
    for title in ("One", "Two", "Three"):
        song = add_song(context.root, title)
        context.make(song, song.take(1))
    return context


def titles(answer: dict[str, Any]) -> list[str]:
    return [row["title"] for row in answer["now"]]


def test_jobs_stand_in_order_with_their_place(context: AppContext) -> None:
    answer = queue_page.render(context, T)
    assert titles(answer) == ["One", "Two", "Three"]
    assert [(row["place"], row["places"], row["here"]) for row in answer["now"]] == [(n, 3, True) for n in (1, 2, 3)]
    assert (answer["over"], answer["trouble"], answer["error"]) == ([], "", "")


def test_what_is_clicked_is_done_and_answered_with_the_new_order(context: AppContext) -> None:
    def act(do: str, **values: Any) -> dict[str, Any]:
        return queue_page.handle_action(context, {"do": do, **values}, T)

    assert titles(act("move", number=3, value=1)) == ["Three", "One", "Two"]
    assert [row["state"] for row in act("pause", number=1)["now"]] == ["waiting", "paused", "waiting"]
    assert [row["state"] for row in act("pause_all")["now"]] == ["paused"] * 3
    assert [row["state"] for row in act("resume_all")["now"]] == ["waiting"] * 3
    assert titles(act("cancel", number=3)) == ["One", "Two"]
    assert "no job 3" in act("cancel", number=3)["error"]


@pytest.mark.parametrize(
    "asked",
    [None, 7, {}, {"do": "claim"}, {"do": "jobs"}, {"do": "cancel"}, {"do": "cancel", "number": "1"},
     {"do": "move", "number": 1}, {"do": "cancel", "number": True}, {"do": ["pause"], "number": 1}],
)  # fmt: skip
def test_nonsense_from_a_browser_changes_nothing(context: AppContext, asked: Any) -> None:
    assert queue_page.handle_action(context, asked, T)["error"]
    assert titles(queue_page.render(context, T)) == ["One", "Two", "Three"]


def test_a_song_that_is_gone_is_still_a_job_that_can_be_removed(context: AppContext) -> None:
    folder = Path(context.jobs()[0].song)
    folder.rename(folder.with_name("elsewhere"))
    first = queue_page.render(context, T)["now"][0]
    assert (first["title"], first["how"]) == (folder.name, T("queue.gone"))
    assert titles(queue_page.handle_action(context, {"do": "cancel", "number": 1}, T)) == ["Two", "Three"]


def test_a_job_that_ran_when_the_program_ended_is_offered_again(context: AppContext) -> None:
    with context.queue.work():
        context.queue.claim()
    assert queue_page.render(context, T)["now"][0]["state"] == "interrupted"
    assert queue_page.handle_action(context, {"do": "resume", "number": 1}, T)["now"][0]["state"] == "waiting"


def test_why_a_job_failed_is_shown_and_cleared(context: AppContext) -> None:
    with context.queue.work():
        job = context.queue.claim()
        assert job
        context.queue.finish(replace(job, state=State.FAILED, what="The card is full.", hint="Close other programs."))
    (over,) = queue_page.render(context, T)["over"]
    assert over["message"] == "The card is full. Close other programs."
    assert queue_page.handle_action(context, {"do": "clear"}, T)["over"] == []


def test_the_bar_of_the_queue_is_the_bar_of_the_song(context: AppContext) -> None:
    """Two pages that say different percentages of one song make both unbelievable."""
    with context.queue.work():
        job = context.queue.claim()
        assert job
        name = context.name_of(job)
        context.queue.save_progress(JobProgress(job.number, State.RUNNING, "sound", "", 5, 10, "", None, 30.0, 90.0))
        (row, *_) = queue_page.render(context, T)["now"]
        assert (
            row["share"] == pytest.approx(progress.render(context, name, T)["share"], abs=1e-3) and row["share"] > 0.95
        )


@pytest.mark.browser
def test_the_queue_is_ordered_paused_and_emptied_by_keyboard(
    page_server: PageServer, new_person: Callable[..., Any]
) -> None:
    from playwright.sync_api import expect

    queue = Queue(page_server.home)
    for title in ("One", "Two", "Three"):
        number = queue.add(add_song(page_server.songs, title).folder, 1).number
        queue.pause(number)
    page = new_person()
    page.click("#tab-queue-button")
    rows = page.locator("#queue-now > li")
    expect(rows).to_have_count(3)
    page.get_by_role("button", name="Move Three up").focus()
    page.keyboard.press("Enter")
    expect(rows.nth(1)).to_contain_text("Three")
    expect(page.get_by_role("button", name="Move Three up")).to_be_focused()
    page.keyboard.press("Enter")
    expect(rows.first).to_contain_text("Three")
    for title in ("One", "Two", "Three"):
        page.get_by_role("button", name=f"Remove {title} from the queue").click()
    expect(page.locator("#queue-empty")).to_contain_text("Nothing is waiting")
