"""Packed formats by their names and shapes, tensors too many, and the search for NaN. Plain sets are in test_models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released import STAGE1, pretend_exl2, write_released
from safetensors.numpy import load_file, save_file

from yuegp.checkpoints.config import read_config
from yuegp.checkpoints.safetensors import safetensors_header, scan_file
from yuegp.checkpoints.verify import check_tensors, language_model, weight_files
from yuegp.errors import Cancelled, ModelError

Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("m")) / STAGE1


def repack(plain: Path, target: Path, change: Callable[[str, Any], Tensors]) -> Path:
    """A folder in which every matrix but the embedding and the output layer is replaced by `change(name, matrix)`."""
    from safetensors.torch import load_file as load_torch

    tensors: Tensors = {}
    for path in weight_files(plain):
        for name, tensor in load_torch(path).items():
            values = tensor.float().numpy().astype(np.float16)
            tensors |= change(name, values) if name.endswith("proj.weight") else {name: values}
    target.mkdir()
    shutil.copy(plain / "config.json", target)
    save_file(tensors, target / "model.safetensors")
    return target


def nf4(name: str, matrix: Any) -> Tensors:
    return {
        name: np.zeros((matrix.size // 2, 1), np.uint8),
        f"{name}.absmax": np.zeros(2, np.uint8),
        f"{name}.quant_map": np.zeros(16, np.float32),
        f"{name}.nested_absmax": np.zeros(1, np.float32),
        f"{name}.nested_quant_map": np.zeros(256, np.float32),
        f"{name}.quant_state.bitsandbytes__nf4": np.zeros(90, np.uint8),
    }


def bnb8(name: str, matrix: Any) -> Tensors:
    stem = name.removesuffix("weight")
    return {
        name: np.zeros(matrix.shape, np.int8),
        f"{stem}SCB": np.ones(len(matrix), np.float32),
        f"{stem}weight_format": np.zeros((), np.uint8),
    }


def int8(name: str, matrix: Any) -> Tensors:
    return {name: np.zeros(matrix.shape, np.int8), f"{name}.scale": np.ones(len(matrix), np.float16)}


@pytest.mark.parametrize(("pack", "kind"), [(nf4, "nf4"), (bnb8, "bnb8"), (int8, "int8")])
def test_packed_folders_are_known_by_their_tensors(plain: Path, tmp_path: Path, pack: Any, kind: str) -> None:
    assert language_model(repack(plain, tmp_path / kind, pack)).stored == kind


def test_plain_and_exl2_folders_are_known_too(plain: Path, tmp_path: Path) -> None:
    assert language_model(plain).stored == "bfloat16"
    found = language_model(pretend_exl2(plain, tmp_path / "exl2", 4.25))
    assert (found.stored, found.bits) == ("exl2", 4.25)


@pytest.mark.parametrize("pack", [nf4, bnb8, int8])
def test_a_packed_matrix_of_another_shape_is_refused(plain: Path, tmp_path: Path, pack: Any) -> None:
    folder = repack(plain, tmp_path / "x", pack)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name][:-1]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"do not have the shapes .*layers\.1\.mlp\.down_proj\.weight"):
        language_model(folder)


def test_packed_weights_without_their_scales_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = repack(plain, tmp_path / "x", lambda name, m: {name: np.zeros(m.shape, np.int8)})
    with pytest.raises(ModelError, match=r"quantized in a way .*q_proj\.weight \(I8\)"):
        language_model(folder)


def test_a_format_nobody_here_reads_is_refused_with_what_was_found(plain: Path, tmp_path: Path) -> None:
    def gptq(name: str, matrix: Any) -> Tensors:
        return {name.replace("weight", "qweight"): np.zeros((2, len(matrix)), np.int32)}

    with pytest.raises(ModelError, match=r"lack 14 of 21 tensors: .* It holds 14 others: .*qweight") as caught:
        language_model(repack(plain, tmp_path / "x", gptq))
    assert "cannot read" in caught.value.hint


def test_tensors_too_many_are_counted_and_the_first_five_named(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "two"))
    index = folder / "model.safetensors.index.json"
    extra = {f"model.layers.{n}.mlp.experts.weight": np.zeros(1, np.float16) for n in range(7)}
    save_file(extra, folder / "other.safetensors")
    data = json.loads(index.read_text())
    data["weight_map"] |= dict.fromkeys(extra, "other.safetensors")
    index.write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"hold 7 tensors that a YuE model does not have: .* and 2 more"):
        language_model(folder)


def test_the_buffer_that_old_transformers_stored_is_no_stranger(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "old"))
    save_file({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}, folder / "rope.safetensors")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = "rope.safetensors"
    index.write_text(json.dumps(data))
    assert language_model(folder).stored == "bfloat16"


def test_an_adapter_beside_the_model_is_not_part_of_it(plain: Path, tmp_path: Path) -> None:
    folder = repack(plain, tmp_path / "x", int8)
    save_file({"a": np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]


def test_nan_is_found_anywhere_in_a_file_however_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yuegp.checkpoints.safetensors.SCAN_BLOCK", 7)
    for at in (0, 6, 7, 99):
        values = np.ones(100, np.float32)
        values[at] = np.nan
        path = tmp_path / f"{at}.safetensors"
        save_file({"fine": np.ones(3, np.float16), "broken": values}, path)
        with pytest.raises(ModelError, match=r"not numbers \(NaN or infinite\): broken"):
            scan_file(path, safetensors_header(path))


def test_a_scan_reports_its_way_and_can_be_stopped(plain: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    check_tensors(plain, read_config(plain), lambda *report: seen.append(report))
    done = [at for _, at, _ in seen]
    assert done == sorted(done) and done[-1] == seen[-1][2] == sum(p.stat().st_size for p in weight_files(plain))

    def stop(*report: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        check_tensors(plain, read_config(plain), stop)
