"""A song that is being made, as the page shows it: from files and the queue alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ui.context import AppContext
from ui.pages import progress as song_progress
from ui.pages.create import fields, page, plan
from ui.texts import Texts
from yuegp import paths
from yuegp.jobs.queue import JobProgress, Queue, State
from yuegp.song.schema import Span, Stage

T = Texts("en")


@pytest.fixture
def context() -> AppContext:
    return AppContext(paths.songs_dir().absolute(), Queue())


def ask(context: AppContext, **changes: Any) -> str:
    empty = {field.name: field.empty for field in fields.FIELDS}
    words = "[verse]\nla\n\n[chorus]\nlo\n\n[outro]\nlu\n"
    asked = plan.asked({**empty, "words": words, "tags": "pop", "reference": None, **changes}, T)
    return page.begin(context, asked)


def states(view: dict[str, Any]) -> list[str]:
    return [section["state"] for section in view["sections"]]


def at(stage: str, done: int, ready: tuple[int, ...] = (), **more: Any) -> JobProgress:
    total = {"writing": 7200, "refining": 2400, "sound": 4800}[stage]
    return JobProgress(1, State.RUNNING, stage, "…", done, total, "ids", 100.0, 5.0, ready=ready, **more)


def look(context: AppContext, name: str, progress: JobProgress) -> dict[str, Any]:
    """The view of a song whose job runs and is as far as `progress`. The lock of a worker keeps it from being called
    interrupted."""
    with context.queue.work():
        context.queue.claim()
        context.queue.save_progress(progress)
        return song_progress.render(context, name, T)


def test_a_song_waits_behind_others(context: AppContext) -> None:
    ask(context, title="First")
    view = song_progress.render(context, ask(context, title="Second"), T)
    assert (view["state"], view["ahead"], view["live"]) == ("waiting", 1, True)
    assert states(view) == ["waiting"] * 3 and view["title"] == "Second"


def test_sections_are_written_one_after_the_other(context: AppContext) -> None:
    view = look(context, ask(context), at("writing", 3600, (0,)))
    assert view["state"] == "running" and states(view) == ["written", "writing", "waiting"]
    assert view["sections"][1]["share"] == pytest.approx(0.5)
    assert 0 < view["share"] < 1


def test_sections_are_refined_together(context: AppContext) -> None:
    view = look(context, ask(context), at("refining", 1200, (0, 1, 2)))
    assert states(view) == ["refining"] * 3
    assert view["share"] == pytest.approx(song_progress.WRITING + song_progress.REFINING / 2)


def test_the_share_never_goes_back() -> None:
    """A share of the time would: the estimate of what is left grows when a stage turns out to be slow."""
    steps = [("waiting", 0.0), ("writing", 0.1), ("writing", 0.9), ("written", 1.0), ("refining", 0.1), ("ready", 1.0)]
    shares = [song_progress._share([{"state": state, "share": share}]) for state, share in steps]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] < 1


def test_the_share_goes_on_through_the_sound_to_the_end(context: AppContext) -> None:
    take = context.take(ask(context), 1)
    steps = [song_progress.share(take, at(stage, done, (0, 1, 2))) for stage, done in
             (("refining", 2300), ("sound", 0), ("sound", 2400), ("sound", 4800))]  # fmt: skip
    assert steps == sorted(steps) and steps[-1] == pytest.approx(1)
    view = look(context, take.folder.parent.parent.name, at("sound", 9, (0, 1, 2)))
    assert {section["share"] for section in view["sections"]} == {1}


def test_what_can_be_heard_is_offered_and_the_finished_section_before_its_draft(context: AppContext) -> None:
    name = ask(context)
    hear = context.take(name, 1).folder / "hear"
    hear.mkdir()
    for file in ("draft-00.flac", "draft-01.flac", "section-00.flac"):
        (hear / file).touch()
    view = look(context, name, at("writing", 5000, (0, 1)))
    assert [(s["hear"], s["draft"]) for s in view["sections"]] == [
        ("hear/section-00.flac", False), ("hear/draft-01.flac", True), ("", False)
    ]  # fmt: skip
    assert states(view) == ["ready", "written", "writing"]


def finish(context: AppContext, name: str, stage: Stage = Stage.RENDERED) -> Path:
    take = context.take(name, 1)
    spans = tuple(Span(k, 100 * k, 100 * (k + 1), True) for k in range(3))
    take.save_stage1(np.zeros((2, 1, 300), np.int16), replace(take.info, spans=spans, stage=stage))
    take.mix.touch()
    return take.folder


def test_a_finished_song_is_ready_and_its_sections_are_parts_of_it(context: AppContext) -> None:
    name = ask(context)
    finish(context, name)
    view = song_progress.render(context, name, T)
    assert view["state"] == "done" and states(view) == ["ready"] * 3 and view["files"] == ["mix.flac"]
    assert [(s["hear"], s["span"]) for s in view["sections"]][1] == ("mix.flac", (2.0, 4.0))


def test_stopping_keeps_what_is_there_and_going_on_finishes_it(context: AppContext) -> None:
    name = ask(context, takes=2)
    finish(context, name, Stage.STAGE1)
    song_progress.stop(context, name)
    view = song_progress.render(context, name, T)
    assert not view["live"] and view["state"] == "idle" and states(view) == ["written"] * 3
    song_progress.go_on(context, name)
    assert [(job.take, job.state) for job in context.jobs(name)] == [(1, State.WAITING), (2, State.WAITING)]
    assert song_progress.render(context, name, T)["of"] == 2


def test_a_failure_is_told_with_its_next_step(context: AppContext) -> None:
    name = ask(context)
    with context.queue.work():
        job = context.queue.claim()
        assert job
        context.queue.finish(replace(job, state=State.FAILED, what="The disk is full.", hint="Free some space."))
    view = song_progress.render(context, name, T)
    assert (view["state"], view["message"]) == ("failed", "The disk is full. Free some space.")
    song_progress.go_on(context, name)
    assert context.jobs(name)[0].state is State.WAITING


def test_a_fresh_page_sees_what_somebody_else_makes(context: AppContext) -> None:
    name = ask(context, title="Theirs")
    view = look(context, "", at("writing", 1))
    assert (view["state"], view["other"], view["name"]) == ("none", "Theirs", name)


@pytest.mark.parametrize("name", ["gone", "../../etc", ".."])
def test_a_song_that_is_gone_is_no_alarm(context: AppContext, name: str) -> None:
    assert song_progress.render(context, name, T) == {"state": "none", "other": "", "name": None}


def test_a_damaged_song_is_named(context: AppContext) -> None:
    name = ask(context)
    (context.root / name / "song.json").write_text("{")
    assert "song.json" in song_progress.render(context, name, T)["message"]


def test_every_state_has_its_sentence() -> None:
    """A state without one would be shown by its name in the code."""
    said = T.part("create.running.")
    shown = {"starting", "reference", "writing", "refining", "sound", "behind", "idle", *(State)} - {"running"}
    assert {f"state_{state}" for state in shown} <= said.keys()
    assert {f"section_{name}" for name in ("waiting", "writing", "written", "refining", "ready")} <= said.keys()
