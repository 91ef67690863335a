"""The installer's decisions, on machines made up in `machines.json`, and what they rest on. Nothing is installed."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installer import builds, choose, install, main, own_folders, probe, record, steps
from installer.choose import Plan, decide
from installer.console import SetupError
from installer.pretend import pretend
from installer.probe import Interpreter, ProbedCard

ROOT = Path(__file__).resolve().parents[2]
MACHINES = json.loads((Path(__file__).resolve().parents[1] / "machines.json").read_text("utf-8"))
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


@pytest.mark.parametrize(
    "row", MACHINES, ids=lambda row: ",".join(row[k] for k in ("machine", "wish", "installer") if k in row)
)
def test_the_decisions_for_a_machine(row: dict[str, Any]) -> None:
    plan = decide(pretend(row["machine"]), row.get("wish", "auto"), URLS, row.get("installer", "uv"))
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
def test_every_machine_can_be_told_about(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUEGP_INSTALLER", row.get("installer", ""))
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
        done = steps.package_steps(ROOT, plan, steps.Tools("python", ("uv",)), True, {})
        assert done[0].label == "torch" and done[-1].label == "the test tools"
        for step in done:
            for way in step.ways:
                assert way[way.index("--only-binary") + 1] == ":all:"
        for step in done[1:]:  # no dependency of theirs can bring another torch
            assert all("--no-deps" in way for way in step.ways), step


def test_the_cuda_set_is_the_ready_built_one_and_can_be_done_without() -> None:
    done = steps.package_steps(ROOT, plan_for("linux,rtx4090,python=3.12"), steps.Tools("python"), False, {})
    assert [step.label for step in done] == ["torch", "the other packages", "exllamav2", "flash-attn"]
    assert [step.optional for step in done] == ["", "", "exllamav2", "flash-attn"]
    assert "exllamav2-0.3.2+cu128.torch2.9.0-cp312-cp312-linux_x86_64.whl" in ways(done[2])[0]
    assert record.named(ROOT / "requirements" / "cuda.txt")["torch"] == "2.9.0"


def test_on_linux_without_a_card_the_gigabytes_of_cuda_are_the_last_resort() -> None:
    tools = steps.Tools("python", ("uv",))
    tried = ways(steps.torch_step(ROOT, plan_for("linux,python=3.12"), tools, {}))
    version = record.named(ROOT / "requirements" / "cpu.txt")["torch"]
    assert tried[0].endswith(f"torch=={version}+cpu") and tried[1].startswith("python -m pip")
    assert f"--torch-backend cpu --no-deps torch=={version}" in tried[2]
    assert "torch-cpu.txt" in tried[-1] and "+cpu" not in tried[-1]


OWN = {"windows,rtx4090": "cu128", "windows,gtx1080": "cu126", "linux,arm64,gh200": "cu128", "linux,gtx970": "cu126"}


@pytest.mark.parametrize("name", OWN)
def test_the_cuda_torch_is_fetched_from_where_it_is_by_uv_and_by_pip(name: str) -> None:
    """The plain index's torch for Windows has no CUDA: it installs, and the card is never used."""
    build = OWN[name]
    by_uv = ways(steps.torch_step(ROOT, plan_for(name), steps.Tools("python", ("uv",)), {}))
    assert f"--torch-backend {build} torch==2.9.0" in by_uv[2] and by_uv[3].startswith("python -m pip")
    by_pip = ways(steps.torch_step(ROOT, plan_for(name, installer="pip"), steps.Tools("python"), {}))
    assert by_pip[0].endswith(f" torch==2.9.0+{build}"), "a place of the user's own comes first"
    assert by_pip[1:] == by_uv[3:] and by_pip[1].endswith(f"--extra-index-url {own_index(build)} torch==2.9.0+{build}")
    assert not any("torch-cuda.txt" in way for way in [*by_uv, *by_pip]), "the lock is of another build"


def own_index(build: str) -> str:
    return builds.index_of(build, {})


