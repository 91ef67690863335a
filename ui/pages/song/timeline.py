"""Times on a song's time line, in seconds: sections, seams, lines of lyrics. Pure arithmetic.

Only the ends of sections are known exactly. The model does not tell when it sings a line, so lines are spread evenly
over their section, as in exported .lrc files, and the page says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from yuegp.song import lyrics
from yuegp.song.schema import Section, Span, Stage, TakeInfo
from yuegp.tokens.vocab import FRAMES_PER_SECOND

GUESS_SECONDS = 30.0
"""Drawn length of an unwritten section without words, when the request sets no limit."""

SHORTEST_GUESS = 4.0


@dataclass(frozen=True)
class Block:
    """A section as it is drawn. Times are seconds from the beginning of the take."""

    section: int
    label: str
    start: float
    stop: float
    state: str = "made"
    """`made`; `open` when it goes on from here; `kept` when it follows once those before it are written; `planned`."""
    take: int = 0
    """The take it was written in; 0 while it is not."""
    seed: int = 0
    cut: bool = False
    """It ended at the length limit or by a trim, not by itself."""
    muted: bool = False

    @property
    def seconds(self) -> float:
        return self.stop - self.start

    @property
    def written(self) -> bool:
        """Whether it has its final place: it is neither `kept` for later nor `planned`."""
        return self.state in ("made", "open")


@dataclass(frozen=True)
class Line:
    """A line of lyrics and the time at which it is highlighted."""

    text: str
    start: float
    stop: float


def seconds(frames: int) -> float:
    return frames / FRAMES_PER_SECOND


def clock(at: float) -> str:
    """Seconds as `1:05`."""
    whole = int(at)
    return f"{whole // 60}:{whole % 60:02}"


def blocks(info: TakeInfo) -> tuple[Block, ...]:
    """The sections of a take in order: written ones, and while it is unfinished those to come, whose length is
    estimated from their words."""
    kept = info.kept_sections
    found = [_made(info, span, 0, "open" if span.open else "made") for span in info.spans]
    if info.stage is not Stage.NEW and not kept:
        return tuple(found)
    at = seconds(info.frames)
    stop = kept[0].section if kept else info.request.first_sections or len(info.request.sections)
    for section in range(info.spans[-1].section + 1 if info.spans else 0, stop):
        asked = info.request.sections[section]
        length = _guess(asked, info.request.section_seconds, info.request.instrumental)
        found.append(Block(section, asked.label, at, at + length, "planned"))
        at += length
    if kept:
        shift = at - seconds(kept[0].start)
        found += [_made(info, span, shift, "kept") for span in kept]
    return tuple(found)


def _made(info: TakeInfo, span: Span, shift: float, state: str) -> Block:
    return Block(
        section=span.section,
        label=info.request.sections[span.section].label,
        start=seconds(span.start) + shift,
        stop=seconds(span.stop) + shift,
        state=state,
        take=span.take,
        seed=span.seed,
        cut=not span.ended,
        muted=span.section in info.muted,
    )


def _guess(section: Section, limit: float | None, instrumental: bool) -> float:
    limit = limit or GUESS_SECONDS
    if instrumental or not section.words.strip():
        return limit
    return min(limit, max(SHORTEST_GUESS, lyrics.seconds_estimate(section.words)))


def unwritten(info: TakeInfo) -> tuple[int, ...]:
    """Sections of the lyrics that this take neither has nor plans: a continuation can add them."""
    planned = {block.section for block in blocks(info)}
    return tuple(k for k in range(len(info.request.sections)) if k not in planned)


def share(part: float, whole: float) -> str:
    """`part` of `whole` seconds as a CSS percentage."""
    return f"{100 * part / whole if whole else 0:.3f}%"


def lines(words: str, start: float, stop: float) -> tuple[Line, ...]:
    """The lines of a section, spread evenly from `start` to `stop`. Empty lines take no time."""
    texts = [line.strip() for line in words.splitlines() if line.strip()]
    each = (stop - start) / len(texts) if texts else 0.0
    return tuple(Line(text, start + k * each, start + (k + 1) * each) for k, text in enumerate(texts))
