"""The first hour of a user: from the hub's repositories, as they really are, to a song, by the documented commands, on
the processor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from released import SOUND, STAGE1, STAGE2, write_released, write_tokenizer

from yuegp.audio.files import read

ROOT = Path(__file__).resolve().parents[2]

OTHERS = {
    STAGE1: ["README.md", ".gitattributes", "generation_config.json"],
    STAGE2: ["README.md", ".gitattributes", "generation_config.json"],
    SOUND: [
        "README.md", ".gitattributes", "vocoder.py", "post_process_audio.py", "models/soundstream_hubert_new.py",
        "quantization/vq.py", "modules/conv.py", "utils/utils.py", "vocos/models.py",
        "semantic_ckpts/hf_1_325000/preprocessor_config.json", "semantic_ckpts/hf_1_325000/pytorch_model.bin",
    ],
}  # fmt: skip
"""What else lies in the repositories, as the hub's pages list it: none of it is wanted."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_released(tmp_path_factory.mktemp("originals"))
    for name, files in OTHERS.items():
        if name != SOUND:
            write_tokenizer(folder / name / "tokenizer.model")
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text("raise SystemExit('this file is run')\n")
    return folder


class Person:
    """Somebody with an empty home, who types commands."""

    def __init__(self, home: Path, hub: str) -> None:
        self.home = home
        home.mkdir()
        own = {"HOME": home, "USERPROFILE": home, "YUEGP_HOME": home / "yuegp", "HF_HOME": home / "hf"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("YUEGP_", "HF_"))}
        self.environment = kept | {key: str(value) for key, value in own.items()}
        # the stand-in's files are small: neither at the pinned commits nor with the published checksums
        self.environment |= {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "YUEGP_NEWEST": "1"}
        (home / "words.txt").write_text("[verse]\nSalt on the window\nLight on the sea\n")

    def types(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "yuegp", *words]
        done = subprocess.run(
            command, cwd=self.home, env=self.environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=600
        )
        said = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == code, said
        assert "Traceback" not in said and "\x1b" not in said, said
        return said

    def makes(self, code: int = 0) -> str:
        return self.types(
            "make", "--lyrics", "words.txt", "--tags", "pop, female, piano, bright vocal", "--model", "yue-en-cot",
            "--sections", "1", "--section-seconds", "1", "--seed", "1", "--device", "cpu", "--quiet", code=code,
        )  # fmt: skip

    def song(self) -> Path:
        (mix,) = (self.home / "yuegp" / "songs").rglob("mix*.flac")
        return Path(mix)


@pytest.fixture
def person(tmp_path: Path, hub: Hub) -> Person:
    return Person(tmp_path / "Jürgen O'Neill", hub.url)


def codec_files(folder: Path) -> set[str]:
    return {path.suffix for path in folder.rglob("*") if path.parent.name in ("final_ckpt", "decoders")}


def test_from_the_hub_to_a_song(person: Person, hub: Hub, originals: Path) -> None:
    shutil.copytree(originals, hub.root / "m-a-p")
    said = person.types("models", "get", "--language", "en", "--for-card", "80GB", "--yes", "--quiet")
    assert "Everything is here and whole." in said and "--model yue-en-cot" in said
    folder = person.home / "yuegp" / "models" / SOUND
    assert codec_files(folder) == {".yaml", ".pth", ".safetensors"} and not list(folder.rglob("*.py"))
    assert "whole" in person.types("models", "check", "--quiet")
    plan = json.loads(person.types("plan", "--lyrics", "words.txt", "--model", "yue-en-cot", "--json"))
    assert plan["models"].startswith("YuE 7B, English") and plan["peak"] < 2**30
    person.makes()
    sound, rate = read(person.song())
    assert rate == 44100 and 0.9 < len(sound) / rate <= 1.1


@pytest.mark.parametrize("ours", [False, True])
def test_from_models_that_are_there_to_a_song(person: Person, originals: Path, ours: bool) -> None:
    """In another program's folder nothing is written: the pickles are read every time. In ours they are converted."""
    there = person.home / "yuegp" / "models" if ours else person.home / "programs" / "some other"
    shutil.copytree(originals, there)
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*")}
    if ours:
        got = person.types("models", "get", "--language", "en", "--for-card", "80GB", "--quiet")
        assert "Everything was here already." in got
    else:
        assert person.types("models", "add", str(there)).count("used from") == 3
    assert person.types("models", "check", "--quiet").count("whole") == 3
    person.types("plan", "--lyrics", "words.txt", "--model", "yue-en-cot")
    person.makes()
    assert person.song().stat().st_size > 1000
    if ours:
        assert ".safetensors" in codec_files(there / SOUND)
    else:
        assert before == {path: path.stat().st_mtime_ns for path in there.rglob("*")}


def test_a_sound_model_that_cannot_be_read_is_refused_first_and_the_next_step_works(
    person: Person, hub: Hub, originals: Path
) -> None:
    """Found on disk, damaged: no codes are computed for a song that could never be heard."""
    there = person.home / "programs"
    shutil.copytree(originals, there)
    person.types("models", "add", str(there))
    path = there / SOUND / "decoders" / "decoder_151000.pth"
    content = torch.load(path, weights_only=True)
    torch.save({"model": dict(content)}, path)
    for words in (["models", "check", "--quiet"], ["plan", "--lyrics", "words.txt", "--model", "yue-en-cot"]):
        assert "models get codec-safetensors" in person.types(*words, code=3)
    assert "decoder_151000.pth" in person.makes(code=3)
    assert not list((person.home / "yuegp").rglob("stage1.npz"))
    write_released(there / "safe", pth=False)
    shutil.copytree(there / "safe" / SOUND, hub.root / "SceneWorks" / "xcodec-mini-infer")
    shutil.rmtree(there / "safe")
    person.types("models", "get", "codec-safetensors", "--yes", "--quiet")
    person.makes()
    assert person.song().is_file()
