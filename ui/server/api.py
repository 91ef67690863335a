"""The programming interface at `/api`: five calls with stable names, described in `docs/http-api.md`. They share their
code with the page.

Songs are named by their folder. Answers are JSON; an error is a sentence and a next step."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from gradio.utils import get_upload_folder, is_in_or_equal

from ui.context import AppContext
from ui.pages import progress
from ui.pages.create import fields, page, plan
from ui.pages.create import reference as create_reference
from ui.pages.wording import note_in_words
from ui.shell import plain, sendable
from ui.texts import Texts
from yuegp.checkpoints import sets
from yuegp.errors import RequestError, YueGPError
from yuegp.generation import pipeline
from yuegp.jobs.queue import Job
from yuegp.library import catalog
from yuegp.library import export as exporting
from yuegp.library.store import REFERENCES, Song, Take
from yuegp.song.schema import Reference, Stage

P = ParamSpec("P")
R = TypeVar("R")

ROUND = 3
"""Decimal places of seconds and shares."""


def told(work: Callable[P, R]) -> Callable[P, R]:
    """`work` with its YueGPErrors translated for Gradio, which sends them to the caller."""

    @functools.wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            told: R = sendable(work(*args, **kwargs))
            return told
        except YueGPError as exc:
            raise plain(exc) from exc

    return call


def build(context: AppContext) -> gr.Blocks:
    """The interface, to be mounted at `/api`. Its own page lists the calls."""
    t = Texts()

    @told
    def make(lyrics: str, tags: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Begin a song: it is put into the queue, and this returns at once."""
        wanted = plan.asked(read_settings(lyrics, tags, settings), t)
        notes = (*wanted.notes, *pipeline.plan(wanted.request).notes)
        name = page.begin(context, wanted)
        return {
            **state_of(context, name),
            "model": wanted.choice.model.id,
            "notes": [note_in_words(note, t) for note in notes],
        }

    @told
    def status(song: str) -> dict[str, Any]:
        """How far a song is."""
        return state_of(context, song)

    @told
    def stop(song: str) -> dict[str, Any]:
        """Stop making a song. What is finished of it stays."""
        context.folder(song)
        progress.stop(context, song)
        return state_of(context, song)

    @told
    def songs(
        text: str = "", rating: int | None = None, tag: str = "", language: str = "", sort: str = "newest"
    ) -> list[dict[str, Any]]:
        """The songs that match every given filter."""
        found = catalog.search(catalog.entries(context.root), text, rating, tag or None, language or None, sort)
        return [row_of(entry) for entry in found]

    @told
    def export(song: str, kind: str = "mp3", part: str = "mix", take: int | None = None) -> str:
        """A finished song as a sound file, with its settings inside."""
        from_song = context.song(song)
        which = from_song.chosen() if take is None else from_song.take(int(take))
        folder = tempfile.mkdtemp(prefix="export-", dir=get_upload_folder())
        return str(exporting.export(from_song, which, folder, kind or "mp3", (part or "mix",))[0])

    with gr.Blocks(title=t("api.title"), analytics_enabled=False, delete_cache=(86400, 86400)) as blocks:
        gr.Markdown(t("api.text"))
        for call in (make, status, stop, songs):
            gr.api(call, api_name=call.__name__)
        with gr.Group(visible="hidden"):  # Gradio returns a file through components only
            asked = gr.Textbox(), gr.Textbox("mp3"), gr.Textbox("mix"), gr.Number(None, precision=0)
            gr.on([], export, list(asked), gr.File(), api_name="export")
    return blocks


def read_settings(lyrics: str, tags: str, settings: dict[str, Any] | None) -> dict[str, Any]:
    """The values of the Create page's fields, by name, from a program's settings. RequestError for an unknown setting,
    a value of the wrong kind, and a model that is no known name: programs cannot open folders through it."""
    values: dict[str, Any] = {field.name: field.empty for field in fields.FIELDS}
    given = dict(settings or {})
    reference = read_reference(given.pop("reference", None))
    for name, value in given.items():
        if name not in fields.BY_NAME:
            there = ", ".join(sorted([*fields.BY_NAME, "reference"]))
            raise RequestError(f"There is no setting {name!r}.", f"There are: {there}.")
        _check_kind(fields.BY_NAME[name], value)
        values[name] = value
    if values["model"] and values["model"] not in sets.names():
        raise RequestError(f"There is no model {values['model']!r}.", f"There are: {', '.join(sets.names())}.")
    if not isinstance(lyrics, str) or not isinstance(tags, str):
        raise RequestError("Lyrics and tags are texts.", "Give both as text; either may be empty.")
    return {**values, "words": lyrics, "tags": tags, "reference": reference}


