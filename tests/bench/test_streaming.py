"""Our streaming against accelerate's hooks: both sides compute the same with the same layers away."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from yuegp.bench import lm, streaming
from yuegp.bench.reference import size_of
from yuegp.cli import main


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(lm.SHAPES["stage1"], vocab_size=5000, hidden=512, ffn=1408, heads=16, kv_heads=8)
    monkeypatch.setitem(lm.SHAPES, "stage1", shape)


@pytest.mark.parametrize("resident", [0, 1, 3])
def test_both_sides_compute_the_same(resident: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "vs-reference", "--resident", str(resident), "--ids", "3", "--rounds", "2", "--device", "cpu"]
    assert main.main(words) == 0
    out = capsys.readouterr().out
    data = json.loads(out.splitlines()[-1])
    assert data["bench"] == "vs-reference" and (data["layers"], data["resident"]) == (4, resident)
    assert 0 <= data["difference"] < 1e-4
    ours, theirs = data["stage1_streamed_ms"], data["stage1_streamed_accelerate_ms"]
    assert ours > 0 and data["stage1_streamed_ratio"] == pytest.approx(theirs / ours, abs=0.02)
    assert "says nothing about cards" in out
    weights = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176 + 2 * 64
    assert data["streamed_bytes"] == (4 - resident) * 4 * weights


@pytest.mark.gpu
def test_on_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "vs-reference", "--resident", "2", "--layers", "6", "--ids", "3", "--device", "cuda"]
    assert main.main(words) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert data["difference"] < 0.05 and data["streamed_bytes"] > 0 and data["moving_ms"] > 0


def test_the_same_layers_are_away_on_both_sides() -> None:
    waiting, engine, model = streaming._pair(size_of("stage1", "cpu"), 1)
    away = [i for i, layer in enumerate(model.model.layers) if layer.mlp.up_proj.weight.is_meta]
    assert away == [1, 2, 3] and waiting.resident == 1 and engine.setup.resident == 1
    assert not model.lm_head.weight.is_meta and not model.model.embed_tokens.weight.is_meta


def test_a_difference_would_be_told() -> None:
    _, engine, model = streaming._pair(size_of("stage1", "cpu"), 1)
    model.lm_head.weight.mul_(1.5)
    one, other = streaming.partial(streaming._ours, engine), streaming.partial(streaming._theirs, model, "cpu")
    assert streaming._difference(one, other, "cpu") == pytest.approx(1 / 3, rel=1e-3)


def test_without_accelerate_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main.main(["bench", "vs-reference", "--resident", "1", "--device", "cpu"]) == 4
    assert "accelerate, which this is compared with, is not installed" in capsys.readouterr().err
