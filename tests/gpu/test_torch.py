"""The same engine and the same song on a CUDA card. Skipped where there is none."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import bitsandbytes, int8_folder, released, tiny_llama
from llamas import save_llama, some_ids

from offload.sizes import blocks
from tools.make_set import make_set
from yuegp.generation import pipeline
from yuegp.library import store
from yuegp.lm import EngineConfig
from yuegp.lm.llama import cache
from yuegp.lm.llama.engine import TorchLM
from yuegp.song.schema import Section, SongRequest, Stage, TakeInfo

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_logits_on_the_card_equal_those_of_the_processor(tmp_path: Path, kv_heads: int) -> None:
    save_llama(tmp_path, kv_heads)
    ids = some_ids(60)
    logits = []
    for device in ("cpu", "cuda"):
        with TorchLM.load(tmp_path, EngineConfig(device=device)).open([80, 40]) as lm:
            lm.prefill(0, ids[:50]), lm.prefill(1, ids[:3])
            for t in range(50, 60):
                last = lm.step(torch.tensor([ids[t], ids[t]]))
            logits.append(last.cpu())
    assert float((logits[0] - logits[1]).abs().max()) < 1e-3


@pytest.mark.parametrize("weights", ["float32", "float16", "bfloat16"])
def test_played_back_steps_equal_the_plain_way(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several stretches, with one id and two, after rows were cut, copied and prefilled."""
    monkeypatch.setattr(cache, "STRETCH", 64)
    save_llama(tmp_path, 2, head_dim=64)
    ids = torch.tensor(some_ids(600)).view(-1, 3)
    ways = []
    for fixed in (False, True):
        engine = TorchLM.load(tmp_path, EngineConfig(device="cuda", weights=weights))
        assert engine.fixed
        engine.fixed = fixed
        heard = []
        with engine.open([600, 600, 300]) as lm:
            heard.append(lm.prefill(0, some_ids(200, 1)))
            lm.copy(0, 1), heard.append(lm.prefill(2, some_ids(3, 2)))
            heard += [lm.step(row) for row in ids[:80]]
            lm.truncate(0, 50), lm.truncate(2, 0)
            heard += [lm.step(ids[80 + 2 * i : 82 + 2 * i].T) for i in range(20)]
            lm.copy(0, 1), heard.append(lm.prefill(2, some_ids(40, 5)))
            heard += [lm.step(row, slice(10, 60)) for row in ids[120:]]
        ways.append([logits.float() for logits in heard])
    allowed = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}[weights]
    for plain, played in zip(*ways, strict=True):
        assert float((played - plain).norm() / plain.norm()) < allowed


@pytest.mark.parametrize("weights", ["float32", "float16", "bfloat16", "int8", "nf4"])
def test_a_step_repeats_exactly_100_times(tmp_path: Path, weights: str) -> None:
    released(tmp_path, tiny_llama())
    with TorchLM.load(tmp_path, EngineConfig(device="cuda", weights=weights)).open([300, 100]) as lm:
        lm.prefill(0, some_ids(200)), lm.prefill(1, some_ids(5))
        seen = set()
        for _ in range(100):
            seen.add(lm.step(torch.tensor([7, 8])).float().cpu().numpy().tobytes())
            lm.truncate(0, 200), lm.truncate(1, 5)
        assert len(seen) == 1


@pytest.mark.parametrize("weights", ["int8", "bnb8", "nf4"])
def test_packed_weights_on_the_card_equal_those_of_the_processor(tmp_path: Path, weights: str) -> None:
    source = released(tmp_path / "plain", tiny_llama())
    folder = tmp_path / weights
    int8_folder(folder, source) if weights == "int8" else bitsandbytes(folder, source, 8 if weights == "bnb8" else 4)
    logits = []
    for device in ("cpu", "cuda"):
        with TorchLM.load(folder, EngineConfig(device=device, weights=weights)).open([80]) as lm:
            lm.prefill(0, some_ids(60))
            logits.append(lm.step(torch.tensor([5])).float().cpu())
    assert float((logits[0] - logits[1]).norm() / logits[0].norm()) < 0.05


