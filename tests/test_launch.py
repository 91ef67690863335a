"""The door: its decisions on machines made up here, and whole starts with a stand-in for pip.

No test installs anything. The starts are real processes in a folder whose name has spaces and letters beyond ASCII;
their Python makes environments without pip and puts a program in pip's place that notes what it was asked and does as
told."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch
from launch import Card, Interpreter, SetupError

ROOT = Path(__file__).resolve().parent.parent

# ---- Decisions -------------------------------------------------------------------------------------------------------


def python(version: str, bits: int = 64, venv: bool = True) -> Interpreter:
    return Interpreter((f"python{version}",), tuple(map(int, version.split("."))), bits, venv)


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ([python("3.11.7")], "3.11.7"),
        ([python("3.8.18"), python("3.12.1")], "3.12.1"),
        ([None, None, python("3.13.0")], "3.13.0"),
        ([python("3.14.0"), python("3.10.13"), python("3.11.2")], "3.11.2"),
        ([python("3.12.1", bits=32), python("3.11.7")], "3.11.7"),
        ([python("3.11.2", venv=False), python("3.12.1")], "3.12.1"),
    ],
)
def test_a_fitting_python_is_chosen(found: list[Interpreter | None], chosen: str) -> None:
    assert launch.choose_python(found, "Linux").version == tuple(map(int, chosen.split(".")))


def test_choosing_stops_asking_at_the_first_that_fits() -> None:
    def found() -> Iterator[Interpreter]:
        yield python("3.11.7")
        raise AssertionError("asked on")

    assert launch.choose_python(found(), "Linux").version == (3, 11, 7)


@pytest.mark.parametrize(
    ("system", "found", "what", "hint"),
    [
        ("Linux", [python("3.8.18"), python("3.14.0")], "here: 3.14.0 (64-bit), 3.8.18 (64-bit).", "manager"),
        ("Linux", [None], "found here: none that starts", "package manager"),
        ("Windows", [python("3.12.1", bits=32)], "found here: 3.12.1 (32-bit)", "winget install Python.Python.3.12"),
        ("Darwin", [python("3.9.6")], "found here: 3.9.6", "brew install python@3.12"),
        ("Linux", [python("3.11.2", venv=False)], "without the part that makes", "apt install python3.11-venv"),
    ],
)
def test_without_a_fitting_python_it_says_how_to_get_one(
    system: str, found: list[Interpreter | None], what: str, hint: str
) -> None:
    with pytest.raises(SetupError) as error:
        launch.choose_python(found, system)
    first, second = str(error.value).split("\n")
    assert what in first and hint in second


def test_a_name_on_the_path_that_leads_nowhere_is_no_python(tmp_path: Path) -> None:
    """As pyenv's shims do: the file is there, starting it fails."""
    assert launch.probe([str(tmp_path / "absent")]) is None
    assert launch.probe([sys.executable, "-c", "raise SystemExit(127)"]) is None
    answer = launch.probe([sys.executable])
    assert answer and answer.version == sys.version_info[:3] and answer.bits == 64


def test_where_a_python_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(launch.python_commands("Linux", {"YUEGP_PYTHON": "/opt/my python"})) == [["/opt/my python"]]
    monkeypatch.setattr(shutil, "which", lambda name: f"C:/{name}" if name in ("py", "python3.13") else None)
    own, *others = launch.python_commands("Windows", {})
    assert Path(own[0]).exists()
    assert others == [["py", "-3.12"], ["py", "-3.11"], ["C:/python3.13"], ["py", "-3.13"]]


RTX4090 = Card("NVIDIA GeForce RTX 4090", (560, 35), (8, 9))
RTX5090 = Card("NVIDIA GeForce RTX 5090", (570, 86), (12, 0))
GTX1080 = Card("NVIDIA GeForce GTX 1080", (560, 35), (6, 1))


