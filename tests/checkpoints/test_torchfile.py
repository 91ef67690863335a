"""Torch's own files, read without torch: every layout and type that it writes, and refusals for everything else."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released import save_trained

from yuegp.checkpoints.torchfile import read_bits, read_table
from yuegp.codec.files import read_state
from yuegp.errors import ModelError

BASE = torch.arange(24.0).reshape(2, 3, 4)


def same(path: Path, wanted: dict[str, torch.Tensor], entry: str | None = None) -> None:
    found = read_state(path, entry)
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].is_contiguous() and torch.equal(found[name], tensor.detach().contiguous()), name


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], packed: bool = False) -> Path:
    """The same archive with other contents: `change` is given a name without its folder, and its bytes."""
    with zipfile.ZipFile(path) as old:
        parts = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as new:
        for name, data in parts:
            if (changed := change(name.partition("/")[2], data)) is not None:
                new.writestr(name, changed)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ein Kodierer, größer.pth"


def refused(path: Path, words: str, entry: str | None = None) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read_table(path, entry)
    assert caught.value.hint.endswith("python launch.py models get codec-safetensors")
    assert caught.value.what.isprintable() and len(caught.value.what) < 200 + 2 * len(str(path))


# What torch writes


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
     "uint16", "float8_e5m2"],
)  # fmt: skip
def test_every_type_in_both_layouts(path: Path, dtype: str, old: bool) -> None:
    if old and dtype in ("uint16", "float8_e5m2"):
        pytest.skip("younger than that layout")
    tensor = torch.arange(5).to(getattr(torch, dtype))
    torch.save({"a": tensor, "b": tensor[:2].clone()}, path, _use_new_zipfile_serialization=not old)
    found = read_state(path, None)
    assert all(found[name].dtype == tensor.dtype for name in "ab")
    assert found["a"].view(torch.uint8).equal(tensor.view(torch.uint8)) and len(found["b"]) == 2


@pytest.mark.parametrize("old", [False, True])
def test_views_of_one_storage(path: Path, old: bool) -> None:
    views = {
        "whole": BASE,
        "turned": BASE.permute(2, 0, 1),
        "part": BASE[1, :, 1:3],
        "stepped": BASE.flatten()[1::5],
        "one": BASE[1, 2, 3],
        "none": BASE[:, :0],
        "again": BASE.view(24),
        "expanded": torch.arange(3.0).expand(1, 3),
    }
    torch.save(views, path, _use_new_zipfile_serialization=not old)
    same(path, views)


def test_parameters_and_tensors_with_attributes(path: Path) -> None:
    marked = torch.ones(3)
    marked.note = "an attribute"  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(torch.ones(2))
    torch.save({"p": parameter, "q": marked, "r": torch.ones(1, requires_grad=True)}, path)
    same(path, {"p": parameter, "q": marked, "r": torch.ones(1)})


def test_the_weights_of_a_module_with_notes_on_versions(path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.BatchNorm1d(3))
    state = module.state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    torch.save({"codec_model": state, "epoch": 3}, path)
    same(path, dict(state), "codec_model")


@pytest.mark.parametrize("table", [dict, OrderedDict, lambda x: defaultdict(int, x)])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tables_of_every_kind_and_protocol(path: Path, table: Any, protocol: int) -> None:
    torch.save({"codec_model": table({"a": BASE, "steps": 5, "b": BASE[0]})}, path, pickle_protocol=protocol)
    same(path, {"a": BASE, "b": BASE[0]}, "codec_model")


def test_an_ordered_dict_as_python_2_wrote_it(path: Path) -> None:
    torch.save({"a": BASE}, path)

    def pairs(name: str, data: bytes) -> bytes:
        if name != "data.pkl":
            return data
        head = b"\x80\x02ccollections\nOrderedDict\n]]("
        inner = data[data.index(b"X\x01\x00\x00\x00a") : data.index(b"s.")]
        return head + inner + b"ea\x85R."

    same(rewrite(path, pairs), {"a": BASE})


@pytest.mark.parametrize("entry", ["codec_model", None])
def test_a_table_between_training_state(path: Path, entry: str | None) -> None:
    """What the released checkpoint is refused for elsewhere: classes that this machine does not have."""
    state = {"fc.weight": BASE, "fc.bias": BASE[0, 0]}
    save_trained(path, {"codec_model": state, **({} if entry else state)})
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(path, weights_only=True)
    if entry:
        same(path, state, entry)
    found = read_state(path, entry, list(state))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_tensors_that_were_on_a_card(path: Path) -> None:
    torch.save({"a": BASE}, path)
    place = lambda name, data: data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")  # noqa: E731
    same(rewrite(path, place), {"a": BASE})


def test_a_file_of_a_machine_with_the_other_byte_order(path: Path) -> None:
    torch.save({"a": BASE, "b": BASE[1].T.half()}, path)
    half = {name: tensor.start for name, tensor in read_table(path).items()}
    assert half["a"] != half["b"]

    def turn(name: str, data: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        width = {"data/0": "4", "data/1": "2"}.get(name)
        return np.frombuffer(data, f"<u{width}").byteswap().tobytes() if width else data

    same(rewrite(path, turn), {"a": BASE, "b": BASE[1].T.half()})


def test_the_training_state_is_not_read(path: Path) -> None:
    torch.save({"codec_model": {"a": BASE}, "optimizer": {"exp_avg": torch.zeros(5_000_000)}}, path)
    tracemalloc.start()
    read_bits(path, read_table(path, "codec_model")["a"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 20_000_000 and peak < 1_000_000


def test_a_changed_file_is_read_anew(path: Path) -> None:
    torch.save({"a": BASE}, path)
    read_table(path)
    torch.save({"b": BASE, "c": BASE}, path)
    assert list(read_table(path)) == ["b", "c"]


# What is no table of tensors, or lies


class Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_would_run_code_runs_none(path: Path, tmp_path: Path, old: bool) -> None:
    mark = tmp_path / "ran"
    content = {"a": BASE, "x": Harm(mark), "more": [Harm(mark)]}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    same(path, {"a": BASE})
    torch.save(Harm(mark), path, _use_new_zipfile_serialization=not old)
    refused(path, r"posix\.mkdir|nt\.mkdir")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"a": BASE}}, "no entry codec_model; it holds the entries model"),
        ({"codec_model": {"step": 3}}, "something else than a table of tensors: the entries step"),
        ({"codec_model": [BASE]}, "something else than a table of tensors: one list"),
        ({"codec_model": {"c": BASE.to(torch.complex64), "\x1b[31m": BASE}}, "something else than a table of tensors"),
        ({"codec_model": BASE}, "something else than a table of tensors"),
        ({"codec_model": torch.nn.Linear(2, 2)}, r"table of tensors: torch\.nn\.modules\.linear\.Linear"),
        (BASE, "no entry codec_model"),
        ({"\x1b[31mred\x1b]0;title\x07\r\n" * 50: 1}, "no entry codec_model; it holds the entries red"),
    ],
)
def test_files_with_something_else_in_them(path: Path, content: object, words: str) -> None:
    torch.save(content, path)
    refused(path, words, "codec_model")


def test_a_name_that_colours_the_screen_is_said_plainly(path: Path) -> None:
    torch.save({"a": BASE}, path)
    sly = b"\x80\x02c\x1b[2J\x1b[31mevil\nthing\x07\n)R."
    refused(rewrite(path, lambda name, data: sly if name == "data.pkl" else data), r"tensors: evil\.thing\.")


def edited(path: Path, old: bytes, new: bytes) -> Path:
    def change(name: str, data: bytes) -> bytes:
        assert name != "data.pkl" or old in data
        return data.replace(old, new) if name == "data.pkl" else data

    return rewrite(path, change)


LIES = {
    "beyond its storage": (b"K\x00K\x02K\x03K\x04\x87", b"K\x14K\x02K\x03K\x04\x87"),
    "larger than its storage": (b"K\x02K\x03K\x04\x87", b"K\x02K\x03K\x05\x87"),
    "made of one value": (b"K\x0cK\x04K\x01\x87", b"K\x00K\x00K\x00\x87"),
    "stretched": (b"K\x0cK\x04K\x01\x87", b"K\x0cK\x04K\x02\x87"),
    "another storage": (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007"),
    "up the tree": (b"X\x01\x00\x00\x000", b"X\x08\x00\x00\x00../byteo"),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_tensors_that_are_not_in_the_file(path: Path, lie: str) -> None:
    torch.save({"a": BASE}, path)
    refused(edited(path, *LIES[lie]), "it is damaged")


@pytest.mark.parametrize(
    "number", [b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x01", b"G" + b"\x00" * 8, b"\x88"]
)
def test_sizes_that_are_no_sizes_make_no_tensor(path: Path, number: bytes) -> None:
    torch.save({"a": BASE}, path)
    refused(edited(path, b"K\x02K\x03K\x04\x87", number + b"K\x03K\x04\x87"), "table of tensors: the entries a")


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    torch.save({"a": BASE, "b": torch.arange(100)}, path)
    whole = path.read_bytes()
    for length in (1, 4, 100, len(whole) // 2, len(whole) - 25, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "cannot be read")
    torch.save({"a": BASE, "b": torch.arange(100)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in (10, 30, 300, len(whole) - 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "cannot be read")


def test_a_byte_wrong_in_the_head_of_a_file_never_ends_in_anything_but_a_sentence(path: Path) -> None:
    torch.save({"a": BASE, "b": torch.arange(3)}, path)
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    for position in random.integers(0, len(whole), 150):
        path.write_bytes(whole[:position] + bytes([random.integers(256)]) + whole[position + 1 :])
        try:
            for tensor in read_table(path).values():
                read_bits(path, tensor)
        except ModelError as exc:
            assert exc.what.isprintable()


def test_other_files(path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "not one of torch's")
    path.write_bytes(pickle.dumps({"a": np.ones(3)}))
    refused(path, "no torch file")
    (tmp_path / "pickle").write_bytes(pickle.dumps([1]))
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "pickle", "pickle")
    refused(path, "tar archive")
    with zipfile.ZipFile(path, "w") as archive:
        for top in "ab":
            archive.writestr(f"{top}/data.pkl", pickle.dumps({}))
    refused(path, "not one of torch's")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"nowhere\.pth cannot be read"):
        read_table(Path("nowhere.pth"))


def test_compiled_modules_are_refused(path: Path) -> None:
    torch.save({"a": BASE}, path)
    module = b"\x80\x02c__torch__.decoder\nDecoder\n)\x81}X\x01\x00\x00\x00aNsb."
    rewrite(path, lambda name, data: module if name == "data.pkl" else data)
    refused(path, r"tensors: __torch__\.decoder\.Decoder")


# Bombs


def test_a_packed_pickle_is_not_unpacked(path: Path) -> None:
    torch.save({"a": BASE}, path)
    rewrite(path, lambda name, data: b"(" * 40_000_000 if name == "data.pkl" else data, packed=True)
    assert path.stat().st_size < 100_000
    refused(path, "packed")


def test_a_pickle_of_any_size_is_not_read(path: Path) -> None:
    torch.save({"a": BASE}, path)
    rewrite(path, lambda name, data: b"(" * 33_000_000 if name == "data.pkl" else data)
    tracemalloc.start()
    refused(path, r"data\.pkl in it has 33,000,000 bytes")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_directory_of_any_size_is_not_read(path: Path) -> None:
    torch.save({"a": BASE}, path)
    whole = bytearray(rewrite(path, lambda name, data: data).read_bytes())
    at = whole.rindex(b"PK\5\6")
    size, start = struct.unpack_from("<II", whole, at + 12)
    filler = b"\0" * 5_000_000
    struct.pack_into("<II", whole, at + 12, size + len(filler), start)
    path.write_bytes(whole[:start] + filler + whole[start:])
    refused(path, "directory is said to have 5")


def test_the_same_pairs_over_and_over_are_not_copied_for_ever(path: Path) -> None:
    torch.save({"a": BASE}, path)
    pair = b"(X\x01\x00\x00\x00aNl"
    many = b"\x80\x02](" + pair * 2000 + b"eq\x00\x85q\x01ccollections\nOrderedDict\nq\x02" + b"h\x02h\x01R0" * 2000
    refused(rewrite(path, lambda name, data: many + b"." if name == "data.pkl" else data), "entries")


def test_an_old_file_with_a_wrong_count_is_damaged(path: Path) -> None:
    torch.save({"a": BASE}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    count = struct.pack("<q", 24)
    path.write_bytes(data.replace(count, struct.pack("<q", 25)))
    refused(path, "damaged")


def test_reading_needs_no_name_that_ends_in_pth(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt"):
        torch.save({"a": BASE}, tmp_path / name)
        same(tmp_path / name, {"a": BASE})
