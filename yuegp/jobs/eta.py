"""Estimates a song's remaining time from the cost of earlier takes on this machine, corrected by the current run.

Each stage has a linear cost: seconds to begin, and seconds per unit of work. `learn` fits the lines to the newest
takes; without any, they are guessed from the pace of the running stage. `estimate` is pure: no clock, no files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from yuegp.errors import YueGPError
from yuegp.generation.plan import Event, Phase
from yuegp.library import store
from yuegp.song.schema import Stage, TakeInfo
from yuegp.tokens.vocab import FRAMES_PER_SECOND, STAGE2_CHUNK

NEWEST = 12
"""Number of takes to learn from. Older ones may be from another version or another card."""

SONGS = 60
"""Newest song folders searched for them: reading a take.json costs a third of a millisecond."""

STAGE2_ROWS = 16
"""Default number of chunks refined at once; only a unit to count work in."""

ROW_COST = {"cpu": 0.25, "cuda": 0.02}
"""Cost of one more row in a pass, as a share of a pass without rows. Measured on a CPU with the demo set, 2 to 16 rows;
a card reads its weights once for all rows, so a row costs only its caches."""

PASS = 0.7
"""Default ratio of a Stage-2 pass to a Stage-1 pass of as many rows. The demo set on a CPU has 0.7; the published run
of the released models on a 4090 (125 s and 49 s for a song of 58 s) has 0.73."""

SOUND = {"cpu": 0.0015, "cuda": 0.0005}
"""Default seconds of the sound stage per frame of song; the CPU's from the demo set."""

LEAST = 0.5
"""Limit on correcting later stages. A stage slower than learned may mean a busy machine or concern that stage alone, so
later stages change by the square root of its factor, between this value and its inverse."""

ALIKE = 2
"""Weight of other songs when estimating the next section's length, in finished sections of this song."""


class LinearCost(NamedTuple):
    """Seconds a stage takes: `begin`, plus `each` per unit of work."""

    begin: float
    each: float


@dataclass(frozen=True)
class Costs:
    """Learned costs of a model on a device: a line per stage, over audio ids for `writing`, passes for `refining` and
    frames for `sound`."""

    lines: Mapping[str, LinearCost] = field(default_factory=dict)
    fill: float | None = None
    """Share of its budget that a section uses; None if unknown."""


@dataclass(frozen=True)
class Workload:
    """Work of a run at its start."""

    budget: int
    """Most audio ids of a section."""
    todo: int
    """Sections to write."""
    lengths: tuple[int, ...] = ()
    """Audio ids of the existing sections."""
    fresh: int = 0
    """Frames written but not refined."""
    frames: int = 0
    """Existing frames of the song, kept ones included."""
    written: int = 0
    """Sections counted in `frames` and `lengths`, without kept ones that follow later."""
    device: str = "cpu"
    rows: int = STAGE2_ROWS


@dataclass(frozen=True)
class Observed:
    """The events of a run so far, reduced to what `estimate` needs. `first` and `last` are of the same stage."""

    first: Event | None = None
    last: Event | None = None
    entered: float = 0.0
    """Clock seconds at the end of the previous stage (or the start of the run), at `first`, and at `last`."""
    began: float = 0.0
    now: float = 0.0
    lengths: tuple[int, ...] = ()
    """Audio ids of the sections finished in this run."""
    start: int = 0
    """Ids written in this run before the current section."""
    pace: float = 0.0
    """Seconds per id; 0 while nothing is written."""
    rows: int = 0
    """Chunks refined at once."""
    refined: int = 0
    """Frames of both tracks refined before later sections are written, in runs that refine section by section."""

    @property
    def drawn(self) -> int:
        """Audio ids of the current section."""
        return self.last.made - self.start if self.last and self.last.stage == Phase.WRITING else 0

    def after(self, event: Event, now: float) -> Observed:
        """A copy with one more event, at `now` seconds of any monotonic clock."""
        first, last = self.first, self.last
        seen = replace(self, last=event, now=now)
        if last and last.stage == Phase.WRITING and (last.stage, last.what) != (event.stage, event.what):
            seen = replace(seen, lengths=(*self.lengths, self.drawn), start=last.made)
        if last and last.stage == Phase.REFINING and event.stage == Phase.WRITING:
            seen = replace(seen, refined=self.refined + last.made)
        if first is None or last is None or last.stage != event.stage or event.made < last.made:
            return replace(seen, first=event, entered=self.now, began=now, start=0)
        if event.stage == Phase.WRITING and event.made > first.made:
            seen = replace(seen, pace=(now - self.began) / (event.made - first.made))
        if event.stage == Phase.REFINING:
            seen = replace(seen, rows=max(self.rows, event.done - last.done))
        return seen


