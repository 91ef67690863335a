"""The released `.pth` files: read without running code, rewritten once, and recorded."""

from __future__ import annotations

import hashlib
import os
import pickletools
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tools.make_set import SIZES, write_codec
from yuegp.codec import check_codec, load_codec
from yuegp.codec.convert import convert, source_of
from yuegp.codec.files import codec_file, read_state
from yuegp.errors import Cancelled, ModelError

NAMES = ("final_ckpt/ckpt_00360000", "decoders/decoder_131000", "decoders/decoder_151000")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pth") / "xcodec_mini_infer"
    write_codec(folder, SIZES["tiny"].codec, seed=1, pth=True)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "a codec"))


def test_every_tensor_is_kept_bit_for_bit_and_the_training_state_is_not(folder: Path) -> None:
    path = folder / f"{NAMES[0]}.pth"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "optimizer_g": {"step": torch.zeros(1000)}}, path)
    assert len(convert(folder)) == 3
    kept = load_file(folder / f"{NAMES[0]}.safetensors")
    assert kept.keys() == state["codec_model"].keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in state["codec_model"].items())


def test_the_new_files_name_the_checksum_of_the_old_and_take_their_place(folder: Path) -> None:
    convert(folder)
    for name in NAMES:
        digest = hashlib.sha256((folder / f"{name}.pth").read_bytes()).hexdigest()
        assert source_of(folder / f"{name}.safetensors") == digest
        assert codec_file(folder, name).suffix == ".safetensors"
    for name in NAMES:
        (folder / f"{name}.pth").unlink()
    check_codec(folder, encode=True)
    load_codec(folder, encode=True)


def test_it_is_done_once_and_again_when_the_pickle_changes(folder: Path) -> None:
    convert(folder)
    assert convert(folder) == []
    path = folder / f"{NAMES[1]}.pth"
    state = torch.load(path, weights_only=True)
    state["backbone.embed.bias"] += 1
    torch.save(state, path)
    assert convert(folder) == [folder / f"{NAMES[1]}.safetensors"]
    written = load_file(folder / f"{NAMES[1]}.safetensors")
    assert torch.equal(written["backbone.embed.bias"], state["backbone.embed.bias"])


def test_a_safetensors_file_of_somebody_elses_is_left_alone(folder: Path) -> None:
    convert(folder)
    target = folder / f"{NAMES[2]}.safetensors"
    save_file({"a": torch.zeros(1)}, target)
    before = target.read_bytes()
    assert source_of(target) is None and convert(folder) == [] and target.read_bytes() == before


def test_a_damaged_conversion_is_named_with_what_to_do(folder: Path) -> None:
    convert(folder)
    target = folder / f"{NAMES[0]}.safetensors"
    target.write_bytes(target.read_bytes()[:-4])
    with pytest.raises(ModelError, match="cut short") as caught:
        convert(folder)
    assert "made again from the .pth" in caught.value.hint


class Bomb:
    """Runs a command when it is unpickled by anything that lets it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_that_runs_code_is_refused_and_not_run(folder: Path, tmp_path: Path, name: str) -> None:
    """YuE's own programs load these files with the safety off: whoever wrote the file runs as you."""
    mark, path = tmp_path / "it ran", folder / f"{name}.pth"
    torch.save({"codec_model": {"weight": torch.zeros(1)}, "weight": torch.zeros(1), "x": Bomb(mark)}, path)
    with pytest.raises(ModelError, match="cannot be read as plain tensors") as caught:
        convert(folder)
    assert name in caught.value.what and not mark.exists()
    with pytest.raises(ModelError, match="cannot be read as plain tensors"):
        read_state(path, None)  # as the loaders do
    assert not mark.exists() and not list(folder.rglob("*.tmp"))


def test_the_pickle_in_that_test_would_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    torch.save({"x": Bomb(mark)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as file:
        code = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    assert any(op.name == "REDUCE" for op, _, _ in pickletools.genops(code))
    assert any("mkdir" in str(argument) for _, argument, _ in pickletools.genops(code))


def test_nan_in_a_pickle_is_refused(folder: Path) -> None:
    path = folder / f"{NAMES[1]}.pth"
    state = torch.load(path, weights_only=True)
    state["backbone.embed.bias"][0] = float("nan")
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"not numbers .*backbone\.embed\.bias"):
        convert(folder)
    assert not (folder / f"{NAMES[1]}.safetensors").exists()


def test_names_that_share_memory_are_both_written(folder: Path) -> None:
    path = folder / f"{NAMES[0]}.pth"
    state = torch.load(path, weights_only=True)["codec_model"]
    state["fc_post1.bias"] = state["fc_post2.bias"][: len(state["fc_post1.bias"])]
    torch.save({"codec_model": state}, path)
    convert(folder)
    assert torch.equal(load_file(folder / f"{NAMES[0]}.safetensors")["fc_post1.bias"], state["fc_post1.bias"])


def test_a_place_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / f"{NAMES[0]}.safetensors" / "something").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"ckpt_00360000\.safetensors cannot be written"):
        convert(folder)
    assert not list(folder.rglob("*.tmp"))


def test_converting_can_be_stopped_and_leaves_nothing_half_done(folder: Path) -> None:
    def stop(*report: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        convert(folder, stop)
    assert not list(folder.rglob("*.safetensors")) and not list(folder.rglob("*.tmp"))
