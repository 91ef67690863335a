"""What a song is: the request, its sections, and its takes. Plain frozen values that print, compare and save.

`lyrics.py` and `tags.py` judge words; `library/store.py` reads and writes the files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Annotated, Any

from yuegp.checked import NEEDED, Between, Fault, Plain, build

LONGEST_FRAMES = 50 * 3600 * 24
"""A day of music; a file with more is not one of ours."""

Count = Annotated[int, Between(0, 2**31 - 1)]
Frame = Annotated[int, Between(0, LONGEST_FRAMES)]
TakeNumber = Annotated[int, Between(0, 999_999)]
Seed = Annotated[int, Between(0, 2**63 - 1)]
Seconds = Annotated[float, Between(0, 1e9)]


class Track(IntEnum):
    """The two tracks, and their index in every array of codes."""

    VOCAL = 0
    INSTRUMENTAL = 1


class Stage(StrEnum):
    """The last stage a take has completed."""

    NEW = "new"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    RENDERED = "rendered"


class LaterSections(StrEnum):
    """What becomes of the sections after a redone one."""

    KEEP = "keep"
    """They stay as they are."""
    REMAKE = "remake"
    """They are made anew too."""
    STOP = "stop"
    """They are left for later, one by one."""


class EditKind(StrEnum):
    """What can be done to a take. Each makes a new one."""

    CONTINUE = "continue"
    REDO = "redo"
    CANDIDATE = "candidate"
    REWIND_SECTION = "rewind-section"
    REWIND_SECOND = "rewind-second"
    TRIM = "trim"
    MUTE = "mute"
    UNMUTE = "unmute"
    OTHER = "other"
    """Something that older files told in words we do not know."""


@dataclass(frozen=True)
class Section:
    """A labelled block of lyrics. `words` may hold several lines and may be empty (an instrumental section)."""

    label: str
    words: str = ""
    line: Count = field(default=0, compare=False)
    """Line of the label in the lyrics file, from 1; 0 when it came from elsewhere."""


@dataclass(frozen=True)
class Reference:
    """Recording for in-context learning: one `mix`, or a `vocal` and an `instrumental` of the same passage.

    Paths are strings; `start` and `end` are seconds into the file(s)."""

    mix: Plain | None = None
    vocal: Plain | None = None
    instrumental: Plain | None = None
    start: Seconds = 0.0
    end: Seconds = 30.0

    @property
    def dual(self) -> bool:
        return self.mix is None


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of Stage 1. The defaults are the released program's (preset `yue`); see `PRESETS`."""

    preset: str = "yue"
    temperature: float = 1.0
    top_k: Count = 50
    """0 keeps every code."""
    top_p: float = 0.93
    keep_crossing: bool = True
    """Keep the code whose probability crosses `top_p`."""
    repetition_penalty: float = 1.1
    penalize_end: bool = True
    """Apply the repetition penalty to end-of-audio too, as the released program does."""
    guidance: float = 1.5
    guidance_later: float = 1.2
    """Guidance scale of the first section (`guidance`) and of all later ones; 1 switches guidance off."""
    minimum: Count = 100
    """Audio ids before a section may end: 100 ids are one second."""
    exact: bool = False
    """Normalise guidance over the whole vocabulary, as the released program does, instead of over the ids that can be
    drawn. Slower; matters only together with a repetition penalty."""


PRESETS: dict[str, Sampling] = {
    "yue": Sampling(),
    "exl2": Sampling(preset="exl2", top_k=0, keep_crossing=False),
}
"""`yue` draws as the released program does, including the top-k of 50 that transformers adds silently; `exl2` as the
ExLlamaV2 ports do: guidance on raw logits, no top-k, the code that crosses top-p dropped, rarest codes discarded."""


@dataclass(frozen=True)
class SongRequest:
    """Everything a user asks for. Two equal requests with the same seed make the same song on the same machine."""

    sections: tuple[Section, ...]
    tags: str
    title: str = ""
    seed: Seed = 0
    model: Plain = "demo"
    instrumental: bool = False
    """Leave all section words out of the prompt."""
    reference: Reference | None = None
    sampling: Sampling = field(default=Sampling(), metadata=NEEDED)
    section_seconds: Annotated[float, Between(0.02, 86400)] | None = None
    """Longest a section may become; the model usually ends it earlier. None: the model's recommendation."""
    first_sections: Count | None = None
    """Make only this many sections; the prompt has the words of all of them."""
    crossover: str = "smooth"
    """`smooth`, or `yue` for the released program's low-band replacement, notch and all."""


@dataclass(frozen=True)
class Span:
    """A section on the time line of a take, in frames."""

    section: Count
    """Index into the request's sections."""
    start: Frame
    stop: Frame
    ended: bool
    """True when the model ended the section itself, False when it was cut: at the length limit, or by a trim."""
    take: TakeNumber = 1
    """The take that wrote these codes; another than the span's own if they were kept."""
    seed: Seed = 0
    """The seed they were drawn with."""
    open: bool = False
    """True if the take was rewound into this section, which is then continued first. Only the last span can be open."""


@dataclass(frozen=True)
class MadeWith:
    """Program, models and machine that made a take: enough to tell whether another machine would make the same one."""

    yuegp: str
    model: str
    engine: str
    device: str
    torch: str
    credit: str = ""
    """Credit the model's authors ask for."""


