"""ExLlamaV2's modules get their weights from our reader: from any folder, piece by piece, or with a sentence.

On Windows the package's own reader (`fopen(char*)` in C++) hangs or ends the process under a folder such as
C:\\Users\\Jürgen: here it raises when it is touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fake_exllamav2 as fake
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stub_exllamav2 import real_package

from tools.make_exl2 import PRESETS, make_plain, make_random
from yuegp.checkpoints.safetensors import safetensors_header
from yuegp.errors import Cancelled, ModelError
from yuegp.lm import EngineConfig
from yuegp.lm.exl2.engine import Exl2LM
from yuegp.lm.exl2.format import look_into
from yuegp.lm.exl2.weights import replace_loader
from yuegp.lm.llama.engine import TorchLM
from yuegp.lm.weights import reader

NAMES = ["Jürgen Müller", "音楽", "песни", "🎵", "a b", "it's", "100% #1", "YuE [8 bit]", "{x} (2) ~&;", "x" * 200]
IDS, KEEP = list(range(300, 340)), list(range(300, 400))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A packed model and the same unpacked."""
    root = tmp_path_factory.mktemp("models")
    packed = make_random(root / "exl2", PRESETS["tiny"], bits=4.5, head_bits=6, seed=3)
    return {"exl2": packed, "float16": make_plain(root / "float16", look_into(packed, "exl2"))}


@pytest.fixture(scope="module")
def wanted(folders: dict[str, Path]) -> torch.Tensor:
    with TorchLM.load(folders["float16"], EngineConfig()).open([60], KEEP) as lm:
        return lm.prefill(0, IDS)


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def refuse(*args: Any, **more: Any) -> None:
    raise AssertionError(f"the package touches a weight file: {args}")


def says(folder: Path, weights: str, package: Any = None, progress: Any = None) -> torch.Tensor:
    setup = EngineConfig("exl2", "cpu", weights)
    engine = Exl2LM(package or fake.package(), look_into(folder, weights), setup, progress, None)
    with engine.open([60], KEEP) as lm:
        return lm.prefill(0, IDS).float()


