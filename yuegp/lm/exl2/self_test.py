"""Tests once, after loading, that the engine computes right with these weights on this card.

ExLlamaV2 0.3.2 has a state in which it silently computes without a causal mask; the song is then plausible-sounding
garbage. The same ids read in one pass and in two must give the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from yuegp.errors import DeviceError
from yuegp.lm.engine import LMSession

LIMITS = {"fp16": 0.1, "q8": 0.15, "q6": 0.35, "q4": 0.5}
"""Largest relative difference of the logits between two readings, by kind of KV cache. One pass reads a quantized cache
exactly, two passes read it rounded, so its limits only exclude garbage; the FP16 reading, always done, is strict."""

LONG, SHORT, SPLIT, KEPT = 280, 9, 131, 512
"""Ids of the longer row (more than a page) and of the shorter one; where the longer is split; logits compared."""


class ScoredSession(LMSession, Protocol):
    """A session that also gives the logits of every position it reads."""

    def score(self, row: int, ids: Sequence[int]) -> Tensor: ...


class ScoringEngine(Protocol):
    """What an engine needs to be tested: sessions with a KV cache of any kind, `kv` being the usual one."""

    kv: str
    vocab_size: int
    context: int

    def open(self, capacities: Sequence[int], keep: Sequence[int], kind: str) -> ScoredSession: ...


def self_test(engine: ScoringEngine) -> None:
    """Raise DeviceError when readings that must agree differ. Takes six passes of up to 280 ids."""
    for kind in dict.fromkeys(["fp16", engine.kv]):
        error = disagreement(engine, kind)
        if not error <= LIMITS[kind]:
            raise DeviceError(
                f"The ExLlamaV2 engine computes wrong numbers here: the same text read in one piece and in two differs "
                f"by {error:.0%} (KV cache {kind}, limit {LIMITS[kind]:.0%}).",
                "Use the torch engine, and please report this.",
            )


@torch.inference_mode()
def disagreement(engine: ScoringEngine, kind: str) -> float:
    """The largest relative difference between logits of the same position reached in different ways; infinite when
    some are not finite.

    One row reads all ids in one pass, with the logits of every position. A second row reads the same ids in two pieces
    and a step; a third, rewound, reads their beginning in that same step. So the rows have different lengths in the
    step, and the compared positions have many others behind them in the single pass: without a causal mask they would
    see those."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, engine.vocab_size, (LONG,), generator=generator).tolist()
    kept = torch.randperm(engine.vocab_size, generator=generator)[:KEPT].tolist()
    end = min(LONG, engine.context - 1) - 1
    with engine.open([end + 2, end + 1, SPLIT], kept, kind) as lm:
        at_once = lm.score(0, ids[: end + 1])
        lm.prefill(2, ids[SHORT : 2 * SHORT])
        lm.truncate(2, 0)
        pairs = [(SHORT - 1, lm.prefill(2, ids[:SHORT])), (SPLIT - 1, lm.prefill(1, ids[:SPLIT]))]
        pairs.append((end - 1, lm.prefill(1, ids[SPLIT:end])))
        _, last, early = lm.step(torch.tensor([ids[0], ids[end], ids[SHORT]]))
        pairs += [(end, last), (SHORT, early)]
        return max(_difference(at_once[position], logits) for position, logits in pairs)


def _difference(a: Tensor, b: Tensor) -> float:
    """Relative difference of two logit vectors, ignoring a constant added to all logits."""
    a, b = a.float() - a.float().mean(), b.float() - b.float().mean()
    error = float((a - b).norm() / a.norm())
    return error if math.isfinite(error) else math.inf
