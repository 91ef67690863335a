"""Plans a run before anything heavy loads (no torch): the plan, progress events, and the missing parts of a take.
`pipeline` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from yuegp.audio import files
from yuegp.checkpoints import sets
from yuegp.errors import RequestError
from yuegp.library.store import Take
from yuegp.song import lyrics, tags
from yuegp.song.notes import Note, NoteCode, note
from yuegp.song.schema import Reference, Section, SongRequest
from yuegp.tokens.prompts import Prompts, budget_ids, build, prompt_limit
from yuegp.tokens.tokenizer import open_tokenizer
from yuegp.tokens.vocab import FRAMES_PER_SECOND

from . import choice

LONGEST_SECTION = 60.0
"""Longest section in seconds, twice the length the model was trained on; longer ones fall apart."""

CROSSOVERS = ("smooth", "yue")

LEAD = 32
"""Frames rendered before a seam as context of the networks (29 on one side), dropped except for the fade."""

FADE = 2
"""Frames over which kept codes are faded in: 40 ms, too long to click, too short to hear two singers."""

BYTES_PER_SECOND = 3 * 44_100 * 3
"""Disk space per second of song: two stems and a mix at 24 bits, before FLAC compresses them."""


class Phase(StrEnum):
    """What is being done: to a song, in this order, and to whatever else shows its progress in the same way."""

    REFERENCE = "reference"
    WRITING = "writing"
    REFINING = "refining"
    SOUND = "sound"
    EXPORT = "export"
    QUANT = "quant"
    DOWNLOAD = "download"
    CONVERT = "convert"
    CHECKSUMS = "checksums"
    WEIGHTS = "weights"


@dataclass(frozen=True)
class Event:
    """Progress of one phase: `done` of `total` units, `made` of them computed since the phase last began.

    A song whose sections are refined one by one alternates between `writing` and `refining`."""

    stage: Phase
    what: str
    done: int
    total: int
    unit: str
    made: int
    note: str = ""
    """A message to show once, such as that memory ran out and how the song continues."""


ProgressCallback = Callable[[Event], None]


@dataclass(frozen=True)
class SongPlan:
    """The plan of a run. `request` has every default filled in."""

    request: SongRequest
    models: sets.ModelSet
    sections: tuple[Section, ...]
    """The sections as the model reads them: known labels, and no words in an instrumental song."""
    tags: str
    count: int
    """Sections to make."""
    budget: int
    """Most audio ids of a section."""
    seconds: float
    """Longest possible song."""
    notes: tuple[Note, ...]

    @property
    def disk_bytes(self) -> int:
        return int(self.seconds * BYTES_PER_SECOND)


def plan(request: SongRequest) -> SongPlan:
    """Decide everything that needs no loaded model. Raises RequestError or ModelError for what cannot work."""
    _check_values(request)
    line = tags.parse(request.tags)
    notes = [*tags.advise(line, lyrics.language(request.sections), request.instrumental)]
    sections = tuple(replace(s, label=lyrics.trained_label(s.label)) for s in request.sections)
    if request.instrumental:
        line = tags.without_voice(line)
        if any(s.words for s in sections):
            notes.append(note(NoteCode.WORDS_NOT_SUNG))
        sections = tuple(replace(s, words="") for s in sections)
    if request.reference:
        notes += files.check_reference(request.reference)
    found = choice.find(request.model)
    if request.reference and found.mode == "cot":
        raise RequestError(
            f"The model {found.id} was not trained to follow a reference recording.",
            "Choose an icl model, or leave the reference out.",
        )
    if not request.reference and found.mode == "icl":
        notes.append(note(NoteCode.REFERENCE_EXPECTED, model=found.id))
    sets.check(found)
    from yuegp.codec import check_codec

    check_codec(found.codec, encode=request.reference is not None)
    seconds = request.section_seconds or found.section_seconds
    request = replace(request, section_seconds=seconds)
    count = request.first_sections or len(sections)
    budget = budget_ids(seconds)
    if not request.instrumental:
        notes += lyrics.advise(lyrics.Lyrics(request.sections), seconds)
    _check_room(found, line, sections, request.reference, budget, count)
    return SongPlan(request, found, sections, line, count, budget, count * seconds, tuple(notes))


def _check_values(request: SongRequest) -> None:
    """Raise RequestError for numbers out of range; the comparisons also refuse NaN."""
    s = request.sampling
    ranges = (
        ("number of sections to make", request.first_sections, 1, len(request.sections)),
        ("length of a section in seconds", request.section_seconds, 1, LONGEST_SECTION),
        ("seed", request.seed, 0, 2**63 - 1),
        ("temperature", s.temperature, 0, 5),
        ("top-k", s.top_k, 0, 1025),
        ("top-p", s.top_p, 0.001, 1),
        ("repetition penalty", s.repetition_penalty, 0.5, 3),
        ("guidance", s.guidance, 0, 10),
        ("later guidance", s.guidance_later, 0, 10),
    )
    wrong = [
        f"The {name} is {value:g}; it can be {low:g} to {high:g}."
        for name, value, low, high in ranges
        if value is not None and not low <= value <= high
    ]
    if request.crossover not in CROSSOVERS:
        wrong.append(f"There is no crossover called {request.crossover!r}; there are {' and '.join(CROSSOVERS)}.")
    if wrong:
        raise RequestError(" ".join(wrong), "`python launch.py make --help` explains every option.")


def _check_room(
    found: sets.ModelSet,
    line: str,
    sections: tuple[Section, ...],
    reference: Reference | None,
    budget: int,
    count: int,
) -> None:
    """Raise RequestError if the head, with the longest possible reference, leaves no room for a section's music."""
    from yuegp.checkpoints.config import read_config

    codes = _longest_reference(reference) if reference else None
    prompts = _prompts(found, line, sections, codes)
    limit = prompt_limit(read_config(found.stage1).context, budget)
    for k in range(count):
        prompts.window(k, [[]] * k, limit)


def prompts_of(plan: SongPlan, codes: np.ndarray | None = None) -> Prompts:
    """The prompts of a song. `codes` are those of its reference; without them it counts with its longest length."""
    if codes is None and plan.request.reference:
        codes = _longest_reference(plan.request.reference)
    return _prompts(plan.models, plan.tags, plan.sections, codes)


def _longest_reference(reference: Reference) -> np.ndarray:
    frames = int((reference.end - reference.start) * FRAMES_PER_SECOND) + 1
    return np.zeros((1 + reference.dual, frames), np.int16)


def _prompts(found: sets.ModelSet, line: str, sections: tuple[Section, ...], codes: np.ndarray | None) -> Prompts:
    tokenizer = open_tokenizer(found.tokenizer_kind, found.tokenizer_path, found.layout)
    return build(tokenizer, found.layout, line, sections, codes)


def plan_for(take: Take) -> SongPlan:
    """The plan of an existing take, from the request it carries."""
    return plan(take.info.request)


def missing_sections(plan: SongPlan, take: Take) -> range:
    """The consecutive sections to write next: up to the kept ones that follow, or to the end."""
    spans, kept = take.info.spans, take.info.kept_sections
    first = spans[-1].section + (not spans[-1].open) if spans else 0
    return range(first, kept[0].section if kept else plan.count)
