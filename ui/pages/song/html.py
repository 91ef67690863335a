"""The Song page as HTML, in parts that the script replaces one by one when they change. This module prepares the values
of the templates in `templates/`.

A part depends on a `SongView` and the texts alone, so equal views give equal parts. `actions.py` does what buttons and
forms ask for, under the name in `data-act`; the script adds the take in front and the selected section."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from jinja2 import Environment

from ui.pages.wording import edit_in_words
from ui.templates import templates
from ui.texts import Texts
from yuegp.generation.edit import MOST_CANDIDATES
from yuegp.generation.plan import Phase
from yuegp.library.export import PARTS as STEMS
from yuegp.song.schema import LaterSections, TakeInfo

from .timeline import Block, Line, blocks, clock, lines, seconds, share, unwritten
from .view import Row, SongView, Version, versions

EXPORTED = ("wav24", "flac", "mp3", "wav16")
"""Export formats in the order they are offered: the first one is selected."""

HUES = 6
"""Colours of takes; a take's number always stands beside its colour."""

TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300)
"""Distances between marks on the time line, in seconds."""

MOST_TICKS = 7

STAGES = (Phase.REFERENCE, Phase.WRITING, Phase.REFINING, Phase.SOUND)
"""What the worker reports, with a sentence each."""


def origin(info: TakeInfo, t: Texts) -> str:
    """Where a take came from."""
    if not info.parent:
        return t("song.take.made")
    return t("song.take.from", how=edit_in_words(info.edit, t), parent=info.parent)


# The parts


def frame(t: Texts) -> str:
    """The fixed frame of the page: the places of the parts, and the player's controls."""
    return _render("frame", t)


def empty(t: Texts) -> str:
    """Shown while no song is open."""
    return _render("empty", t)


def broken(why: str, t: Texts) -> str:
    """Shown when the song cannot be opened. `why` is a sentence."""
    return _render("broken", t, why=why)


def parts(view: SongView, local: bool, t: Texts) -> dict[str, str]:
    """The parts of an open song, by the name that their template and their element (`data-part` in `frame.html`) have.
    `local`: the browser runs on the machine that has the songs."""
    info, drawn, picked = view.take, view.blocks, view.info.picked
    front, ready = (view.shown.number, view.shown.ready) if view.shown else (None, False)
    take = front if info else None
    block = next((block for block in drawn if block.section == view.section), None)
    left = tuple(info.request.sections[section].label for section in unwritten(info)) if info else ()
    compared = tuple(VersionRow.of(version, t) for version in versions(view)) if block else None
    values: dict[str, dict[str, Any]] = {
        "head": {"title": view.title, "rating": view.info.rating or 0},
        "jobs": {"job": JobLine.of(view.live, t) if view.live else None},
        "line": {"blocks": drawn, "seams": tuple(map(seconds, info.seams)) if info else ()},
        "panel": {"block": block, "take": take, "ready": ready, "settled": view.settled},
        "versions": {"versions": compared, "section": view.section, "front": front, "picked": picked},
        "lyrics": {"verses": verses(info, t) if info else None, "sung": bool(info and not info.request.instrumental)},
        "takes": {"rows": tuple(TakeRow.of(row, t) for row in view.rows), "front": front, "picked": picked},
        "continue": {"take": take, "settled": view.settled, "left": left},
        "export": {"take": take, "ready": ready},
        "more": {"tags": view.tags, "folder": view.name, "take": take, "local": local},
    }
    return {name: _render(name, t, **shown) for name, shown in values.items()}


@lru_cache(256)
def _render(template: str, t: Texts, **values: Hashable) -> str:
    """A template filled in. Cached, because open pages ask for all parts every second while most stay the same."""
    return _environment().get_template(f"{template}.html").render(values, t=t)


@cache
def _environment() -> Environment:
    found = templates(__package__)
    known = (block_facts, block_name, block_notes, clock, hue, share, ticks)
    found.globals |= {function.__name__: function for function in known}
    found.globals |= {"STEMS": STEMS, "KINDS": EXPORTED, "MOST_CANDIDATES": MOST_CANDIDATES}
    found.globals["LATER"] = tuple(LaterSections)
    return found


# What the templates show


