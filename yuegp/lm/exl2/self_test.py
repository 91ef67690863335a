"""Does the engine compute what it should? Asked once, after loading, of the weights that are there and the card.

ExLlamaV2 0.3.2 has a state in which it computes without a causal mask and says nothing; what is heard then is
plausible-sounding garbage. The same ids read in one pass and in two must give the same logits.
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
"""How far apart two readings may be, in parts of the logits, by kind of KV cache. A quantized one is read exactly in
one pass and as it was rounded in two, so these say `not garbage`; the FP16 reading, always done, is the strict one."""

LONG, SHORT, SPLIT, KEPT = 280, 9, 131, 512
"""Ids of the longer row (more than a page), of the shorter one; where the longer is split; how many logits count."""


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
    """DeviceError when readings that must agree do not. Takes six passes of up to 280 ids."""
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

    A row is read in one pass, with the logits of every position. The same ids are read by another row in two pieces
    and a step, and their beginning by a third, rewound one and the same step. So each row has another length in that
    step, and what is compared are positions with many others behind them in the one pass: without a causal mask these
    would be seen."""
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
    """Relative difference of two logit vectors; what is common to all logits does not count."""
    a, b = a.float() - a.float().mean(), b.float() - b.float().mean()
    error = float((a - b).norm() / a.norm())
    return error if math.isfinite(error) else math.inf
