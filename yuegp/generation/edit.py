"""Edits of an existing song: continue, rewind, redo a section, make candidates, trim, mute.

Each edit creates a new take that names its parent and keeps what it can of it; existing takes never change. The new
take is only begun here: `pipeline.run` makes what it lacks. Sections are counted from 0; users count from 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from yuegp.errors import LibraryError, RequestError
from yuegp.files import write_atomic
from yuegp.library.store import Song, Take
from yuegp.locks import song_lock
from yuegp.song.schema import Edit, EditKind, LaterSections, MadeWith, Section, SongRequest, Span, Stage
from yuegp.tokens.vocab import FRAMES_PER_SECOND

from .options import ANY, ModelOptions
from .pipeline import candidates, plan
from .plan import ProgressCallback, plan_for

if TYPE_CHECKING:
    from .stage1 import SectionCodes

MOST_CANDIDATES = 10


def proceed(song: Song, take: Take, sections: Sequence[Section] = (), count: int | None = None) -> Take:
    """Continue at the end: with unmade sections of the lyrics and with new `sections` added to them, up to `count`
    sections in all (None: to the end). The prompt's head is that of the longer lyrics; finished sections keep their
    codes."""
    request = replace(take.info.request, sections=(*take.info.request.sections, *sections), first_sections=count)
    made = len(take.info.spans)
    if (count or len(request.sections)) <= made:
        raise RequestError(
            f"All {made} sections of take {take.info.number} are made.", "Give lyrics to go on with, or redo a section."
        )
    return _branch(song, take, request, _whole(take), edit=Edit(EditKind.CONTINUE))


def rewind(song: Song, take: Take, seed: int, section: int | None = None, second: float | None = None) -> Take:
    """Go back to the beginning of `section`, or to a `second` of the song, and write everything after it anew. A second
    inside a section keeps the part before it and continues from there."""
    spans = _whole(take)
    request = replace(take.info.request, seed=seed)
    if section is not None:
        _span(take, section)
        return _branch(song, take, request, spans[:section], edit=Edit(EditKind.REWIND_SECTION, section))
    frame = round((second or 0.0) * FRAMES_PER_SECOND)
    if not 0 <= frame < take.frames:
        raise RequestError(
            f"The song lasts {take.frames / FRAMES_PER_SECOND:.1f} s; {second:g} s is not inside it.",
            "Give a second before its end.",
        )
    kept = tuple(span for span in spans if span.stop <= frame)
    at = spans[len(kept)]
    if frame > at.start:
        kept = (*kept, replace(at, stop=frame, ended=False, open=True))
    at_second = Edit(EditKind.REWIND_SECOND, seconds=frame / FRAMES_PER_SECOND)
    return _branch(song, take, request, kept, edit=at_second)


def redo(song: Song, take: Take, section: int, seed: int, later: LaterSections = LaterSections.KEEP) -> Take:
    """Write one section anew."""
    return _redone(song, take, seed, Edit(EditKind.REDO, section, later))


def later_sections(word: str) -> LaterSections:
    """What a word says of the sections after a redone one. RequestError when it is none that is known."""
    try:
        return LaterSections(word)
    except ValueError:
        raise RequestError(
            f"Later sections cannot be treated as {word!r}.", f"Use {', '.join(LaterSections)}."
        ) from None


def choices(
    song: Song,
    take: Take,
    section: int,
    seeds: Sequence[int],
    later: LaterSections,
    watch: ProgressCallback,
    device: str = "auto",
    wishes: ModelOptions = ANY,
) -> list[Take]:
    """Write a section once per seed, in one batch. Returns one new take each, to compare and pick from."""
    if not 1 <= len(seeds) <= MOST_CANDIDATES:
        raise RequestError(f"{len(seeds)} candidates were asked for; 1 to {MOST_CANDIDATES} are possible.", "")
    _span(take, section)
    written, made_with = candidates(plan(take.info.request), take, section, seeds, watch, device, wishes)
    takes = []
    for i, (seed, choice) in enumerate(zip(seeds, written, strict=True), 1):
        begun = _redone(song, take, seed, Edit(EditKind.CANDIDATE, section, later, i, len(seeds)))
        _add(begun, choice, made_with)
        takes.append(begun)
    return takes


def write_together(
    takes: Sequence[Take], watch: ProgressCallback, device: str = "auto", wishes: ModelOptions = ANY
) -> None:
    """Write the first section of takes that `redo` began from the same parent, in one batch, with the same result as
    one by one. Skips takes that have theirs already, and a single remaining one. Saves nothing before the whole batch
    is written; `watch` may raise Cancelled."""
    with song_lock(takes[0].folder.parent.parent):
        here = [Take.open(take.folder) for take in takes]  # another process may have written some
        todo = [take for take in here if all(span.take != take.info.number for span in take.info.spans)]
        if len(todo) < 2:
            return
        info, seeds = todo[0].info, [take.info.request.seed for take in todo]
        section = info.spans[-1].section + 1 if info.spans else 0
        if info.parent is None or section >= len(info.request.sections):
            raise RequestError(
                f"Take {info.number} was not begun together with others.", "Take the job off the queue, and resume."
            )
        parent = Take.open(todo[0].folder.parent / f"{info.parent:03}")
        written, made_with = candidates(plan_for(todo[0]), parent, section, seeds, watch, device, wishes)
        for take, choice in zip(todo, written, strict=True):
            _add(take, choice, made_with)


def _add(take: Take, written: SectionCodes, made_with: MadeWith) -> None:
    """Append a section to a take."""
    start = take.frames
    stop, seed = start + written.codes.shape[1], take.info.request.seed
    span = Span(written.section, start, stop, written.ended, take.info.number, seed)
    codes = np.concatenate([take.load_stage1(), written.codes[:, None]], axis=2)
    take.save_stage1(codes, replace(take.info, spans=(*take.info.spans, span), made_with=made_with))


def trim(song: Song, take: Take, section: int, seconds: float) -> Take:
    """Cut `seconds` off the end of a section; the sections after it move up and are faded in."""
    span, frames = _span(take, section), round(seconds * FRAMES_PER_SECOND)
    length = span.stop - span.start
    if not 0 < frames < length:
        raise RequestError(
            f"Section {section + 1} lasts {length / FRAMES_PER_SECOND:.2f} s; {seconds:g} s cannot be cut off it.",
            "Give more than 0 and less than its length.",
        )
    spans = _whole(take)
    kept = (*spans[:section], replace(span, stop=span.stop - frames, ended=False))
    trimmed = Edit(EditKind.TRIM, section, seconds=frames / FRAMES_PER_SECOND)
    return _branch(song, take, take.info.request, kept, spans[section + 1 :], trimmed)


def mute(song: Song, take: Take, sections: Collection[int]) -> Take:
    """Leave `sections`, and no others, out of Stage 1's context from now on: they still sound, but no longer influence
    what is written after them."""
    for section in sections:
        _span(take, section)
    muted = tuple(sorted(sections))
    edit = Edit(EditKind.MUTE if muted else EditKind.UNMUTE, sections=muted)
    new = _branch(song, take, take.info.request, _whole(take), edit=edit, muted=muted)
    sounds = (take.vocal, take.instrumental, take.mix)
    if take.info.stage is Stage.RENDERED and all(path.exists() for path in sounds):
        for source in sounds:
            write_atomic(new.folder / source.name, source.read_bytes())
        new.save_info(replace(new.info, stage=Stage.RENDERED))
    return new


def _redone(song: Song, take: Take, seed: int, edit: Edit) -> Take:
    section = edit.section
    _span(take, section)
    spans, request = _whole(take), replace(take.info.request, seed=seed)
    if edit.later is LaterSections.STOP:
        request = replace(request, first_sections=section + 1)
    kept = spans[section + 1 :] if edit.later is LaterSections.KEEP else ()
    return _branch(song, take, request, spans[:section], kept, edit)


def _branch(
    song: Song,
    parent: Take,
    request: SongRequest,
    spans: Sequence[Span],
    kept: Sequence[Span] = (),
    edit: Edit | None = None,
    muted: tuple[int, ...] | None = None,
) -> Take:
    """A new take that begins with the parent's codes up to the end of `spans`, and ends with those of `kept`."""
    stop = spans[-1].stop if spans else 0
    codes, mask = parent.load_stage2()
    seams = tuple(seam for seam in parent.info.seams if seam < stop)
    info = replace(
        parent.info,
        request=request,
        stage=Stage.NEW,
        spans=tuple(spans),
        kept_sections=tuple(kept),
        seams=seams,
        muted=parent.info.muted if muted is None else muted,
        parent=parent.info.number,
        edit=edit,
        made_with=None,
        seconds={},
    )
    leads = parent.load_leads()[: len(seams)] if seams else None
    return song.new_take(info, parent.load_stage1()[:, :, :stop], (codes[:, :, :stop], mask[:, :stop]), leads)


def _whole(take: Take) -> tuple[Span, ...]:
    """The spans of a complete take. Raises LibraryError for an unfinished one."""
    spans = take.info.spans
    if take.info.kept_sections or not spans or spans[-1].open:
        raise LibraryError(
            f"Take {take.info.number} of {take.folder.parent.parent.name} is not finished.",
            "Go on with it first: `resume`.",
        )
    return spans


def _span(take: Take, section: int) -> Span:
    """The span of a finished section."""
    for span in take.info.spans:
        if span.section == section:
            return span
    raise RequestError(
        f"Take {take.info.number} has no section {section + 1}; it has {len(take.info.spans)}.",
        "Choose one of them: `show` lists them.",
    )
