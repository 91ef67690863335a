"""Who is on the card: turns, waiting in RAM, running out of memory, and nothing left behind. All on a CPU, with real
tiny models and injected errors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offload.device import GIB
from offload.errors import NothingSmaller
from offload.manager import ModelManager, Offloadable
from offload.parking import ParkedTensors
from offload.plan import MemoryPlan, MemoryRequest
from offload.planner import plan
from offload.sizes import Shapes, Sound, WeightFormat
from yuegp.checkpoints.config import read_config
from yuegp.lm import EngineConfig, LMEngine, LMSession, open_engine

FLOAT = WeightFormat("torch", "float32", Fraction(32), "float32")


def memory(tiny_set: Path, **changes: Any) -> MemoryPlan:
    shapes = (Shapes(read_config(tiny_set / f"stage{n}"), drawn) for n, drawn in ((1, 1025), (2, 7168)))
    need = MemoryRequest(*shapes, Sound(1, 1), (FLOAT,), (FLOAT,), 6, 3000, 4000)
    return replace(plan(need, None, 2 * GIB), **changes)


class Watched:
    """An engine that tells what happens to it, and can wait if `parks`."""

    log: list[str]

    def __init__(self, engine: LMEngine, log: list[str]) -> None:
        self.engine, self.log, self.name = engine, log, engine.name
        log.append(f"load {self.name}")

    def __getattr__(self, name: str) -> Any:
        if name in ("park", "unpark"):
            raise AttributeError(name)
        return getattr(self.engine, name)

    def open(self, capacities: Sequence[int], keep: Sequence[int] | None = None) -> LMSession:
        return self.engine.open(capacities, keep)

    def unload(self) -> None:
        self.log.append(f"drop {self.name}")
        self.engine.unload()


class Waiting(Watched):
    def park(self, caches: bool) -> None:
        self.log.append(f"park {self.name}" + " with caches" * caches)

    def unpark(self) -> None:
        self.log.append(f"back {self.name}")


def cast(tiny_set: Path, kind: type[Watched], **changes: Any) -> tuple[ModelManager[Any], list[str]]:
    log: list[str] = []

    def load(stage: int, plan: MemoryPlan) -> Any:
        return kind(open_engine(tiny_set / f"stage{stage}", EngineConfig()), log)

    return ModelManager(memory(tiny_set, **changes), load, None, 2 * GIB), log


def take_turns(cast: ModelManager[Any], turns: Sequence[int] = (1, 2, 1, 2)) -> None:
    with cast:
        for stage in turns:
            with cast.engine(stage) as engine, engine.open([8]) as session:
                session.prefill(0, [1, 2, 3])


def test_models_that_fit_together_are_loaded_once(tiny_set: Path) -> None:
    actors, log = cast(tiny_set, Watched, together=True)
    take_turns(actors)
    assert log == ["load stage1", "load stage2", "drop stage1", "drop stage2"] and actors.swaps == 2


def test_models_that_do_not_are_dropped_and_loaded_again(tiny_set: Path) -> None:
    actors, log = cast(tiny_set, Watched, together=False, parked=())
    take_turns(actors)
    assert log == ["load stage1", "drop stage1", "load stage2", "drop stage2"] * 2 and actors.swaps == 4


def test_models_wait_in_ram_when_the_plan_says_so_and_they_can(tiny_set: Path) -> None:
    actors, log = cast(tiny_set, Waiting, together=False, parked=(1,), caches="parked")
    take_turns(actors, (1, 2, 1, 2))
    assert log == [
        "load stage1", "park stage1 with caches", "load stage2", "drop stage2", "back stage1",
        "park stage1 with caches", "load stage2", "drop stage2", "drop stage1",
    ]  # fmt: skip
    actors, log = cast(tiny_set, Waiting, together=False, parked=(), caches="kept")
    take_turns(actors, (1, 2, 1))
    assert log == ["load stage1", "park stage1", "load stage2", "drop stage2", "back stage1", "drop stage1"], (
        "an engine that reads its weights again keeps its sessions too"
    )
    actors, log = cast(tiny_set, Watched, together=False, parked=(1, 2), caches="parked")
    take_turns(actors)
    assert "park stage1" not in " ".join(log), "an engine that cannot wait is dropped"


def test_a_model_that_finds_no_room_to_wait_in_is_unloaded_when_the_plan_steps_down(tiny_set: Path) -> None:
    class Full(Waiting):
        def park(self, caches: bool) -> None:
            raise RuntimeError("CUDA error: out of memory")

    actors, log = cast(tiny_set, Full, together=False, parked=(1,), caches="parked")
    with actors:
        with actors.engine(1):
            pass
        with pytest.raises(RuntimeError, match="out of memory"), actors.engine(2):
            pass
        actors.clear()
        assert log == ["load stage1", "drop stage1"]


def test_nobody_is_sent_off_in_the_middle_of_its_work(tiny_set: Path) -> None:
    actors, _ = cast(tiny_set, Watched, together=False)
    with actors, actors.engine(1), pytest.raises(RuntimeError, match="still at work"), actors.engine(2):
        pass


def test_five_times_loaded_and_unloaded_leaves_nothing(tiny_set: Path) -> None:
    """Inherited fault: models that stay on the card after they were unloaded."""
    left: list[weakref.ref[Any]] = []

    def remember(stage: int, plan: MemoryPlan) -> LMEngine:
        engine = open_engine(tiny_set / f"stage{stage}", EngineConfig())
        left.append(weakref.ref(engine))
        left.append(weakref.ref(engine._network))  # type: ignore[attr-defined]
        left.extend(weakref.ref(t) for t in engine._network.layers[0].tensors())  # type: ignore[attr-defined]
        return engine

    for _ in range(5):
        take_turns(ModelManager(memory(tiny_set, together=False), remember, None, 2 * GIB))
    gc.collect()
    assert len(left) > 50 and not [ref for ref in left if ref() is not None]


# Stepping down


def test_running_out_of_memory_steps_the_plan_down_and_says_how(tiny_set: Path) -> None:
    actors, log = cast(tiny_set, Watched)
    before = actors.plan.stage2_batch
    with actors:
        with actors.engine(1), actors.engine(2):
            pass
        said = actors.fall_back(2)
        assert log[-2:] == ["drop stage1", "drop stage2"]
        assert actors.plan.stage2_batch < before
        assert said.startswith("Memory ran out in Stage 2. Going on with ")
        assert f"with {actors.plan.stage2_batch} instead of {before} chunks at once" in said


def test_stepping_down_ends_with_a_sentence_and_never_goes_up_again(tiny_set: Path) -> None:
    actors, _ = cast(tiny_set, Watched)
    batches = []
    with pytest.raises(NothingSmaller, match="nothing that it holds can be made smaller") as caught:
        for _ in range(200):
            actors.fall_back(2)
            batches.append(actors.plan.stage2_batch)
    assert "resume" in caught.value.hint
    assert batches == sorted(batches, reverse=True) and batches[-1] == 1


def test_both_stages_limits_are_kept_in_mind(tiny_set: Path) -> None:
    actors, _ = cast(tiny_set, Watched)
    actors.fall_back(2)
    refining = actors.plan.steps[1].bytes
    actors.fall_back(1)
    assert actors.plan.steps[1].bytes <= refining


# Aside


def test_tensors_that_leave_come_back_as_they_were() -> None:
    weight, cache = torch.randn(40, 30), torch.randn(7)
    view, same = weight[3:9].t(), weight.clone()
    aside, before = ParkedTensors([weight, view]), cache.clone()
    for _ in range(2):
        aside.leave([cache])
        assert weight.untyped_storage().nbytes() == cache.untyped_storage().nbytes() == 0
        assert weight.shape == (40, 30) and aside.bytes == (1200 + 7) * 4
        aside.back()
        assert torch.equal(weight, same) and torch.equal(view, same[3:9].t()) and torch.equal(cache, before)
        assert aside.bytes == 1200 * 4, "weights' copies stay, caches' go"
        cache.add_(1), before.add_(1)


def test_leaving_twice_is_an_error_and_coming_back_half_way_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.ones(10), torch.full((20,), 2.0)
    aside = ParkedTensors([first, second])
    aside.leave()
    with pytest.raises(RuntimeError, match="already"):
        aside.leave()

    def full(storage: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    from offload import parking as module

    real, calls = module._bytes, []

    def second_time_full(storage: Any) -> Tensor:
        calls.append(storage)
        return full(storage) if len(calls) == 2 else real(storage)

    monkeypatch.setattr(module, "_bytes", second_time_full)
    with pytest.raises(torch.OutOfMemoryError):
        aside.back()
    aside.back()
    assert torch.equal(first, torch.ones(10)) and torch.equal(second, torch.full((20,), 2.0))


def test_the_torch_engine_goes_on_after_it_waited(tiny_set: Path) -> None:
    """Its open session too: with its caches left in place, and with them aside."""
    engine = open_engine(tiny_set / "stage1", EngineConfig())
    with engine.open([40]) as undisturbed:
        undisturbed.prefill(0, list(range(1, 21)))
        wanted = [undisturbed.step(torch.tensor([t])) for t in range(3)]
    assert isinstance(engine, Offloadable)
    for caches in (False, True):
        with engine.open([40]) as session:
            session.prefill(0, list(range(1, 21)))
            got = []
            for t in range(3):
                engine.park(caches)
                assert engine.weight_bytes and engine._network.embedding.untyped_storage().nbytes() == 0  # type: ignore[attr-defined]
                engine.unpark()
                got.append(session.step(torch.tensor([t])))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    engine.unload()
