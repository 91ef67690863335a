"""What is held how, and where, while a song is made: pure arithmetic, from sizes alone to a plan or to `DoesNotFit`.

Every possible plan has a peak and a place in one order of goodness, neither of which depends on the machine; `plan`
takes the best one whose peak fits. More memory only adds to what fits, so it never gives a worse plan.

The order: nothing streamed before anything streamed; then the KV cache of Stage 1 unquantized, then 8, 6 and 4 bits;
then more bits per weight, all from 8 up alike, and as stored rather than converted; then the same of Stage 2; then the
shorter modelled time, where a plan in which sections can be heard early counts as a little shorter than it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from yuegp.errors import DeviceError
from yuegp.lm import EngineConfig

from . import cost
from .device import CONTEXT, GIB, Card
from .sizes import (
    PREFILL,
    STREAMED_PREFILL,
    Shapes,
    Sound,
    WeightFormat,
    cache_bytes,
    layer_bytes,
    scratch_bytes,
    streamed_bytes,
    weight_bytes,
)

RESERVE = 0.04
"""Share of the free memory that a plan leaves alone: what other programs take meanwhile, and what this arithmetic
misses."""

RAM_SHARE = 0.6
"""Share of the free RAM that may hold parked weights and caches: the rest keeps model files in the system's cache."""

MOST_ROWS = {"cuda": 20, "cpu": 16}
"""Most chunks refined at once. Beyond, traffic of the caches rules, and finished batches are saved less often."""

NO_LIMITS: Mapping[int, int] = {}

CACHES = ("fp16", "q8", "q6", "q4")

EARLY = {"stages": 1.0, "first": 1.05, "sections": 1.10}
"""How much longer a song may take for this way of hearing it early: not at all, the first section, every section."""


@dataclass(frozen=True)
class MemoryRequest:
    """What a song asks for. `ways1` and `ways2` are the ways the two models could be held here."""

    stage1: Shapes
    stage2: Shapes
    sound: Sound
    ways1: tuple[WeightFormat, ...]
    ways2: tuple[WeightFormat, ...]
    sections: int
    """Sections to be written."""
    budget: int
    """Audio ids a section may have."""
    longest: int
    """Ids the song has in Stage 1's context at most: head, lyrics and music."""
    guided: bool = True
    takes: int = 1
    """Versions of a section that are written in one batch."""
    chunk: int = 2702
    """Positions of a chunk in Stage 2's cache."""

    @property
    def rows(self) -> list[int]:
        """Room of Stage 1's rows: each take has one for the song, and a short one that is not shown the words."""
        longest = min(self.longest, self.stage1.config.context)
        return [longest] * self.takes + [self.budget + 1] * (self.takes * self.guided)


@dataclass(frozen=True)
class Step:
    """What lies where in one part of the work: (what, bytes), on the device and in RAM."""

    when: str
    held: tuple[tuple[str, int], ...]
    aside: tuple[tuple[str, int], ...] = ()

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.held)