@dataclass(frozen=True)
class Edit:
    """What was done to a take's parent to get the take. Each kind has values of its own; the others keep their
    defaults. `yuegp.cli` and the page word it."""

    kind: EditKind
    section: Count = 0
    """Index of the section that was redone, rewound to, or trimmed."""
    later: LaterSections | None = None
    """Of a redone section: what became of those after it. None in files that do not say so."""
    candidate: Count = 0
    """Which of the `candidates` of a section it is, from 1."""
    candidates: Count = 0
    seconds: Seconds = 0.0
    """Second of the song that was rewound to, or seconds trimmed off."""
    sections: tuple[Count, ...] = ()
    """Indices of the sections that are muted."""
    text: str = ""
    """Of `EditKind.OTHER`: the words it was told in."""

    def values(self) -> dict[str, object]:
        """What a sentence about it may name, by field. Sections are counted from 1, as people do."""
        return {
            "section": self.section + 1,
            "candidate": self.candidate,
            "candidates": self.candidates,
            "seconds": f"{self.seconds:g}",
            "sections": ", ".join(str(section + 1) for section in self.sections),
            "text": self.text,
        }


@dataclass(frozen=True)
class TakeInfo:
    """Contents of a take's `take.json`. Does not change once the take is rendered.

    `request` is the one this take was made from; its lyrics may be longer than an earlier take's."""

    number: TakeNumber
    request: SongRequest
    stage: Stage = field(default=Stage.NEW, metadata=NEEDED)
    spans: tuple[Span, ...] = field(default=(), metadata=NEEDED)
    kept_sections: tuple[Span, ...] = field(default=(), metadata=NEEDED)
    """Sections kept from `parent`, placed after the new ones once those are written; frames are the parent's."""
    seams: tuple[Frame, ...] = field(default=(), metadata=NEEDED)
    """Frames where kept codes were joined to other codes before them; rendering crossfades the sound there."""
    muted: tuple[Count, ...] = field(default=(), metadata=NEEDED)
    """Sections that are heard but left out of Stage 1's context."""
    parent: TakeNumber | None = None
    edit: Edit | None = None
    """What was done to the parent to get this take; None for a song's first."""
    created: str = ""
    """ISO 8601, UTC."""
    made_with: MadeWith | None = None
    seconds: dict[str, Seconds] = field(default_factory=dict)
    """Wall seconds spent, by stage."""

    @property
    def frames(self) -> int:
        """Frames of finished sections."""
        return self.spans[-1].stop if self.spans else 0


@dataclass(frozen=True)
class SongInfo:
    """Contents of `song.json` that belong to the song and not to one of its takes."""

    title: str = ""
    created: str = ""
    """ISO 8601, UTC."""
    rating: Annotated[int, Between(1, 5)] | None = None
    """1 to 5, or None."""
    picked: TakeNumber | None = None
    """The take its owner likes best; None for the newest."""


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass of this module as JSON values."""
    return dataclasses.asdict(value)


def request_from_dict(data: Any) -> SongRequest:
    """Inverse of `to_dict` for a request. Raises Fault for invalid data."""
    request = build(SongRequest, data)
    if not (request.first_sections is None or 1 <= request.first_sections <= max(1, len(request.sections))):
        raise Fault(f"first_sections is {request.first_sections}, and there are {len(request.sections)} sections")
    return request


def take_from_dict(data: Any) -> TakeInfo:
    """Inverse of `to_dict` for a take. Raises Fault for invalid data."""
    info = build(TakeInfo, data)
    request_from_dict(data["request"])
    _check_spans(info)
    return info


def _check_spans(info: TakeInfo) -> None:
    """Raise Fault unless a take's sections are consistent: other modules compute with them."""
    count = len(info.request.sections)
    sections = [span.section for span in (*info.spans, *info.kept_sections)]
    if sections != sorted(set(sections)) or (sections and sections[-1] >= count):
        raise Fault(f"its spans are of the sections {sections[:9]}, and there are {count} in order")
    if sum(span.stop - span.start for span in (*info.spans, *info.kept_sections)) > LONGEST_FRAMES:
        raise Fault("it is longer than a day")
    for name, spans in (("spans", info.spans), ("kept_sections", info.kept_sections)):
        at = spans[0].start if spans and name == "kept_sections" else 0
        for i, span in enumerate(spans):
            if span.start != at or span.stop < at:
                raise Fault(f"runs from frame {span.start} to {span.stop}, and begins at {at}", f"{name}[{i}]")
            if span.open and (name, i) != ("spans", len(spans) - 1):
                raise Fault("goes on, and is not the last one", f"{name}[{i}]")
            at = span.stop
    if any(seam > info.frames for seam in info.seams) or list(info.seams) != sorted(set(info.seams)):
        raise Fault(f"its seams are at {list(info.seams)[:9]}, and it has {info.frames} frames")
    if any(section >= count for section in info.muted):
        raise Fault(f"its sections {list(info.muted)[:9]} are muted, and there are {count}")
    if info.kept_sections and info.parent is None:
        raise Fault("it is to keep sections of its parent, and names none")
    if info.parent is not None and info.number and not 1 <= info.parent < info.number:
        raise Fault(f"its parent is take {info.parent}, which is not older than take {info.number}")
