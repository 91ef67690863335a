"""What a song is: the request, its sections, and what became of it. Plain frozen values that print, compare and save.

Nothing here loads, checks or computes; `lyrics.py` and `tags.py` judge words, `library.py` knows files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any


class Track(IntEnum):
    """The two tracks, and their index in every array of codes."""

    VOCAL = 0
    INSTRUMENTAL = 1


class Stage(StrEnum):
    """How far a take has come."""

    NEW = "new"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    RENDERED = "rendered"


@dataclass(frozen=True)
class Section:
    """A labelled block of lyrics. `words` may hold several lines and may be empty (an instrumental section)."""

    label: str
    words: str = ""
    line: int = field(default=0, compare=False)
    """Line of the lyrics file on which the label stands, from 1; 0 when it came from elsewhere."""


@dataclass(frozen=True)
class Reference:
    """Sound given for in-context learning: one `mix`, or a `vocal` and an `instrumental` of the same passage.

    Paths are strings; `start` and `end` are seconds into the file(s)."""

    mix: str | None = None
    vocal: str | None = None
    instrumental: str | None = None
    start: float = 0.0
    end: float = 30.0

    @property
    def dual(self) -> bool:
        return self.mix is None


@dataclass(frozen=True)
class Sampling:
    """How Stage 1 draws. The defaults are the released program's (preset `yue`); see `PRESETS`."""

    preset: str = "yue"
    temperature: float = 1.0
    top_k: int = 50
    """0 keeps every code."""
    top_p: float = 0.93
    keep_crossing: bool = True
    """Keep the code whose probability crosses `top_p`."""
    repetition_penalty: float = 1.1
    penalize_end: bool = True
    """Whether the repetition penalty also falls on end-of-audio, as it does in the released program."""
    guidance: float = 1.5
    guidance_later: float = 1.2
    """Guidance scale of the first section, and of all later ones; 1 switches guidance off."""
    minimum: int = 100
    """Audio ids before a section may end: 100 ids are one second."""
    exact: bool = False
    """Normalise guidance over the whole vocabulary, as the released program does, instead of over the ids that can
    be drawn. Slower; only matters together with a repetition penalty."""


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
    seed: int = 0
    model: str = "demo"
    instrumental: bool = False
    """Sing nothing: section words are left out of the prompt."""
    reference: Reference | None = None
    sampling: Sampling = Sampling()
    section_seconds: float | None = None
    """Longest a section may become; the model usually ends it earlier. None: what the model recommends."""
    first_sections: int | None = None
    """Make only this many sections now; the words of all of them are in the prompt either way."""
    crossover: str = "smooth"
    """`smooth`, or `yue` for the released program's low-band replacement, notch and all."""


@dataclass(frozen=True)
class Span:
    """One finished section on the time line of a take, in frames."""

    section: int
    """Index into the request's sections."""
    start: int
    stop: int
    ended: bool
    """True when the model ended the section itself, False when it was cut at the length limit."""


@dataclass(frozen=True)
class MadeWith:
    """What made a take: enough to say whether another machine would make the same one."""

    yuegp: str
    model: str
    engine: str
    device: str
    torch: str


@dataclass(frozen=True)
class TakeInfo:
    """A take's own page (`take.json`)."""

    number: int
    stage: Stage = Stage.NEW
    seed: int = 0
    spans: tuple[Span, ...] = ()
    parent: int | None = None
    kept_frames: int = 0
    sampling: Sampling = Sampling()
    made_with: MadeWith | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall seconds spent, by stage."""


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass of this module as JSON-ready values."""
    return dataclasses.asdict(value)


def request_from_dict(data: dict[str, Any]) -> SongRequest:
    """Inverse of `to_dict` for a request. Unknown keys raise TypeError: the caller knows the format number."""
    data = dict(data)
    data["sections"] = tuple(Section(**s) for s in data["sections"])
    data["sampling"] = Sampling(**data["sampling"])
    if data.get("reference"):
        data["reference"] = Reference(**data["reference"])
    return SongRequest(**data)


def take_from_dict(data: dict[str, Any]) -> TakeInfo:
    """Inverse of `to_dict` for a take."""
    data = dict(data)
    data["stage"] = Stage(data["stage"])
    data["spans"] = tuple(Span(**s) for s in data["spans"])
    data["sampling"] = Sampling(**data["sampling"])
    if data.get("made_with"):
        data["made_with"] = MadeWith(**data["made_with"])
    return TakeInfo(**data)
