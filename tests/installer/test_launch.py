"""Whole starts of launch.py, as processes, with stand-ins for pip and uv, interrupted and failing in every way.

No test installs anything: `checkout` says what stands for what."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import House

from installer import builds, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def house(tmp_path: Path) -> House:
    if os.name != "posix":
        pytest.skip("the stand-in for Python is a shell script")
    return House(tmp_path)


UV = "pip:setup.txt"
BASE = [UV, "uv:torch==2.13.0+cpu", "uv:packages.txt"]


# ---- The way it should go --------------------------------------------------------------------------------------------


def test_the_first_start_installs_and_the_second_only_starts(house: House) -> None:
    code, out, err = house.start("make", "--title", "a b")
    assert code == 7, err
    ran = json.loads(out)  # stdout is the command's alone
    assert ran["args"] == ["make", "--title", "a b"] and ran["cwd"] == str(house.cwd)
    assert ran["prefix"] == str(house.root / ".venv") and ran["file"] == str(house.root / "yuegp" / "__main__.py")
    assert ran["env"] == {
        "YUEGP_HOME": str(house.root),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONUTF8": "1",
    }
    assert house.installed() == BASE and "as asked for" in err and "Ready" in err
    code, out, err = house.start("make")
    assert (code, err, json.loads(out)["args"], house.installed()) == (7, "", ["make"], [])


def test_without_a_command_the_page_is_started(house: House) -> None:
    code, out, _ = house.start()
    assert code == 7 and json.loads(out)["args"] == ["ui"]


def test_what_was_done_is_remembered(house: House) -> None:
    house.start("install")
    made = house.record()
    assert made["stack"] == "cpu" and made["torch"] == "9" and made["installer"] == "uv"
    assert made["python"] == "{}.{}.{}".format(*sys.version_info[:3])
    assert made["optional"] == dict.fromkeys(("exllamav2", "flash-attn"), "it needs an NVIDIA card")


def test_installed_once_no_network_is_needed(house: House) -> None:
    house.start("install")
    code, _, err = house.start("songs", FAKE_MOOD="offline")
    assert (code, err) == (7, "")


def test_install_starts_nothing(house: House) -> None:
    code, out, err = house.start("install")
    assert (code, out) == (0, "") and "Start with: python launch.py" in err and house.installed() == BASE


def test_a_folder_named_like_us_where_the_user_stands_is_not_taken_for_ours(house: House) -> None:
    for name in ("yuegp", "installer"):
        (house.cwd / name).mkdir()
        (house.cwd / name / "__main__.py").write_text("print('not me')")
    (house.cwd / "json.py").write_text("raise RuntimeError('nor me')")
    assert house.start("songs")[0] == 7


def test_only_what_changed_is_installed_again(house: House) -> None:
    house.start("install")
    assert house.installed() == BASE
    house.start("test", "--version")  # pytest itself is not there: only the set-up is of interest
    assert house.installed() == ["uv:test.txt"]
    house.start("test", "--version")
    assert house.installed() == []
    requirements = house.root / "requirements.txt"
    requirements.write_bytes(requirements.read_bytes().replace(b"\n", b"\r\n"))
    house.start("install")
    assert house.installed() == [], "other line endings are no change"
    noted = house.root / ".venv" / "yuegp.json"
    noted.write_text(noted.read_text().replace('"as asked for"', '"the card is too old"'))
    requirements.write_text("numpy>=1\n")
    house.start("install")
    assert house.record()["why"] == "the card is too old", "an update asks for what there is: that is no reason"
    updated = [UV, "uv:torch==2.13.0+cpu", "uv:requirements.txt", "uv:test.txt"]
    assert house.installed() == updated, "a lock that is not of these requirements is not used; the tests stay"
    house.start("--cpu", "install", YUEGP_STACK="cuda")
    assert house.installed() == []
    house.start("install", YUEGP_STACK="cuda")
    house.start("install", YUEGP_STACK="auto")
    names = house.installed()
    assert names[:2] == [UV, "uv:cuda.txt"] and names.count(UV) == 1, "a stack once chosen stays"


def test_dry_run_tells_and_does_nothing(house: House) -> None:
    described = ["--dry-run", "--pretend", "windows,rtx4090,driver=560,python=3.12"]
    code, out, err = house.start(*described, YUEGP_STACK="auto")
    assert code == 0 and err == "" and not (house.root / ".venv").exists()
    for text in ("A machine: Windows; RTX4090 (driver 560, compute capability 8.9)", "cu128", "exllamav2    yes"):
        assert text in out, out
    code, out, err = house.start("--dry-run")
    assert code == 0 and "This machine:" in out and "named in YUEGP_PYTHON" in out and "to be made" in out
    assert house.installed() == [] and not (house.root / ".venv").exists()
    house.start("install")
    assert "in order; nothing is to be installed" in house.start("--dry-run")[1]
    code, _, err = house.start("--pretend", "commodore64")
    assert code == 4 and "'commodore64'" in err


def test_help_needs_no_set_up(house: House) -> None:
    code, out, _ = house.start("--help")
    assert code == 0 and "--repair" in out and not (house.root / ".venv").exists()
    house.start("install")
    assert json.loads(house.start("--help")[1])["args"] == ["--help"]


def test_options_of_the_door_stand_before_the_command() -> None:
    assert main.read(["--cpu", "make", "--cpu"], {}) == main.Request(["make", "--cpu"], "cpu")
    assert main.read(["--repair"], {"YUEGP_STACK": "CUDA"}) == main.Request([], "cuda", repair=True)


# ---- When something fails --------------------------------------------------------------------------------------------


def test_without_network_it_says_so_in_a_sentence_and_ends_with_4(house: House) -> None:
    code, out, err = house.start("make", FAKE_MOOD="offline")
    assert (code, out) == (4, "")
    *_, what, hint = err.strip().splitlines()
    assert what == "The package index could not be reached while installing uv."
    assert hint.startswith("Connect to the internet (behind a proxy, set HTTPS_PROXY). Then start again")
    assert "NewConnection" not in err and len(house.installed()) == 1, "found out at the first step"
    assert house.start()[0] == 7, "the next start, connected, is a normal first one"


def test_another_failure_shows_the_tail_and_where_the_rest_is(house: House) -> None:
    code, _, err = house.start(FAKE_MOOD="broken")
    assert code == 4 and "    ERROR: Failed to build something" in err and "install.log" in err


def test_without_uv_pip_does_all(house: House) -> None:
    code, _, err = house.start(FAKE_MOOD="no-uv")
    assert code == 7, err
    assert house.installed() == [UV, "pip:torch==2.13.0+cpu", "pip:packages.txt"]
    assert house.record()["installer"] == "pip"
    assert house.start("--repair", "install", YUEGP_INSTALLER="pip")[0] == 0
    assert house.installed() == ["pip:torch==2.13.0+cpu", "pip:packages.txt"]


def test_where_uv_fails_pip_takes_over(house: House) -> None:
    code, _, err = house.start(FAKE_MOOD="uv-fails")
    assert code == 7, err
    assert [name for name in house.installed() if name.startswith("pip")] == [
        UV,
        "pip:torch==2.13.0+cpu",
        "pip:packages.txt",
    ]


@pytest.mark.parametrize("mood", ["quarantined-uv", "uv-fails"])
def test_a_uv_that_is_taken_away_leaves_the_work_to_pip(house: House, mood: str) -> None:
    """Right after it was fetched, or while it is at work."""
    code, _, err = house.start("install", FAKE_MOOD=mood, YUEGP_STACK="cuda")
    assert code == 0, err
    by_pip = [name for name in house.installed() if name.startswith("pip")]
    assert by_pip[:3] == [UV, "pip:torch-cuda.txt", "pip:packages.txt"] and "Ready" in err
    assert ("uv does not start here" in err) is (mood == "quarantined-uv")


def test_pip_alone_is_told_torchs_own_index_and_another_one_when_that_is_wished(house: House) -> None:
    """The small torch stands in for those with CUDA: one way for all."""
    code, _, err = house.start("install", FAKE_MOOD="own-index", YUEGP_INSTALLER="pip")
    assert code == 0, err
    assert house.installed()[:2] == [
        "pip:torch==2.13.0+cpu",
        f"pip {builds.TORCH_INDEX}/cpu:torch==2.13.0+cpu",
    ]
    env = {"YUEGP_INSTALLER": "pip", "YUEGP_TORCH_INDEX": "https://mirror.example/whl"}
    assert house.start("--repair", "install", FAKE_MOOD="own-index", **env)[0] == 0
    assert house.installed()[1] == "pip https://mirror.example/whl/cpu:torch==2.13.0+cpu"


def test_an_unknown_installer_is_refused(house: House) -> None:
    code, _, err = house.start("install", YUEGP_INSTALLER="conda")
    assert code == 4 and "YUEGP_INSTALLER is 'conda'." in err and house.installed() == []


def test_nothing_outside_the_folder_is_touched_and_what_was_fetched_goes(house: House, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code, _, err = house.start("install", HOME=str(home), XDG_CACHE_HOME="", XDG_DATA_HOME="", FAKE_MOOD="broken")
    assert code == 4 and (house.root / ".launch" / "cache" / "fetched").exists(), "kept for the next start"
    code, _, err = house.start("install", HOME=str(home), XDG_CACHE_HOME="", XDG_DATA_HOME="")
    assert code == 0, err
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in (house.root / ".launch").iterdir()) == ["install.log", "lock"]


def test_where_the_small_torch_cannot_be_had_the_large_one_serves(house: House) -> None:
    code, _, err = house.start(FAKE_MOOD="no-cpu-torch")
    assert code == 7, err
    tried = [name for name in house.installed() if "torch" in name]
    own = f"pip {builds.TORCH_INDEX}/cpu:torch==2.13.0+cpu"
    assert tried[-3:] == ["uv cpu:torch==2.13.0", own, "uv:torch-cpu.txt"] and len(tried) == 5
    assert "the one with CUDA, 4 GB larger" in err


CUDA = {"YUEGP_STACK": "cuda"}


@pytest.mark.skipif(sys.platform != "linux", reason="the addresses of other systems are the same question")
def test_a_failed_optional_wheel_never_stops_the_program(house: House) -> None:
    """flash-attn not to be had is the first complaint about every YuE program."""
    code, _, err = house.start(FAKE_MOOD="no-wheels", **CUDA)
    assert code == 7, err
    optional = house.record()["optional"]
    assert isinstance(optional, dict) and "HTTP error 404" in optional["exllamav2"]
    failed = house.record()["failed"]
    assert isinstance(failed, dict) and "exllamav2" in failed, "doctor reads it"
    assert "without exllamav2: ERROR: HTTP error 404" in err
    assert "torch sees no NVIDIA card" in err


@pytest.mark.skipif(sys.platform != "linux", reason="the addresses of other systems are the same question")
def test_a_flash_attn_that_does_not_load_is_removed(house: House) -> None:
    """An ABI-mismatched flash-attn breaks `import exllamav2`, which catches only its absence."""
    code, _, err = house.start(FAKE_MOOD="bad-flash_attn", **CUDA)
    assert code == 7, err
    optional = house.record()["optional"]
    assert isinstance(optional, dict) and optional["exllamav2"] == "installed"
    assert "undefined symbol" in optional["flash-attn"]
    assert "flash_attn.py" not in house.modules() and "exllamav2.py" in house.modules()


def test_a_package_that_does_not_load_is_named(house: House) -> None:
    code, _, err = house.start(FAKE_MOOD="bad-soxr")
    assert code == 4 and "soxr was installed but does not work: ImportError: undefined symbol" in err
    assert "--repair" in err and not (house.root / ".venv" / "yuegp.json").exists()


def test_a_build_of_uvs_choice_that_does_not_load_is_fetched_again_by_pip(house: House) -> None:
    code, _, err = house.start("songs", FAKE_MOOD="bad-uv-soxr-yaml")
    assert code == 7 and "once more, by pip: yaml, soxr" in err
    assert house.installed() == [*BASE, "pip:again.txt"]
    assert (house.root / ".launch" / "again.txt").read_text().split() == ["pyyaml==6.0", "soxr==1.1"]


def test_a_package_with_a_stand_in_of_ours_may_fail(house: House) -> None:
    code, _, err = house.start("songs", FAKE_MOOD="bad-bitsandbytes")
    assert code == 7 and "bitsandbytes does not work here: ImportError: undefined symbol" in err
    failed = house.record()["failed"]
    assert isinstance(failed, dict) and "undefined symbol" in failed["bitsandbytes"]


def test_repair_builds_anew(house: House) -> None:
    house.start("install")
    house.installed()
    (house.root / ".venv" / "rubbish").touch()
    assert house.start("--repair", "songs")[0] == 7
    assert house.installed() == BASE and not (house.root / ".venv" / "rubbish").exists()
    assert not (house.root / ".launch" / "old").exists()


def test_an_environment_of_somebody_else_is_left_alone(house: House) -> None:
    theirs = house.root / ".venv"
    theirs.mkdir()
    (theirs / "pyvenv.cfg").write_text("home = /usr/bin\n")
    code, out, err = house.start("songs")
    assert code == 7 and ".venv was not made by launch.py: it stays as it is" in err
    assert json.loads(out)["prefix"] == str(house.root / ".venv-yuegp")
    assert [path.name for path in theirs.iterdir()] == ["pyvenv.cfg"]
    code, _, err = house.start("songs")
    assert (code, err) == (7, "")
    house.start("reset")
    assert theirs.exists() and not (house.root / ".venv-yuegp").exists()


def test_an_environment_that_lost_its_python_is_built_again(house: House) -> None:
    house.start()
    house.installed()
    link = house.root / ".venv" / "bin" / "python"
    link.unlink()
    link.symlink_to(house.root / "a python that was uninstalled")
    assert house.start()[0] == 7 and house.installed() == BASE


def test_the_folder_may_be_moved(house: House) -> None:
    house.start("install")
    house.installed()
    moved = house.root.with_name("elsewhere é")
    house.root.rename(moved)
    house.root = moved
    code, out, err = house.start("songs")
    assert (code, err) == (7, "") and json.loads(out)["prefix"] == str(moved / ".venv")


def test_reset_removes_the_environment_and_nothing_else(house: House) -> None:
    house.start("install")
    (house.root / "songs").mkdir()
    code, out, err = house.start("reset")
    assert (code, out) == (0, "") and "Songs and models are untouched" in err
    assert not (house.root / ".venv").exists() and (house.root / "songs").exists()


def test_a_wrong_stack_is_refused_before_anything_happens(house: House) -> None:
    code, _, err = house.start(YUEGP_STACK="rocm")
    assert code == 4 and "YUEGP_STACK is 'rocm'." in err and not (house.root / ".venv").exists()


def test_a_folder_that_cannot_be_written_is_named(house: House) -> None:
    (house.root / ".launch").write_text("a file where the folder belongs")
    code, _, err = house.start()
    assert code == 4 and ".launch" in err and "where you may write" in err and "Traceback" not in err


def test_update_outside_git_says_how(house: House) -> None:
    code, _, err = house.start("update")
    assert code == 0 and "unpack the new version over it" in err and house.installed() == BASE


@pytest.mark.skipif(not shutil.which("git"), reason="git is not here")
def test_update_fetches_and_sets_up(house: House, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"

    def git(*args: str, cwd: Path = house.root) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=m"]
        subprocess.run(["git", *who, *args], cwd=cwd, check=True, capture_output=True)

    (house.root / ".gitignore").write_text(".venv/\n.launch/\n__pycache__/\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    git("clone", str(house.root), str(theirs), cwd=tmp_path)
    git("remote", "add", "origin", str(theirs))
    git("fetch")
    git("branch", "--set-upstream-to", "origin/m")
    house.start("install")
    house.installed()
    (theirs / "requirements.txt").write_text("numpy>=1\n")
    git("commit", "-a", "-m", "second", cwd=theirs)
    code, _, err = house.start("update")
    assert code == 0 and "The requirements have changed" in err, err
    assert "uv:requirements.txt" in house.installed()
    theirs.rename(tmp_path / "gone")
    code, _, err = house.start("update")
    assert code == 4 and "git could not fetch the newest version" in err


@pytest.mark.parametrize("version", ["2.7", "3.7"])
def test_a_python_too_old_is_told_so(version: str) -> None:
    found = shutil.which(f"python{version}")
    if not found or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    answer = subprocess.run([found, str(ROOT / "launch.py")], capture_output=True, text=True)
    assert answer.returncode == 4 and f"this is Python {version}." in answer.stderr


# ---- Interrupted -----------------------------------------------------------------------------------------------------


def test_killed_at_any_point_of_the_set_up_the_next_start_ends_well(house: House) -> None:
    """SIGKILL to everything, at random ones of all the points there are; then a start that must repair what is left."""
    assert house.start("test", "--version")[0] == 1  # the stand-in for pytest cannot be run
    whole, points = house.modules(), house.events()
    assert points > 15
    house.installed()
    for point in [1, 2, 3, *sorted(random.Random(8).sample(range(4, points), 4)), points]:
        shutil.rmtree(house.root / ".venv")
        child = house.popen_until(f"stop:{point}", "test", "--version")
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        assert not (house.root / ".venv" / "yuegp.json").exists(), point
        house.installed(), house.events()
        _, _, err = house.start("test", "--version")
        assert "Ready after" in err, (point, err)
        assert house.modules() == whole and house.installed() == [*BASE, "uv:test.txt"], point
        house.events()


def test_killed_while_building_anew_the_next_start_ends_well(house: House) -> None:
    house.start("install")
    house.events(), house.installed()
    child = house.popen_until("packages.txt", "--repair", "install")
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    house.installed()
    assert house.start("songs")[0] == 7 and house.installed() == BASE


def test_killed_while_adding_the_test_tools_the_rest_still_serves(house: House) -> None:
    house.start("install")
    child = house.popen_until("test.txt", "test", "--version")
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    house.installed()
    assert house.start("songs")[0] == 7 and house.installed() == []
    house.start("test", "--version")
    assert house.installed() == ["uv:test.txt"]


def test_ctrl_c_while_installing_takes_the_installer_along(house: House) -> None:
    child = house.popen_until("packages.txt")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=180)
    assert child.returncode == 130 and "Stopped. The next start begins the set-up anew." in err
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
    assert house.start()[0] == 7


def test_two_first_starts_at_once_install_once(house: House) -> None:
    first = house.popen_until("torch==2.13.0+cpu")
    second = house.popen()
    assert second.stderr and "Another start is installing" in second.stderr.readline()
    os.killpg(first.pid, signal.SIGKILL)  # the one waited for dies: the other takes over
    first.communicate()
    _, err = second.communicate(timeout=180)
    assert second.returncode == 7, err
    assert house.installed() == [*BASE[:2], *BASE]


def test_where_a_process_cannot_be_replaced_it_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The way of Windows, driven here: exit code, working folder and environment go through."""
    code = "import os, sys; sys.exit(5 if os.environ['MARK'] == 'x' and os.path.exists('here') else 1)"
    (tmp_path / "here").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        got = main.start([sys.executable, "-c", code], {**os.environ, "MARK": "x"}, tmp_path)
    assert got == 5
