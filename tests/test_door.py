"""The door's decisions, on machines made up in `machines.json`, and what they rest on. Nothing is installed."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from door import choose, install, machine, main, record, steps
from door.choose import Plan, decide
from door.machine import Card, Interpreter
from door.pretend import pretend
from door.words import SetupError

ROOT = Path(__file__).resolve().parent.parent
MACHINES = json.loads((Path(__file__).parent / "machines.json").read_text("utf-8"))
URLS = install.wheel_urls(ROOT)


# ---- Files that somebody has open (Windows) --------------------------------------------------------------------------


def test_a_scanned_environment_waits_a_second_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(record, "sleep", pauses.append)

    def scanned(times: int, code: int) -> None:
        def act() -> None:
            if len(pauses) < times:
                error = PermissionError(13, "Access is denied")
                error.winerror = code
                raise error

        pauses.clear()
        record.patiently(act, tmp_path / ".venv")

    scanned(3, 5), scanned(7, 32)
    assert pauses == list(record.PAUSES)
    with pytest.raises(SetupError, match=r"\.venv cannot be changed: another program has it open") as caught:
        scanned(8, 32)
    assert "Close every other window" in caught.value.hint
    with pytest.raises(PermissionError):
        scanned(1, 19)
    assert pauses == []


# ---- A table of machines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row["machine"] + ("," + row["wish"] if "wish" in row else ""))
def test_the_decisions_for_a_machine(row: dict[str, Any]) -> None:
    plan = decide(pretend(row["machine"]), row.get("wish", "auto"), URLS)
    said = "\n".join(f"{d.what}: {d.value}: {d.reason}" for d in plan.decisions)
    if "problem" in row:
        assert plan.problem and row["problem"] in plan.problem.what and row["hint"] in plan.problem.hint
        assert plan.problem.what.endswith((".", "!")) and plan.problem.hint.endswith(".")
        return
    assert plan.problem is None, plan.problem
    assert plan.stack == row["stack"]
    assert plan.torch == row.get("torch", plan.torch)
    if "python" in row:
        assert (plan.python and "{}.{}".format(*plan.python.version)) == row["python"]
    if "fast" in row:
        assert [wheel.name for wheel in plan.wheels if wheel.url] == row["fast"]
    for text in row.get("says", []):
        assert text in said


def test_the_table_is_large_and_knows_every_system() -> None:
    assert len({row["machine"] for row in MACHINES}) >= 40
    assert {pretend(row["machine"]).system for row in MACHINES} == {"Linux", "Windows", "Darwin"}


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row["machine"])
def test_every_machine_can_be_told_about(row: dict[str, Any]) -> None:
    request = main.Request([], row.get("wish", "auto"), dry_run=True, pretend=row["machine"])
    text = main.tell(ROOT, request, pretend(row["machine"]), real=False)
    assert ("Then it stops:" in text) is ("problem" in row)
    assert ("Steps:" in text) is ("problem" not in row)
    assert str(ROOT) not in text


@pytest.mark.parametrize(
    ("text", "what"),
    [("linux,rtx9999", "'rtx9999'"), ("linux,python=x", "python=x"), ("driver=560", "driver without a card"),
     ("rtx4090,driver=new", "'driver=new'")],
)  # fmt: skip
def test_an_unknown_word_in_a_made_up_machine_is_named(text: str, what: str) -> None:
    with pytest.raises(SetupError) as error:
        pretend(text)
    assert what in error.value.what and "rtx4090" in error.value.hint


def plan_for(text: str, wish: str = "auto", installer: str = "uv") -> Plan:
    return decide(pretend(text), wish, URLS, installer)


def ways(step: steps.Step) -> list[str]:
    return [" ".join(way).replace(str(ROOT), "").replace("\\", "/") for way in step.ways]


def test_nothing_is_ever_compiled_and_torch_comes_first_and_alone() -> None:
    """Compiling flash-attn or exllamav2 on the user's machine is the classic failure of YuE programs."""
    for row in MACHINES:
        plan = plan_for(row["machine"], row.get("wish", "auto"))
        if plan.problem:
            continue
        done = steps.package_steps(ROOT, plan, steps.Tools("python", ("uv",)), tests=True)
        assert done[0].label == "torch" and done[-1].label == "the test tools"
        for step in done:
            for way in step.ways:
                assert way[way.index("--only-binary") + 1] == ":all:"
        for step in done[1:]:  # no dependency of theirs can bring another torch
            assert all("--no-deps" in way for way in step.ways), step


def test_the_cuda_set_is_the_ready_built_one_and_can_be_done_without() -> None:
    done = steps.package_steps(ROOT, plan_for("linux,rtx4090,python=3.12"), steps.Tools("python"), tests=False)
    assert [step.label for step in done] == ["torch", "the other packages", "exllamav2", "flash-attn"]
    assert [step.optional for step in done] == ["", "", "exllamav2", "flash-attn"]
    assert "exllamav2-0.3.2+cu128.torch2.9.0-cp312-cp312-linux_x86_64.whl" in ways(done[2])[0]
    assert record.named(ROOT / "requirements-cuda.txt")["torch"] == "2.9.0"


