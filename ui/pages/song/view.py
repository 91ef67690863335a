"""What the Song page shows, as plain values read from the song's folder and the queue.

A take that cannot be read is listed with the reason, so that one damaged file does not hide the others."""

from __future__ import annotations

from dataclasses import dataclass

from ui.context import AppContext
from yuegp.errors import LibraryError
from yuegp.jobs.queue import OVER, Job, JobProgress, State
from yuegp.library.catalog import SongSummary
from yuegp.library.store import Song
from yuegp.song.schema import SongInfo, Stage, TakeInfo

from .timeline import Block, blocks, seconds


@dataclass(frozen=True)
class Row:
    """A take in the list."""

    number: int
    info: TakeInfo | None
    """None when it cannot be read; `broken` says why."""
    broken: str = ""
    job: Job | None = None
    """The newest job for it."""

    @property
    def ready(self) -> bool:
        """Whether its sound is rendered."""
        return self.info is not None and self.info.stage is Stage.RENDERED

    @property
    def state(self) -> str:
        """`ready`, `damaged`, the state of its job such as `running`, or `stopped` when no job will finish it."""
        if self.info is None:
            return "damaged"
        if self.ready:
            return "ready"
        return self.job.state.value if self.job and self.job.state is not State.DONE else "stopped"

    @property
    def progress(self) -> JobProgress | None:
        """How far it is while it is being made."""
        return self.job.last if self.job and self.job.state is State.RUNNING else None

    @property
    def why(self) -> str:
        """Why it is damaged or has failed, in sentences; empty when it is neither."""
        if self.state == "failed" and self.job:
            return f"{self.job.what} {self.job.hint}".strip()
        return self.broken


@dataclass(frozen=True)
class Version:
    """One version of a section, in the take that wrote it."""

    row: Row
    block: Block | None
    """None while it is not written yet."""


@dataclass(frozen=True)
class SongView:
    """A song as the page shows it, with one take in front."""

    name: str
    """The folder's name."""
    title: str
    info: SongInfo
    tags: str
    rows: tuple[Row, ...]
    """The takes, newest first."""
    chosen: int | None
    """The take that the library plays and exports."""
    shown: Row | None = None
    """The take in front."""
    section: int = 0
    """The section that is selected, an index into the request's sections."""

    @property
    def take(self) -> TakeInfo | None:
        return self.shown.info if self.shown else None

    @property
    def blocks(self) -> tuple[Block, ...]:
        return blocks(self.take) if self.take else ()

    @property
    def block(self) -> Block | None:
        """The selected section in the take in front."""
        return next((block for block in self.blocks if block.section == self.section), None)

    @property
    def settled(self) -> bool:
        """Whether the take in front is written to its end: only then can it be edited."""
        take = self.take
        return bool(take and take.spans and not take.kept_sections and not take.spans[-1].open)

    @property
    def live(self) -> tuple[Row, ...]:
        """Takes with a running or waiting job, the oldest first."""
        return tuple(row for row in reversed(self.rows) if row.job and not row.ready and row.job.state not in OVER)


def load(context: AppContext, name: str, take: int | None = None, section: int = 0) -> SongView:
    """A song with `take` in front, or the chosen take when it is None or does not exist. LibraryError when the song
    cannot be opened."""
    song = context.song(name)
    rows = _rows(context, song, name)
    chosen = _chosen(song, rows)
    numbers = [row.number for row in rows]
    wanted = take if take in numbers else chosen
    shown = next((row for row in rows if row.number == wanted), None)
    title = SongSummary(song.folder, song.info.title).name
    view = SongView(name, title, song.info, song.request.tags, rows, chosen, shown, section)
    drawn = [block.section for block in view.blocks]
    return view if section in drawn or not drawn else load(context, name, wanted, drawn[0])


def _rows(context: AppContext, song: Song, name: str) -> tuple[Row, ...]:
    newest = {job.take: job for job in sorted(context.known_jobs(name), key=lambda job: job.number)}
    return tuple(_row(song, number, newest.get(number)) for number in reversed(song.take_numbers()))


def _row(song: Song, number: int, job: Job | None) -> Row:
    try:
        return Row(number, song.take(number).info, job=job)
    except LibraryError as exc:
        return Row(number, None, exc.what, job)


def _chosen(song: Song, rows: tuple[Row, ...]) -> int | None:
    """As `Song.chosen`, but skips takes that cannot be read."""
    if any(row.number == song.info.picked and row.info for row in rows):
        return song.info.picked
    for usable in (lambda row: row.ready, lambda row: row.info, lambda row: True):
        if found := next(filter(usable, rows), None):
            return found.number
    return None


def versions(view: SongView) -> tuple[Version, ...]:
    """The versions of the selected section, written or planned, newest first."""
    found = []
    for row in view.rows:
        if row.info is None:
            continue
        block = next((b for b in blocks(row.info) if b.section == view.section), None)
        if block and block.written and block.take == row.number:
            found.append(Version(row, block))
        elif block and block.state == "planned" and not row.ready:
            found.append(Version(row, None))
    return tuple(found)


def rival(view: SongView) -> int | None:
    """The take to compare with first: the parent of the one in front, else the newest other one that is ready."""
    ready = [row.number for row in view.rows if row.ready and view.shown and row.number != view.shown.number]
    parent = view.take.parent if view.take else None
    return parent if parent in ready else next(iter(ready), None)


def sound(view: SongView) -> list[dict[str, object]]:
    """For the player: length and section times, in seconds, of each take that can be heard."""
    return [
        {
            "take": row.number,
            "seconds": seconds(row.info.frames),
            "sections": [[span.section, seconds(span.start), seconds(span.stop)] for span in row.info.spans],
        }
        for row in view.rows
        if row.info and row.ready
    ]
