"""The running view on the Create page: each section's state, speed and time left, and what can be heard already.

Every call reads the song's folder and the queue, so a page that was reloaded, or opened on another day, shows what is
there. Nothing here waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ui.context import AppContext
from ui.texts import Texts
from yuegp.errors import YueGPError
from yuegp.generation.plan import Phase
from yuegp.jobs.queue import OVER, Job, JobProgress, State
from yuegp.library import catalog
from yuegp.library.store import Song, Take
from yuegp.song.schema import Stage
from yuegp.tokens.vocab import FRAMES_PER_SECOND

WRITING, REFINING = 0.6, 0.35
"""Shares of the progress bar for Stage 1 and Stage 2; the codec has the rest."""


def render(context: AppContext, name: str, t: Texts) -> dict[str, Any]:
    """What to show of the song called `name`; with an empty name, the title of another browser's running song."""
    if not name:
        running = context.running()
        return {
            "state": "none",
            "other": _title(Path(running.song)) if running else "",
            "name": running and context.name_of(running),
        }
    if not (context.root / Path(name).name).is_dir():  # the user put it into the trash
        return render(context, "", t)
    try:
        song = context.song(name)
        jobs = context.known_jobs()
    except YueGPError as exc:
        return {"state": "gone", "message": exc.what}
    own = [job for job in jobs if context.name_of(job) == name]
    job = _shown(own)
    takes, faults = song.takes()
    if not takes:
        return {"state": "gone", "message": faults[0].what if faults else t("create.running.no_take")}
    begun = [take for take in takes if take.info.spans] or takes
    take = next((take for take in takes if job and take.info.number == job.take), begun[-1])
    return _view(context, song, take, job, jobs, own, t)


def _shown(own: list[Job]) -> Job | None:
    """Of a song's jobs, the one to show: the running one, else the next to come, else the newest."""
    by_state = [job for job in own if job.state is State.RUNNING] or [job for job in own if job.state not in OVER]
    return by_state[0] if by_state else (own[-1] if own else None)


def _view(
    context: AppContext, song: Song, take: Take, job: Job | None, jobs: list[Job], own: list[Job], t: Texts
) -> dict[str, Any]:
    info = take.info
    state = "done" if info.stage is Stage.RENDERED else str(job.state) if job else "idle"
    running = job is not None and job.state is State.RUNNING
    progress = job.last if job and running else None
    view: dict[str, Any] = {
        "name": song.folder.name,
        "title": song.info.title or song.folder.name,
        "take": info.number,
        "state": state,
        "stopping": bool(job and job.wish),
        "live": any(other.state not in OVER and other.state is not State.INTERRUPTED for other in own),
        "sections": _sections(take, progress),
        "files": sorted(path.name for path in (take.mix, take.vocal, take.instrumental) if path.exists()),
        "ahead": _ahead(jobs, job),
        "message": f"{job.what} {job.hint}".strip() if job and job.state is State.FAILED else "",
        "seconds": info.frames / FRAMES_PER_SECOND,
    }
    versions = [other.take for other in own]
    if state == "waiting" and context.worker and context.worker.trouble:
        view["message"] = context.worker.trouble
    view["of"] = len(versions)
    view["version"] = versions.index(info.number) + 1 if info.number in versions else 1
    if progress:
        view |= {
            "stage": progress.stage,
            "rate": progress.rate,
            "unit": progress.unit,
            "elapsed": progress.elapsed,
            "eta": progress.eta,
            "share": share(take, progress),
        }
    return view


def _sections(take: Take, progress: JobProgress | None) -> list[dict[str, Any]]:
    """Label, state, share done and sound file of each section of the take."""
    info = take.info
    count = info.request.first_sections or len(info.request.sections)
    written = {span.section for span in (*info.spans, *info.kept_sections) if not span.open}
    if progress:
        written |= set(progress.ready)
    whole = info.stage is Stage.RENDERED
    spans = {span.section: (span.start / FRAMES_PER_SECOND, span.stop / FRAMES_PER_SECOND) for span in info.spans}
    rows = []
    for index, section in enumerate(info.request.sections[:count]):
        heard = {kind: f"hear/{kind}-{index:02}.flac" for kind in ("section", "draft")}
        there = [path for path in heard.values() if (take.folder / path).exists()]
        state, share = "waiting", 0.0
        if whole or (there and there[0] == heard["section"]):
            state, share = "ready", 1.0
        elif index in written:
            state = "refining" if progress and progress.stage in (Phase.REFINING, Phase.SOUND) else "written"
            share = progress.done / max(1, progress.total) if progress and progress.stage == Phase.REFINING else 1.0
        elif progress and progress.stage == Phase.WRITING and index == min(set(range(count)) - written):
            state = "writing"
            each = progress.total / count
            share = min(1.0, max(0.0, progress.done - index * each) / each)
        rows.append(
            {
                "label": section.label,
                "words": section.words.strip().split("\n")[0],
                "state": state,
                "share": round(share, 3),
                "hear": take.mix.name if whole else there[0] if there else "",
                "span": spans.get(index) if whole else None,
                "draft": not whole and bool(there) and there[0] == heard["draft"],
            }
        )
    return rows


def share(take: Take, progress: JobProgress) -> float:
    """The share of the work on a running take that is done, 0 to 1. It does not follow the estimated time, which can
    grow: an uneven bar is better than one that moves back."""
    if progress.stage == Phase.SOUND:
        before = WRITING + REFINING
        return before + (1 - before) * progress.done / max(1, progress.total)
    return _share(_sections(take, progress))


def _share(sections: list[dict[str, Any]]) -> float:
    """The share that sections have of it while they are written and refined."""
    parts = {
        "writing": (0.0, WRITING),
        "written": (WRITING, 0.0),
        "refining": (WRITING, REFINING),
        "ready": (WRITING + REFINING, 0.0),
    }
    done = 0.0
    for section in sections:
        before, more = parts.get(section["state"], (0.0, 0.0))
        done += before + more * section["share"]
    return done / len(sections)


def _ahead(jobs: list[Job], job: Job | None) -> int:
    """How many jobs come before a waiting one."""
    if job is None or job.state is not State.WAITING:
        return 0
    place = [other.number for other in jobs].index(job.number)
    return sum(other.state in (State.WAITING, State.RUNNING) for other in jobs[:place])


def _title(folder: Path) -> str:
    entry = next((entry for entry in catalog.entries(folder.parent) if entry.folder.name == folder.name), None)
    return entry.name if entry else folder.name


def stop(context: AppContext, name: str) -> None:
    """Cancel all jobs of a song. What is finished stays."""
    for job in context.jobs(name):
        if job.state not in OVER:
            context.queue.cancel(job.number)


def go_on(context: AppContext, name: str) -> None:
    """Queue the unfinished takes of a song again."""
    song = context.song(name)
    for take in song.takes()[0]:
        number = take.info.number
        if take.info.stage is not Stage.RENDERED:
            again = [job for job in context.jobs(name) if job.take == number and job.state is not State.DONE]
            if again:
                context.queue.resume(again[-1].number)
            else:
                context.again(song, take)