@dataclass(frozen=True)
class MemoryPlan:
    """How a song is made with the memory there is. Sizes in bytes."""

    need: MemoryRequest
    device: str
    stage1_format: WeightFormat
    stage2_format: WeightFormat
    stage2_batch: int
    hear: str
    """`stages`: all of Stage 1 first. `sections`: each section is refined when it is written. `first`: the first one
    is, and later ones when a full batch waits."""
    together: bool
    """Both models stay on the device; otherwise they take turns."""
    caches: str = "kept"
    """Stage 1's KV cache while Stage 2 has the card: kept there, parked in RAM, or rebuilt from the song."""
    parked: tuple[int, ...] = ()
    """Stages whose weights wait in RAM; the others' are dropped and read again."""
    resident: int | None = None
    """Layers of Stage 1 that stay on the card, if not all."""
    budget: int = 0
    seconds: float = 0.0
    """Modelled, for comparing plans. What a song really takes is learned from earlier ones."""
    reasons: tuple[str, ...] = ()

    @property
    def order(self) -> str:
        return "stages" if self.hear == "stages" else "sections"

    @property
    def stage1(self) -> EngineConfig:
        return _setup(self.stage1_format, self.device, self.resident)

    @property
    def stage2(self) -> EngineConfig:
        return _setup(self.stage2_format, self.device)

    @property
    def sound_device(self) -> str:
        """The codec goes where it fits: on the card if that is free for it."""
        return self.device if self.budget == 0 or self.steps[2].bytes <= self.budget else "cpu"

    @property
    def peak(self) -> int:
        """Most that is on the device at any time."""
        return max(step.bytes for step in self.steps if self.sound_device == self.device or step.when != "sound")

    @property
    def ram(self) -> int:
        """Most that is kept aside in RAM."""
        return max(sum(size for _, size in step.aside) for step in self.steps)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """What lies where while sections are written, refined, and made sound."""
        n, apart = self.need, not self.together
        base = (("CUDA itself", CONTEXT),) if self.device != "cpu" else ()
        one, two = (
            (f"Stage 1, {self.stage1_format}", weight_bytes(n.stage1, self.stage1_format, self.resident, self.device)),
            (f"Stage 2, {self.stage2_format}", weight_bytes(n.stage2, self.stage2_format, None, self.device)),
        )
        cache = ("its caches", cache_bytes(n.stage1, self.stage1_format, n.rows))
        streamed = [("layers of Stage 1", streamed_bytes(n.stage1, self.stage1_format, self.resident))] * (
            self.resident is not None
        )
        most = STREAMED_PREFILL if self.resident is not None else PREFILL
        scratch1 = (
            "scratch",
            scratch_bytes(n.stage1, self.stage1_format, min(most, n.rows[0]), n.rows[0], 1, self.device),
        )
        rows = [n.chunk] * self.stage2_batch
        cache2 = (f"caches of {self.stage2_batch} chunks", cache_bytes(n.stage2, self.stage2_format, rows))
        prefix = n.chunk // 9 + 4
        scratch2 = ("scratch", scratch_bytes(n.stage2, self.stage2_format, prefix, prefix, len(rows), self.device))
        both = self.together or self.order == "sections"
        wait1 = [one] * (apart and 1 in self.parked)
        wait2 = [two] * (apart and 2 in self.parked and both)
        left = ("Stage 1's caches", cache[1])
        held1 = [one, cache] if self.together else [left] * (self._waits and self.caches == "kept")
        aside1 = [left] * (self._waits and self.caches == "parked")
        return (
            Step("writing", (*base, one, cache, scratch1, *([two] if self.together else [])), (*streamed, *wait2)),
            Step("refining", (*base, *held1, two, cache2, scratch2), (*streamed, *wait1, *aside1)),
            Step("sound", (*base, ("codec and upsampler", n.sound.weights), ("scratch", n.sound.scratch))),
        )

    @property
    def _waits(self) -> bool:
        """Whether Stage 1 comes back after Stage 2 had its place."""
        return not self.together and self.order == "sections" and self.need.sections > 1

    @property
    def rank(self) -> tuple[float, ...]:
        """The order of plans; the larger the better."""
        rung1, rung2 = quality_rank(self.stage1_format), quality_rank(self.stage2_format)
        streamed = self.resident is not None
        worth = -self.seconds / EARLY[self.hear]
        pressed = self.stage1_format.converted + self.stage2_format.converted
        return (not streamed, *((0, 0, 0) if streamed else rung1), *rung2, worth, -pressed)

    @property
    def music(self) -> tuple[float, ...]:
        """What of `goodness` may be heard: all but who pressed the weights, and the time."""
        streamed, kv1, bits1, _, kv2, bits2, *_ = self.rank
        return streamed, kv1, bits1, kv2, bits2

    def table(self) -> str:
        """The plan for reading: what lies where, then why."""
        lines = [f"{'':<34}{'on the ' + ('card' if self.device != 'cpu' else 'CPU'):>12}{'aside in RAM':>14}"]
        for step in self.steps:
            if step.when == "sound" and self.sound_device != self.device:
                lines.append(f"{step.when}: on the CPU")
                continue
            lines.append(f"{step.when:<34}{_gb(step.bytes):>12}{_gb(sum(size for _, size in step.aside)):>14}")
            lines += [f"  {what:<32}{_gb(size):>12}" for what, size in step.held]
            lines += [f"  {what:<32}{'':>12}{_gb(size):>14}" for what, size in step.aside]
        lines.append(f"{'peak, of what may be used':<34}{_gb(self.peak):>12} of {_gb(self.budget)}")
        return "\n".join([*lines, "", *self.reasons])


class DoesNotFit(DeviceError):
    """There is not enough memory. `shortfall` is what is missing at least, in bytes; `nearest` what would fit."""

    def __init__(self, what: str, hint: str, shortfall: int, nearest: tuple[MemoryRequest, MemoryPlan] | None) -> None:
        super().__init__(what, hint)
        self.shortfall, self.nearest = shortfall, nearest