@pytest.mark.parametrize("mirror", ["https://mirror.example/whl", "https://mirror.example/whl/cu128/", "/srv/cpu"])
def test_torchs_own_index_may_be_another(mirror: str) -> None:
    env = {"YUEGP_TORCH_INDEX": mirror}
    tried = ways(steps.torch_step(ROOT, plan_for("windows,gtx1080"), steps.Tools("python", ("uv",)), env))
    where = "/srv/cu126" if mirror.startswith("/") else "https://mirror.example/whl/cu126"
    assert [f"--extra-index-url {where} torch==2.9.0+cu126" in way for way in tried] == [False, False, True, True]
    assert not any("--torch-backend" in way for way in tried), "uv would go to torch's own all the same"
    assert builds.index_of("cpu", {"YUEGP_TORCH_INDEX": " "}) == own_index("cpu")


def test_no_installer_is_told_a_registry_but_torchs_own() -> None:
    """Where packages come from is the user's setting, not ours."""
    for row in MACHINES:
        plan = plan_for(row["machine"], row.get("wish", "auto"))
        if not plan.problem:
            for step in steps.package_steps(ROOT, plan, steps.Tools("python", ("uv",)), True, {}):
                told = [word for way in step.ways for word in way if "index" in word or word == own_index(plan.torch)]
                assert told == (["--extra-index-url", own_index(plan.torch)] if told else []), step
                assert not told or (step.label == "torch" and plan.torch != "locked"), step


def test_a_step_without_a_way_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """It was run as if it had failed, with nothing to show for it."""
    with pytest.raises(SetupError) as error:
        install.run_step(steps.Step("torch", []), tmp_path / "log", {})
    assert error.value.what == "There is no way to install torch on this machine." and error.value.hint.endswith(".")


# ---- Python ----------------------------------------------------------------------------------------------------------


def test_looking_stops_at_the_first_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"a": None, "b": Interpreter(("b",), (3, 9, 1)), "c": Interpreter(("c",), (3, 11, 7))}
    monkeypatch.setattr(probe, "probe", lambda command: answers[command[0]])

    def commands() -> Iterator[list[str]]:
        yield from (["a"], ["b"], ["c"])
        raise AssertionError("asked on")

    assert [python.command for python in probe.find_pythons(commands())] == [("b",), ("c",)]


def test_the_python_asked_for_is_taken_or_refused() -> None:
    here = pretend("linux,python=3.11")._replace(named_python="/opt/python")
    assert choose.choose_python(here)[1] == "named in YUEGP_PYTHON"
    with pytest.raises(SetupError) as error:
        choose.choose_python(pretend("linux,python=3.10,uv")._replace(named_python="/opt/python"))
    assert "YUEGP_PYTHON is /opt/python" in error.value.what and "3.10.0" in error.value.what


def test_a_name_on_the_path_that_leads_nowhere_is_no_python(tmp_path: Path) -> None:
    """As pyenv's shims do: the file is there, starting it fails."""
    assert probe.probe([str(tmp_path / "absent")]) is None
    assert probe.probe([sys.executable, "-c", "raise SystemExit(127)"]) is None
    answer = probe.probe([sys.executable])
    assert answer and tuple(answer.version) == sys.version_info[:3] and answer.bits == 64
    assert answer.kind == "cpython" and probe.fits(answer)


