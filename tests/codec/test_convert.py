"""The released `.pth` files: read without running code, rewritten once, and recorded."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from released import as_trained, save_trained
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
    as_trained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "a codec"))


def test_every_tensor_is_kept_bit_for_bit_and_the_training_state_is_not(folder: Path) -> None:
    path = folder / f"{NAMES[0]}.pth"
    state = read_state(path, "codec_model")
    state |= {"steps": torch.tensor(360_000), "half": torch.ones(3, dtype=torch.bfloat16), "on": torch.tensor([True])}
    state["turned"] = torch.arange(6.0).reshape(2, 3).T
    save_trained(path, {"codec_model": state})
    assert len(convert(folder)) == 3
    target = folder / f"{NAMES[0]}.safetensors"
    kept = load_file(target)
    assert kept.keys() == state.keys() and target.stat().st_size < path.stat().st_size
    assert all(torch.equal(kept[name], tensor) and kept[name].dtype == tensor.dtype for name, tensor in state.items())


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
    state = read_state(path, None)
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
def test_a_pickle_that_would_run_code_is_converted_without_it(folder: Path, tmp_path: Path, name: str) -> None:
    """YuE's own programs load these files with the safety off: whoever wrote the file runs as you."""
    mark, path = tmp_path / "it ran", folder / f"{name}.pth"
    entry = "codec_model" if name == NAMES[0] else None
    state = read_state(path, entry)
    torch.save({"x": Bomb(mark), entry: state} if entry else {"x": Bomb(mark), **state}, path)
    convert(folder)
    assert load_file(folder / f"{name}.safetensors").keys() == state.keys() and not mark.exists()


def test_nan_in_a_pickle_is_refused(folder: Path) -> None:
    path = folder / f"{NAMES[1]}.pth"
    state = read_state(path, None)
    state["backbone.embed.bias"][0] = float("nan")
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"not numbers .*backbone\.embed\.bias"):
        convert(folder)
    assert not (folder / f"{NAMES[1]}.safetensors").exists()


def test_names_that_share_memory_are_both_written(folder: Path) -> None:
    path = folder / f"{NAMES[0]}.pth"
    state = read_state(path, "codec_model")
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
