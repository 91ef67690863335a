from __future__ import annotations

import dataclasses
import filecmp
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released import write_released

from tools.make_set import SIZES, codec_tensors, lm_tensors, make_set, upsampler_tensors
from yuegp.checkpoints import locate, registry, sets, verify
from yuegp.checkpoints.sets import ModelSet, check, find, safetensors_header
from yuegp.codec import check_codec
from yuegp.errors import ModelError
from yuegp.tokens.vocab import YUE_V1


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("sets") / "tiny")


@pytest.fixture
def tiny(original: Path, tmp_path: Path) -> Path:
    """A tiny set of this test's own, to be damaged. Its path holds a space."""
    return Path(shutil.copytree(original, tmp_path / "my sets" / "tiny"))


def change_json(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (data | changes).items() if v is not ...}))


def poke(path: Path, tensor: str, value: bytes) -> None:
    """Overwrite the first bytes of a tensor."""
    with path.open("r+b") as file:
        file.seek(safetensors_header(path)[tensor].start)
        file.write(value)


def rewrite_header(path: Path, change: Any) -> None:
    """Replace the header of a safetensors file by `change(header)`, keeping the values."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check(find(str(folder)))
    assert caught.value.hint
    return caught.value.what


# Finding


def test_a_set_is_found_by_path_and_by_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_path = find(str(tiny))
    check(by_path)
    monkeypatch.setenv("YUEGP_MODELS", str(tiny.parent))
    by_name = find("tiny")
    assert dataclasses.replace(by_name, id="") == dataclasses.replace(by_path, id="")
    assert sets.names()[-1] == "tiny"


def test_an_unknown_model_lists_what_there_is() -> None:
    with pytest.raises(ModelError, match="no model called 'yeu-en-cot'") as caught:
        find("yeu-en-cot")
    assert "demo" in caught.value.hint and "yue-jp-kr-icl" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "x" * 5000, "a\0b", "~nobody-here/x"])
def test_odd_names_are_refused_like_unknown_ones(name: str) -> None:
    with pytest.raises(ModelError):
        find(name)


def test_a_folder_without_set_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no set\.json"):
        find(str(tmp_path))


def test_a_released_model_that_is_not_on_disk_is_named_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YUEGP_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match="needs the folder YuE-s1-7B-anneal-zh-icl") as caught:
        find("yue-zh-icl")
    assert "models get yue-zh-icl" in caught.value.hint and "demo needs nothing" in caught.value.hint


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one released set: YuE's vocabularies and file names, tiny widths."""
    folder = tmp_path_factory.mktemp("models")
    write_released(folder)
    return folder


