"""The Queue page: running, waiting and ended jobs. One element, drawn by `assets/queue.js`, which calls `queue_render`
for the jobs and `queue_action` for clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ui.context import AppContext
from ui.shell import Shell, goto, sendable
from ui.texts import Texts
from yuegp.errors import YueGPError
from yuegp.jobs.queue import OVER, TO_COME, Job, State
from yuegp.library import store
from yuegp.library.store import Take

from .progress import share
from .wording import edit_in_words

ONE = ("cancel", "pause", "resume")
"""Methods of `Queue` that take one job; moving it needs a place as well."""


def build(context: AppContext, shell: Shell, t: Texts) -> None:
    """Build the page into the present tab."""

    def queue_render(asked: Any) -> dict[str, Any]:
        return sendable(render(context, t))

    def queue_action(asked: Any) -> dict[str, Any]:
        return sendable(handle_action(context, asked, t))

    page = gr.HTML(
        "",
        elem_id="queue",
        html_template="<div class='y-queue'></div>",
        js_on_load="window.yuegp.queue(element, props, server, trigger, watch); /* triggers 'opened' */",
        apply_default_css=False,
        server_functions=[queue_render, queue_action],
        say=t.part("queue."),
    )
    page.opened(_opened, None, [shell.open_song, shell.tabs], api_visibility="private", show_progress="hidden")


def _opened(event: gr.EventData) -> tuple[str, gr.Tabs]:
    return str(event._data.get("name") or ""), goto("song")


def render(context: AppContext, t: Texts) -> dict[str, Any]:
    """`now`: the running job, then those to come in order. `over`: ended ones, newest first."""
    try:
        jobs = context.jobs()
    except YueGPError as exc:
        return {"now": [], "over": [], "trouble": "", "error": f"{exc.what} {exc.hint}".strip()}
    to_come = [job.number for job in jobs if job.state in TO_COME]
    now = [row(context, job, to_come, t) for job in jobs if job.state not in OVER]
    over = [row(context, job, to_come, t) for job in reversed(jobs) if job.state in OVER]
    now.sort(key=lambda row: row["state"] != State.RUNNING)
    trouble = context.worker.trouble if context.worker else ""
    return {"now": now, "over": over, "trouble": trouble and t("queue.trouble", what=trouble), "error": ""}


def row(context: AppContext, job: Job, to_come: list[int], t: Texts) -> dict[str, Any]:
    """A job as the script draws it."""
    title, how, take = _title(job, t)
    last = job.last if job.state is State.RUNNING else None
    return {
        "number": job.number,
        "name": context.name_of(job),
        "here": Path(job.song).parent == context.root,
        "title": title,
        "take": job.take,
        "how": how,
        "state": str(job.state),
        "wish": job.wish,
        "stage": last.stage if last else "",
        "share": round(share(take, last), 3) if take and last else 0,
        "eta": last.eta if last else None,
        "elapsed": last.elapsed if last else None,
        "place": to_come.index(job.number) + 1 if job.number in to_come else 0,
        "places": len(to_come),
        "message": f"{job.what} {job.hint}".strip() if job.state is State.FAILED else "",
        "trace": job.trace,
    }


def _title(job: Job, t: Texts) -> tuple[str, str, Take | None]:
    """The song's title, the edit that the take is, and the take. A song that cannot be opened has its folder's name for
    a title and no take."""
    folder = Path(job.song)
    try:
        song = store.open_song(folder)
        take = song.take(job.take)
    except YueGPError:
        return folder.name, t("queue.gone"), None
    return song.info.title or folder.name, edit_in_words(take.info.edit, t) if take.info.parent else "", take


def handle_action(context: AppContext, asked: Any, t: Texts) -> dict[str, Any]:
    """Do what the user clicked: `do` is cancel, pause, resume, move (to the place `value`), pause_all, resume_all or
    clear; `number` is the job. Returns what `render` does afterwards."""
    asked = asked if isinstance(asked, dict) else {}
    wish, number, queue = asked.get("do"), asked.get("number"), context.queue
    error = ""
    try:
        if wish in ("pause_all", "resume_all", "clear"):
            getattr(queue, wish)()
        elif wish in ONE and type(number) is int:
            getattr(queue, wish)(number)
        elif wish == "move" and type(number) is int and type(asked.get("value")) is int:
            queue.move(number, asked["value"])
        else:
            error = t("queue.unknown")
    except YueGPError as exc:
        error = f"{exc.what} {exc.hint}".strip()
    now = render(context, t)
    return {**now, "error": error or now["error"]}
