"""Layers that pass through: the same numbers, whatever stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from layouts import VOCAB, released, tiny_llama

from yuegp.lm import EngineConfig
from yuegp.lm.llama.engine import TorchLM
from yuegp.lm.llama.streaming import StreamedLayers

IDS = torch.randint(0, VOCAB, (60,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released"), tiny_llama(num_hidden_layers=5))


def sing(engine: TorchLM) -> list[torch.Tensor]:
    with engine.open([80, 40]) as lm:
        heard = [lm.prefill(0, IDS[:40]), lm.prefill(1, IDS[:2])]
        return heard + [lm.step(torch.tensor([id_, id_])) for id_ in IDS[40:]]


@pytest.mark.parametrize("weights", ["float32", "int8", "nf4"])
@pytest.mark.parametrize("resident", [0, 2, 4])
def test_streamed_layers_give_identical_logits(folder: Path, weights: str, resident: int) -> None:
    engine = TorchLM.load(folder, EngineConfig(weights=weights, resident=resident))
    assert isinstance(engine._network.layers, StreamedLayers) and len(engine._network.layers._kept) == resident
    whole = TorchLM.load(folder, EngineConfig(weights=weights))
    for ours, wanted in zip(sing(engine), sing(whole), strict=True):
        assert torch.equal(ours, wanted)


def test_only_what_stays_and_two_rooms_count(folder: Path) -> None:
    whole = TorchLM.load(folder).weight_bytes
    rest = {n: TorchLM.load(folder, EngineConfig(resident=n)).weight_bytes for n in (0, 1, 2, 5)}
    assert rest[5] == whole
    layer = rest[2] - rest[1]
    assert rest[1] - rest[0] == layer and abs(whole - 3 * layer - rest[0]) <= 8 * 256


def test_the_next_pass_is_right_after_one_was_given_up(folder: Path) -> None:
    engine = TorchLM.load(folder, EngineConfig(resident=1))
    expected = sing(engine)
    layers = engine._network.layers
    for stop in range(1, 5):
        for index, _ in enumerate(layers):
            if index == stop:
                break
        assert all(map(torch.equal, sing(engine), expected))


def test_progress_says_how_slow_it_will_be(folder: Path) -> None:
    said: list[str] = []
    TorchLM.load(folder, EngineConfig(resident=2), lambda what, done, total: said.append(what))
    assert said[0] == "loading" and "3 of 5 layers do not stay on the card" in said[-1] and "s each time" in said[-1]
