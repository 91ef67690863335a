"""The measurements run, count what they say they count, and end in one JSON line."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_exllamav2 as fake
import pytest
import torch

from tools.make_set import make_set
from yuegp.bench import exl2_noise, lm, reference
from yuegp.cli import main
from yuegp.errors import DeviceError, RequestError
from yuegp.lm import EngineConfig, LMEngine
from yuegp.lm.exl2.engine import Exl2LM


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrower and shorter than what the command measures, for the same code."""
    monkeypatch.setattr(lm, "STEPS", 4)
    monkeypatch.setattr(lm, "REPEATS", 10)
    narrow = {"stage1": (1024, 2816, 8, 2), "stage2": (1024, 2816, 8, 8)}
    for name, (hidden, ffn, heads, kv_heads) in narrow.items():
        shape = replace(lm.SHAPES[name], vocab_size=54_000, hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads)
        monkeypatch.setitem(lm.SHAPES, name, shape)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main.main(["bench", *words, "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("preset", ["stage1", "stage2"])
def test_lm_of_released_shape_made_small(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = told(capsys, "lm", "--preset", preset, "--contexts", "20", "40", "--weights", "int8")
    assert data["random_weights"] and data["shape"]["layers"] == 4 and data["setup"]["weights"] == "int8"
    assert [c["context"] for c in data["contexts"]] == [20, 40]
    assert data["distinct_of_100"] == 1
    assert data["copy_gb_per_s"] > 0 and data["peak_bytes"] >= data["steady_bytes"] > 0
    for figure in data["contexts"]:
        assert figure["rows"] == (8 if preset == "stage2" else 2)
        assert 0 < figure["floor_ms"] and figure["share_of_copy"] == pytest.approx(
            figure["floor_ms"] / figure["ms_per_step"], rel=0.01
        )


def test_lm_of_the_built_in_set_and_streamed(capsys: pytest.CaptureFixture[str]) -> None:
    data = told(capsys, "lm", "--preset", "demo", "--contexts", "30", "--resident", "1")
    assert not data["random_weights"] and data["setup"]["resident"] == 1


def test_lm_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_set(tmp_path / "set", "tiny") / "stage1"
    data = told(capsys, "lm", "--folder", str(folder), "--contexts", "30", "--rows", "4")
    assert data["contexts"][0]["rows"] == 4


def test_a_card_gets_the_real_sizes_and_a_processor_small_ones() -> None:
    for preset, weights in (("stage1", "bfloat16"), ("stage2", "float16")):
        on_card = lm.job(preset, EngineConfig(device="cuda", weights=weights))
        assert on_card.config == lm.SHAPES[preset] and on_card.contexts == lm.CONTEXTS[preset]
        two = lm.job(preset, EngineConfig(), layers=2)
        assert (two.config.hidden, two.config.layers) == (on_card.config.hidden, 2)
        small = lm.job(preset, EngineConfig())
        assert (small.config.hidden, small.config.layers) == (on_card.config.hidden // 8, 4)


def test_the_floor_counts_every_byte_a_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    job = lm.job("stage2", EngineConfig(), contexts=[50])
    monkeypatch.setattr(lm, "copy_bandwidth", lambda device: 1e9)
    data = json.loads(lm.run(job, lambda text: None))
    c = job.config
    layers = 4 * (2 * c.layers * (4 * c.hidden**2 + 3 * c.hidden * c.ffn) / 2 + 2 * c.layers * c.hidden)
    caches = 8 * (50 + lm.WARMUP + lm.STEPS // 2) * 4 * c.kv_values
    head = 7168 * c.hidden * 4
    assert data["contexts"][0]["floor_ms"] == pytest.approx(1000 * (layers + caches + head) / 1e9, rel=1e-3)


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(RequestError, match="context of 99999 ids"):
        lm.job("stage1", EngineConfig(), contexts=[99999])


@pytest.mark.parametrize("words", [("--ids", "7"), ("--ids", "0"), ("--rounds", "0")])
def test_lengths_that_cannot_be_timed_are_said(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "loops", *words]) == 2
    assert "even number" in (said := capsys.readouterr().err) or "at least one round" in said


def test_random_exl2_weights_are_written_measured_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine over a stand-in for ExLlamaV2, as on a card."""
    opened: list[Path] = []

    def open_engine(folder: Path, setup: EngineConfig, progress: Any) -> LMEngine:
        opened.append(folder)
        assert setup.weights == "exl2" and folder.is_relative_to(tmp_path)
        return fake.engine(folder)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(lm, "check_engine", lambda device: None)
    monkeypatch.setattr(lm, "open_engine", open_engine)
    monkeypatch.setattr(Exl2LM, "warmup", 2)
    job = lm.job("stage1", EngineConfig("exl2", weights="exl2"), contexts=[20], bits=4.5)
    data = json.loads(lm.run(job, lambda text: None))
    assert data["random_weights"] and data["bits"] == 4.5 and data["setup"]["engine"] == "exl2"
    assert data["distinct_of_100"] == 1 and data["contexts"][0]["ms_per_step"] > 0
    assert len(opened) == 1 and not any(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["lm", "song"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_written_for_an_engine_that_is_not_here(
    what: str, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No card, or a card without the package."""

    def absent(card: int) -> None:
        raise DeviceError("The ExLlamaV2 engine is not installed.")

    def write(*args: Any, **more: Any) -> None:
        raise AssertionError("a folder was made")

    monkeypatch.setattr("yuegp.cli.bench._device", lambda arguments: device)
    monkeypatch.setattr(exl2_noise, "load_package", absent)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", write)
    assert main.main(["bench", what, "--engine", "exl2", "--bits", "6", "--vram", "10GB"]) == 4
    said = {"cpu": "NVIDIA cards only; this measurement would run on cpu", "cuda": "is not installed"}
    assert said[device] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("lm --bits 8", "The torch engine has no --bits"),
        ("song --bits 8", "The torch engine has no --bits"),
        ("lm --engine exl2 --bits 9", "no weights of 9 bits"),
        ("lm --engine exl2 --bits 0", "no weights of 0 bits"),
        ("lm --engine exl2 --bits 8 --folder somewhere", "somewhere has its own"),
        ("lm --engine exl2 --bits 8 --preset demo", "the built-in set has its own"),
        ("lm --engine exl2 --weights int8", "not held as int8 by the engine exl2"),
        ("lm --weights exl2", "not held as exl2 by the engine torch"),
        ("lm --engine exl2 --resident 3", "does not stream"),
        ("lm --preset released", "one language model"),
        ("vs-reference --engine exl2", "torch engine"),
        ("loops --engine exl2", "torch engine"),
        ("vs-reference --resident 4", "Of 4 layers, 4 cannot be resident"),
        ("vs-reference --resident -1", "Of 4 layers, -1 cannot be resident"),
    ],
)
def test_options_that_cannot_go_together(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", *words.split(), "--device", "cpu"]) == 2
    assert said in capsys.readouterr().err


def test_a_cuda_copy_is_not_asked_of_a_processor() -> None:
    assert lm.copy_bandwidth(torch.device("cpu")) > 1e8


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_against_transformers_own_loop(stage: str) -> None:
    data = json.loads(reference.versus(stage, "cpu", layers=None, ids=6, rounds=1, frames=3, say=lambda text: None))
    assert data["bench"] == "vs-reference" and data["layers"] == 4 and data[f"{stage}_ratio"] > 0


def test_the_built_in_set_has_no_reference_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "vs-reference", "--preset", "demo", "--device", "cpu"]) == 2
    assert "no released loop" in capsys.readouterr().err
