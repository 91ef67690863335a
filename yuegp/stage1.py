"""Stage 1: codebook-0 codes of both tracks, one section at a time, by structural progressive conditioning.

Each section is written after the head and everything sung so far, with its own lyrics right before its music. The
KV cache stays between sections; only what is new is prefilled. When the past no longer fits the context, whole old
sections are left out, never the head. A finished section is yielded at once: the caller saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import GenerationError
from .lm import LMEngine, LMSession
from .prompts import Prompts, prompt_limit
from .sampling import Sampler, State, uniforms
from .song import Sampling
from .vocab import VocabLayout, deinterleave, interleave

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called at least twice a second; raises `Cancelled` to stop."""


@dataclass(frozen=True)
class SectionCodes:
    """A finished section: codebook-0 codes (2, frames) int16, and whether the model ended it by itself."""

    section: int
    codes: np.ndarray
    ended: bool
    left_out: int = 0
    """Earlier sections that no longer fitted the context while this one was written."""


def write_sections(
    engine: LMEngine,
    prompts: Prompts,
    sampling: Sampling,
    seed: int,
    sections: Sequence[int],
    budget: int,
    past: Sequence[np.ndarray] = (),
    progress: Progress = lambda what, done, total: None,
    drawable: Sequence[Sequence[int]] | None = None,
) -> Iterator[SectionCodes]:
    """Write `sections` (rising indices into the prompts' openings), each at most `budget` audio ids long.

    `drawable` names the codes each track may use, vocal first; None leaves all to both, as in YuE.
    `past` holds the codes (2, frames) of the sections before the first one, in order: a resumed or continued song.
    Equal arguments give equal codes, and so does stopping after any section and going on from there."""
    if len(past) != sections[0]:
        raise ValueError(f"section {sections[0]} needs the codes of {sections[0]} earlier ones, got {len(past)}")
    layout = prompts.layout
    audio = [interleave(layout, codes) for codes in past]
    limit = prompt_limit(engine.context, budget)
    guided = sampling.guidance != 1 or sampling.guidance_later != 1
    capacities = [min(engine.context, _longest(prompts, audio, sections, budget)), *[budget + 1] * guided]
    keep = layout.stage1_ids
    off_track = None if drawable is None else _off_track(layout, drawable).to(engine.device)
    sampler = Sampler(sampling, keep if sampling.exact else None, off_track)
    fed: list[int] = []
    with engine.open(capacities, None if sampling.exact else keep) as lm:
        for section in sections:
            kept = prompts.window(section, audio, limit)
            context = prompts.context(section, audio, kept)
            shared = min(_common_prefix(fed, context), len(context) - 1)
            lm.truncate(0, shared)
            state = State(
                guidance=sampling.guidance if section == 0 else sampling.guidance_later,
                seen=_seen(layout, context).to(engine.device),
            )
            chances = uniforms(seed, section, 0, budget)
            logits = _first_logits(lm, layout, context[shared:], guided, section)
            drawn = _decode(lm, layout, sampler, state, logits, chances, progress, f"section {section + 1}")
            ended = len(drawn) < budget
            fed = context + drawn[: lm.length(0) - len(context)]
            audio.append(drawn)
            yield SectionCodes(section, deinterleave(layout, drawn), ended, left_out=section - len(kept))


def _first_logits(lm: LMSession, layout: VocabLayout, prompt: Sequence[int], guided: bool, section: int) -> Tensor:
    """Logits of the first code: (1, n), or (2, n) with the unconditional row, which begins at the codec marker."""
    rows = [lm.prefill(0, prompt)]
    if guided:
        lm.truncate(1, 0)
        rows.append(lm.prefill(1, [layout.codec]))
    logits = torch.stack(rows)
    if not bool(torch.isfinite(logits).all()):
        raise GenerationError(
            f"The Stage-1 model answered with numbers that are not finite in section {section + 1}.",
            "Use another precision (bfloat16 or float32) for this model, or check its files.",
        )
    return logits


def _decode(
    lm: LMSession,
    layout: VocabLayout,
    sampler: Sampler,
    state: State,
    logits: Tensor,
    chances: Tensor,
    progress: Progress,
    what: str,
) -> list[int]:
    """Draw audio ids until the end of audio or until `chances` run out; the end itself is not returned."""
    end = layout.codebook_size  # index of end-of-audio among `layout.stage1_ids`
    first = layout.codes_of(0).start
    chances = chances.to(logits.device)
    drawn: list[int] = []
    while True:
        index = int(sampler.draw(logits, state, chances[len(drawn), None]))
        if index == end:
            return drawn
        drawn.append(first + index)
        if len(drawn) % 2 == 0:
            progress(what, len(drawn), len(chances))
        if len(drawn) == len(chances):
            return drawn
        logits = lm.step(torch.full((len(logits),), first + index))


def _seen(layout: VocabLayout, context: Sequence[int]) -> Tensor:
    """Which drawable ids stand in the context, (1, n): what the repetition penalty falls on."""
    index = {id_: i for i, id_ in enumerate(layout.stage1_ids)}
    seen = torch.zeros(1, len(index), dtype=torch.bool)
    seen[0, [index[id_] for id_ in set(context) if id_ in index]] = True
    return seen


def _off_track(layout: VocabLayout, drawable: Sequence[Sequence[int]]) -> Tensor:
    """Ids each track must not use, (2, n); the end of audio is open to both."""
    off = torch.ones(2, len(layout.stage1_ids), dtype=torch.bool)
    for track, codes in enumerate(drawable):
        off[track, list(codes)] = False
    off[:, -1] = False
    return off


def _longest(prompts: Prompts, audio: Sequence[Sequence[int]], sections: Sequence[int], budget: int) -> int:
    """Ids of the whole song if every section to come uses its budget."""
    known = [len(ids) for ids in audio] + [budget] * len(sections)
    frame = 1 + len(prompts.close)
    return len(prompts.head) + sum(len(prompts.openings[k]) + n + frame for k, n in enumerate(known))


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences share from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
