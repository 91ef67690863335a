"""Who is on the card now: brings each language model when its turn comes and makes room for it, as the memory plan
says; and steps the plan down when memory runs out all the same."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar, runtime_checkable

from .device import Card
from .errors import NothingSmaller
from .plan import MemoryPlan
from .planner import within


class Engine(Protocol):
    """A loaded language model."""

    def unload(self) -> None: ...


@runtime_checkable
class Offloadable(Protocol):
    """An engine that can leave the device and come back: its weights wait in RAM meanwhile, or are read again. Its open
    sessions stay valid; their caches stay on the device, or with `caches` wait in RAM."""

    def park(self, caches: bool) -> None: ...

    def unpark(self) -> None: ...


E = TypeVar("E", bound=Engine)


class ModelManager(Generic[E]):
    """The two language models of a song, of which as many are loaded as the plan allows. A context manager: leaving it
    unloads both. `open_model` loads the model of a stage (1 or 2) as the plan of that moment says."""

    def __init__(
        self, plan: MemoryPlan, open_model: Callable[[int, MemoryPlan], E], card: Card | None = None, ram: int = 0
    ) -> None:
        self.plan, self.swaps = plan, 0
        """`swaps` counts models that were brought, the first time included."""
        self._open, self._card, self._ram = open_model, card, ram
        self._here: dict[int, E] = {}
        self._waiting: dict[int, E] = {}
        self._in_use: list[int] = []
        self._limits: dict[int, int] = {}

    def __enter__(self) -> ModelManager[E]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()

    @contextlib.contextmanager
    def engine(self, stage: int) -> Iterator[E]:
        """The model of a stage (1 or 2), on its device. It stays until somebody else needs the room."""
        if not self.plan.together:
            for other in [other for other in self._here if other != stage]:
                if other in self._in_use:
                    raise RuntimeError(f"Stage {other} is still at work, and the plan has no room for both")
                self._offload(other)
        if stage not in self._here:
            self._load(stage)
        self._in_use.append(stage)
        try:
            yield self._here[stage]
        finally:
            self._in_use.remove(stage)

    def keeps_sessions(self, stage: int) -> bool:
        """Whether the sessions of a loaded model outlast the other one's turn."""
        engine = self._here.get(stage) or self._waiting.get(stage)
        return engine is not None and (self.plan.together or self._parks(stage, engine))

    def clear(self) -> None:
        """Nothing of either model is left on its device or in RAM, where torch would keep pinned memory for itself."""
        import torch

        for engines in (self._here, self._waiting):
            for engine in engines.values():
                engine.unload()
            engines.clear()
        _give_back()
        empty_pinned = getattr(torch._C, "_host_emptyCache", None)  # only torch for CUDA has it
        if empty_pinned and torch.cuda.is_initialized():
            empty_pinned()

    def fall_back(self, stage: int) -> str:
        """Memory ran out in a stage: unload everything, and go on by the next smaller plan. What has changed, as a
        sentence; NothingSmaller when nothing is left to be made smaller."""
        self.clear()
        gc.collect()  # the error's traceback went through closures that hold tensors
        before = self.plan
        peak = before.steps[stage - 1].bytes
        for limit in (peak * 19 // 20, peak - 1):  # a step worth taking; failing that, any
            next_plan = within(before.need, self._card, self._ram, {**self._limits, stage: limit})
            if next_plan is not None:
                break
        if next_plan is None:
            raise NothingSmaller(
                f"Memory ran out in Stage {stage}, and nothing that it holds can be made smaller.",
                "Close other programs that use the card or the memory, then resume the song: what is finished is kept.",
            )
        self.plan, self._limits[stage] = next_plan, next_plan.steps[stage - 1].bytes
        return f"Memory ran out in Stage {stage}. Going on {_difference(before, next_plan)}."

    def _parks(self, stage: int, engine: Engine) -> bool:
        outlasts = stage in self.plan.parked or (stage == 1 and self.plan.caches != "rebuilt")
        return outlasts and isinstance(engine, Offloadable)

    def _offload(self, stage: int) -> None:
        engine = self._here[stage]  # stays known until it is gone: there may be no RAM to wait in
        if self._parks(stage, engine):
            assert isinstance(engine, Offloadable)
            engine.park(caches=self.plan.caches == "parked")
            self._waiting[stage] = engine
        else:
            engine.unload()
        del self._here[stage], engine
        _give_back()

    def _load(self, stage: int) -> None:
        self.swaps += 1
        if (engine := self._waiting.get(stage)) is not None:
            assert isinstance(engine, Offloadable)
            engine.unpark()
            del self._waiting[stage]
        else:
            engine = self._open(stage, self.plan)
        self._here[stage] = engine


def _difference(before: MemoryPlan, after: MemoryPlan) -> str:
    """What a smaller plan does otherwise, in words."""
    parts = []
    if after.resident != before.resident:
        parts.append(f"with {after.resident} layers of Stage 1 on the card")
    for stage, a, b in ((1, before.stage1_format, after.stage1_format), (2, before.stage2_format, after.stage2_format)):
        if a != b:
            parts.append(f"with Stage {stage} as {b}")
    if after.stage2_batch != before.stage2_batch:
        parts.append(f"with {after.stage2_batch} instead of {before.stage2_batch} chunks at once")
    if before.together and not after.together:
        parts.append("with one model loaded at a time")
    if before.order == "sections" and after.order == "stages":
        parts.append("with all sections written before the first is refined")
    if after.caches != before.caches and not before.together:
        parts.append("with Stage 1's caches elsewhere meanwhile")
    return " and ".join(parts) or "with less memory"


def _give_back() -> None:
    """Give what torch holds of a card and nobody uses back to the driver: others allocate there too."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