def test_on_linux_without_a_card_the_gigabytes_of_cuda_are_the_last_resort() -> None:
    tools = steps.Tools("python", ("uv",))
    tried = ways(steps.torch_step(ROOT, plan_for("linux,python=3.12"), tools))
    version = record.named(ROOT / "requirements-cpu.txt")["torch"]
    assert tried[0].endswith(f"torch=={version}+cpu") and tried[1].startswith("python -m pip")
    assert f"--torch-backend cpu --no-deps torch=={version}" in tried[2]
    assert "torch-cpu.txt" in tried[-1] and "+cpu" not in tried[-1]


def test_windows_gets_the_cuda_torch_from_where_it_is() -> None:
    """The plain index's torch for Windows has no CUDA: it installs, and the card is never used."""
    tried = ways(steps.torch_step(ROOT, plan_for("windows,rtx4090"), steps.Tools("python", ("uv",))))
    assert len(tried) == 1 and "--torch-backend cu128 torch==2.9.0" in tried[0]


def test_no_installer_is_told_a_registry() -> None:
    """Where packages come from is the user's setting, not ours."""
    for row in MACHINES:
        plan = plan_for(row["machine"], row.get("wish", "auto"))
        if not plan.problem:
            for step in steps.package_steps(ROOT, plan, steps.Tools("python", ("uv",)), tests=True):
                assert not any("index" in word for way in step.ways for word in way), step


# ---- Python ----------------------------------------------------------------------------------------------------------


def test_looking_stops_at_the_first_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"a": None, "b": Interpreter(("b",), (3, 9, 1)), "c": Interpreter(("c",), (3, 11, 7))}
    monkeypatch.setattr(machine, "probe", lambda command: answers[command[0]])

    def commands() -> Iterator[list[str]]:
        yield from (["a"], ["b"], ["c"])
        raise AssertionError("asked on")

    assert [python.command for python in machine.find_pythons(commands())] == [("b",), ("c",)]


def test_the_python_asked_for_is_taken_or_refused() -> None:
    here = pretend("linux,python=3.11")._replace(named_python="/opt/python")
    assert choose.choose_python(here)[1] == "named in YUEGP_PYTHON"
    with pytest.raises(SetupError) as error:
        choose.choose_python(pretend("linux,python=3.10,uv")._replace(named_python="/opt/python"))
    assert "YUEGP_PYTHON is /opt/python" in error.value.what and "3.10.0" in error.value.what


def test_a_name_on_the_path_that_leads_nowhere_is_no_python(tmp_path: Path) -> None:
    """As pyenv's shims do: the file is there, starting it fails."""
    assert machine.probe([str(tmp_path / "absent")]) is None
    assert machine.probe([sys.executable, "-c", "raise SystemExit(127)"]) is None
    answer = machine.probe([sys.executable])
    assert answer and tuple(answer.version) == sys.version_info[:3] and answer.bits == 64
    assert answer.kind == "cpython" and machine.fits(answer)


def test_where_a_python_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(machine.python_commands("Linux", {"YUEGP_PYTHON": "/opt/my python"})) == [["/opt/my python"]]
    monkeypatch.setattr(shutil, "which", lambda name: f"C:/{name}" if name in ("py", "python3.13") else None)
    own, *others = machine.python_commands("Windows", {})
    assert Path(own[0]).exists()
    assert others == [["py", "-3.12"], ["py", "-3.11"], ["C:/python3.13"], ["py", "-3.13"]]


def test_the_door_is_readable_by_old_pythons() -> None:
    """3.8 for the door; launch.py itself even by Python 2, so that it can say what is missing."""
    for path in (ROOT / "door").glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 8))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Match | ast.TryStar), (path, node.lineno)
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names), path
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] in sys.stdlib_module_names, path
    source = (ROOT / "launch.py").read_text("utf-8")
    assert source.isascii()
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.NamedExpr), node.lineno


# ---- Cards -----------------------------------------------------------------------------------------------------------


def test_cards_are_read_from_what_the_driver_says() -> None:
    text = "NVIDIA GeForce RTX 4090, 560.35.03, 8.9\r\nNVIDIA H200, 575.57.08, 9.0\r\n"
    assert machine.parse_cards(text) == [
        Card("NVIDIA GeForce RTX 4090", (560, 35), (8, 9)),
        Card("NVIDIA H200", (575, 57), (9, 0)),
    ]
    assert machine.parse_cards("GeForce GTX 1060, 390.157\n") == [Card("GeForce GTX 1060", (390, 157), None)]
    assert machine.parse_cards('Field "compute_cap" is not a valid field to query.\n') == []
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
    assert machine.parse_cards(failed) == []
    assert machine.parse_cards("No devices were found\n") == [] and machine.parse_cards("") == []


def test_a_driver_too_old_to_name_the_capability_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(command: list[str]) -> str:
        return 'Field "compute_cap" is not valid.' if "compute_cap" in command[1] else "NVIDIA GTX 1060, 390.157\n"

    monkeypatch.setattr(shutil, "which", lambda name, path=None: "nvidia-smi")
    monkeypatch.setattr(machine, "ask", answer)
    cards = machine.find_cards()
    assert cards == [Card("NVIDIA GTX 1060", (390, 157), None)]
    stack, reason = choose.choose_stack("auto", pretend("linux")._replace(cards=cards))
    assert stack == "cpu" and "older than 525" in reason


