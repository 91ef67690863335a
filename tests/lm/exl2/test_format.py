"""The EXL2 layout: what the tool packs the engine unpacks, and folders that would be loaded wrongly are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.make_exl2 import PRESETS, make_plain, make_random, make_rounded, pack_bits, pack_nibbles, round_matrix
from tools.make_set import LM, write_lm
from yuegp.bench.exl2_noise import WIDTHS, group_words, groups, shapes
from yuegp.bench.noise import given as part_of
from yuegp.errors import ModelError
from yuegp.lm.exl2.format import PARTS, look_into, unpack, unpack_bits

PLAIN = LM(1344, 64, 96, 2, 4, 2, 2048, shards=2)


@given(bits=st.sampled_from(WIDTHS), blocks=st.integers(1, 5), columns=st.integers(1, 7), seed=st.integers(0, 99))
def test_streams_of_bits_come_back(bits: int, blocks: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (32 * blocks, columns), np.uint8)
    words = pack_bits(values, bits)
    assert words.shape == (bits * blocks, columns) and words.dtype == np.int32
    assert (unpack_bits(words.view(np.uint32), bits) == values).all()


def test_a_stream_as_the_kernels_read_it() -> None:
    """Five bits: the seventh value of a block straddles the first two words. Source: dequant_5bit_32 in qdq_5.cuh."""
    values = np.zeros((32, 1), np.uint8)
    values[6] = 0b10111
    words = pack_bits(values, 5).view(np.uint32)[:, 0]
    assert words[0] >> 30 == 0b11 and words[1] & 0b111 == 0b101


def test_one_value_by_hand() -> None:
    """(stored - 2^(bits - 1)) (scale + 1)^2 max / 256, at the input that q_invperm names."""
    values = np.full((32, 8), 8, np.uint8)
    values[5, 3] = 13
    order = np.roll(np.arange(32), 4)
    parts = {
        "q_weight": pack_bits(values, 4),
        "q_groups": np.array([4, 0], np.int16),
        "q_scale": pack_nibbles(np.full((1, 8), 9)),
        "q_scale_max": np.array([0.5], np.float16),
        "q_invperm": order.astype(np.int32),
    }
    weight = unpack(parts, range(8))
    assert weight[3, 9] == np.float16(5 * 10**2 * 0.5 / 256) and np.count_nonzero(weight) == 1
    assert (unpack(parts, [3, 1]) == weight[[3, 1]]).all()


@pytest.mark.parametrize(
    ("bits", "error"), [(8, 0.01), (6, 0.03), (5, 0.06), (4.5, 0.1), (4, 0.12), (3, 0.25), (2, 0.6)]
)
def test_rounded_weights_are_close(bits: float, error: float) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 352)).astype(np.float32)  # a last group of 96 inputs
    parts = round_matrix(weight, bits, np.random.default_rng(1))
    assert {name: part_of(values)[:2] for name, values in parts.items()} == shapes(352, 64, bits)
    back = unpack(parts, range(64)).astype(np.float32)
    assert error / 4 < np.linalg.norm(back - weight) / np.linalg.norm(weight) < error


@given(rows=st.integers(1, 100).map(lambda k: 32 * k), bits=st.floats(2, 8))
def test_groups_cover_all_inputs_at_about_those_bits(rows: int, bits: float) -> None:
    plan = groups(rows, bits)
    assert sum(size for _, size in plan) == rows and [b for b, _ in plan] == sorted((b for b, _ in plan), reverse=True)
    if rows % 128 == 0:
        average = sum(b * size for b, size in plan) / rows
        assert abs(average - bits) <= 1 / len(plan) + 1e-9  # half a group, of up to two bits
    pairs = group_words(plan).reshape(-1, 2)
    assert (np.diff(pairs[:, 1]) == [b * size // 32 for b, size in plan[:-1]]).all()


def test_a_random_folder_has_the_layout_and_the_scale_of_a_model(tmp_path: Path) -> None:
    first = make_random(tmp_path / "a", PRESETS["tiny"], 4.25, 6, seed=1)
    again = make_random(tmp_path / "b", PRESETS["tiny"], 4.25, 6, seed=1)
    assert (first / "output.safetensors").read_bytes() == (again / "output.safetensors").read_bytes()
    assert json.loads((first / "config.json").read_text())["quantization_config"]["quant_method"] == "exl2"
    found = look_into(first, "exl2")
    for name, shape in found.config.tensors().items():
        weight = found.floats(name).float()
        assert weight.shape == shape
        if len(shape) == 2 and "embed" not in name:
            wanted = (2 if "lm_head" in name else 1) / shape[1] ** 0.5
            assert abs(float(weight.std()) / wanted - 1) < 0.15, name
    packed_bytes = sum(p.stop - p.start for n, (_, p) in found.places.items() if n.startswith("model.layers.0.mlp."))
    assert packed_bytes * 8 / (3 * 128 * 384) == pytest.approx(4.25 + 0.03, abs=0.25)


def test_a_rounded_folder_and_back(tmp_path: Path) -> None:
    write_lm(tmp_path / "plain", PLAIN, 3)
    plain = look_into(tmp_path / "plain", "float16")
    packed = look_into(make_rounded(tmp_path / "exl2", plain, 8, 8), "exl2")
    back = look_into(make_plain(tmp_path / "back", packed), "float16")
    for name in plain.config.tensors():
        a, b, c = (folder.floats(name).float() for folder in (plain, packed, back))
        assert (b == c).all(), name
        assert float((a - b).norm() / a.norm()) < 0.01, name


def test_parts_of_the_ends_are_read_without_the_rest(tmp_path: Path) -> None:
    found = look_into(make_random(tmp_path / "a", PRESETS["tiny"], 5, 6), "exl2")
    ids = [900, 3, 3, 1000]
    assert (found.head_rows(ids) == found.head_rows(None)[ids]).all()
    assert (found.embedding_rows(ids) == found.floats("model.embed_tokens.weight")[ids]).all()
    assert set(PARTS) == {name.rsplit(".", 1)[1] for name in found.places if name.startswith("lm_head.")}


# Folders that ExLlamaV2 would load as something else than they are


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    write_lm(tmp_path / "model", PLAIN, 3)
    return tmp_path / "model"


def test_a_stray_weight_file_is_not_read(plain: Path) -> None:
    """ExLlamaV2 by itself loads every *.safetensors in the folder, and a second copy of a tensor silently wins. An
    adapter lies in many a model's folder."""
    for name in ("old.safetensors", "adapter_model.safetensors"):
        (plain / name).write_bytes((plain / "model-00001-of-00002.safetensors").read_bytes())
    files = {path.name for path, _ in look_into(plain, "float16").places.values()}
    assert files == {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}


def test_tensors_stored_twice_are_refused(plain: Path) -> None:
    (plain / "model.safetensors.index.json").unlink()
    (plain / "old.safetensors").write_bytes((plain / "model-00001-of-00002.safetensors").read_bytes())
    with pytest.raises(ModelError, match="stored more than once"):
        look_into(plain, "float16")


def test_another_kind_than_planned_is_refused(plain: Path) -> None:
    with pytest.raises(ModelError, match=r"stored as bfloat16; .* asked to hold them as exl2"):
        look_into(plain, "exl2")


def test_a_model_without_an_output_layer_of_its_own_is_refused(plain: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ModelError, match="no output layer of its own"):
        look_into(plain, "float16")


def test_a_missing_tensor_is_named(plain: Path) -> None:
    found = look_into(plain, "float16")
    del found.places["lm_head.weight"]
    with pytest.raises(ModelError, match=r"lm_head\.q_weight is missing"):
        found.head_rows([1])
