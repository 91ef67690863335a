"""Decoding steps of fixed shape: what a card records and plays back equals the plain way, step for step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from layouts import VOCAB, tiny_llama

from yuegp.lm import EngineConfig
from yuegp.lm.llama import cache
from yuegp.lm.llama.engine import TorchLM
from yuegp.lm.llama.graph import Decoder

ENGINES = Iterator[tuple[TorchLM, TorchLM]]


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["MHA", "GQA2", "GQA4"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ENGINES:
    """The same model twice: slicing rows to their lengths, and with steps of fixed shape."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_llama(num_key_value_heads=request.param).save_pretrained(folder)
    plain, fixed = TorchLM.load(folder), TorchLM.load(folder)
    fixed.fixed = True
    assert not plain.fixed
    yield plain, fixed


def some_ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("busy", [1, 10_000], ids=["whole", "in pieces"])
def test_every_step_equals_the_plain_way(
    both: tuple[TorchLM, TorchLM], busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of other lengths and capacities, one id and two, cut, copied and prefilled in between, over a stretch."""
    monkeypatch.setattr(cache, "BUSY", busy)
    monkeypatch.setattr(cache, "STRETCH", 64)
    ids = torch.tensor(some_ids(400, 3)).view(-1, 4)
    ways = []
    for engine in both:
        heard = []
        with engine.open([300, 300, 90, 90], range(100)) as lm:
            heard.append(lm.prefill(0, some_ids(50, 1)))
            lm.copy(0, 1)
            heard += [lm.prefill(2, some_ids(1, 2)), lm.prefill(3, some_ids(4, 2))]
            heard += [lm.step(row) for row in ids[:30]]
            lm.truncate(0, 20), lm.truncate(3, 0)
            heard += [lm.step(ids[30 + 2 * i : 32 + 2 * i].T, slice(5, 50)) for i in range(5)]
            lm.copy(1, 0), heard.append(lm.prefill(2, some_ids(7, 5)))
            heard += [lm.step(row) for row in ids[40:70]]
            assert [lm.length(row) for row in range(4)] == [120, 120, 78, 40]
        ways.append(heard)
    for plain, fixed in zip(*ways, strict=True):
        torch.testing.assert_close(fixed, plain, rtol=1e-4, atol=2e-5)


def test_few_shapes_are_recorded_however_long_the_song(both: tuple[TorchLM, TorchLM]) -> None:
    _, engine = both
    wide = [cache.KVCache(engine._network.config, 64, 2703, torch.zeros(1), fixed=True)]
    narrow = [cache.KVCache(engine._network.config, 2, 2000, torch.zeros(1), fixed=True)]
    seen: dict[int, set[tuple[int, ...]]] = {64: set(), 2: set()}
    for length in range(1998):
        for bank in (wide, narrow):
            bank[0].lengths = [length] * len(bank[0].lengths)
            (reach,) = cache.stretches(bank, 2)
            assert length + 2 <= reach <= bank[0].kv.shape[4]
            seen[len(bank[0].lengths)].add((reach,))
    assert len(seen[2]) == 1 and len(seen[64]) == 4


def test_what_lies_behind_the_end_of_a_row_is_never_heard(both: tuple[TorchLM, TorchLM]) -> None:
    """Stale keys of a longer past, even absurd ones, have no weight after a rewind."""
    _, engine = both
    with engine.open([300]) as lm:
        lm.prefill(0, some_ids(10))
        expected = lm.step(torch.tensor([5]))
        lm.truncate(0, 10)
        lm._banks[0].kv[:, :, :, :, 11:] = 1e4
        assert torch.equal(lm.step(torch.tensor([5])), expected)


def test_steps_repeat_exactly(both: tuple[TorchLM, TorchLM]) -> None:
    _, engine = both
    with engine.open([80, 80]) as lm:
        lm.prefill(0, some_ids(40)), lm.prefill(1, some_ids(3))
        first = lm.step(torch.tensor([7, 8]))
        for _ in range(99):
            lm.truncate(0, 40), lm.truncate(1, 3)
            assert torch.equal(lm.step(torch.tensor([7, 8])), first)


def test_half_precision_stays_close(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    ids = some_ids(60, 9)
    logits = []
    for weights, is_fixed in (("float32", False), ("float16", True), ("bfloat16", True)):
        engine = TorchLM.load(tmp_path, EngineConfig(weights=weights))
        engine.fixed = is_fixed
        with engine.open([80, 64]) as lm:
            lm.prefill(0, ids[:50]), lm.prefill(1, ids[:9])
            logits.append(lm.step(torch.tensor([ids[50], ids[9]])).float())
    for other, allowed in ((logits[1], 0.005), (logits[2], 0.05)):
        assert float((other - logits[0]).norm() / logits[0].norm()) < allowed


class Recorded:
    """Stands for a CUDA graph: playing it back does what was run while it was open, into the same result."""

    open: Recorded | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, torch.Tensor]] = []

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def replay(self) -> None:
        for again, result in self.calls:
            result.copy_(again())


def test_what_is_recorded_is_what_is_played(both: tuple[TorchLM, TorchLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's way with a stand-in for the card: one recording per shape, played with ever new ids and lengths."""
    plain, fixed = both
    run, recordings = Decoder._run, []

    @contextlib.contextmanager
    def record(graph: Recorded, pool: object = None, capture_error_mode: str = "") -> Iterator[None]:
        assert (pool is None) is (not recordings) and capture_error_mode == "thread_local"
        recordings.append(graph)
        Recorded.open = graph
        yield
        Recorded.open = None

    def spied(decoder: Decoder, key: Any) -> torch.Tensor:
        result = run(decoder, key)
        if Recorded.open:
            Recorded.open.calls.append((lambda: run(decoder, key), result))
        return result

    monkeypatch.setattr(cache, "STRETCH", 32)
    monkeypatch.setattr(cache, "BUSY", 1)
    monkeypatch.setattr(Decoder, "_run", spied)
    for name, stand_in in {
        "CUDAGraph": Recorded,
        "graph": record,
        "device": contextlib.nullcontext,
        "stream": contextlib.nullcontext,
        "Stream": mock.Mock,
        "current_stream": mock.Mock,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    ids = torch.tensor(some_ids(200, 3)).view(-1, 2)
    ways = []
    for engine in (plain, fixed):
        with engine.open([120, 120], range(50)) as lm:
            if lm._decoder:
                lm._decoder._record = True
            lm.prefill(0, some_ids(20)), lm.prefill(1, some_ids(4))
            heard = [lm.step(row) for row in ids[:60]]
            lm.truncate(0, 10)
            heard += [lm.step(ids[60 + i : 62 + i].T) for i in range(10)]
            ways.append(heard)
    for expected, played in zip(*ways, strict=True):
        torch.testing.assert_close(played, expected, rtol=1e-4, atol=2e-5)
    assert len(recordings) == 4 and all(len(recording.calls) == 1 for recording in recordings)
