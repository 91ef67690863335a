"""The codec room on a small random set: names, refusals, chunks, lengths. Values are judged in test_golden_codec."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from released import as_trained
from safetensors.torch import load_file, save_file

from tools.make_set import SIZES, write_codec
from yuegp.codec import check_codec, load_codec, load_upsampler, render_track, upsampler, xcodec
from yuegp.codec.chunks import memory_named
from yuegp.codec.files import read_state
from yuegp.codec.layout import CodecWidths, UpsamplerWidths, decode_shapes, encode_shapes, upsampler_shapes
from yuegp.codec.xcodec import XCodec, transformers_name
from yuegp.errors import Cancelled, DeviceError, GenerationError, ModelError, RequestError
from yuegp.song.schema import Track

CODEC = "final_ckpt/ckpt_00360000"
VOCAL = "decoders/decoder_131000"
HUBERT_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "with a space"
    write_codec(folder, SIZES["tiny"].codec, seed=1)
    return folder


@pytest.fixture(scope="module")
def small_pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set_pth")
    write_codec(folder, SIZES["tiny"].codec, seed=1, pth=True)
    as_trained(folder)
    return folder


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "codec"))


@pytest.fixture
def copy_pth(small_pth: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_pth, tmp_path / "codec_pth"))


@pytest.fixture(scope="module")
def codec(small: Path) -> XCodec:
    return load_codec(small)


@pytest.fixture(scope="module")
def encoder(small: Path) -> XCodec:
    return load_codec(small, encode=True)


def some_codes(frames: int, codebooks: int = 8) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 1024, (codebooks, frames)).astype(np.int16)


# Names and shapes of the released files


def test_layout_is_the_released_one(shared_data: Path) -> None:
    listed = json.loads((shared_data / "xcodec_state_dict.json").read_text())["state_dict"]
    shapes = {row["key"]: tuple(row["shape"]) for row in listed}
    needed = {row["key"]: {use.split()[0] for use in row["needed_for"]} for row in listed}
    widths = CodecWidths.of(shapes)
    assert widths == CodecWidths()
    assert decode_shapes(widths) == {k: s for k, s in shapes.items() if "decode" in needed[k]}
    assert encode_shapes(widths, HUBERT_BASE) == {k: s for k, s in shapes.items() if "encode" in needed[k]}
    assert len(decode_shapes(widths)) == 129

    listed = json.loads((shared_data / "vocos_decoder_state_dict.json").read_text())["state_dict"]
    shapes = {row["key"]: tuple(row["shape"]) for row in listed}
    assert UpsamplerWidths.of(shapes) == UpsamplerWidths()
    assert upsampler_shapes(UpsamplerWidths()) == shapes


def test_every_released_name_finds_its_place_in_transformers(shared_data: Path) -> None:
    table = json.loads((shared_data / "xcodec_key_mapping.json").read_text())["rows"]
    expected = {released: row["transformers"] for row in table for released in row["upstream"]}
    listed = json.loads((shared_data / "xcodec_state_dict.json").read_text())["state_dict"]
    assert {row["key"]: transformers_name(row["key"]) for row in listed} == expected
    fold = {row["transformers"] for row in table if row["op"] != "copy"}
    pairs = {row["key"]: torch.ones(row["shape"]) for row in listed if transformers_name(row["key"]) in fold}
    assert {name for name in xcodec.convert(pairs) if name.endswith("weight")} == fold


# Loading


def test_decoding_holds_no_hubert_and_no_encoder(codec: XCodec) -> None:
    held = codec._model.state_dict()
    assert {name.split(".")[0] for name in held} == {"quantizer", "acoustic_decoder", "fc2"}
    assert codec.codebooks == 8 and not codec.can_encode
    assert not any(tensor.is_meta or tensor.dtype != torch.float32 for tensor in held.values())


def test_both_file_kinds_give_the_same_sound_but_for_the_storage_precision(small_pth: Path, codec: XCodec) -> None:
    check_codec(small_pth, encode=True)
    codes = some_codes(30)
    assert np.abs(load_codec(small_pth).decode(codes) - codec.decode(codes)).max() < 0.02  # float16 against float32


def test_plain_properties(codec: XCodec, encoder: XCodec) -> None:
    assert (codec.sample_rate, codec.frame_size, codec.frame_rate, codec.codebook_size) == (16000, 320, 50, 1024)
    assert encoder.codebooks == 12
    assert codec.to("cpu") is codec and codec.device == torch.device("cpu")


# Decoding and encoding


@pytest.mark.parametrize("frames", [1, 30, 61, 120])
def test_chunks_sound_like_the_whole(codec: XCodec, small: Path, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, up = some_codes(frames), load_upsampler(small, Track.INSTRUMENTAL)
    whole = render_track(codec, up, codes)
    monkeypatch.setattr(xcodec, "CHUNK", 30)
    monkeypatch.setattr(upsampler, "CHUNK", 30)
    chunked = render_track(codec, up, codes)
    assert [len(wave) for wave in chunked] == [320 * frames, 882 * frames]
    for got, want in zip(chunked, whole, strict=True):
        assert got.dtype == np.float32 and np.abs(want).max() > 0.01
        assert np.abs(got - want).max() <= 2e-6


def test_the_context_is_no_smaller_than_what_is_heard(codec: XCodec, small: Path) -> None:
    """Changing one frame changes nothing outside the context: in float64, so that nothing hides in rounding."""
    codes = some_codes(81)
    changed = codes.copy()
    changed[:, 40] = 1023 - changed[:, 40]
    up = load_upsampler(small, Track.VOCAL)
    model = codec._model.double()
    try:
        with torch.inference_mode():
            one, two = (
                model.decode(codec._indices(c).transpose(0, 1), return_dict=False)[0, 0] for c in (codes, changed)
            )
            sound = up.double()
            a, b = (sound(codec.embed(c).double()) for c in (codes, changed))
    finally:
        codec._model.float()
    for first, second, hop, context in ((one, two, 320, xcodec.CONTEXT), (a, b, 882, up.context)):
        heard = torch.nonzero((first - second).abs() > 1e-12).flatten()
        assert heard[0] >= (40 - context) * hop and heard[-1] < (40 + context + 1) * hop


def test_no_frames_make_no_sound(codec: XCodec, small: Path) -> None:
    low, high = render_track(codec, load_upsampler(small, Track.VOCAL), some_codes(0))
    assert len(low) == len(high) == 0


def test_fewer_codebooks_can_be_heard_too(codec: XCodec) -> None:
    assert codec.decode(some_codes(20, codebooks=1)).shape == (6400,)


@pytest.mark.parametrize("samples", [312, 319, 320, 399, 400, 4801, 6479, 6480])
def test_encoding_gives_one_frame_per_320_samples_from_240_early(encoder: XCodec, samples: int) -> None:
    wave = np.random.default_rng(samples).standard_normal(samples).astype(np.float32) * 0.1
    codes = encoder.encode(wave, codebooks=2)
    assert codes.shape == (2, (samples + 240) // 320) and codes.dtype == np.int16
    np.testing.assert_array_equal(encoder.encode(wave), codes[:1])


def test_encoding_refuses_what_is_too_short(encoder: XCodec) -> None:
    with pytest.raises(RequestError, match="311 samples"):
        encoder.encode(np.zeros(311, np.float32))


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (np.full((8, 3), 1024, np.int16), "1024"),
        (np.full((8, 3), -1, np.int16), "-1"),
        (np.zeros((9, 3), np.int16), r"\(9, 3\)"),
        (np.zeros(3, np.int16), r"\(3,\)"),
    ],
)
def test_codes_that_cannot_be_are_refused(codec: XCodec, codes: np.ndarray, words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        codec.decode(codes)


def test_a_codec_for_decoding_says_that_it_cannot_encode(codec: XCodec, encoder: XCodec) -> None:
    with pytest.raises(GenerationError, match="decoding only"):
        codec.encode(np.zeros(16000, np.float32))
    with pytest.raises(GenerationError, match="13 codebooks"):
        encoder.encode(np.zeros(16000, np.float32), codebooks=13)
    with pytest.raises(GenerationError, match=r"\(2, 8000\)"):
        encoder.encode(np.zeros((2, 8000), np.float32))


def test_progress_counts_frames_and_can_stop(codec: XCodec, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xcodec, "CHUNK", 20)
    heard: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        heard.append((what, done, total))
        if what == "upsampler":
            raise Cancelled

    with pytest.raises(Cancelled):
        render_track(codec, load_upsampler(small, Track.VOCAL), some_codes(45), progress)
    assert heard == [*(("codec", done, 45) for done in (0, 20, 40, 45)), ("upsampler", 0, 45)]


def test_a_full_card_is_named() -> None:
    with pytest.raises(DeviceError, match="ran out of memory in the codec"), memory_named("codec"):
        raise torch.OutOfMemoryError("CUDA out of memory")


# Refusals, all before anything is loaded


def test_the_check_needs_no_torch(small: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None); "
        "from yuegp.codec import check_codec; check_codec(sys.argv[1], encode=True)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(small)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def refused(folder: Path, words: str, encode: bool = True) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        check_codec(folder, encode)
    assert caught.value.hint


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite a weights file after `change` has worked on its tensors."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "does not exist")


@pytest.mark.parametrize(
    "name",
    [
        "final_ckpt/config.yaml",
        f"{CODEC}.safetensors",
        "decoders/config.yaml",
        f"{VOCAL}.safetensors",
        "decoders/decoder_151000.safetensors",
        "semantic_ckpts/hf_1_325000/config.json",
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refused(copy, name)
    if "semantic" in name:
        check_codec(copy)  # decoding needs no HuBERT
        assert load_codec(copy).codebooks == 8


def test_a_file_cut_short_is_refused(copy: Path, copy_pth: Path) -> None:
    for path in (copy / f"{VOCAL}.safetensors", copy_pth / f"{CODEC}.pth"):
        with open(path, "rb+") as file:
            file.truncate(path.stat().st_size // 2)
        refused(path.parent.parent, path.name)


@pytest.mark.parametrize("end", ["safetensors", "pth"])
def test_a_git_lfs_pointer_is_recognised(copy: Path, end: str) -> None:
    (copy / f"{CODEC}.safetensors").unlink()
    (copy / f"{CODEC}.{end}").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    refused(copy, "git-lfs pointer")


def test_missing_tensors_are_named_five_at_a_time(copy: Path) -> None:
    path = copy / f"{CODEC}.safetensors"
    edit(path, lambda tensors: [tensors.pop(f"decoder_2.model.{i}.block.0.alpha") for i in (1, 2, 3, 4)])
    edit(path, lambda tensors: [tensors.pop(name) for name in ("fc_post2.bias", "decoder_2.model.5.alpha")])
    with pytest.raises(ModelError, match=r"lacks 6 tensors: fc_post2.bias, .*, …") as caught:
        check_codec(copy)
    assert caught.value.what.count("alpha") == 4
    edit(path, lambda tensors: tensors.pop("fc_post2.weight"))
    refused(copy, "no tensor fc_post2.weight")
    with pytest.raises(ModelError, match=r"no tensor fc_post2\.weight"):
        load_codec(copy)


def test_tensors_of_another_shape_are_refused(copy: Path) -> None:
    edit(copy / f"{VOCAL}.safetensors", lambda t: t.update({"head.out.bias": torch.zeros(7)}))
    refused(copy, r"head\.out\.bias is \(7,\), not \(3530,\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(copy: Path, value: float) -> None:
    edit(copy / f"{CODEC}.safetensors", lambda t: t["fc_post2.bias"].fill_(value))
    with pytest.raises(ModelError, match=r"fc_post2\.bias .* not numbers"):
        load_codec(copy)


def test_integer_weights_are_refused(copy: Path) -> None:
    edit(copy / f"{VOCAL}.safetensors", lambda t: t.update({"head.out.bias": t["head.out.bias"].to(torch.int8)}))
    with pytest.raises(ModelError, match="int8"):
        load_upsampler(copy, Track.VOCAL)


class Bomb:
    """What an unsafe pickle would do: call something while it is being read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.target,)


