"""The command `models`, against a stand-in for the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub
from released import SOUND, STAGE1, STAGE2, pretend_exl2, write_released

from yuegp import paths
from yuegp.checkpoints import registry
from yuegp.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("originals"), pth=False)


@pytest.fixture
def stocked(hub: Hub, originals: Path) -> Hub:
    """The hub, with one set. Its codec holds safetensors, as the copy without pickles does."""
    shutil.copytree(originals, hub.root / "m-a-p")
    shutil.move(hub.root / "m-a-p" / SOUND, hub.root / "SceneWorks" / "xcodec-mini-infer")
    return hub


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["models", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_list_says_what_is_here_and_what_things_are_good_for(hub: Hub, run: Run, originals: Path) -> None:
    shutil.copytree(originals / STAGE2, paths.models_dir() / STAGE2)
    code, out, _ = run()
    assert code == 0 and hub.log == []
    lines = {line.split()[0]: line for line in out.splitlines() if line and line[0] != " "}
    assert " here " in lines["s2"] and "missing" in lines["s1-en-cot"] and "about 12.45 GB" in lines["s1-en-cot"]
    assert str(paths.models_dir() / STAGE2) in out and "s1-en-cot-nf4" not in out and "demo is built in" in out
    assert "4 bit" in run("list", "--all")[1]
    listed = {entry["id"]: entry for entry in json.loads(run("--json")[1])}
    assert listed["s2"]["state"] == "here" and listed["s1-zh-icl-nf4"]["bytes"] == 4_230_000_000


def test_bytes_and_free_disk_come_before_the_question(stocked: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or "n")
    code, out, _ = run("get", "s2")
    assert code == 0 and "To download: 2.69 MB. Free on that disk: " in out and "Nothing was downloaded." in out
    assert questions == ["Download 2.69 MB? [y/N] "]
    assert not (paths.models_dir() / STAGE2).exists()


def test_without_anybody_to_ask_it_wants_a_yes(stocked: Hub, run: Run) -> None:
    code, _, err = run("get", "s2")
    assert code == 2 and "--yes" in err


def test_one_checkpoint_is_got_checked_and_removed(stocked: Hub, run: Run) -> None:
    assert "Everything is here and whole." in run("get", "codec-safetensors", "--yes", "--quiet")[1]
    assert "here already" in run("get", "codec-safetensors")[1]
    code, out, _ = run("check", "codec-safetensors", "--quiet")
    assert code == 0 and "whole" in out
    code, out, _ = run("remove", "codec-safetensors", "--yes")
    assert code == 0 and out.startswith("Freed ")
    assert run("check", "codec-safetensors")[0] == 3


def test_a_set_is_chosen_for_a_card_and_settled(stocked: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(stocked.root / "SceneWorks" / "xcodec-mini-infer", paths.models_dir() / SOUND)
    fast = registry.CHECKPOINTS["s1-en-cot-exl2-8.0"]
    pretend_exl2(stocked.root / "m-a-p" / STAGE1, stocked.root / fast.repo, 8.0)
    code, out, _ = run("get", "--language", "en", "--mode", "cot", "--for-card", "24GB", "--yes", "--quiet")
    assert code == 0, out
    assert "For yue-en-cot: the best that fits a card of 24 GB" in out and "--model yue-en-cot" in out
    assert "Stage 1 as EXL2 8 bit, Stage 2 as float16" in out
    assert registry.notes()["sets"]["yue-en-cot"] == [fast.id, "s2", "codec"]


def test_what_another_program_has_and_cannot_be_used_is_told(
    stocked: Hub, run: Run, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Path(shutil.copytree(originals / STAGE2, tmp_path / "disk" / STAGE2)) / "model.safetensors"
    theirs.write_bytes(theirs.read_bytes()[:-5])
    monkeypatch.setenv("YUEGP_MODEL_DIRS", str(tmp_path / "disk"))
    code, out, _ = run("get", "s2", "--yes", "--quiet")
    assert code == 0 and f"not used  {theirs} is cut short" in out and "Everything is here and whole." in out


def test_a_damaged_download_is_told_and_mended_by_the_same_command(stocked: Hub, run: Run) -> None:
    stocked.damage["model.safetensors"] = 100_000
    code, _, err = run("get", "s2", "--yes", "--quiet")
    assert code == 3 and "arrived damaged" in err and ".bad" in err and "Start the download again" in err
    assert "set aside, may be deleted" in run()[1]
    stocked.damage.clear()
    assert run("get", "s2", "--yes", "--quiet")[0] == 0


def test_a_damaged_model_fails_its_check(stocked: Hub, run: Run) -> None:
    run("get", "s2", "--yes", "--quiet")
    path = paths.models_dir() / STAGE2 / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, err = run("check", "--quiet")
    assert code == 3 and "is not the file that was downloaded" in err


def test_a_folder_is_added_with_one_command(run: Run, originals: Path, hub: Hub) -> None:
    code, out, _ = run("add", originals)
    assert code == 0 and "s1-en-cot" in out and f"used from {originals / STAGE1}" in out
    code, out, _ = run("remove", "s2")
    assert code == 0 and "no files of ours" in out and (originals / STAGE2).is_dir()


def test_a_repository_is_added_with_one_command(run: Run) -> None:
    code, out, _ = run("add", "me/sea-shanties-s1", "--language", "en", "--mode", "cot")
    assert code == 0 and "models get sea-shanties-s1" in out
    assert run("add", "me/sea-shanties")[0] == 2


def test_no_network_says_what_is_missing_and_that_the_built_in_model_works(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, err = run("get", "--language", "en", "--for-card", "24GB")
    assert code == 3 and "cannot be reached" in err and "built-in model works" in err
    assert "missing   s1-en-cot-exl2-8.0 " in out and "about 3.93 GB from m-a-p/YuE-s2-1B-general" in out


def test_a_whole_command_against_a_silent_hub_ends_in_time(hub: Hub, tmp_path: Path) -> None:
    """The program itself, not only its parts: it must neither wait nor hang when it ends."""
    hub.silent = True
    code = (
        "import sys, yuegp.checkpoints.hub; yuegp.checkpoints.hub.PATIENCE = 1.0; from yuegp.cli.main import main\n"
        "sys.exit(main(['models', 'get', 's2']))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "does not answer" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_unknown_names_and_too_many_are_refused(run: Run) -> None:
    assert run("get", "s3")[0] == 3
    assert run("get")[0] == 2
    assert run("get", "s2", "codec")[0] == 2
    assert run("add")[0] == 2 and run("remove")[0] == 2
