"""Files of noise: every tensor is there, none repeats another, and a full disk is noticed before it is full."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from yuegp.bench import exl2_noise
from yuegp.bench.lm import SHAPES
from yuegp.bench.noise import Noise, Part, cut, given, save
from yuegp.checkpoints.config import LlamaConfig, read_config
from yuegp.errors import DeviceError
from yuegp.lm.exl2.format import look_into

SHAPE = LlamaConfig(vocab_size=1344, hidden=128, ffn=384, layers=3, heads=4, kv_heads=2, head_dim=32, context=2048)


def test_tensors_are_cut_from_one_block_again_and_again(tmp_path: Path) -> None:
    noise, known = Noise(np.arange(10, dtype=np.float32)), np.array([[1], [2]], np.int16)
    parts = {"a": cut(noise, "F32", (4,)), "b": given(known), "c": cut(noise, "F32", (3, 6))}
    save(tmp_path / "new" / "x.safetensors", parts)
    read = load_file(tmp_path / "new" / "x.safetensors")
    assert read["a"].tolist() == [0, 1, 2, 3] and (read["b"] == known).all()
    assert read["c"].ravel().tolist() == [(4 + i) % 10 for i in range(18)]


def test_a_tensor_of_another_size_than_told_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a has 8 bytes instead of 12"):
        save(tmp_path / "x", {"a": Part("F32", (3,), lambda: [memoryview(bytes(8))])})


def test_a_disk_without_room_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(DeviceError, match=r"2\.00 GB do not fit .* where 1\.00 GB are free"):
        save(tmp_path / "x", {"a": cut(Noise(np.zeros(1, np.float32)), "F32", (500, 10**6))})
    assert not (tmp_path / "x").exists()


def test_an_exl2_model_longer_than_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers differ all the same, and are of the wanted size, bits and spread."""
    monkeypatch.setattr(exl2_noise, "BLOCK", 10_007)
    found = look_into(exl2_noise.write_random(tmp_path, SHAPE, 6, 8), "exl2")
    assert read_config(tmp_path) == SHAPE == found.config
    first, second = (found.floats(f"model.layers.{i}.mlp.up_proj.weight").float() for i in (0, 1))
    assert abs(float((first * second).mean() / first.std() / second.std())) < 0.1
    assert float(first.std()) == pytest.approx(128**-0.5, rel=0.15)
    words = found.read("model.layers.0.mlp.up_proj.q_weight")
    assert words.shape == (6 * 128 // 32, 384)


def test_the_released_shapes_can_be_written() -> None:
    """Inputs come in groups, outputs in words of eight scales."""
    for config in SHAPES.values():
        for name, shape in config.tensors().items():
            if exl2_noise.packed(name):
                parts = exl2_noise.shapes(shape[1], shape[0], 8)
                assert parts["q_weight"][1] == (shape[1] // 4, shape[0]) and shape[0] % 8 == 0