@pytest.fixture
def own(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be damaged, as the program's own."""
    folder = Path(shutil.copytree(released, tmp_path / "home" / "models"))
    monkeypatch.delenv("YUEGP_MODELS", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return folder


STAGE1, STAGE2, SOUND = "YuE-s1-7B-anneal-en-cot", "YuE-s2-1B-general", "xcodec_mini_infer"


def test_a_released_set_is_put_together_from_its_folders(own: Path, yue_tokenizer: Path) -> None:
    shutil.copy(yue_tokenizer, own / STAGE1 / "tokenizer.model")
    found = find("yue-en-cot")
    assert (found.stage1, found.stage2, found.codec) == (own / STAGE1, own / STAGE2, own / SOUND)
    assert found.layout == YUE_V1 and found.mode == "cot" and "English" in found.title
    assert found.tokenizer_path == found.stage1 / "tokenizer.model"
    check(found)


def test_the_tokenizer_of_another_folder_serves_where_a_copy_lacks_it(own: Path) -> None:
    (own / STAGE1 / "tokenizer.model").unlink()
    assert find("yue-en-cot").tokenizer_path == own / STAGE2 / "tokenizer.model"


def test_a_stage_2_model_in_stage_1s_place_is_named(own: Path) -> None:
    """ComfyUI_YuE issue 21, the other way round too: the wrong folder in the slot, and an error half a song later."""
    shutil.rmtree(own / STAGE1)
    shutil.copytree(own / STAGE2, own / STAGE1)
    with pytest.raises(ModelError, match=r"holds a Stage-2 model .*stands in Stage 1's place"):
        check(find("yue-en-cot"))


def test_what_was_chosen_is_taken_before_what_has_more_bits(own: Path) -> None:
    small = own / f"{STAGE1}-nf4"
    shutil.copytree(own / STAGE1, small)
    assert find("yue-en-cot").stage1 == own / STAGE1
    registry.remember(sets={"yue-en-cot": ["s1-en-cot-nf4", "s2", "codec"]})
    assert find("yue-en-cot").stage1 == small
    assert find("s1-en-cot").stage1 == own / STAGE1
    assert find("s1-en-cot-nf4").stage1 == small


def test_an_incomplete_folder_is_used_so_that_its_fault_is_named(own: Path) -> None:
    (own / STAGE1 / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks 1 of its 3 weight files: model-00002-of-00003"):
        check(find("yue-en-cot"))


def test_an_unfinished_download_is_no_model(own: Path) -> None:
    locate.write_pin(registry.CHECKPOINTS["s1-en-cot"], locate.Pin("m-a-p/x", None, "0" * 40))
    with pytest.raises(ModelError, match="download of s1-en-cot, which the model yue-en-cot needs, was not finished"):
        find("yue-en-cot")


def test_models_lie_in_the_home_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUEGP_HOME", str(tmp_path))
    monkeypatch.delenv("YUEGP_MODELS", raising=False)
    assert sets.models_dir() == tmp_path / "models"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2; this yuegp reads up to 1"),
        ({"format": "1"}, "does not describe a model set"),
        ({"stage1": ...}, "does not describe a model set: has no entry called 'stage1'"),
        ({"layout": "yue-v9"}, "does not describe a model set"),
        ({"layout": {"soa": "x"}}, "nor a table of ids"),
        ({"layout": {"soa": 1}}, "does not describe a model set"),
        ({"tokenizer": "bytes"}, "does not describe a model set"),
        ({"tokenizer": {"kind": "words"}}, "kind 'words'"),
        ({"tokenizer": {"kind": "sentencepiece", "path": "tokenizer.model"}}, r"tokenizer\.model cannot be read"),
        ({"codec": "elsewhere"}, "codec folder .* does not exist"),
    ],
)
def test_a_wrong_set_json_is_refused(tiny: Path, changes: dict[str, Any], message: str) -> None:
    change_json(tiny / "set.json", **changes)
    with pytest.raises(ModelError, match=message):
        check(find(str(tiny)))


def test_set_json_that_is_no_json_is_refused(tiny: Path) -> None:
    (tiny / "set.json").write_bytes(b"{\xff")
    assert "does not describe a model set" in refusal(tiny)


def test_codes_reserved_for_a_track_are_read(tiny: Path) -> None:
    change_json(tiny / "set.json", drawable=[[0, 1], [2]])
    assert find(str(tiny)).drawable == ((0, 1), (2,))


# Checking


def test_both_spellings_of_config_json_are_accepted(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "new", transformers5=True)
    assert "rope_parameters" in json.loads((folder / "stage1" / "config.json").read_text())
    check(find(str(folder)))


def test_a_folder_without_config_is_refused(tiny: Path) -> None:
    (tiny / "stage1" / "config.json").unlink()
    assert "stage1 has no config.json" in refusal(tiny)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_config_of_another_architecture_or_of_no_json_is_refused(tiny: Path, stage: str) -> None:
    change_json(tiny / stage / "config.json", model_type="gpt2")
    assert "model_type is 'gpt2'" in refusal(tiny)
    (tiny / stage / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(tiny)


def test_a_small_vocabulary_is_refused(tiny: Path) -> None:
    change_json(tiny / "stage1" / "config.json", vocab_size=1000)
    assert "a vocabulary of 1,000; Stage 1 of this set needs at least 1,288" in refusal(tiny)


@pytest.mark.parametrize(("wrong", "right"), [("stage1", "stage2"), ("stage2", "stage1")])
def test_a_model_in_the_other_stages_place_is_said_in_plain_words(tiny: Path, wrong: str, right: str) -> None:
    shutil.rmtree(tiny / wrong)
    shutil.copytree(tiny / right, tiny / wrong)
    assert f"holds a Stage-{right[-1]} model" in (words := refusal(tiny))
    assert f"stands in Stage {wrong[-1]}'s place" in words


def test_shards_that_the_index_names_must_exist(tiny: Path) -> None:
    (tiny / "stage1" / "model-00002-of-00002.safetensors").unlink()
    assert "lacks 1 of its 2 weight files: model-00002-of-00002.safetensors" in refusal(tiny)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": [1]}'])
def test_a_damaged_index_is_refused(tiny: Path, content: str) -> None:
    (tiny / "stage1" / "model.safetensors.index.json").write_text(content)
    assert "does not list weight files" in refusal(tiny)


def test_a_folder_of_pickles_is_refused(tiny: Path) -> None:
    (tiny / "stage2" / "model.safetensors").rename(tiny / "stage2" / "pytorch_model.bin")
    assert "holds no safetensors weights, only pytorch_model.bin" in refusal(tiny)


FILES = (
    "stage1/model-00001-of-00002.safetensors",
    "stage2/model.safetensors",
    "codec/final_ckpt/ckpt_00360000.safetensors",
    "codec/decoders/decoder_151000.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_with_both_lengths(tiny: Path, name: str) -> None:
    data = (tiny / name).read_bytes()
    (tiny / name).write_bytes(data[:-10])
    words = refusal(tiny)
    assert f"is cut short: it has {len(data) - 10:,} bytes, its header promises {len(data):,}" in words
    assert Path(name).name in words


@pytest.mark.parametrize("name", FILES)
def test_a_git_lfs_pointer_is_recognised(tiny: Path, name: str) -> None:
    (tiny / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git-lfs pointer" in refusal(tiny)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_numbers_are_refused(tiny: Path, name: str, value: float) -> None:
    tensor = next(n for n, t in safetensors_header(tiny / name).items() if t.dtype in ("BF16", "F16"))
    bits = np.float32(value).tobytes()[2:] if name.startswith("stage") else np.float16(value).tobytes()
    poke(tiny / name, tensor, bits)
    assert f"not numbers (NaN or infinite): {tensor}" in refusal(tiny)


def test_large_files_are_not_scanned(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poke(tiny / FILES[1], "model.norm.weight", np.float32(np.nan).tobytes()[2:])
    monkeypatch.setattr(verify, "SCAN_LIMIT", 1000)
    monkeypatch.setattr(sets, "SCAN_LIMIT", 1000)
    check(find(str(tiny)))
    with pytest.raises(ModelError, match="NaN"):
        check(find(str(tiny)), lambda name, done, total: None)


def test_missing_tensors_are_counted_and_the_first_five_named(tiny: Path) -> None:
    change_json(tiny / "stage2" / "config.json", num_hidden_layers=3)
    words = refusal(tiny)
    assert "lack 9 of 30 tensors: model.layers.2.input_layernorm.weight" in words and words.endswith("and 4 more.")


def test_shapes_that_contradict_the_config_are_refused(tiny: Path) -> None:
    change_json(tiny / "stage1" / "config.json", intermediate_size=64)
    assert "gate_proj.weight (32, 16) instead of (64, 16)" in refusal(tiny)


def test_weights_quantized_in_an_unknown_way_are_refused(tiny: Path) -> None:
    def pack(header: dict[str, Any]) -> None:
        header["model.norm.weight"] |= {"dtype": "I8", "shape": [16]}

    rewrite_header(tiny / FILES[1], pack)
    assert "are quantized" in refusal(tiny) and "model.norm.weight (I8)" in refusal(tiny)


# Safetensors


def test_the_header_agrees_with_the_safetensors_library(tiny: Path) -> None:
    from safetensors.numpy import load_file

    path = tiny / FILES[2]
    loaded, header = load_file(path), safetensors_header(path)
    assert {name: array.shape for name, array in loaded.items()} == {name: t.shape for name, t in header.items()}
    name = "fc_post2.weight"
    raw = np.fromfile(path, "<f2", count=loaded[name].size, offset=header[name].start)
    assert np.array_equal(raw.reshape(header[name].shape), loaded[name])


def test_an_empty_file_of_tensors_is_legal(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert safetensors_header(path) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234",
        b"<!DOCTYPE html><html>",
        (4).to_bytes(8, "little") + b"nope",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xff",
        (9).to_bytes(8, "little") + b'{"a": {}}',
        (9).to_bytes(8, "little") + b'{"a": 10}',
        (2).to_bytes(8, "little") + b"{} ",
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"x\.safetensors is "):
        safetensors_header(path)
    with pytest.raises(ModelError, match="cannot be read"):
        safetensors_header(tmp_path / "absent")


@pytest.mark.parametrize("entry", [{"shape": [3]}, {"dtype": "X9"}, {"data_offsets": [0, 3]}, {"shape": [-2, -2]}])
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    path = tmp_path / "x.safetensors"
    text = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} | entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ModelError, match="is no safetensors file"):
        safetensors_header(path)


# The writer of sets


def test_the_same_seed_writes_the_same_bytes(original: Path, tmp_path: Path) -> None:
    again, other = make_set(tmp_path / "again"), make_set(tmp_path / "other", seed=1)
    names = [str(path.relative_to(original)) for path in original.rglob("*") if path.is_file()]
    assert len(names) == 15
    assert filecmp.cmpfiles(original, again, names, shallow=False)[1:] == ([], [])
    assert len(filecmp.cmpfiles(original, other, names, shallow=False)[1]) == 6


def test_the_embedded_demo_is_whole_small_and_says_where_it_comes_from() -> None:
    demo = find("demo")
    check(demo)
    check_codec(demo.codec, encode=True)
    assert demo.id == "demo" and "tiny" in demo.note
    folder = demo.codec.parent
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 25_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in card and "tools/demo/train.py" in card and demo.licence == "Apache-2.0"
    assert demo.drawable is not None and not set(demo.drawable[0]) & set(demo.drawable[1])


def test_a_set_is_never_written_over_something(original: Path) -> None:
    with pytest.raises(FileExistsError):
        make_set(original)


def shapes(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in spec.items()}


@pytest.mark.parametrize(
    ("file", "written"),
    [("xcodec_state_dict.json", codec_tensors), ("vocos_decoder_state_dict.json", upsampler_tensors)],
)
def test_codec_and_upsampler_have_the_released_tensors(shared_data: Path, file: str, written: Any) -> None:
    released = json.loads((shared_data / file).read_text())["state_dict"]
    assert shapes(written(SIZES["released"].codec)) == {t["key"]: tuple(t["shape"]) for t in released}


def test_released_widths_give_the_released_parameter_counts() -> None:
    size = SIZES["released"]
    counts = [sum(math.prod(shape) for shape in shapes(lm_tensors(lm)).values()) for lm in (size.stage1, size.stage2)]
    assert counts == [6_224_613_376, 1_962_543_104]


def test_transformers_loads_both_language_models(original: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for stage, lm in (("stage1", SIZES["tiny"].stage1), ("stage2", SIZES["tiny"].stage2)):
        model, info = transformers.LlamaForCausalLM.from_pretrained(original / stage, output_loading_info=True)
        assert not any(info.values()) and model.config.vocab_size == lm.vocab
        logits = model.float()(torch.tensor([[256, 258, 300]])).logits[0, -1]
        assert 1 < logits.std() < 4


def test_the_released_pickles_hold_the_same_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = make_set(tmp_path / "pth", pth=True) / "codec"
    codec = torch.load(folder / "final_ckpt" / "ckpt_00360000.pth", weights_only=True)["codec_model"]
    upsampler = torch.load(folder / "decoders" / "decoder_131000.pth", weights_only=True)
    widths = SIZES["tiny"].codec
    assert shapes(codec) == shapes(codec_tensors(widths)) and shapes(upsampler) == shapes(upsampler_tensors(widths))


def test_sizes_can_be_overridden(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "wide", stage1={"vocab": 1400, "layers": 1, "shards": 1}, section_seconds=3)
    found: ModelSet = find(str(folder))
    check(found)
    assert found.section_seconds == 3 and found.vocabularies == (1400, 8512)