@dataclass(frozen=True)
class JobLine:
    """The running job of the song, or else its first waiting one."""

    take: int
    running: bool
    doing: str
    share: float
    """How much of the present stage is done, 0 to 1."""
    others: int
    """How many takes come after it."""

    @classmethod
    def of(cls, live: tuple[Row, ...], t: Texts) -> JobLine:
        row = next((row for row in live if row.state == "running"), live[0])
        last = row.progress
        part = last.done / max(1, last.total) if last else 0.0
        return cls(row.number, row.state == "running", doing(row, t), part, len(live) - 1)


@dataclass(frozen=True)
class VersionRow:
    """A version of the selected section."""

    take: int
    said: str
    ready: bool

    @classmethod
    def of(cls, version: Version, t: Texts) -> VersionRow:
        row, block = version.row, version.block
        said = t(f"song.take.{row.state}")
        if block:
            said = t("song.versions.facts", seconds=f"{block.seconds:.1f}", seed=block.seed)
        return cls(row.number, said, row.ready)


@dataclass(frozen=True)
class TakeRow:
    """A take in the list."""

    take: int
    state: str
    said: str
    """The state in words."""
    facts: tuple[str, ...]
    """Empty when it cannot be read."""
    why: str
    ready: bool

    @classmethod
    def of(cls, row: Row, t: Texts) -> TakeRow:
        said, facts = t(f"song.take.{row.state}"), tuple[str, ...]()
        if row.state == "running":
            said = doing(row, t)
        if info := row.info:
            length = clock(seconds(info.frames))
            facts = origin(info, t), t("song.take.facts", length=length, seed=info.request.seed)
        return cls(row.number, row.state, said, facts, row.why, row.ready)


@dataclass(frozen=True)
class Verse:
    """A section of the lyrics beside the player."""

    section: int
    label: str
    lines: tuple[Line, ...]
    block: Block | None
    """Where it stands on the time line; None when the take does not have it."""
    note: str
    """Why it cannot be heard; empty when it can."""


def verses(info: TakeInfo, t: Texts) -> tuple[Verse, ...]:
    """The lyrics of a take: the sections on its time line, then those it does not have."""
    request, found = info.request, []
    for block in blocks(info):
        words = "" if request.instrumental else request.sections[block.section].words
        note = "" if block.written else t(f"song.block.{block.state}")
        found.append(Verse(block.section, block.label, lines(words, block.start, block.stop), block, note))
    for section in unwritten(info):
        asked = request.sections[section]
        found.append(Verse(section, asked.label, lines(asked.words, 0, 0), None, t("song.lyrics.unwritten")))
    return tuple(found)


def doing(row: Row, t: Texts) -> str:
    """What the generator does for a take, in words."""
    last = row.progress
    if last is None or last.stage not in STAGES:
        return t("song.stage.starting")
    percent = int(100 * last.done / max(1, last.total))
    if last.eta is None:
        return t(f"song.stage.{last.stage}", percent=percent)
    return t(f"song.stage.{last.stage}.left", percent=percent, time=clock(last.eta + 0.5))


# What the templates ask for


def hue(take: int) -> str:
    """The CSS class of a take's colour; take 0 means not written yet."""
    return f"hue{(take - 1) % HUES + 1}" if take else "hue0"


def ticks(whole: float) -> list[int]:
    """Round seconds to mark on a time line of `whole` seconds, at most `MOST_TICKS` and none near its end."""
    step = next((step for step in TICKS if whole / step < MOST_TICKS), TICKS[-1])
    return [at for at in range(0, int(whole) + 1, step) if not at or at < 0.92 * whole]


def block_name(block: Block, t: Texts) -> str:
    """A section with its times, for screen readers."""
    start, stop = clock(block.start), clock(block.stop)
    return t("song.section", number=block.section + 1, label=block.label, start=start, stop=stop)


def block_notes(block: Block, t: Texts) -> list[str]:
    """Notes on a section of the time line: its take, or why it is not there yet; then `open` and `muted`."""
    notes = [t("song.block.take", take=block.take) if block.written else t(f"song.block.{block.state}")]
    if block.state == "open":
        notes.append(t("song.block.open"))
    if block.muted:
        notes.append(t("song.block.muted"))
    return notes


def block_facts(block: Block, t: Texts) -> list[str]:
    """Facts about the selected section, which is written."""
    start, stop = clock(block.start), clock(block.stop)
    facts = [t("song.panel.facts", start=start, stop=stop, seconds=f"{block.seconds:.1f}")]
    facts.append(t("song.panel.from", take=block.take, seed=block.seed))
    return facts + [t(f"song.panel.{name}") for name in ("cut", "muted") if getattr(block, name)]
