"""Token ids for a song: the head, one opening per section, a reference, and the window that keeps the head.

    HEAD   = T(instruction, tags, every section)
    REF    = T("[start_of_reference]") soa codec codes eoa T("[end_of_reference]")
    OPEN_k = T("[start_of_segment]") T(section k) soa codec
    SONG   = HEAD [REF] OPEN_1 audio eoa T("[end_of_segment]") OPEN_2 audio eoa …

T is one tokenizer call; the borders between calls are part of the grammar, because each call begins with its own
dummy prefix. Training used exactly this layout (YuE v1, inference and fine-tuning code), so do not tidy it up. The
model's markers say *segment* where we say section.

Needs no weights and no sound: a reference comes in as codes.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from yuegp.errors import RequestError
from yuegp.song.schema import Section

from .vocab import FRAMES_PER_SECOND, VocabLayout, interleave

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

INSTRUCTION = "Generate music from the given lyrics segment by segment."
SECTION_START = "[start_of_segment]"
SECTION_END = "[end_of_segment]"
REFERENCE_START = "[start_of_reference]"
REFERENCE_END = "[end_of_reference]"


def section_text(section: Section) -> str:
    """A section as the model reads it: label line, words without white space at both ends, a blank line."""
    return f"[{section.label}]\n{section.words.strip()}\n\n"


def head_text(tags: str, sections: Sequence[Section]) -> str:
    """The text of the head: the instruction, the tag line, and the words of every section."""
    return f"{INSTRUCTION}\n[Genre] {tags.strip()}\n" + "\n".join(map(section_text, sections))


def reference_window(codes: np.ndarray, start: float, end: float) -> np.ndarray:
    """The frames of `codes` (tracks, frames) between `start` and `end` seconds, clipped to the existing ones.

    Call before interleaving the tracks: cutting afterwards, as the released program does, swaps vocal and instrumental
    whenever the start falls on an odd id (0.25 s, say). The tolerance is for rounding: 0.58 * 50 is
    28.999999999999996."""
    first, stop = (int(seconds * FRAMES_PER_SECOND + 1e-3) for seconds in (start, end))
    return codes[:, first:stop]


def budget_ids(seconds: float) -> int:
    """Audio ids in `seconds`: two per frame, whole frames only."""
    return 2 * int(seconds * FRAMES_PER_SECOND + 1e-3)


def prompt_limit(context: int, budget: int) -> int:
    """Most ids of a prompt that leaves room for `budget` audio ids and the end of audio."""
    return context - budget - 1


@dataclass(frozen=True)
class Prompts:
    """The fixed parts of a song's ids. `head` includes the reference, if there is one."""

    layout: VocabLayout
    head: tuple[int, ...]
    openings: tuple[tuple[int, ...], ...]
    close: tuple[int, ...]
    """`[end_of_segment]`, written when the next section opens."""

    def context(self, section: int, audio: Sequence[Sequence[int]], kept: Sequence[int]) -> list[int]:
        """All ids before the first code of `section`: the head, the finished sections in `kept` with their audio ids,
        and the opening of `section`."""
        ids = list(self.head)
        for k in kept:
            ids += [*self.openings[k], *audio[k], self.layout.eoa, *self.close]
        return [*ids, *self.openings[section]]

    def window(
        self, section: int, audio: Sequence[Sequence[int]], limit: int, muted: Container[int] = ()
    ) -> tuple[int, ...]:
        """The finished sections before `section` that fit into `limit` ids together with head and opening: the newest
        ones, whole, without the `muted`. The head, with tags, all lyrics and the reference, always stays."""
        room = limit - len(self.head) - len(self.openings[section])
        if room < 0:
            raise RequestError(
                f"The tags, lyrics and reference take {limit - room:,} tokens, but the model has room for {limit:,} "
                "beside the music of a section.",
                "Shorten the lyrics, use a shorter reference window, or choose shorter sections.",
            )
        kept: list[int] = []
        for k in reversed(range(section)):
            if k in muted:
                continue
            room -= len(self.openings[k]) + len(audio[k]) + 1 + len(self.close)
            if room < 0:
                break
            kept.append(k)
        return tuple(reversed(kept))


def build(
    tokenizer: Tokenizer,
    layout: VocabLayout,
    tags: str,
    sections: Sequence[Section],
    reference: np.ndarray | None = None,
) -> Prompts:
    """Build the prompts of a song. `reference` holds codebook-0 codes of shape (1, frames) for a mix (or one stem), or
    (2, frames), vocal first, for a dual-track reference."""
    head = tokenizer.encode(head_text(tags, sections))
    if reference is not None:
        codes = interleave(layout, reference) if len(reference) == 2 else (reference[0] + layout.code_start).tolist()
        head += [
            *tokenizer.encode(REFERENCE_START),
            *(layout.soa, layout.codec, *codes, layout.eoa),
            *tokenizer.encode(REFERENCE_END),
        ]
    start = tokenizer.encode(SECTION_START)
    openings = tuple((*start, *tokenizer.encode(section_text(s)), layout.soa, layout.codec) for s in sections)
    return Prompts(layout, tuple(head), openings, tuple(tokenizer.encode(SECTION_END)))