def read_reference(given: Any) -> Reference | None:
    """A reference recording: uploaded files as `mix`, or as `vocal` and `instrumental`, with `start` and `end` in
    seconds. RequestError for anything else, also for other files of this computer: the caller may be on another one."""
    if given is None:
        return None
    if not isinstance(given, dict) or not given.keys() <= {*REFERENCES, "start", "end"}:
        raise RequestError(
            f"The setting reference is {given!r}.", f"It has to be an object of {', '.join(REFERENCES)}, start and end."
        )
    files, window = dict[str, str](), dict[str, float]()
    for name, value in given.items():
        if name in REFERENCES:
            path = value.get("path") if isinstance(value, dict) else None
            if not isinstance(path, str) or not is_in_or_equal(path, get_upload_folder()):
                raise RequestError(f"The reference's {name} is {value!r}.", "It has to be an uploaded file.")
            files[name] = path
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError(f"The reference's {name} is {value!r}.", "It has to be a number of seconds.")
        else:
            window[name] = float(value)
    if files:
        create_reference.shared(files, Texts())
    start = window.get("start", 0.0)
    return Reference(**files, start=start, end=window.get("end", start + create_reference.WINDOW))


KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "whole": (int,),
    "switch": (bool,),
    "choice": (str,),
}


def _check_kind(field: fields.Field, value: Any) -> None:
    right = isinstance(value, KINDS[field.kind]) and (isinstance(value, bool) == (field.kind == "switch"))
    if not right or (field.choices and value not in field.choices):
        wanted = f"one of {', '.join(map(repr, field.choices))}" if field.choices else f"a {field.kind}"
        raise RequestError(f"The setting {field.name} is {value!r}.", f"It has to be {wanted}.")


def state_of(context: AppContext, name: str) -> dict[str, Any]:
    """A song as programs see it: the state of the take that is being made, else of the newest one."""
    song = context.song(name)
    jobs = context.known_jobs(name)
    numbers = [take.info.number for take in song.takes()[0]]
    job = context.live(name) or next((job for job in reversed(jobs) if job.take in numbers), None)
    if not numbers:
        return {"song": name, "title": song.info.title, "state": "empty"}
    take = song.take(job.take if job and job.take in numbers else numbers[-1])
    its_job = job if job and job.take == take.info.number else None
    return {"song": name, "title": song.info.title, **_take_of(song, take, its_job)}


def _take_of(song: Song, take: Take, job: Job | None) -> dict[str, Any]:
    info, last = take.info, job.last if job else None
    rendered = info.stage is Stage.RENDERED
    count = info.request.first_sections or len(info.request.sections)
    return {
        "take": info.number,
        "takes": song.take_numbers(),
        "state": "done" if rendered else str(job.state) if job else "idle",
        "seed": info.request.seed,
        "seconds": round(info.frames / 50, ROUND),
        "sections": count,
        "written": len([span for span in info.spans if not span.open]),
        "stage": last.stage if last else "",
        "done": last.done if last else 0,
        "total": last.total if last else 0,
        "elapsed": round(last.elapsed, ROUND) if last else None,
        "eta": round(last.eta, ROUND) if last and last.eta is not None else None,
        "error": f"{job.what} {job.hint}".strip() if job and not rendered else "",
        "sound": {
            path.stem: f"/sound/{song.folder.name}/{info.number}/{path.name}"
            for path in (take.mix, take.vocal, take.instrumental)
            if path.is_file()
        },
    }


def row_of(entry: catalog.SongSummary) -> dict[str, Any]:
    """A song in the answer of `songs`."""
    return {
        "song": entry.folder.name,
        "title": entry.name,
        "tags": entry.tags,
        "created": entry.created,
        "rating": entry.rating,
        "seconds": round(entry.seconds, ROUND),
        "stage": str(entry.stage) if entry.stage else "",
        "takes": entry.takes,
        "language": "" if entry.broken else entry.language,
        "broken": entry.broken or "",
    }
