"""Stage 1: codebook-0 codes of both tracks, one section at a time, by structural progressive conditioning.

Each section is written after the head and everything sung so far, with its own lyrics right before its music. The KV
cache stays between sections; only new ids are prefilled. When the past no longer fits the context, whole old sections
are left out, never the head. Finished sections are yielded at once, for the caller to save.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yuegp.errors import GenerationError
from yuegp.lm import LMEngine
from yuegp.progress import Progress, quiet
from yuegp.song.schema import Sampling
from yuegp.tokens.prompts import Prompts, prompt_limit
from yuegp.tokens.vocab import VocabLayout, deinterleave, interleave

from .sampling import Sampler, State, uniforms

PIECE = 2048
"""Ids of a prompt between two calls of progress. A multiple of the engines' prefill passes, so it changes nothing
else."""


@dataclass(frozen=True)
class SectionCodes:
    """A finished section: codebook-0 codes (2, frames) int16, and whether the model ended it itself."""

    section: int
    codes: np.ndarray
    ended: bool
    left_out: int = 0
    """Number of earlier sections that did not fit the context of this one."""


@dataclass(frozen=True)
class Stage1Input:
    """The input of Stage 1, the same for every section of a song.

    `budget` is the most audio ids of a section. `drawable` lists the codes each track may use, vocal first; None allows
    all, as in YuE. `muted` sections are left out of the context."""

    prompts: Prompts
    sampling: Sampling
    budget: int
    drawable: Sequence[Sequence[int]] | None = None
    muted: Container[int] = ()


def write_sections(
    engine: LMEngine,
    score: Stage1Input,
    seed: int,
    sections: Sequence[int],
    past: Sequence[np.ndarray] = (),
    opened: np.ndarray | None = None,
    progress: Progress = quiet,
) -> Generator[SectionCodes, None, None]:
    """Generate consecutive `sections`.

    `past` holds the codes (2, frames) of the sections before the first one, in order: a resumed or continued song.
    `opened` holds the beginning of the first section when it is to be gone on with. Equal arguments give equal codes,
    and so does stopping anywhere and going on from there. `progress` is called for every frame, and between pieces of a
    long prompt."""
    audio = [interleave(score.prompts.layout, codes) for codes in past]
    with _BatchedDecoder(engine, score, takes=1, sections=len(past) + len(sections), past=audio) as desk:
        for section in sections:
            (written,) = desk.write(section, [seed], opened, progress)
            opened = None
            yield written


def write_candidates(
    engine: LMEngine,
    score: Stage1Input,
    seeds: Sequence[int],
    section: int,
    past: Sequence[np.ndarray] = (),
    progress: Progress = quiet,
) -> list[SectionCodes]:
    """Write one section once per seed, in one batch that shares the prompt: far cheaper than one by one. Each equals
    the result of `write_sections` with that seed."""
    audio = [interleave(score.prompts.layout, codes) for codes in past]
    with _BatchedDecoder(engine, score, takes=len(seeds), sections=section + 1, past=audio) as desk:
        return desk.write(section, seeds, None, progress)


class _BatchedDecoder:
    """An open session and the ids fed to it: rows 0 … takes - 1 conditional, then as many unconditional."""

    def __init__(
        self, engine: LMEngine, score: Stage1Input, takes: int, sections: int, past: Sequence[list[int]]
    ) -> None:
        prompts, sampling = score.prompts, score.sampling
        self.score, self.takes, self.audio = score, takes, list(past)
        self.device, self.limit = engine.device, prompt_limit(engine.context, score.budget)
        self.guided = sampling.guidance != 1 or sampling.guidance_later != 1
        keep = prompts.layout.stage1_ids
        off_track = None if score.drawable is None else _off_track(prompts.layout, score.drawable).to(engine.device)
        self.sampler = Sampler(sampling, keep if sampling.exact else None, off_track)
        longest = min(engine.context, _longest(prompts, past, sections, score.budget))
        capacities = [longest] * takes + [score.budget + 1] * (takes * self.guided)
        self.lm = engine.open(capacities, None if sampling.exact else keep)
        self.fed: list[int] = []

    def __enter__(self) -> _BatchedDecoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.lm.close()

    def write(
        self, section: int, seeds: Sequence[int], opened: np.ndarray | None, progress: Progress
    ) -> list[SectionCodes]:
        """Write one section per seed; the first take becomes the past of the next section."""
        if section != len(self.audio):
            raise ValueError(f"section {section} needs the codes of {section} earlier ones, got {len(self.audio)}")
        prompts, sampling, budget = self.score.prompts, self.score.sampling, self.score.budget
        layout = prompts.layout
        kept = prompts.window(section, self.audio, self.limit, self.score.muted)
        context = prompts.context(section, self.audio, kept)
        before = [] if opened is None else interleave(layout, opened)[:budget]
        state = State(
            guidance=sampling.guidance if section == 0 else sampling.guidance_later,
            seen=_seen(layout, context + before).repeat(self.takes, 1).to(self.device),
            count=len(before),
        )
        chances = torch.stack([uniforms(seed, section, 0, budget) for seed in seeds], dim=1).to(self.device)
        what = f"section {section + 1}"
        logits = self._first_logits(context, before, section, lambda: progress(what, len(before), budget))
        drawn = self._draw(state, logits, before, chances, progress, what)
        fed = self.lm.length(0) - len(context)
        self.fed = context + drawn[0][:fed] if self.takes == 1 else []
        self.audio.append(drawn[0])
        left_out = section - len(kept) - sum(k in self.score.muted for k in range(section))
        return [SectionCodes(section, deinterleave(layout, ids), len(ids) < budget, left_out) for ids in drawn]

    def _first_logits(self, context: list[int], before: list[int], section: int, read: Callable[[], None]) -> Tensor:
        """Logits of the next code: (takes, n), or (2 takes, n) with the unconditional rows, which begin at the codec
        marker. Prefills only ids that are new since the last section, once for all takes, and calls `read` between
        pieces, which may raise."""
        prompt = context + before
        shared = min(_common_prefix(self.fed, prompt), len(prompt) - 1)
        self.lm.truncate(0, shared)
        rows = [self._prefill(0, prompt[shared:], read)]
        if self.guided:
            self.lm.truncate(self.takes, 0)
            rows.append(self._prefill(self.takes, [self.score.prompts.layout.codec, *before], read))
        logits = torch.cat(rows)
        if not bool(torch.isfinite(logits).all()):
            raise GenerationError(
                f"The Stage-1 model answered with numbers that are not finite in section {section + 1}.",
                "Use another precision (bfloat16 or float32) for this model, or check its files.",
            )
        return logits

    def _prefill(self, row: int, ids: Sequence[int], read: Callable[[], None]) -> Tensor:
        """Append `ids` to one row and copy it to the other takes. Returns their logits (takes, n)."""
        for start in range(0, len(ids), PIECE):
            if start:
                read()
            logits = self.lm.prefill(row, ids[start : start + PIECE])
        for other in range(row + 1, row + self.takes):
            self.lm.copy(row, other)
        return logits.expand(self.takes, -1)

    def _draw(
        self,
        state: State,
        logits: Tensor,
        before: list[int],
        chances: Tensor,
        progress: Progress,
        what: str,
    ) -> list[list[int]]:
        """Audio ids of every take, including `before`, until its end of audio or until the uniforms `chances` (ids,
        takes) run out. Ended takes are carried along until all have ended."""
        end = self.score.prompts.layout.codebook_size  # index of end-of-audio among the drawable ids
        first = self.score.prompts.layout.codes_of(0).start
        drawn = [list(before) for _ in range(self.takes)]
        singing = set(range(self.takes))
        for position in range(len(before), len(chances)):
            index = self.sampler.draw(logits, state, chances[position])
            for take, drawn_index in enumerate(index.tolist()):
                if take not in singing:
                    continue
                if drawn_index == end:
                    singing.remove(take)
                else:
                    drawn[take].append(first + drawn_index)
            if not singing:
                break
            if (position + 1) % 2 == 0:
                progress(what, position + 1, len(chances))
            if position + 1 < len(chances):
                index = index.clamp(max=end - 1)  # an ended take is fed any code, and its results are dropped
                logits = self.lm.step((first + index).repeat(len(logits) // self.takes))
        return drawn


def _seen(layout: VocabLayout, context: Sequence[int]) -> Tensor:
    """Mask (1, n) of drawable ids in the context, for the repetition penalty."""
    index = {id_: i for i, id_ in enumerate(layout.stage1_ids)}
    seen = torch.zeros(1, len(index), dtype=torch.bool)
    seen[0, [index[id_] for id_ in set(context) if id_ in index]] = True
    return seen


def _off_track(layout: VocabLayout, drawable: Sequence[Sequence[int]]) -> Tensor:
    """Mask (2, n) of ids each track must not use; both may use the end of audio."""
    off = torch.ones(2, len(layout.stage1_ids), dtype=torch.bool)
    for track, codes in enumerate(drawable):
        off[track, list(codes)] = False
    off[:, -1] = False
    return off


def _longest(prompts: Prompts, audio: Sequence[Sequence[int]], sections: int, budget: int) -> int:
    """Ids of the song up to `sections` sections if each remaining one uses its budget."""
    known = [len(ids) for ids in audio] + [budget] * (sections - len(audio))
    frame = 1 + len(prompts.close)
    return len(prompts.head) + sum(len(prompts.openings[k]) + n + frame for k, n in enumerate(known))


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