def test_a_pth_cannot_run_code(copy_pth: Path, tmp_path: Path) -> None:
    path = copy_pth / f"{CODEC}.pth"
    content = {"surprise": Bomb(tmp_path / "exploded"), "codec_model": read_state(path, "codec_model")}
    torch.save(content, path)
    check_codec(copy_pth)
    load_codec(copy_pth)
    torch.save({"codec_model": Bomb(tmp_path / "exploded")}, path)
    refused(copy_pth, "table of tensors: __builtin__.getattr")
    assert not (tmp_path / "exploded").exists()


def test_a_pth_is_judged_without_torch_before_anything_loads(copy_pth: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None); "
        "from yuegp.codec import check_codec; check_codec(sys.argv[1], encode=True)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(copy_pth)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("change", ["lacks", "shape", "int8", "nan"])
def test_what_a_pth_lacks_is_found_by_the_check(copy_pth: Path, change: str) -> None:
    """The song used to die at its sound, after both stages had run."""
    path = copy_pth / f"{VOCAL}.pth"
    state = read_state(path, None)
    if change == "lacks":
        del state["head.out.bias"]
    elif change == "shape":
        state["head.out.bias"] = torch.zeros(7)
    elif change == "int8":
        state["head.out.bias"] = state["head.out.bias"].to(torch.int8)
    else:
        state["head.out.bias"][3] = float("nan")
    torch.save(state, path)
    words = {"lacks": "lacks 1 tensors", "shape": r"is \(7,\)", "int8": "torch.int8", "nan": "not numbers"}[change]
    with pytest.raises(ModelError, match=words) as caught:
        check_codec(copy_pth)
    assert "head.out.bias" in caught.value.what and "models get codec-safetensors" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {}}, "no entry codec_model"),
        ({"codec_model": {"step": 3}}, "table of tensors"),
        ({"codec_model": {}}, "no tensor"),
    ],
)
def test_a_pth_of_another_kind_is_refused(copy_pth: Path, content: dict[str, object], words: str) -> None:
    torch.save(content, copy_pth / f"{CODEC}.pth")
    with pytest.raises(ModelError, match=words):
        load_codec(copy_pth)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("final_ckpt/config.yaml", "- 5\n", "- 4\n", r"ratios is \[8, 4, 4, 2\]"),
        ("final_ckpt/config.yaml", "16000", "24000", "sample_rate is 24000"),
        ("final_ckpt/config.yaml", "generator", "discriminator", "no entry generator.config"),
        ("final_ckpt/config.yaml", "generator:", "generator: [", "cannot be read"),
        ("decoders/config.yaml", "882", "256", "hop_length is 256"),
        ("decoders/config.yaml", "same", "center", "padding is center"),
        ("semantic_ckpts/hf_1_325000/config.json", "hidden_size", "size", "'hidden_size'"),
        ("semantic_ckpts/hf_1_325000/config.json", "{", "", "not a HuBERT configuration"),
    ],
)
def test_configurations_of_another_model_are_refused(copy: Path, name: str, old: str, new: str, words: str) -> None:
    path = copy / name
    path.write_text(path.read_text().replace(old, new))
    refused(copy, words)