@pytest.mark.parametrize("kind", ["exl2", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder(
    folders: dict[str, Path], wanted: torch.Tensor, tmp_path: Path, name: str, kind: str
) -> None:
    logits = says(copied(folders[kind], tmp_path / name / f"{name}_"), kind)
    assert float((logits - wanted).norm() / wanted.norm()) < 2e-3


@pytest.mark.parametrize("kind", ["exl2", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder_with_the_packages_own_layers(
    folders: dict[str, Path],
    wanted: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
) -> None:
    package, _, _ = real_package(monkeypatch)
    from exllamav2 import config, stloader

    for reads in ("__init__", "open", "get_tensor"):
        monkeypatch.setattr(stloader.STFile, reads, refuse)
    monkeypatch.setattr(config.glob, "glob", refuse)
    logits = says(copied(folders[kind], tmp_path / name), kind, package)
    assert float((logits - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_converters_process_reads_any_folder_too(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real_package(monkeypatch)
    from exllamav2 import ExLlamaV2Config, config, stloader

    replace_loader(stloader, config)
    folder = copied(folders["exl2"], tmp_path / name)
    settings = ExLlamaV2Config(str(folder))
    right = load_file(folder / "output.safetensors")
    assert settings.tensor_file_map.keys() == right.keys()
    for key, path in settings.tensor_file_map.items():
        assert stloader.STFile.open(path).get_tensor(key, "cpu").equal(right[key])
    floats = stloader.STFile.open(path).get_tensor("model.norm.weight", "cpu", torch.float32)
    assert floats.dtype == torch.float32


# In pieces, and stopped between two of them


@pytest.mark.parametrize("kind", ["exl2", "float16"])
def test_no_more_than_a_piece_is_read_at_a_time(
    folders: dict[str, Path], wanted: torch.Tensor, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(reader, "PIECE", 1 << 12)
    sizes, said, fill = [], [], reader._fill
    monkeypatch.setattr(reader, "_fill", lambda file, to, *more: (sizes.append(to.nbytes), fill(file, to, *more)))
    logits = says(folders[kind], kind, progress=lambda *what: said.append(what))
    assert float((logits - wanted).norm() / wanted.norm()) < 2e-3
    assert max(sizes) == 1 << 12 and sum(sizes) == look_into(folders[kind], kind).stored_bytes
    assert len(said) > len(sizes) and said[-1][1] == said[-1][2]


def test_a_cancel_is_heard_within_a_tensor(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    package, _, extension = real_package(monkeypatch)
    monkeypatch.setattr(reader, "PIECE", 1 << 12)
    heard: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        heard.append(done)
        if done > total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        says(folders["exl2"], "exl2", package, progress)
    assert heard[-1] - heard[-2] <= 1 << 12, "it was heard only when a whole tensor, or a module, had been read"
    assert not extension.things, "what was made of the weights so far is given back"


def test_abort_ends_reading_the_layers_again(folders: dict[str, Path]) -> None:
    engine = fake.engine(folders["exl2"])
    with engine.open([60], KEEP) as lm:
        before = lm.prefill(0, IDS)
        engine.park(caches=True)
        engine.abort.set()
        with pytest.raises(Cancelled):
            engine.unpark()
        engine.abort.clear()
        engine.unpark()
        lm.truncate(0, 0)
        assert lm.prefill(0, IDS).equal(before)


def test_without_pinned_memory_it_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and WSL have little of it at times; that was told as a full card."""
    empty = torch.empty

    def full(*size: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", full)
    assert reader.staging(torch.device("cuda")).shape == (reader.PIECE,)


# Damaged files


def test_a_file_that_was_cut_short_since_it_was_looked_into(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["exl2"], tmp_path / "Jürgen")
    found = look_into(folder, "exl2")
    file = folder / "output.safetensors"
    stop = found.places["model.layers.1.mlp.up_proj.q_weight"][1].stop
    with file.open("rb+") as opened:
        opened.truncate(stop - 5)
    with pytest.raises(ModelError, match=r"output\.safetensors is cut short: .* of the tensor model\.\S+ are missing"):
        Exl2LM(fake.package(), found, EngineConfig("exl2", "cpu", "exl2"), None, None)
    file.unlink()
    with pytest.raises(ModelError, match=r"output\.safetensors cannot be read at the tensor model\.\S+: No such file"):
        Exl2LM(fake.package(), found, EngineConfig("exl2", "cpu", "exl2"), None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_float16_cannot_hold(folders: dict[str, Path], tmp_path: Path, value: float) -> None:
    folder = copied(folders["float16"], tmp_path / "model")
    name = "model.layers.2.mlp.down_proj.weight"
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors[name][3, 5] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"model\.safetensors: the tensor {name} contains values that are not"):
        Exl2LM(fake.package(), look_into(folder, "bfloat16"), EngineConfig("exl2", "cpu", "bfloat16"), None, None)


def change_at(index: int, value: int) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("q_groups", change_at(0, 7), "does not divide 128 inputs"),
        ("q_groups", change_at(0, 8), "does not divide 128 inputs"),
        ("q_groups", change_at(0, 0), "does not divide 128 inputs"),
        ("q_groups", change_at(1, 3), "does not divide 128 inputs"),
        ("q_groups", lambda t: t[:-1], "does not divide 128 inputs"),
        ("q_groups", lambda t: t[:0], "is I16 of shape"),
        ("q_groups", lambda t: t.int(), "is I32 of shape"),
        ("q_weight", lambda t: t[:-1], "does not divide 128 inputs"),
        ("q_weight", lambda t: t[:, :-8], "is I32 of shape"),
        ("q_scale", lambda t: t[:, :-1], "is I32 of shape"),
        ("q_scale_max", lambda t: t.bfloat16(), "is BF16 of shape"),
        ("q_invperm", change_at(0, 128), "does not name each of 128 inputs once"),
        ("q_invperm", change_at(0, -1), "does not name each of 128 inputs once"),
        ("q_invperm", lambda t: t[:-1], "is I32 of shape"),
        ("q_invperm", None, "is missing"),
    ],
)
def test_a_packed_matrix_that_no_kernel_can_follow(
    folders: dict[str, Path], tmp_path: Path, part: str, change: Any, said: str
) -> None:
    """On a card these are reads outside of a tensor: wrong numbers, or the end of everything on it."""
    folder = copied(folders["exl2"], tmp_path / "model")
    name, tensors = f"model.layers.1.self_attn.o_proj.{part}", load_file(folder / "output.safetensors")
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / "output.safetensors")
    with pytest.raises(ModelError, match=said) as caught:
        look_into(folder, "exl2")
    assert "o_proj.q_" in caught.value.what


def test_a_plain_matrix_of_another_shape_and_a_missing_one(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, name = copied(folders["float16"], tmp_path / "model"), "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: tensors[name][:-1].clone()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{name} is F16 of shape \(383, 128\)"):
        look_into(folder, "float16")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"The tensor {name} is missing"):
        look_into(folder, "float16")


# All types of numbers that safetensors files have


def test_every_type_comes_as_it_is_stored(tmp_path: Path) -> None:
    integers = np.random.default_rng(0).integers(0, 200, (3, 5))
    tensors = {name: torch.tensor(integers).to(dtype) for name, dtype in reader.DTYPES.items()}
    save_file(tensors, path := tmp_path / "音楽.safetensors")
    header = safetensors_header(path)
    for name, tensor in tensors.items():
        read = reader.read_tensor(name, path, header[name], torch.device("cpu"), tensor.dtype)
        assert header[name].dtype == name and read.dtype == tensor.dtype and read.tolist() == tensor.tolist()


def test_a_type_that_nothing_computes_with_is_said(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4, dtype=torch.float8_e4m3fn)}, path := tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"the tensor x is stored as F8_E4M3"):
        reader.read_tensor("x", path, safetensors_header(path)["x"], torch.device("cpu"), torch.float16)
