"""Models that other programs have: recognised, used where they are, never touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from released import SOUND, STAGE1, STAGE2, pretend_exl2, write_released

from yuegp import paths
from yuegp.checkpoints import locate, registry
from yuegp.checkpoints.registry import CHECKPOINTS
from yuegp.errors import ModelError


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("originals"))


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home of this test's own."""
    for name in ("YUEGP_MODELS", "YUEGP_MODEL_DIRS", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    user = tmp_path / "user"
    monkeypatch.setattr(Path, "home", lambda: user)
    return user


def found(roots: list[Path] | None = None) -> dict[str, Path]:
    return {item.checkpoint.id: item.folder for item in locate.search(roots) if item.checkpoint}


def test_the_hub_librarys_cache_is_used_as_it_is(originals: Path, tmp_path: Path) -> None:
    repo = tmp_path / "hf" / "hub" / f"models--m-a-p--{STAGE1}"
    snapshot = repo / "snapshots" / ("c" * 40)
    shutil.copytree(originals / STAGE1, snapshot)
    assert locate.locate(CHECKPOINTS["s1-en-cot"]) is None
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c" * 40)
    assert locate.locate(CHECKPOINTS["s1-en-cot"]) == snapshot
    (snapshot / "model-00003-of-00003.safetensors").unlink()
    assert locate.locate(CHECKPOINTS["s1-en-cot"]) is None


def test_the_cache_is_where_the_library_would_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert locate.cache_dir() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere")
    assert locate.cache_dir() == Path("/elsewhere")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert locate.cache_dir() == Path("/cache/huggingface/hub")


def test_other_programs_folders_are_found_and_recognised(originals: Path, nobody: Path, tmp_path: Path) -> None:
    """ComfyUI, a clone of YuE, and Pinokio, each in its own place."""
    comfy, clone = nobody / "ComfyUI" / "models" / "yue", nobody / "YuE" / "inference"
    shutil.copytree(originals / STAGE2, comfy / STAGE2)
    shutil.copytree(originals / SOUND, clone / SOUND)
    pinokio = nobody / "pinokio" / "api" / "yue.git" / "app"
    pretend_exl2(originals / STAGE1, pinokio / f"{STAGE1}-exl2", 4.25)
    seen = found()
    assert seen["s2"] == comfy / STAGE2 and seen["codec"] == clone / SOUND
    assert seen["s1-en-cot-exl2-4.25bpw-h6"] == pinokio / f"{STAGE1}-exl2"


def test_a_clone_with_the_branch_switched_is_known_by_its_bits(originals: Path, tmp_path: Path) -> None:
    """`git switch 8.0bpw-h8` changes everything but the folder's name."""
    folder = pretend_exl2(originals / STAGE1, tmp_path / f"{STAGE1}-exl2", 8.0)
    checkpoint = locate.identify(folder).checkpoint
    assert checkpoint is not None and (checkpoint.stored, checkpoint.bits) == ("exl2", 8.0)


def test_what_a_folder_holds_counts_more_than_what_it_is_called(originals: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals / STAGE2, tmp_path / STAGE1))
    checkpoint = locate.identify(folder).checkpoint
    assert checkpoint is not None and checkpoint.id == "s2"


def test_a_folder_whose_name_does_not_tell_the_language_is_not_guessed_at(originals: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals / STAGE1, tmp_path / "stage 1"))
    item = locate.identify(folder)
    assert item.checkpoint is None and item.said["role"] == "stage1" and "language" not in item.said


def test_damaged_and_foreign_models_are_passed_over(originals: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(originals / STAGE2, tmp_path / "apps" / STAGE2))
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[:-10])
    other = tmp_path / "apps" / "unet"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "sd"}')
    (other / "x.safetensors").write_bytes(b"nothing")
    assert found([tmp_path / "apps"]) == {}


def test_our_own_folder_is_no_other_program(originals: Path) -> None:
    shutil.copytree(originals / STAGE2, paths.models_dir() / STAGE2)
    assert found([paths.models_dir().parent]) == {}
    assert locate.locate(CHECKPOINTS["s2"]) == paths.models_dir() / STAGE2


