"""Models that other programs have: recognised, used where they are, never touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from released import SOUND, STAGE1, STAGE2, pretend_exl2, write_released

from yuegp import places, registry
from yuegp.errors import ModelError
from yuegp.registry import CHECKPOINTS


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
    return {item.checkpoint.id: item.folder for item in places.search(roots) if item.checkpoint}


def test_the_hub_librarys_cache_is_used_as_it_is(originals: Path, tmp_path: Path) -> None:
    repo = tmp_path / "hf" / "hub" / f"models--m-a-p--{STAGE1}"
    snapshot = repo / "snapshots" / ("c" * 40)
    shutil.copytree(originals / STAGE1, snapshot)
    assert places.locate(CHECKPOINTS["s1-en-cot"]) is None
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c" * 40)
    assert places.locate(CHECKPOINTS["s1-en-cot"]) == snapshot
    (snapshot / "model-00003-of-00003.safetensors").unlink()
    assert places.locate(CHECKPOINTS["s1-en-cot"]) is None


def test_the_cache_is_where_the_library_would_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert places.cache_dir() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere")
    assert places.cache_dir() == Path("/elsewhere")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert places.cache_dir() == Path("/cache/huggingface/hub")


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
    checkpoint = places.identify(folder).checkpoint
    assert checkpoint is not None and (checkpoint.stored, checkpoint.bits) == ("exl2", 8.0)


def test_what_a_folder_holds_counts_more_than_what_it_is_called(originals: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals / STAGE2, tmp_path / STAGE1))
    checkpoint = places.identify(folder).checkpoint
    assert checkpoint is not None and checkpoint.id == "s2"


def test_a_folder_whose_name_does_not_tell_the_language_is_not_guessed_at(originals: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals / STAGE1, tmp_path / "stage 1"))
    item = places.identify(folder)
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
    shutil.copytree(originals / STAGE2, registry.models_dir() / STAGE2)
    assert found([registry.models_dir().parent]) == {}
    assert places.locate(CHECKPOINTS["s2"]) == registry.models_dir() / STAGE2


def test_where_the_user_said_comes_first(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / STAGE2, registry.models_dir() / STAGE2)
    theirs = Path(shutil.copytree(originals / STAGE2, tmp_path / "mine"))
    registry.remember({"s2": str(theirs)})
    assert places.locate(CHECKPOINTS["s2"]) == theirs
    shutil.rmtree(theirs)
    assert places.locate(CHECKPOINTS["s2"]) == registry.models_dir() / STAGE2


def test_folders_named_in_the_environment_are_searched(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(originals / STAGE2, tmp_path / "disk 2" / "a" / "b" / STAGE2)
    monkeypatch.setenv("YUEGP_MODEL_DIRS", os.pathsep.join(["/not/there", str(tmp_path / "disk 2")]))
    assert "s2" in found()


def test_only_what_lies_among_our_models_is_ours(tmp_path: Path) -> None:
    ours = registry.models_dir() / "x"
    ours.mkdir(parents=True)
    theirs = tmp_path / "models"
    theirs.mkdir()
    link = registry.models_dir() / "link"
    link.symlink_to(theirs, target_is_directory=True)
    assert places.is_ours(ours)
    assert not places.is_ours(theirs) and not places.is_ours(link) and not places.is_ours(registry.models_dir())


def test_a_damaged_pin_is_named() -> None:
    path = registry.models_dir() / "pins" / f"{STAGE2}.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"repo": 1')
    with pytest.raises(ModelError, match=r"YuE-s2-1B-general\.json cannot be read"):
        places.read_pin(CHECKPOINTS["s2"])