def estimate(costs: Costs, facts: Workload, seen: Observed) -> float | None:
    """Seconds until the song is done, never negative. None while unknown: in the first song with a model, before it has
    written anything."""
    left, done, since = _work(costs.fill, facts, seen)
    lines = _lines(costs, facts.device, seen.pace)
    if any(work and name not in lines for name, work in left.items()):
        return None
    stage = seen.last.stage if seen.last else ""
    seconds, share = 0.0, 1.0
    if rest := left.pop(stage, 0.0):
        line = lines[stage]
        seconds = rest * ((seen.now - seen.began) / since if since else line.each)
        if stage in costs.lines:  # learned from whole stages, loading included; fades as the stage goes on
            over, spent = done / (done + rest), seen.now - seen.entered
            whole = line.begin + line.each * (done + rest)
            seconds = over * seconds + (1 - over) * max(0.0, whole - spent)
            share = min(max(1 + over * ((spent + seconds) / whole - 1), LEAST), 1 / LEAST) ** 0.5
    for name, work in left.items():
        if work:
            seconds += (lines[name].begin + lines[name].each * work) * (share if name in costs.lines else 1.0)
    return seconds


def _work(fill: float | None, facts: Workload, seen: Observed) -> tuple[dict[str, float], float, float]:
    """Work left by stage; work done in the running stage by this run; and how much of that since its first event."""
    first, last = seen.first, seen.last
    if first and last and last.stage == Phase.SOUND:  # each frame goes through the codec and an upsampler, per track
        return {"sound": (last.total - last.done) / 4}, last.made / 4, (last.made - first.made) / 4
    ids = _ids_left(fill, facts, seen)
    if first and last and last.stage == Phase.REFINING:
        frames = last.total - last.done + last.made + round(ids)  # of both tracks
        by_sections = ids or seen.refined  # batches are as large as each section leaves them, not as memory allows
        rows = facts.rows if by_sections else seen.rows or facts.rows
        whole, done, before = (
            refining_passes(frames // 2, rows, facts.device, count) for count in (frames, last.made, first.made)
        )
        return {"refining": whole - done, "writing": ids, "sound": (last.total + ids) / 2}, done, done - before
    new = (sum(seen.lengths) + seen.drawn + ids) / 2
    passes = refining_passes(max(0, round(facts.fresh + new - seen.refined / 2)), facts.rows, facts.device)
    left = {"writing": ids, "refining": passes, "sound": facts.frames + new}
    if first and last and last.stage == Phase.WRITING:
        return left, last.made, last.made - first.made
    return left, 0.0, 0.0


def _lines(costs: Costs, device: str, pace: float) -> dict[str, LinearCost]:
    """The learned lines, and guesses for the rest from the `pace` of writing, if known."""
    guesses = {"sound": LinearCost(0.0, SOUND[device])}
    if write := costs.lines.get("writing") or (LinearCost(0.0, pace) if pace else None):
        guesses |= {"writing": write, "refining": LinearCost(0.0, PASS * write.each / (1 + 2 * ROW_COST[device]))}
    return {**guesses, **costs.lines}


def _ids_left(fill: float | None, facts: Workload, seen: Observed) -> float:
    """Audio ids still to write. Assumes the length of existing sections, at first that of other songs, else the whole
    budget."""
    lengths = [*facts.lengths, *seen.lengths, *([] if fill is None else [fill * facts.budget] * ALIKE)]
    length = min(fmean(lengths), facts.budget) if lengths else facts.budget
    todo = facts.todo - len(seen.lengths)
    return max(0.0, length - seen.drawn) + (todo - 1) * length if todo > 0 else 0.0


def refining_passes(frames: int, rows: int, device: str, done: int | None = None) -> float:
    """Work to refine `frames` frames of two tracks, `rows` chunks at a time; with `done`, only the first `done` frames
    of either track. Counted in passes without rows: a batch takes as long as its chunks, however few."""
    full, tail = divmod(frames, STAGE2_CHUNK)
    batches = [(STAGE2_CHUNK, min(rows, 2 * full - i)) for i in range(0, 2 * full, rows)] + [(tail, 2)] * bool(tail)
    left = 2 * frames if done is None else done
    passes = 0.0
    for length, width in batches:
        part = min(left, length * width)
        left -= part
        passes += 7 * part / width * (1 + ROW_COST[device] * width)
    return passes


# Learning from earlier takes


def facts_of(info: TakeInfo, budget: int, device: str, refined: int = 0) -> Workload:
    """Workload of a run of this take. `device` is cpu or cuda; `refined` frames written in this take are refined
    already."""
    count = info.request.first_sections or len(info.request.sections)
    finished = [span for span in info.spans if not span.open]
    done = info.stage in (Stage.STAGE2, Stage.RENDERED)
    return Workload(
        budget=budget,
        todo=max(0, count - len(finished) - len(info.kept_sections)),
        lengths=tuple(2 * (span.stop - span.start) for span in (*finished, *info.kept_sections)),
        fresh=0 if done else max(0, _own_frames(info) - refined),
        frames=info.frames + sum(span.stop - span.start for span in info.kept_sections),
        written=len(finished),
        device=device,
    )


def learn(takes: Iterable[TakeInfo], device: str) -> Costs:
    """Costs learned from rendered takes of one model on one kind of device."""
    points: dict[str, list[tuple[float, float]]] = {"stage1": [], "stage2": [], "sound": []}
    fills = []
    for info in takes:
        own = _own_frames(info)
        passes = refining_passes(own, STAGE2_ROWS, device)
        for stage, work in (("stage1", 2.0 * own), ("stage2", passes), ("sound", float(info.frames))):
            if work > 0 and info.seconds.get(stage, 0.0) > 0:
                points[stage].append((work, info.seconds[stage]))
        if info.request.section_seconds:
            longest = info.request.section_seconds * FRAMES_PER_SECOND
            fills += [(span.stop - span.start) / longest for span in info.spans if span.take == info.number]
    named = zip(("writing", "refining", "sound"), points.values(), strict=True)
    return Costs({name: _line(some) for name, some in named if some}, fmean(fills) if fills else None)


def _own_frames(info: TakeInfo) -> int:
    """Frames written in this take, not kept from another."""
    return sum(span.stop - span.start for span in info.spans if span.take == info.number)


def _line(points: list[tuple[float, float]]) -> LinearCost:
    """The line through (work, seconds): the median slope of all pairs that differ enough to have one (Theil and Sen),
    so that a song made while the machine was busy, or one that was interrupted, does not bend it. Neither part is
    negative."""
    slopes = [(t - s) / (w - v) for (v, s), (w, t) in combinations(points, 2) if max(v, w) > 1.5 * min(v, w)]
    each = median(slopes) if slopes else 0.0
    begin = median(seconds - each * work for work, seconds in points)
    if each <= 0 or begin < 0:
        return LinearCost(0.0, median(seconds / work for work, seconds in points))
    return LinearCost(begin, each)


def earlier_takes(root: Path, model: str, device: str) -> list[TakeInfo]:
    """The newest rendered takes under `root` of this model on this kind of device. Skips unreadable ones, which the
    doctor reports."""
    found: list[TakeInfo] = []
    with contextlib.suppress(OSError):
        for folder in sorted(root.glob("[!.]*/"), reverse=True)[:SONGS]:
            with contextlib.suppress(YueGPError):
                found += [take.info for take in store.open_song(folder).takes()[0]]
    like = [
        info
        for info in found
        if info.stage is Stage.RENDERED
        and info.made_with
        and (info.request.model, info.made_with.device.split(":")[0]) == (model, device)
    ]
    return sorted(like, key=lambda info: info.created, reverse=True)[:NEWEST]
