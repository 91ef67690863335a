"""Sampling of the next code: a sampler is a list of steps over the ids that can be drawn.

A step takes scores (takes, n) and the state of the section, and returns scores. The order is the released program's:
guidance, repetition penalty, forbidden ids, temperature, top-k, top-p. The last id is always end-of-audio.

The caller passes uniform random numbers, one per take and step, drawn beforehand from a generator seeded by (seed,
section, take): an interrupted and resumed song draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yuegp.song.schema import Sampling

RAREST = 1e-6
"""Probability below which preset `exl2` never draws a code."""


@dataclass
class State:
    """State of sampling within one section. `seen` (takes, n) marks ids already in the context."""

    guidance: float
    seen: Tensor
    count: int = 0
    """Ids drawn in this section so far."""

    def note(self, index: Tensor) -> None:
        """Record the drawn indices, one per take."""
        self.seen.scatter_(1, index[:, None], True)
        self.count += 1


Step = Callable[[Tensor, State], Tensor]


class Sampler:
    """Applies steps in order, then draws. `keep` selects the drawable ids from full-vocabulary logits; `off_track`
    (2, n) marks ids that a track, vocal first, must not use."""

    def __init__(self, settings: Sampling, keep: Sequence[int] | None = None, off_track: Tensor | None = None) -> None:
        self.settings = settings
        self.steps: list[Step] = _steps(settings, None if keep is None else torch.as_tensor(list(keep)))
        if off_track is not None:
            self.steps.insert(1, stay_on_track(off_track))

    def scores(self, logits: Tensor, state: State) -> Tensor:
        """Scores (takes, n) from logits: (2 * takes, n) with guidance, conditional rows first; (takes, n) without.

        -inf marks forbidden ids; a softmax gives the probabilities."""
        scores = logits.float()
        for step in self.steps:
            scores = step(scores, state)
        return scores

    def draw(self, logits: Tensor, state: State, uniform: Tensor) -> Tensor:
        """One index per take, (takes,) int64, by inverting the cumulative distribution at `uniform` (takes,) in
        [0, 1), and record it in `state`. With temperature 0, the best one."""
        scores = self.scores(logits, state)
        if self.settings.temperature == 0:
            index = scores.argmax(-1)
        else:
            heights = scores.softmax(-1).cumsum(-1)
            # Scaling by the last sum, which rounding may leave under 1, keeps a uniform near 1 below it.
            index = torch.searchsorted(heights, uniform[:, None] * heights[:, -1:], right=True)[:, 0]
        state.note(index)
        return index


def _steps(s: Sampling, keep: Tensor | None) -> list[Step]:
    steps: list[Step] = [guide(normalize=s.preset != "exl2", keep=keep)]
    if s.repetition_penalty != 1:
        steps.append(penalize(s.repetition_penalty, s.penalize_end))
    steps.append(forbid_end(s.minimum))
    if s.temperature not in (0, 1):
        steps.append(temper(s.temperature))
    if s.temperature != 0:
        if s.preset == "exl2":
            steps.append(drop_rare)
        if s.top_k or s.top_p < 1:
            steps.append(nucleus(s.top_k, s.top_p, s.keep_crossing))
    return steps


def guide(normalize: bool, keep: Tensor | None = None) -> Step:
    """Classifier-free guidance: u + g (c - u), on log-probabilities when `normalize`, else on logits.

    With g = 1 there is no unconditional row and the logits pass unchanged, as in transformers."""

    def step(scores: Tensor, state: State) -> Tensor:
        takes = len(state.seen)
        if state.guidance == 1:
            scores = scores[:takes]
        elif normalize:
            scores = scores.log_softmax(-1)
        if keep is not None:
            scores = scores[:, keep.to(scores.device)]
        if state.guidance == 1:
            return scores
        return torch.lerp(scores[takes:], scores[:takes], state.guidance)

    return step


def penalize(penalty: float, penalize_end: bool) -> Step:
    """Repetition penalty for ids already in the context: negative scores times `penalty`, positive divided by it."""

    def step(scores: Tensor, state: State) -> Tensor:
        repeated = torch.where(scores < 0, scores * penalty, scores / penalty)
        penalized = torch.where(state.seen, repeated, scores)
        if not penalize_end:
            penalized[:, -1] = scores[:, -1]
        return penalized

    return step


def forbid_end(minimum: int) -> Step:
    """Forbid the end before `minimum` ids and in the middle of a frame, so that both tracks stay equally long."""

    def step(scores: Tensor, state: State) -> Tensor:
        if state.count < minimum or state.count % 2:
            scores = scores.clone()
            scores[:, -1] = -torch.inf
        return scores

    return step


def stay_on_track(off_track: Tensor) -> Step:
    """Forbid the ids marked in `off_track` (2, n) for the track to be drawn. For small models, which confuse the
    interleaved tracks more easily than YuE's own."""

    def step(scores: Tensor, state: State) -> Tensor:
        return scores.masked_fill(off_track[state.count % 2], -torch.inf)

    return step


def temper(temperature: float) -> Step:
    """Divide by the temperature."""
    return lambda scores, state: scores / temperature


def nucleus(k: int, p: float, keep_crossing: bool) -> Step:
    """Top-k and top-p: keep the `k` best scores (0: all), and of those the likeliest up to a total probability of `p`,
    with or without the one that crosses it. Always keeps the best one, and ties with the last one kept.

    Top-k comes first, so top-p uses probabilities among the k best only."""

    def step(scores: Tensor, state: State) -> Tensor:
        best = scores.topk(min(k or scores.shape[-1], scores.shape[-1])).values
        if p < 1:
            probabilities = best.softmax(-1)
            reached = probabilities.cumsum(-1)
            kept = reached - probabilities < p if keep_crossing else reached <= p
            last = (kept.sum(-1, keepdim=True) - 1).clamp_(min=0)
        else:
            last = torch.full((len(scores), 1), best.shape[-1] - 1, device=scores.device)
        return scores.masked_fill(scores < best.gather(-1, last), -torch.inf)

    return step


def drop_rare(scores: Tensor, state: State) -> Tensor:
    """Discard ids less likely than `RAREST`."""
    return scores.masked_fill(scores.softmax(-1) < RAREST, -torch.inf)


def uniforms(seed: int, section: int, take: int, count: int) -> Tensor:
    """`count` numbers in [0, 1) that belong to (seed, section, take): float32, the same on every machine."""
    key = hashlib.blake2b(f"yuegp {seed} {section} {take}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little", signed=True))
    return torch.rand(count, generator=generator)
