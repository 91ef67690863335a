"""`bench song`: a song of noise through the whole program, and what is told of it."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import fake_exllamav2 as fake
import pytest

from offload.device import GIB, Machine, imagined
from yuegp.bench import song
from yuegp.checkpoints import sets
from yuegp.codec import check_codec
from yuegp.codec.layout import CodecWidths, decode_shapes
from yuegp.generation import memory, pipeline
from yuegp.generation.released import RELEASED_SOUND, RELEASED_STAGE1
from yuegp.lm.exl2.engine import Exl2LM
from yuegp.lm.exl2.format import look_into
from yuegp.song.schema import Section, SongRequest


def test_the_noise_is_a_set_like_any_other(tmp_path: Path) -> None:
    found = sets.find(str(song.random_set(tmp_path / "set", "demo")))
    sets.check(found)
    check_codec(found.codec)
    assert found.layout.name == "yue-v1"


def test_a_song_is_made_as_long_as_it_may_become_and_told_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    row = json.loads(song.run(song.SongBenchmark("demo", "cpu", None, None, 2, 1.0), said.append))
    assert row["song_seconds"] == 2.0 and set(row["seconds"]) == {"stage1", "stage2", "sound", "all"}
    assert row["models_brought"] >= 2 and row["planned"] > 0 and row["notes"] == []
    assert any(line.startswith("peak ") for line in said)


def test_the_real_shapes_are_the_released_ones() -> None:
    parameters = sum(math.prod(shape) for shape in RELEASED_STAGE1.config.tensors().values())
    assert parameters == pytest.approx(6.224e9, rel=1e-3)
    assert RELEASED_SOUND.weights > 4 * sum(math.prod(shape) for shape in decode_shapes(CodecWidths()).values())


def test_with_exl2_only_stage_1_is_written_in_its_layout(tmp_path: Path) -> None:
    found = sets.find(str(song.random_set(tmp_path / "set", "demo", 8)))
    sets.check(found)
    assert look_into(found.stage1, "exl2").config == song.SMALL[0]
    assert look_into(found.stage2, "bfloat16").config == song.SMALL[1]


@pytest.mark.parametrize("bits", [8, 4.25])
def test_the_plan_for_a_card_holds_it_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: float) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if "exllamav2" in name else real(name))
    folder = song.random_set(tmp_path / "set", "demo", bits)
    plan = pipeline.plan(SongRequest((Section("verse", "la"),), "pop", model=str(folder), seed=1))
    job = song.SongBenchmark("demo", "cuda", "10GB", engine="exl2")
    here = Machine((imagined(10 * GIB),), 16 * GIB, 16 * GIB)
    found = memory.foresee(plan, here, "cuda", job.wishes)
    assert (found.stage1_format.engine, found.stage1_format.bits, found.stage2_format.engine) == ("exl2", bits, "torch")
    assert song.SongBenchmark("demo", "cuda").wishes == memory.ANY


def test_a_song_with_exl2_and_what_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole program, with a stand-in for ExLlamaV2 on the processor."""
    monkeypatch.setattr(song, "check_engine", lambda device: None)
    monkeypatch.setattr(memory, "_lacking", lambda card: "")
    loaded: list[Path] = []

    def load(folder: Path, setup: object, progress: object = None) -> Exl2LM:
        loaded.append(folder)
        return fake.engine(folder)

    monkeypatch.setattr(Exl2LM, "load", load)
    said: list[str] = []
    row = json.loads(song.run(song.SongBenchmark("demo", "cpu", None, None, 2, 1.0, "exl2", 6), said.append))
    assert row["song_seconds"] == 2.0 and row["engine1"].startswith("EXL2 6 bit") and "EXL2" not in row["engine2"]
    assert {folder.name for folder in loaded} == {"stage1"}
    assert "EXL2 of 6 bits" in said[0]