def plan(job: MemoryRequest, card: Card | None, ram: int, fewer: Sequence[WeightFormat] = ()) -> MemoryPlan:
    """The best plan for `job` on `card`, or on the CPU where that is None, with `ram` bytes of RAM free.

    DoesNotFit says how much is missing. The nearest thing that fits is looked for among `fewer` ways to hold Stage 1,
    fewer takes, and a shorter song."""
    found = _best(job, card, ram)
    if found is not None:
        return replace(found, reasons=tuple(_reasons(found, card, ram)))
    raise _does_not_fit(job, card, ram, fewer)


def within(job: MemoryRequest, card: Card | None, ram: int, limits: Mapping[int, int]) -> MemoryPlan | None:
    """The best plan whose peak in some stages is no more than `limits` says: what is left after memory ran out there
    although the plan was kept. None when there is none."""
    found = _best(job, card, ram, limits)
    return found and replace(found, reasons=tuple(_reasons(found, card, ram)))


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


def quality_rank(way: WeightFormat) -> tuple[int, float, int]:
    """How good the music is that a model held this way writes, as far as anybody knows. Quantized caches come last:
    what they do to codes is not known, and each step unpacks them. From 8 bits on no loss was ever published."""
    kv = -CACHES.index(way.kv) if way.kv in CACHES else 0
    return kv, min(float(way.bits), 8.0), -way.converted


def _setup(way: WeightFormat, device: str, resident: int | None = None) -> EngineConfig:
    return EngineConfig(way.engine, device, way.weights, way.kv if way.engine == "exl2" else "same", resident)


# Reasons


def _reasons(p: MemoryPlan, card: Card | None, ram: int) -> Iterator[str]:
    n, place = p.need, "card" if card else "RAM"
    free = card.free if card else ram
    yield f"{_gb(free)} of the {place} {'are' if card else 'is'} free; {_gb(p.budget)} may be used."
    better = [way for way in n.ways1 if quality_rank(way) > quality_rank(p.stage1_format)]
    if p.resident is not None:
        layers = n.stage1.config.layers
        yield (
            f"Stage 1 does not fit: {layers - p.resident} of its {layers} layers are sent to the card for every id. "
            "That works, slowly."
        )
    elif better:
        least = min(better, key=lambda way: replace(p, stage1_format=way, together=False).steps[0].bytes)
        asked = replace(p, stage1_format=least, together=False).steps[0].bytes
        yield f"Stage 1 as {least} would need {_gb(asked)}, so it is held as {p.stage1_format}."
    else:
        yield f"Stage 1 is held as {p.stage1_format}: with caches for {n.rows[0]:,} ids it takes {_gb(p.steps[0].bytes)}."
    if p.together:
        yield "Both language models stay loaded."
    else:
        both = replace(p, together=True, caches="kept").peak
        waits = {(): "are read again when their turn comes", (1,): "Stage 1's wait in RAM, Stage 2's are read again",
                 (2,): "Stage 2's wait in RAM, Stage 1's are read again", (1, 2): "wait in RAM"}  # fmt: skip
        turns = f"Together the language models would need {_gb(both)}, so they take turns"
        yield turns + (f"; their weights: {waits[p.parked]}." if p.order == "sections" else ", once each.")
        if p.order == "sections" and n.sections > 1:
            how = {"kept": "stay on the card", "parked": "wait in RAM", "rebuilt": "are rebuilt from the song"}
            yield f"Stage 1's caches {how[p.caches]} while Stage 2 works."
    yield {
        "stages": "All sections are written before the first is refined: anything else would take longer.",
        "first": "The first section is refined at once, so that it can be heard; later ones when a full batch waits.",
        "sections": "Each section is refined when it is written, and can be heard then.",
    }[p.hear]
    yield f"Stage 2 refines {p.stage2_batch} chunk{'s' * (p.stage2_batch > 1)} of six seconds at once."
    if p.sound_device != p.device:
        yield "The sound is made on the CPU: the codec does not fit on the card."


def _does_not_fit(job: MemoryRequest, card: Card | None, ram: int, fewer: Sequence[WeightFormat]) -> DoesNotFit:
    budget, place = budget_of(card, ram), "card" if card else "RAM"
    groups = _groups(job, "cuda" if card else "cpu", 1 << 60, [1])
    least = min(replace(p, resident=p.resident and 0).peak for group in groups for p in group)
    shortfall = max(1, least - budget)
    what = (
        f"This song needs at least {_gb(least)} of the {place}; of {_gb(card.free if card else ram)} that are free, "
        f"{_gb(budget)} may be used: {_gb(shortfall)} are missing."
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


def _gb(size: int | float) -> str:
    return f"{size / GIB:.2f} GB"