@pytest.mark.parametrize(
    ("wish", "system", "cards", "stack", "reason"),
    [
        ("auto", "Linux", [], "cpu", "no NVIDIA card"),
        ("auto", "Linux", [RTX4090], "cuda", "NVIDIA GeForce RTX 4090, driver 560.35"),
        ("auto", "Windows", [RTX4090], "cuda", "RTX 4090"),
        ("auto", "Windows", [RTX5090], "cuda", "RTX 5090"),
        ("auto", "Linux", [RTX5090._replace(driver=(560, 35))], "cpu", "driver 560.35 of the NVIDIA"),
        ("auto", "Linux", [RTX4090._replace(driver=(470, 256))], "cpu", "older than 525"),
        ("auto", "Linux", [GTX1080], "cpu", "older than what current CUDA builds support"),
        ("auto", "Linux", [GTX1080, RTX4090], "cuda", "RTX 4090"),
        ("auto", "Linux", [Card("Tesla V100", (535, 1), (7, 0))], "cuda", "V100"),
        ("auto", "Darwin", [], "cpu", "no CUDA on macOS"),
        ("cuda", "Darwin", [], "cpu", "no CUDA on macOS"),
        ("cpu", "Linux", [RTX4090], "cpu", "asked for"),
        ("cuda", "Linux", [], "cuda", "asked for"),
    ],
)
def test_the_torch_for_a_machine(wish: str, system: str, cards: list[Card], stack: str, reason: str) -> None:
    chosen, why = launch.choose_stack(wish, system, cards)
    assert chosen == stack and reason in why


