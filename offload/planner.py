"""The best plan for what a song asks of the memory: pure arithmetic, from sizes alone to a plan or to `DoesNotFit`.

Every possible plan has a peak and a rank, neither of which depends on the machine; `plan` takes the best one whose
peak fits. More memory only adds to what fits, so it never gives a worse plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from . import cost
from .device import Card
from .errors import DoesNotFit
from .explain import reasons
from .plan import EARLY, MemoryPlan, MemoryRequest, quality_rank
from .sizes import WeightFormat, layer_bytes
from .units import gigabytes

RESERVE = 0.04
"""Share of the free memory that a plan leaves alone: what other programs take meanwhile, and what this arithmetic
misses."""

RAM_SHARE = 0.6
"""Share of the free RAM that may hold parked weights and caches: the rest keeps model files in the system's cache."""

MOST_ROWS = {"cuda": 20, "cpu": 16}
"""Most chunks refined at once. Beyond, traffic of the caches rules, and finished batches are saved less often."""

NO_LIMITS: Mapping[int, int] = {}


def plan(job: MemoryRequest, card: Card | None, ram: int, fewer: Sequence[WeightFormat] = ()) -> MemoryPlan:
    """The best plan for `job` on `card`, or on the CPU where that is None, with `ram` bytes of RAM free.

    DoesNotFit says how much is missing. The nearest thing that fits is looked for among `fewer` ways to hold Stage 1,
    fewer takes, and a shorter song."""
    found = _best(job, card, ram)
    if found is not None:
        return replace(found, reasons=tuple(reasons(found, card, ram)))
    raise _does_not_fit(job, card, ram, fewer)


def within(job: MemoryRequest, card: Card | None, ram: int, limits: Mapping[int, int]) -> MemoryPlan | None:
    """The best plan whose peak in some stages is no more than `limits` says: what is left after memory ran out there
    although the plan was kept. None when there is none."""
    found = _best(job, card, ram, limits)
    return found and replace(found, reasons=tuple(reasons(found, card, ram)))


def budget_of(card: Card | None, ram: int) -> int:
    """Bytes a plan may use of the card, or of RAM where there is none."""
    return int((card.free if card else ram) * (1 - RESERVE))


def _best(job: MemoryRequest, card: Card | None, ram: int, limits: Mapping[int, int] = NO_LIMITS) -> MemoryPlan | None:
    device = "cuda" if card else "cpu"
    budget, aside = budget_of(card, ram), ram * RAM_SHARE
    if card and card.pinned is not None:  # all of it is pinned
        aside = min(aside, card.pinned)
    for group in _groups(job, device, budget, range(1, MOST_ROWS[device] + 1)):
        best: MemoryPlan | None = None
        for candidate in group:
            if candidate.peak > budget or (card and candidate.ram > aside):
                continue
            if any(candidate.steps[stage - 1].bytes > most for stage, most in limits.items()):
                continue
            candidate = replace(candidate, seconds=cost.song(candidate, card))
            if best is None or candidate.rank > best.rank:
                best = candidate
        if best:
            return best
    return None


def _groups(job: MemoryRequest, device: str, budget: int, batches: Sequence[int]) -> Iterator[Iterable[MemoryPlan]]:
    """All plans, in groups of which each is better than all later ones: by how Stage 1 and then Stage 2 are held, and
    streamed ones last."""
    alone = [way for way in job.ways1 if _alone(job, device, way) <= budget]
    rungs1, rungs2 = (sorted({quality_rank(way) for way in ways}, reverse=True) for ways in (alone, job.ways2))
    for rung1, rung2 in product(rungs1, rungs2):
        ways1 = [way for way in alone if quality_rank(way) == rung1]
        ways2 = [way for way in job.ways2 if quality_rank(way) == rung2]
        yield (
            plan for base in _bases(job, device, budget, ways1, ways2, batches) for plan in (base, *_arrangements(base))
        )
    if device == "cpu":
        return
    for rung2 in rungs2:
        ways1 = [way for way in job.ways1 if way.engine == "torch"]
        ways2 = [way for way in job.ways2 if quality_rank(way) == rung2]
        yield (
            replace(base, resident=resident, hear=hear)
            for base in _bases(job, device, budget, ways1, ways2, batches)
            if (resident := _most_resident(base)) is not None
            for hear in EARLY
        )