def test_a_uv_that_does_not_start_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocked by a company, taken away by a virus scanner, or hanging at it."""
    assert not probe.is_uv([str(tmp_path / "uv")])
    assert not probe.is_uv([sys.executable, "-c", "raise SystemExit(1)"])
    assert probe.is_uv([sys.executable, "-c", "print('uv 0.13.8 (x86_64)')"])
    monkeypatch.setattr(probe, "TIME_LIMIT", 0.1)
    assert not probe.is_uv([sys.executable, "-c", "import time; print('uv 1', flush=True); time.sleep(600)"])


@pytest.mark.parametrize(
    ("folder", "env", "service"),
    [
        ("C/Users/Jürgen/OneDrive/yuegp/.venv", {}, "OneDrive"),
        ("C/Users/Jürgen/OneDrive - Firma AG/yuegp/.venv", {}, "OneDrive"),
        ("C/Users/me/Eigene Cloud/yuegp/.venv", {"OneDriveConsumer": "C/Users/me/Eigene Cloud"}, "OneDrive"),
        ("Users/me/Library/Mobile Documents/yuegp/.venv", {}, "Mobile Documents"),
        ("home/me/OneDriver/yuegp/.venv", {"OneDrive": ""}, ""),
    ],
)
def test_a_folder_that_is_copied_elsewhere_is_known(folder: str, env: dict[str, str], service: str) -> None:
    assert probe.synced_by(Path(folder), env) == service


def test_where_a_python_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(probe.python_commands("Linux", {"YUEGP_PYTHON": "/opt/my python"})) == [["/opt/my python"]]
    monkeypatch.setattr(shutil, "which", lambda name: f"C:/{name}" if name in ("py", "python3.13") else None)
    own, *others = probe.python_commands("Windows", {})
    assert Path(own[0]).exists()
    assert others == [["py", "-3.12"], ["py", "-3.11"], ["C:/python3.13"], ["py", "-3.13"]]


def test_the_door_is_readable_by_old_pythons() -> None:
    """3.8 for the installer; launch.py itself even by Python 2, so that it can say what is missing."""
    for path in (ROOT / "installer").glob("*.py"):
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
    text = "NVIDIA GeForce RTX 4090, 560.35.03, 8.9, 24564\r\nNVIDIA GB10, 580.95.05, 12.1, [N/A]\r\n"
    assert probe.parse_cards(text) == [
        ProbedCard("NVIDIA GeForce RTX 4090", "560.35.03", (8, 9), 24564 / 1024),
        ProbedCard("NVIDIA GB10", "580.95.05", (12, 1), None),
    ]
    assert probe.parse_cards("GeForce GTX 1060, 390.157\n") == [ProbedCard("GeForce GTX 1060", "390.157", None)]
    assert probe.parse_cards('Field "compute_cap" is not a valid field to query.\n') == []
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
    assert probe.parse_cards(failed) == []
    assert probe.parse_cards("No devices were found\n") == [] and probe.parse_cards("") == []
    assert probe.parse_cards("Orin (nvgpu), N/A, N/A, N/A\n") == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NVIDIA GTX 1060", "older than 525.60.13; update it"),
        ("GeForce GTX 750 Ti", "older than 525.60.13; update it"),
        ("NVIDIA GeForce GTX TITAN X", "older than 525.60.13; update it"),
        # No newer driver will ever know these: the advice to update it would send people on an errand.
        ("NVIDIA GeForce GT 710", "older than what any current CUDA build holds code for"),
        ("NVIDIA GeForce GT 740", "older than what any current CUDA build holds code for"),
        ("GeForce GTX 780 Ti", "older than what any current CUDA build holds code for"),
        ("GeForce GTX TITAN", "older than what any current CUDA build holds code for"),
        ("Tesla K80", "older than what any current CUDA build holds code for"),
    ],
)
def test_a_driver_too_old_to_name_the_capability_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    def answer(command: list[str]) -> str:
        return 'Field "compute_cap" is not valid.' if "compute_cap" in command[1] else f"{name}, 390.157\n"

    monkeypatch.setattr(shutil, "which", lambda name, path=None: "nvidia-smi")
    monkeypatch.setattr(probe, "ask", answer)
    cards = probe.find_cards()
    assert cards == [ProbedCard(name, "390.157", None)]
    choice = builds.choose_build("auto", pretend("linux")._replace(cards=cards), "x86_64")
    assert choice.build == "cpu" and why in choice.reason and name in choice.reason


@pytest.mark.parametrize(("said", "release"), [("14.6.1", (14, 6)), ("10.16", None), ("", None)])
def test_the_release_of_macos_is_believed_unless_it_is_the_one_for_old_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, release: tuple[int, int] | None
) -> None:
    """A Python built for older systems (conda's) is told 10.16 on every newer one."""
    monkeypatch.setattr(probe.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(probe.platform, "mac_ver", lambda: (said, ("", "", ""), "arm64"))
    monkeypatch.setattr(probe, "find_pythons", lambda commands: [])
    monkeypatch.setattr(probe, "find_cards", lambda: [])
    assert probe.probe_machine({}, tmp_path / ".venv").release == release


@pytest.mark.parametrize(
    ("kernel", "wsl", "jetson"),
    [
        ("5.15.167.4-microsoft-standard-WSL2", True, False),
        ("5.15.148-tegra", False, True),
        ("6.11.0-1016-nvidia", False, False),  # DGX Spark
    ],
)
def test_the_kernel_tells_windows_beneath_and_jetsons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: str, wsl: bool, jetson: bool
) -> None:
    monkeypatch.setattr(probe.platform, "system", lambda: "Linux")
    monkeypatch.setattr(probe.platform, "release", lambda: kernel)
    monkeypatch.setattr(probe, "find_pythons", lambda commands: [])
    monkeypatch.setattr(probe, "find_cards", lambda: [])
    found = probe.probe_machine({}, tmp_path / ".venv")
    assert (found.wsl, found.jetson) == (wsl, jetson)


def test_a_card_without_code_beside_one_with_is_hidden_from_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the first card, and the first card is taken: `no kernel image is available`."""
    old, new = ProbedCard("GTX 1080", "580.65", (6, 1)), ProbedCard("RTX 4090", "580.65", (8, 9))
    monkeypatch.setattr(main, "find_cards", lambda: [old, new, old])
    monkeypatch.setattr(main.platform, "machine", lambda: "AMD64")
    plan = plan_for("windows,gtx1080,rtx4090")
    assert plan_for("windows,gtx1080,rtx4090", "cuda").beside == plan.beside, "after an update of the packages"
    noted = {"beside": list(plan.beside), "build": plan.build}
    assert noted == {"beside": ["GTX1080"], "build": "cu128"}
    assert main.hide_cards({"A": "b"}, noted) == {
        "A": "b",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    assert main.hide_cards({"CUDA_VISIBLE_DEVICES": "0"}, noted) == {"CUDA_VISIBLE_DEVICES": "0"}, "the user's own"
    monkeypatch.setattr(main, "find_cards", lambda: [new])  # the old one was taken out since
    assert main.hide_cards({}, noted) == {}
    monkeypatch.setattr(main, "find_cards", lambda: [])
    assert main.hide_cards({}, noted) == {}
    assert main.hide_cards({}, {"stack": "cuda"}) == {}


def test_makers_of_cards_are_read_from_the_bus(tmp_path: Path) -> None:
    for name, kind, maker in [("a", "0x030000", "0x10de"), ("b", "0x030200", "0x1002"), ("c", "0x020000", "0x8086")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "class").write_text(kind + "\n")
        (tmp_path / name / "vendor").write_text(maker + "\n")
    (tmp_path / "d").mkdir()
    assert probe.makers(tmp_path) == ["AMD", "NVIDIA"]
    assert probe.makers(tmp_path / "absent") == []


# ---- Environments ----------------------------------------------------------------------------------------------------


def test_the_environment_of_the_program() -> None:
    env = steps.app_env({"YUEGP_HOME": "/music", "PYTHONHOME": "/x", "PYTHONPATH": "/foreign", "A": "b"}, Path("/y z"))
    assert env["YUEGP_HOME"] == "/music" and env["A"] == "b" and "PYTHONHOME" not in env
    assert env["PYTHONPATH"] == str(Path("/y z")) and env["PYTHONUTF8"] == "1"
    fresh = steps.app_env({}, Path("/y z"))
    assert fresh["YUEGP_HOME"] == str(Path("/y z")) and fresh["OMP_WAIT_POLICY"] == "PASSIVE"
    assert fresh["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert fresh["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "else CUDA counts the cards otherwise than nvidia-smi"
    assert steps.app_env({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, Path("/y"))["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


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


def test_a_slow_line_is_waited_for_unless_the_user_says_how_long() -> None:
    env = steps.setup_env({}, {})
    assert int(env["UV_HTTP_TIMEOUT"]) > 30 and int(env["PIP_DEFAULT_TIMEOUT"]) > 15, "more than their own"
    assert int(env["PIP_RESUME_RETRIES"]) > 5
    for key in ("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"):
        kept = steps.setup_env({key: "7"}, {})
        assert {name: kept[name] for name in kept if "TIMEOUT" in name and not name.startswith("PIP")} == {key: "7"}
    assert "PIP_DEFAULT_TIMEOUT" not in steps.setup_env({"PIP_TIMEOUT": "7"}, {})
    assert "PIP_DEFAULT_TIMEOUT" not in steps.setup_env({}, {"timeout": "7"}), "as pip.conf has it"


# ---- Where pip and uv keep things ------------------------------------------------------------------------------------


def test_what_is_fetched_lies_in_our_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, home = tmp_path / "y z", tmp_path / "home"
    inside = own_folders.own_folders(root, {"HOME": str(home), "USERPROFILE": str(home)}, {})
    folders = {key: value for key, value in inside.items() if key.endswith("_DIR") or key.startswith("T")}
    assert set(folders) == {"UV_CACHE_DIR", "PIP_CACHE_DIR", "UV_PYTHON_INSTALL_DIR", "TMPDIR", "TEMP", "TMP"}
    assert all(Path(folder).is_relative_to(root / ".launch") for folder in folders.values())
    assert Path(inside["TMPDIR"]).is_dir()
    for name in (*own_folders.FETCHED, *own_folders.KEPT):
        (root / ".launch" / name / "x").mkdir(parents=True, exist_ok=True)
    own_folders.clear_fetched(root)
    assert sorted(path.name for path in (root / ".launch").iterdir()) == ["python", "uv"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "base_prefix", str(root / ".launch" / "python" / "cpython-3.12.11"))
        own_folders.clear_fetched(root, everything=True)
    assert [path.name for path in (root / ".launch").iterdir()] == ["python"], "not the one that runs this"
    own_folders.clear_fetched(root, everything=True)
    assert not list((root / ".launch").iterdir())


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_a_cache_that_is_there_already_is_shared(tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """People who have uv would fetch several GB again that lie on their disk."""
    usual = own_folders.usual
    monkeypatch.setattr(own_folders, "usual", lambda env: usual(env, system))
    env = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    for folder in own_folders.usual(env).values():
        assert folder.is_relative_to(tmp_path)
        folder.mkdir(parents=True)
    inside = own_folders.own_folders(tmp_path / "y", env, {})
    assert [key for key in inside if key.endswith("_DIR")] == ["UV_PYTHON_INSTALL_DIR"], "nothing is installed outside"
    assert steps.setup_env(inside, {})["UV_LINK_MODE"] == "copy", "what is changed here must not change there"


def test_the_users_own_places_stay(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "UV_CACHE_DIR": "/big/uv", "UV_PYTHON_INSTALL_DIR": "/big/python"}
    inside = own_folders.own_folders(tmp_path / "y", env, {"cache-dir": "/big/pip"})
    assert (inside["UV_CACHE_DIR"], inside["UV_PYTHON_INSTALL_DIR"]) == ("/big/uv", "/big/python")
    assert "PIP_CACHE_DIR" not in inside and "UV_LINK_MODE" not in inside


# ---- What went wrong -------------------------------------------------------------------------------------------------


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
        ("", "said nothing"),
        ("  × Failed to read `x`\n  ╰─▶ Hash mismatch for `x`\n  Computed:\n   sha256:82", "its hash is another"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n  Got  82", "its hash is another"),
        ("Error: [Errno 1] Operation not permitted: 'lib' -> '/mnt/stick/y/.venv/lib64'", "cannot hold links"),
        ("Error: [Errno 95] Operation not supported: 'lib' -> '/nas/y/.venv/lib64'", "cannot hold links"),
        ("error: failed to symlink file from a to b: Operation not permitted (os error 1)", "cannot hold links"),
        ("  Caused by: the file contains a virus (os error 225)", "virus protection"),
    ],
)
def test_a_failed_step_is_explained(output: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(install.explain("torch", output, Path("/y/.launch/install.log")))
    assert what in text and text.count("\n") == 1
    shown = capsys.readouterr().err
    said_it_all = any(word in what for word in ("reached", "full", "trusted", "nothing", "links", "virus", "hash"))
    assert bool(shown) is not said_it_all, "the tail of the output, unless the sentence is enough"


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