def test_cards_are_read_from_what_the_driver_says() -> None:
    text = "NVIDIA GeForce RTX 4090, 560.35.03, 8.9\r\nNVIDIA H200, 575.57.08, 9.0\r\n"
    assert launch.parse_cards(text) == [RTX4090, Card("NVIDIA H200", (575, 57), (9, 0))]
    assert launch.parse_cards('Field "compute_cap" is not a valid field to query.\n') == []
    assert launch.parse_cards("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == []
    assert launch.parse_cards("No devices were found\n") == [] and launch.parse_cards("") == []


def test_torch_is_installed_first_and_from_a_place_that_has_the_build() -> None:
    def commands(stack: str, system: str, arch: str, tests: bool = False) -> list[str]:
        steps = launch.install_steps(Path("/y"), stack, system, arch, tests)
        return [" ".join(map(str, step.args)).replace("\\", "/") for step in steps]

    pip = " ".join(launch.PIP)
    rest = f"{pip} -r /y/requirements.txt"
    assert commands("cpu", "Windows", "AMD64") == [f"{pip} -r /y/requirements-cpu.txt", rest]
    assert commands("cuda", "Linux", "x86_64") == [f"{pip} -r /y/requirements-cuda.txt", rest]
    by_uv = "-m uv pip install --torch-backend cu128 -r /y/requirements-cuda.txt"
    assert commands("cuda", "Windows", "AMD64") == commands("cuda", "Linux", "aarch64") == [f"{pip} uv", by_uv, rest]
    assert commands("cpu", "Linux", "x86_64", tests=True)[-1] == f"{pip} -r /y/requirements-test.txt"


def test_requirement_files_leave_torch_to_the_stack_files() -> None:
    """A torch named later could replace the build chosen first; torchaudio and torchvision would bring another."""
    for name in ("requirements.txt", "requirements-test.txt"):
        lines = [line for line in (ROOT / name).read_text("utf-8").splitlines() if not line.startswith("#")]
        assert not [line for line in lines if line.startswith("torch")]
    for name in ("requirements-cpu.txt", "requirements-cuda.txt"):
        lines = [line for line in (ROOT / name).read_text("utf-8").splitlines() if not line.startswith("#")]
        assert len(lines) == 1 and lines[0].startswith("torch==")


def test_the_environment_of_the_program() -> None:
    env = launch.app_env({"YUEGP_HOME": "/music", "PYTHONHOME": "/x", "PYTHONPATH": "/foreign", "A": "b"}, Path("/y z"))
    assert env["YUEGP_HOME"] == "/music" and env["A"] == "b" and "PYTHONHOME" not in env
    assert env["PYTHONPATH"] == str(Path("/y z")) and env["PYTHONUTF8"] == "1"
    fresh = launch.app_env({}, Path("/y z"))
    assert fresh["YUEGP_HOME"] == str(Path("/y z")) and fresh["OMP_WAIT_POLICY"] == "PASSIVE"
    assert fresh["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_the_environment_of_pip_has_no_foreign_modules_and_tells_uv_of_local_wheels() -> None:
    env = launch.setup_env({"PYTHONPATH": "/foreign", "PIP_USER": "1", "PIP_FIND_LINKS": "/a /b", "HTTPS_PROXY": "p"})
    assert "PYTHONPATH" not in env and env["PIP_USER"] == "0" and env["HTTPS_PROXY"] == "p"
    assert env["UV_FIND_LINKS"] == "/a,/b" and env["PIP_FIND_LINKS"] == "/a /b"


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("Retrying ... NewConnectionError('...')\nERROR: No matching distribution found for torch", "not be reached"),
        ("SSLError(SSLCertVerificationError(...\nERROR: No matching distribution found for torch", "not be reached"),
        ("error: dns error: failed to lookup address information", "not be reached"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "There is no torch==2.13.0 for this machine"),
        ("ERROR: ResolutionImpossible", "did not work"),
    ],
)
def test_a_failed_step_is_explained(output: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(launch.explain("torch", output, Path("/y/.launch/install.log")))
    assert what in text and text.count("\n") == 1
    shown = capsys.readouterr().err
    said_it_all = "reached" in what or "full" in what
    assert ("ERROR" in shown) is not said_it_all, "the tail of the output, unless the sentence is enough"


# ---- Whole starts ----------------------------------------------------------------------------------------------------

FAKE_PYTHON = """
# Stands for the Python found on the machine: real in all but this, that its environments get the pip below.
import os, sys, venv
args = sys.argv[1:]
if args[:2] == ["-m", "venv"]:
    venv.EnvBuilder(clear=True, symlinks=True).create(args[-1])
    folder = os.path.join(args[-1], "lib", "python%d.%d" % sys.version_info[:2], "site-packages", "pip")
    os.mkdir(folder)
    with open(os.path.join(folder, "__main__.py"), "w") as out:
        out.write(os.environ["FAKE_PIP"])
else:
    os.execv(sys.executable, [sys.executable, *args])
"""
FAKE_PIP = """
import os, signal, sys
with open(os.environ["PIP_NOTES"], "a") as notes:
    print(os.path.basename(sys.argv[-1]), file=notes)
mood = os.environ.get("PIP_MOOD", "")
if mood == "offline":
    sys.exit("WARNING: Retrying after NewConnectionError: Failed to establish a new connection")
if mood == "broken":
    sys.exit("ERROR: Failed to build something")
if mood and mood == os.path.basename(sys.argv[-1]):
    print("here", file=open(os.environ["PIP_FIFO"], "w"), flush=True)
    signal.pause()
"""
FAKE_YUEGP = """
import json, os, sys
keys = ("YUEGP_HOME", "OMP_WAIT_POLICY", "GRADIO_ANALYTICS_ENABLED", "PYTHONUTF8")
print(json.dumps({"args": sys.argv[1:], "cwd": os.getcwd(), "env": {key: os.environ.get(key) for key in keys},
                  "prefix": sys.prefix, "file": __file__}))
sys.exit(7)
"""


class House:
    """A made-up checkout in a difficult folder, and starts of its launch.py."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "Müsik & möre ☃"
        self.cwd = folder / "somewhere else"
        self.notes, self.fifo = folder / "notes", folder / "fifo"
        (self.root / "yuegp").mkdir(parents=True)
        self.cwd.mkdir()
        shutil.copy(ROOT / "launch.py", self.root)
        for path in ROOT.glob("requirements*.txt"):
            shutil.copy(path, self.root)
        (self.root / "yuegp" / "__main__.py").write_text(FAKE_YUEGP)
        python, script = folder / "fakepython", folder / "fakepython.py"
        script.write_text(FAKE_PYTHON)
        python.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} \"$@\"\n")
        python.chmod(0o755)
        os.mkfifo(self.fifo)
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("YUEGP_", "PIP_"))}
        self.env.pop("OMP_WAIT_POLICY", None)
        self.env.update(
            YUEGP_PYTHON=str(python),
            YUEGP_STACK="cpu",
            FAKE_PIP=FAKE_PIP,
            PIP_NOTES=str(self.notes),
            PIP_FIFO=str(self.fifo),
        )

    def popen(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self.root / "launch.py"), *args],
            cwd=self.cwd,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def start(self, *args: str, **env: str) -> tuple[int, str, str]:
        child = self.popen(*args, **env)
        out, err = child.communicate(timeout=60)
        return child.returncode, out, err

    def popen_until(self, name: str, *args: str) -> subprocess.Popen[str]:
        """A start that has got as far as installing `name`, and stays there."""
        fifo = os.open(self.fifo, os.O_RDWR)
        child = self.popen(*args, PIP_MOOD=name)
        there, _, _ = select.select([fifo], [], [], 60)
        os.close(fifo)
        assert there, child.communicate(timeout=1)
        return child

    def installed(self) -> list[str]:
        """What the stand-in for pip was asked to install since the last look."""
        names = self.notes.read_text().split() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return names


@pytest.fixture
def house(tmp_path: Path) -> House:
    if os.name != "posix":
        pytest.skip("the stand-in for Python is a shell script")
    return House(tmp_path)


BASE = ["requirements-cpu.txt", "requirements.txt"]


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
    code, out, err = house.start()
    assert (code, err, json.loads(out)["args"], house.installed()) == (7, "", [], [])


def test_a_folder_named_like_us_where_the_user_stands_is_not_taken_for_ours(house: House) -> None:
    (house.cwd / "yuegp").mkdir()
    (house.cwd / "yuegp" / "__main__.py").write_text("print('not me')")
    (house.cwd / "json.py").write_text("raise RuntimeError('nor me')")
    assert house.start("songs")[0] == 7


def test_only_what_changed_is_installed_again(house: House) -> None:
    house.start()
    assert house.installed() == BASE
    house.start("test", "--version")  # pytest itself is not there: only the set-up is of interest
    assert house.installed() == ["requirements-test.txt"]
    house.start("test", "--version")
    assert house.installed() == []
    requirements = house.root / "requirements.txt"
    requirements.write_bytes(requirements.read_bytes().replace(b"\n", b"\r\n"))
    house.start()
    assert house.installed() == [], "other line endings are no change"
    requirements.write_text("numpy==1\n")
    house.start()
    assert house.installed() == [*BASE, "requirements-test.txt"], "tests stay installable after an update"
    house.start(YUEGP_STACK="cuda")
    house.start(YUEGP_STACK="auto")
    torch = house.installed()
    assert torch[-1] == "requirements.txt" and torch.count("requirements-cuda.txt") == 1, "a stack once chosen stays"
    house.start("--cpu", "songs", YUEGP_STACK="cuda")
    assert house.installed() == BASE


@pytest.mark.parametrize("name", [*BASE, "requirements-test.txt"])
def test_killed_while_installing_the_next_start_ends_well(house: House, name: str) -> None:
    child = house.popen_until(name, "test", "--version")
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert not (house.root / ".venv" / "yuegp.json").exists()
    house.installed()
    code, _, err = house.start("songs")
    assert code == 7, err
    assert house.installed() == BASE


def test_ctrl_c_while_installing_takes_pip_along(house: House) -> None:
    child = house.popen_until("requirements.txt")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Stopped. The next start begins the set-up anew." in err
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
    assert house.start()[0] == 7


def test_without_network_it_says_so_in_a_sentence_and_ends_with_4(house: House) -> None:
    code, out, err = house.start("make", PIP_MOOD="offline")
    assert (code, out) == (4, "")
    assert "The package index could not be reached while installing torch." in err and "NewConnection" not in err
    assert house.start()[0] == 7, "the next start, connected, is a normal first one"


def test_another_failure_shows_the_tail_and_where_the_rest_is(house: House) -> None:
    code, _, err = house.start(PIP_MOOD="broken")
    assert code == 4 and "    ERROR: Failed to build something" in err and "install.log" in err


def test_an_environment_that_lost_its_python_is_built_again(house: House) -> None:
    house.start()
    house.installed()
    link = house.root / ".venv" / "bin" / "python"
    link.unlink()
    link.symlink_to(house.root / "a python that was uninstalled")
    assert house.start()[0] == 7 and house.installed() == BASE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stack": "rocm"}', "\xff"])
def test_a_damaged_stamp_means_building_again(tmp_path: Path, text: str) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "yuegp.json").write_text(text, "latin-1")
    assert launch.needed(tmp_path, "auto", tests=False) == "everything"


def test_two_first_starts_at_once_install_once(house: House) -> None:
    first = house.popen_until("requirements-cpu.txt")
    second = house.popen()
    assert second.stderr and "Another start is installing" in second.stderr.readline()
    os.killpg(first.pid, signal.SIGKILL)  # the one waited for dies: the other takes over
    first.communicate()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 7, err
    assert house.installed() == ["requirements-cpu.txt", *BASE]


def test_a_wrong_stack_is_refused_before_anything_happens(house: House) -> None:
    code, _, err = house.start(YUEGP_STACK="rocm")
    assert code == 4 and "YUEGP_STACK is 'rocm'." in err and not (house.root / ".venv").exists()


def test_a_folder_that_cannot_be_written_is_named(house: House) -> None:
    (house.root / ".launch").write_text("a file where the folder belongs")
    code, _, err = house.start()
    assert code == 4 and ".launch" in err and "where you may write" in err and "Traceback" not in err


def test_where_a_process_cannot_be_replaced_it_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The way of Windows, driven here: exit code, working folder and environment go through."""
    code = "import os, sys; sys.exit(5 if os.environ['MARK'] == 'x' and os.path.exists('here') else 1)"
    (tmp_path / "here").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        got = launch.start([sys.executable, "-c", code], {**os.environ, "MARK": "x"}, tmp_path)
    assert got == 5
