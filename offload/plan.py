"""What is held how, and where, while a song is made: the question, one plan, and what it takes. The best plan is
looked for in `planner.py` and explained in `explain.py`.

The order of plans: nothing streamed before anything streamed; then the KV cache of Stage 1 unquantized, then 8, 6 and
4 bits; then more bits per weight, all from 8 up alike, and as stored rather than converted; then the same of Stage 2;
then the shorter modelled time, where a plan in which sections can be heard early counts as a little shorter than it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .device import CONTEXT
from .sizes import (
    CACHES,
    PREFILL,
    STREAMED_PREFILL,
    Shapes,
    Sound,
    WeightFormat,
    cache_bytes,
    scratch_bytes,
    streamed_bytes,
    weight_bytes,
)
from .units import gigabytes

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
            lines.append(
                f"{step.when:<34}{gigabytes(step.bytes):>12}{gigabytes(sum(size for _, size in step.aside)):>14}"
            )
            lines += [f"  {what:<32}{gigabytes(size):>12}" for what, size in step.held]
            lines += [f"  {what:<32}{'':>12}{gigabytes(size):>14}" for what, size in step.aside]
        lines.append(f"{'peak, of what may be used':<34}{gigabytes(self.peak):>12} of {gigabytes(self.budget)}")
        return "\n".join([*lines, "", *self.reasons])


def quality_rank(way: WeightFormat) -> tuple[int, float, int]:
    """How good the music is that a model held this way writes, as far as anybody knows. Quantized caches come last:
    what they do to codes is not known, and each step unpacks them. From 8 bits on no loss was ever published."""
    kv = -CACHES.index(way.kv) if way.kv in CACHES else 0
    return kv, min(float(way.bits), 8.0), -way.converted