def test_where_the_user_said_comes_first(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / STAGE2, paths.models_dir() / STAGE2)
    theirs = Path(shutil.copytree(originals / STAGE2, tmp_path / "mine"))
    registry.remember({"s2": str(theirs)})
    assert locate.locate(CHECKPOINTS["s2"]) == theirs
    shutil.rmtree(theirs)
    assert locate.locate(CHECKPOINTS["s2"]) == paths.models_dir() / STAGE2


def test_folders_named_in_the_environment_are_searched(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(originals / STAGE2, tmp_path / "disk 2" / "a" / "b" / STAGE2)
    monkeypatch.setenv("YUEGP_MODEL_DIRS", os.pathsep.join(["/not/there", str(tmp_path / "disk 2")]))
    assert "s2" in found()


def test_only_what_lies_among_our_models_is_ours(tmp_path: Path) -> None:
    ours = paths.models_dir() / "x"
    ours.mkdir(parents=True)
    theirs = tmp_path / "models"
    theirs.mkdir()
    link = paths.models_dir() / "link"
    link.symlink_to(theirs, target_is_directory=True)
    assert locate.is_ours(ours)
    assert not locate.is_ours(theirs) and not locate.is_ours(link) and not locate.is_ours(paths.models_dir())


def test_a_damaged_pin_is_named() -> None:
    path = paths.models_dir() / "pins" / f"{STAGE2}.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"repo": 1')
    with pytest.raises(ModelError, match=r"YuE-s2-1B-general\.json cannot be read"):
        locate.read_pin(CHECKPOINTS["s2"])


# As awkward as it is


def passed(*roots: Path) -> dict[str, str]:
    return {item.folder.name: item.why for item in locate.survey(list(roots))[1]}


def test_models_behind_links_and_on_other_disks(originals: Path, nobody: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / STAGE1, tmp_path / "disk 2" / "models" / STAGE1)
    yue = nobody / "ComfyUI" / "models" / "yue"
    yue.mkdir(parents=True)
    (yue / "more").symlink_to(tmp_path / "disk 2" / "models")
    (yue / "round").symlink_to(nobody / "ComfyUI")
    (yue / STAGE2).mkdir()
    for path in (originals / STAGE2).iterdir():
        (yue / STAGE2 / path.name).symlink_to(path)
    assert found() == {"s1-en-cot": yue / "more" / STAGE1, "s2": yue / STAGE2}


def test_the_hub_cache_with_links_and_a_download_that_was_not_ended(originals: Path, tmp_path: Path) -> None:
    """As the hub library lays it out: a link for each file, to a blob that has the name of its checksum."""
    repo = tmp_path / "hf" / "hub" / f"models--m-a-p--{STAGE2}"
    snapshot = repo / "snapshots" / ("c" * 40)
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text("c" * 40)
    for number, path in enumerate(sorted((originals / STAGE2).iterdir())):
        shutil.copy(path, repo / "blobs" / f"{number:064}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064}")
    assert locate.locate(CHECKPOINTS["s2"]) == snapshot and found([tmp_path / "hf" / "hub"]) == {"s2": snapshot}
    blob = (snapshot / "model.safetensors").resolve()
    blob.rename(f"{blob}.incomplete")
    assert locate.locate(CHECKPOINTS["s2"]) is None
    assert found([tmp_path / "hf"]) == {} and "safetensors" in passed(tmp_path / "hf")["c" * 40]


def test_another_revision_in_a_cache_is_said_and_not_used(originals: Path, tmp_path: Path) -> None:
    repo = tmp_path / "cache" / "hub" / f"models--m-a-p--{STAGE2}"
    shutil.copytree(originals / STAGE2, repo / "snapshots" / ("c" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("d" * 40)
    assert found([tmp_path / "cache"]) == {}
    assert "another revision of s2" in passed(tmp_path / "cache")["c" * 40]


def test_what_is_yues_and_not_whole_is_said(originals: Path, tmp_path: Path) -> None:
    apps = tmp_path / "apps"
    for name in ("cut", "pointer", "half", "pickled", "bare", "nested"):
        shutil.copytree(originals / STAGE1, apps / name / STAGE1)
    (apps / "bare" / STAGE1 / "config.json").unlink()
    (apps / "nested" / STAGE1 / "config.json").write_text("[" * 100_000)
    shutil.copytree(originals / SOUND, apps / "sound" / SOUND)
    shutil.rmtree(apps / "sound" / SOUND / "decoders")
    first = "model-00001-of-00003.safetensors"
    data = (apps / "cut" / STAGE1 / first).read_bytes()
    (apps / "cut" / STAGE1 / first).write_bytes(data[:-10])
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (apps / "pointer" / STAGE1 / first).write_text(pointer)
    (apps / "half" / STAGE1 / first).unlink()
    for path in (apps / "pickled" / STAGE1).glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    said = {item.folder.parent.name: item.why for item in locate.survey([apps])[1]}
    assert found([apps]) == {} and set(said) == {"cut", "pointer", "half", "pickled", "bare", "nested", "sound"}
    assert "no config.json" in said["bare"] and "the sound model" in said["sound"]
    assert "cut short" in said["cut"] and "git-lfs" in said["pointer"] and "lacks 1 of its 3" in said["half"]


def test_configurations_of_strangers_cost_nothing(originals: Path, tmp_path: Path) -> None:
    config = json.loads((originals / STAGE1 / "config.json").read_text())
    odd = {
        "layers": json.dumps(config | {"num_hidden_layers": 10**9}),
        "wide": json.dumps(config | {"hidden_size": 1 << 40}),
        "no heads": json.dumps(config | {"num_attention_heads": 0}),
        "none": json.dumps({key: None for key in config} | {"vocab_size": 83968}),
        "deep": "[" * 200_000,
        "digits": '{"vocab_size": ' + "9" * 10_000 + "}",
        "long": json.dumps(config) + " " * (1 << 21),
        "binary": "\x00\xff",
        "another": json.dumps(config | {"vocab_size": 32000}),
    }
    for name, text in odd.items():
        (tmp_path / "apps" / name).mkdir(parents=True)
        (tmp_path / "apps" / name / "config.json").write_text(text)
        (tmp_path / "apps" / name / "model.safetensors").write_bytes(b"\x08" + bytes(15))
    (tmp_path / "apps" / "folder" / "config.json").mkdir(parents=True)
    (tmp_path / "apps" / "pipe").mkdir()
    os.mkfifo(tmp_path / "apps" / "pipe" / "config.json")
    assert found([tmp_path / "apps"]) == {}


def test_a_header_of_two_gigabytes_and_a_pipe_for_weights_are_not_read(originals: Path, tmp_path: Path) -> None:
    for name in ("large", "pipe"):
        shutil.copytree(originals / STAGE2, tmp_path / "apps" / name)
        (tmp_path / "apps" / name / "model.safetensors").unlink()
    with (tmp_path / "apps" / "large" / "model.safetensors").open("wb") as file:
        file.write((2 << 30).to_bytes(8, "little"))
        file.truncate(3 << 30)  # holes: nothing is written
    os.mkfifo(tmp_path / "apps" / "pipe" / "model.safetensors")
    assert found([tmp_path / "apps"]) == {}
    assert "header of more than" in passed(tmp_path / "apps")["large"]


def test_a_folder_whose_name_is_no_text_is_said_and_not_used(originals: Path, tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9", os.fsencode(STAGE2))
    shutil.copytree(os.fsencode(originals / STAGE2), folder)
    assert found([tmp_path]) == {} and next(iter(passed(tmp_path).values())).endswith("is no text.")
    str(list(passed(tmp_path).values())).encode()


def test_another_programs_files_stay_as_they_are(originals: Path, nobody: Path) -> None:
    shutil.copytree(originals, nobody / "ComfyUI" / "models" / "yue")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in nobody.rglob("*")}
    assert set(found()) == {"s1-en-cot", "s2", "codec"}
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in nobody.rglob("*")}