@pytest.mark.parametrize("resident", [0, 1])
def test_streamed_layers_give_the_same_numbers(tmp_path: Path, resident: int) -> None:
    save_llama(tmp_path, 2)
    logits = []
    for setup in (EngineConfig(device="cuda"), EngineConfig(device="cuda", resident=resident)):
        engine = TorchLM.load(tmp_path, setup)
        engine.fixed = False
        with engine.open([80, 40]) as lm:
            lm.prefill(0, some_ids(50)), lm.prefill(1, some_ids(3))
            for t in range(20):
                last = lm.step(torch.tensor([t, t + 1]))
            logits.append(last)
    assert torch.equal(*logits)


@pytest.mark.parametrize("caches", [False, True])
def test_a_model_that_waits_in_ram_leaves_the_card_and_comes_back_equal(tmp_path: Path, caches: bool) -> None:
    """Its recorded steps too: they refer to places that are given away meanwhile."""
    released(tmp_path, tiny_llama(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, head_dim=64))
    engine, ids = TorchLM.load(tmp_path, EngineConfig(device="cuda", weights="float16")), some_ids(20)
    heard: list[list[torch.Tensor]] = [[], []]
    for turns, logits in zip((False, True), heard, strict=True):
        with engine.open([400]) as lm:
            lm.prefill(0, some_ids(300, 1))
            for id_ in ids:
                if turns:
                    held = torch.cuda.memory_allocated()
                    engine.park(caches)
                    assert torch.cuda.memory_allocated() < held - 0.9 * engine.weight_bytes
                    engine.unpark()
                logits.append(lm.step(torch.tensor([id_])).clone())
    assert all(torch.equal(a, b) for a, b in zip(*heard, strict=True))
    engine.unload()


def test_torch_gives_out_the_cards_memory_as_the_plan_counts_it() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    sizes = [part << 19 for part in (16, 2, 3, 16, 43, 43, 43, 17, 3, 2, 17, 46, 7, 39)] * 8
    held = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
    assert abs(torch.cuda.memory_reserved() - before - blocks(sizes)) <= 22 << 20, "but for what was open before"
    del held


def test_five_loads_leave_nothing_on_the_card(tmp_path: Path) -> None:
    released(tmp_path, tiny_llama(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, head_dim=64))
    left = []
    for _ in range(5):
        engine = TorchLM.load(tmp_path, EngineConfig(device="cuda", weights="bfloat16"))
        with engine.open([512, 512]) as lm:
            lm.prefill(0, some_ids(100)), lm.prefill(1, some_ids(1))
            for t in range(10):
                lm.step(torch.tensor([t, t]))
        del lm
        engine.unload()
        gc.collect()
        torch.cuda.empty_cache()
        left.append(torch.cuda.mem_get_info()[0])
    assert torch.cuda.memory_allocated() < 50 * 2**20
    assert left[0] - left[-1] < 50 * 2**20


def test_a_song_on_the_card_is_the_same_every_time(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", "tiny")
    request = SongRequest((Section("verse", "one two"), Section("outro", "three")), "pop piano", model=str(folder),
                          section_seconds=1.5)  # fmt: skip
    codes = []
    for _ in range(2):
        plan = pipeline.plan(request)
        song = store.create(plan.request, tmp_path / "songs")
        take = song.new_take(TakeInfo(number=0, request=song.request))
        pipeline.run(replace(plan, request=song.request), take, device="cuda")
        assert take.info.stage is Stage.RENDERED and take.info.made_with is not None
        assert take.info.made_with.device == "cuda"
        codes.append(take.load_stage2())
    assert (codes[0][0] == codes[1][0]).all()