def test_makers_of_cards_are_read_from_the_bus(tmp_path: Path) -> None:
    for name, kind, maker in [("a", "0x030000", "0x10de"), ("b", "0x030200", "0x1002"), ("c", "0x020000", "0x8086")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "class").write_text(kind + "\n")
        (tmp_path / name / "vendor").write_text(maker + "\n")
    (tmp_path / "d").mkdir()
    assert machine.makers(tmp_path) == ["AMD", "NVIDIA"]
    assert machine.makers(tmp_path / "absent") == []


# ---- Environments ----------------------------------------------------------------------------------------------------


def test_the_environment_of_the_program() -> None:
    env = steps.app_env({"YUEGP_HOME": "/music", "PYTHONHOME": "/x", "PYTHONPATH": "/foreign", "A": "b"}, Path("/y z"))
    assert env["YUEGP_HOME"] == "/music" and env["A"] == "b" and "PYTHONHOME" not in env
    assert env["PYTHONPATH"] == str(Path("/y z")) and env["PYTHONUTF8"] == "1"
    fresh = steps.app_env({}, Path("/y z"))
    assert fresh["YUEGP_HOME"] == str(Path("/y z")) and fresh["OMP_WAIT_POLICY"] == "PASSIVE"
    assert fresh["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_uv_is_told_what_pip_is_set_to() -> None:
    """uv does not read pip's settings: behind a company's mirror or proxy it would look elsewhere."""
    said = "\n".join(
        [
            "global.index-url='https://mirror.example/simple'",
            "global.extra-index-url='https://a.example file:///b'",
            "global.cert='/etc/my certs.pem'",
            "global.proxy='http://proxy.example:8080'",
            "install.find-links='/a\\n/b'",
            ":env:.find-links='/wheels /more'",
            "user.name='x'",
            "global.broken='",
        ]
    )
    settings = steps.pip_settings(said)
    assert settings["find-links"] == "/wheels /more" and "name" not in settings and "broken" not in settings
    env = steps.setup_env({"PYTHONPATH": "/foreign", "PIP_USER": "1", "HTTP_PROXY": "mine"}, settings)
    assert "PYTHONPATH" not in env and env["PIP_USER"] == "0"
    assert env["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert env["UV_INDEX"] == "https://a.example file:///b" and env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["UV_FIND_LINKS"] == "/wheels,/more" and env["SSL_CERT_FILE"] == "/etc/my certs.pem"
    assert env["HTTPS_PROXY"] == "http://proxy.example:8080" and env["HTTP_PROXY"] == "mine"
    assert steps.setup_env({"UV_INDEX": "x"}, settings)["UV_INDEX"] == "x", "what the user set for uv stays"
    assert not {"UV_DEFAULT_INDEX", "UV_INDEX", "SSL_CERT_FILE", "HTTPS_PROXY"} & set(steps.setup_env({}, {}))


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("Retrying ... NewConnectionError('...')\nERROR: No matching distribution found for torch", "not be reached"),
        ("SSLError(SSLCertVerificationError(...\nERROR: No matching distribution found", "certificate is not trusted"),
        ("  cause: invalid peer certificate: UnknownIssuer", "certificate is not trusted"),
        ("error: dns error: failed to lookup address information", "not be reached"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("  Caused by: No space left on device (os error 28)", "disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "There is no torch==2.13.0 for this machine"),
        ("ERROR: ResolutionImpossible", "did not work"),
    ],
)
def test_a_failed_step_is_explained(output: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(install.explain("torch", output, Path("/y/.launch/install.log")))
    assert what in text and text.count("\n") == 1
    shown = capsys.readouterr().err
    said_it_all = any(word in what for word in ("reached", "full", "trusted"))
    assert ("ERROR" in shown) is not said_it_all, "the tail of the output, unless the sentence is enough"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stack": "rocm"}', "\xff"])
def test_a_damaged_record_means_building_again(tmp_path: Path, text: str) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "yuegp.json").write_text(text, "latin-1")
    assert record.needed(tmp_path, "auto", tests=False) == "everything"


def test_whose_an_environment_is(tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    assert record.venv_folder(tmp_path) == venv
    venv.mkdir()
    assert record.venv_folder(tmp_path) == venv, "an empty folder: a set-up that was killed at once"
    (venv / "pyvenv.cfg").touch()
    assert record.venv_folder(tmp_path) == tmp_path / ".venv-yuegp"
    (venv / "launch.json").touch()
    assert record.venv_folder(tmp_path) == venv


def test_requirements_are_read(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# torch==1\ntorch==2.13.0\nPyYAML>=6,<7\nhuggingface-hub>=2.4,<3 ; python_version > '3'\n")
    assert record.named(path) == {"torch": "2.13.0", "pyyaml": "", "huggingface-hub": ""}
    assert install.modules(path) == ["torch", "yaml", "huggingface_hub"]
