"""The sound side against values recorded from the released program's own modules (YUEGP_GOLDEN_CODEC).

Everything, lengths and cases included, is taken from the file, so that another file of the format can stand in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from released import save_trained
from safetensors import safe_open
from safetensors.torch import save_file

from yuegp.audio import mix
from yuegp.audio.files import mono16k
from yuegp.codec import check_codec, load_codec, load_upsampler, render_track
from yuegp.codec.upsampler import Upsampler
from yuegp.codec.xcodec import XCodec
from yuegp.song.schema import Track

TRACKS = {"vocal": Track.VOCAL, "inst": Track.INSTRUMENTAL}


class Golden:
    """The recorded values, by their names without `golden/`."""

    def __init__(self, path: Path) -> None:
        self.file = safe_open(path, "pt")
        self.names = [key.removeprefix("golden/") for key in self.file.keys() if key.startswith("golden/")]  # noqa: SIM118

    def __getitem__(self, name: str) -> np.ndarray:
        return self.file.get_tensor(f"golden/{name}").numpy()

    def cases(self, group: str) -> list[str]:
        return sorted({name.split("/")[1] for name in self.names if name.startswith(f"{group}/")})

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        keys = [key for key in self.file.keys() if key.startswith(f"{prefix}/")]  # noqa: SIM118
        return {key.removeprefix(f"{prefix}/"): self.file.get_tensor(key) for key in keys}


@pytest.fixture(scope="module")
def golden(golden_codec: Path) -> Golden:
    return Golden(golden_codec)


def write_released(golden: Golden, folder: Path, pth: bool) -> Path:
    """The folder `xcodec_mini_infer` as released, or with safetensors, from the golden file's weights."""
    texts = {
        "final_ckpt/config.yaml": "codec_config_yaml",
        "decoders/config.yaml": "decoder_config_yaml",
        "semantic_ckpts/hf_1_325000/config.json": "hubert_config_json",
    }
    for name, entry in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(golden.file.metadata()[entry])
    for place, prefix in (("final_ckpt/ckpt_00360000", "codec_model"), *((f"decoders/{d}", d) for d in DECODERS)):
        state, target = golden.part(prefix), folder / place
        if pth:
            save_trained(Path(f"{target}.pth"), {"codec_model": state} if prefix == "codec_model" else state)
        else:
            save_file(state, f"{target}.safetensors")
    return folder


DECODERS = ("decoder_131000", "decoder_151000")


@pytest.fixture(scope="module", params=["pth", "safetensors"])
def folder(golden: Golden, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(golden, tmp_path_factory.mktemp(request.param), pth=request.param == "pth")


@pytest.fixture(scope="module")
def codec(folder: Path) -> XCodec:
    check_codec(folder)
    return load_codec(folder)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> XCodec:
    check_codec(folder, encode=True)
    return load_codec(folder, encode=True)


@pytest.fixture(scope="module")
def upsamplers(folder: Path) -> dict[Track, Upsampler]:
    return {track: load_upsampler(folder, track) for track in Track}


def far(got: np.ndarray, want: np.ndarray) -> float:
    assert got.dtype == np.float32 and got.shape == want.shape
    return float(np.abs(got - want).max())


def rows(codes: np.ndarray) -> list[np.ndarray]:
    """(n, frames) for each clip of (n, frames) or of a batch (n, clips, frames)."""
    return [codes] if codes.ndim == 2 else [codes[:, clip] for clip in range(codes.shape[1])]


def test_golden_codec_encode(golden: Golden, encoder: XCodec) -> None:
    compared = 0
    for name in golden.names:
        if "/codes_bw" not in name:
            continue
        waves = golden[name.rpartition("/")[0] + "/wave"][:, 0]
        for wave, codes in zip(waves, rows(golden[name]), strict=True):
            got = encoder.encode(wave, codebooks=len(codes))
            assert got.dtype == np.int16
            np.testing.assert_array_equal(got, codes, err_msg=name)
            assert codes.shape[1] == (len(wave) + 240) // 320
            compared += codes.size
    assert compared


def test_golden_codec_decode(golden: Golden, codec: XCodec, encoder: XCodec) -> None:
    for case in golden.cases("decode"):
        waves = golden[f"decode/{case}/wave16"][:, 0]
        for codes, wave in zip(rows(golden[f"decode/{case}/codes"]), waves, strict=True):
            assert far(codec.decode(codes), wave) <= 1e-5, case
            assert far(encoder.decode(codes), wave) <= 1e-5, case


def test_golden_codec_embedding_is_exact(golden: Golden, codec: XCodec) -> None:
    for case in golden.cases("decode"):
        if f"decode/{case}/embed" in golden.names:
            embed = codec.embed(golden[f"decode/{case}/codes"])
            np.testing.assert_array_equal(embed.numpy(), golden[f"decode/{case}/embed"], err_msg=case)


def test_golden_codec_upsampler(golden: Golden, codec: XCodec, upsamplers: dict[Track, Upsampler]) -> None:
    for case in golden.cases("decode"):
        if f"decode/{case}/wave44" in golden.names:
            upsampler = upsamplers[TRACKS.get(case, Track.VOCAL)]
            low, high = render_track(codec, upsampler, golden[f"decode/{case}/codes"])
            assert far(low, golden[f"decode/{case}/wave16"][0, 0]) <= 1e-5, case
            assert far(high, golden[f"decode/{case}/wave44"][0]) <= 1e-5, case


def test_golden_codec_resampled_reference(golden: Golden) -> None:
    for rate in golden.cases("resample"):
        got = mono16k(golden[f"resample/{rate}/stereo"].T, int(rate))
        assert far(got, golden[f"resample/{rate}/mono16"][0]) <= 3e-6, rate


@pytest.mark.parametrize("form", ["clamp", "rescale"])
def test_golden_codec_mix_in_mode_yue(golden: Golden, form: str) -> None:
    waves = [golden[f"decode/{stem}/{wave}"].ravel() for stem in TRACKS for wave in ("wave16", "wave44")]
    vocal, instrumental, mixed = mix.yue_waves(*waves, rescale=form == "rescale")
    post = {name: golden[f"post/{form}/{name}"] for name in ("stem44_vocal", "stem44_inst", "mix44", "final")}
    assert far(vocal, post["stem44_vocal"]) <= 1e-5
    assert far(instrumental, post["stem44_inst"]) <= 1e-5
    assert far(mixed, post["final"]) <= 1e-5
    assert far(mix.limit(waves[1] + waves[3], form == "rescale"), post["mix44"]) <= 1e-5
    assert far(mix.yue_exchange_lows(golden["post/clamp/mix16"], post["mix44"]), post["final"]) <= 1e-5
    if form == "clamp":
        finished = mix.finish(*waves, crossover="yue")
        assert far(finished.mix / np.float32(finished.gain), post["final"]) <= 1e-5