def _alone(job: MemoryRequest, device: str, way: WeightFormat) -> int:
    """Bytes on the device while sections are written and nothing else is there: no plan takes less."""
    return MemoryPlan(job, device, way, job.ways2[0], 1, "stages", together=False).steps[0].bytes


def _bases(
    job: MemoryRequest,
    device: str,
    budget: int,
    ways1: list[WeightFormat],
    ways2: list[WeightFormat],
    batches: Sequence[int],
) -> Iterator[MemoryPlan]:
    """The plainest plan for each way to hold the models and each number of chunks: one model after the other."""
    for way1, way2, batch in product(ways1, ways2, batches):
        base = MemoryPlan(job, device, way1, way2, batch, "stages", together=False, caches="rebuilt", budget=budget)
        if base.steps[1].bytes <= budget:
            yield base


def _arrangements(base: MemoryPlan) -> Iterator[MemoryPlan]:
    """The same with both models at once, or in turns, and what may wait in RAM meanwhile."""
    for hear in EARLY:
        yield replace(base, hear=hear, together=True, caches="kept")
    if base.device == "cpu":
        return
    can_wait = [stage for stage, way in ((1, base.stage1_format), (2, base.stage2_format)) if way.engine == "torch"]
    for hear in ("first", "sections"):
        for parked in ((), (1,), (2,), (1, 2)):
            if all(stage in can_wait for stage in parked):
                yield replace(base, hear=hear, parked=parked)
                if (
                    1 in parked or base.stage1_format.engine == "exl2"
                ):  # torch without a copy of its weights is gone for good
                    yield replace(base, hear=hear, parked=parked, caches="kept")
                    yield replace(base, hear=hear, parked=parked, caches="parked")


def _most_resident(base: MemoryPlan) -> int | None:
    """Layers of Stage 1 for which there is room beside the two that are streamed; None when there is none for any."""
    bare = replace(base, resident=0)
    layer = layer_bytes(base.need.stage1, base.stage1_format)
    room = (base.budget - bare.steps[0].bytes) // layer
    return min(room, base.need.stage1.config.layers - 3) if room >= 0 else None


def _does_not_fit(job: MemoryRequest, card: Card | None, ram: int, fewer: Sequence[WeightFormat]) -> DoesNotFit:
    budget, place = budget_of(card, ram), "card" if card else "RAM"
    groups = _groups(job, "cuda" if card else "cpu", 1 << 60, [1])
    least = min(replace(p, resident=p.resident and 0).peak for group in groups for p in group)
    shortfall = max(1, least - budget)
    what = (
        f"This song needs at least {gigabytes(least)} of the {place}; of {gigabytes(card.free if card else ram)} that "
        f"are free, {gigabytes(budget)} may be used: {gigabytes(shortfall)} are missing."
    )
    for other, words in _relaxed(job, fewer):
        if found := _best(other, card, ram):
            return DoesNotFit(what, f"{words} fits.", shortfall, (other, found))
    return DoesNotFit(what, "Close other programs that use it, or use the model demo.", shortfall, None)


def _relaxed(job: MemoryRequest, fewer: Sequence[WeightFormat]) -> Iterator[tuple[MemoryRequest, str]]:
    """Lesser songs, the least change first, with a sentence's beginning for each."""
    for way in sorted(fewer, key=quality_rank, reverse=True):
        yield replace(job, ways1=(way,)), f"Stage 1 as {way}"
    most = (*job.ways1, *fewer)
    for takes in range(job.takes - 1, 0, -1):
        yield replace(job, takes=takes, ways1=most), f"{takes} version{'s' * (takes > 1)} at once"
    small = replace(job, takes=1, ways1=most)
    for part in range(7, 0, -1):
        longest = max(math.ceil(job.longest * part / 8), min(job.longest, 2 * job.budget))
        if longest < job.longest:
            yield replace(small, longest=longest), f"A song of {longest:,} instead of {job.longest:,} ids"
