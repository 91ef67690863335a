"""Pinokio's scripts, run by node where it is here: they only call launch.py, and find the address of the page.

Their conventions are Pinokio's: `menu(kernel, info)`, `shell.run` with an `on` pattern, `local.set`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("install.js", "start.js", "update.js", "reset.js")

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="node is not here")


def node(code: str) -> Any:
    answer = subprocess.run(["node", "-e", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def menu(running: str = "", files: tuple[str, ...] = (), url: str = "") -> list[dict[str, Any]]:
    """The menu Pinokio would show."""
    info = (
        f"{{ running: s => s === {json.dumps(running)}, exists: f => {json.dumps(files)}.includes(f), "
        f"local: s => ({json.dumps({'url': url} if url else {})}) }}"
    )
    code = f"require('./pinokio.js').menu({{}}, {info}).then(m => console.log(JSON.stringify(m)))"
    return list(node(code))


INSTALLED = (".venv/yuegp.json",)


@needs_node
def test_before_the_set_up_there_is_one_thing_to_do() -> None:
    assert [item["text"] for item in menu()] == ["Install"]
    assert [item["text"] for item in menu(files=(".venv",))] == ["Install"], "a set-up that was broken off is none"
    assert [item["text"] for item in menu(running="install.js")] == ["Installing"]


@needs_node
@pytest.mark.parametrize("files", [INSTALLED, (".venv-yuegp/yuegp.json",)])
def test_there_is_one_start(files: tuple[str, ...]) -> None:
    """Others show six, one for each guess at a graphics card's memory."""
    items = menu(files=files)
    assert [item["text"] for item in items] == ["Start", "Output Files", "Update", "Reset"]
    assert [item["text"] for item in items if item.get("default")] == ["Start"]
    assert items[1]["fs"] is True and "songs and models stay" in items[3]["confirm"]


@needs_node
def test_the_page_is_offered_once_its_address_is_known() -> None:
    assert [item["text"] for item in menu("start.js", INSTALLED)] == ["Terminal"]
    first, second = menu("start.js", INSTALLED, "http://127.0.0.1:7861")
    assert first["text"] == "Open Web UI" and first["href"] == "http://127.0.0.1:7861" and first["default"]
    assert second["text"] == "Terminal"


@needs_node
def test_every_link_of_the_menu_exists() -> None:
    for running in ("", *SCRIPTS):
        for item in menu(running, INSTALLED):
            assert item.get("fs") or (ROOT / item["href"]).exists(), item


@needs_node
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_only_calls_launch_py(name: str) -> None:
    script = node(f"console.log(JSON.stringify(require('./{name}')))")
    shells = [step["params"]["message"] for step in script["run"] if step["method"] == "shell.run"]
    assert len(shells) == 1 and shells[0].startswith("python launch.py")
    assert {step["method"] for step in script["run"]} <= {"shell.run", "local.set"}
    assert script.get("daemon", False) is (name == "start.js")


@needs_node
def test_the_address_is_caught_from_what_the_page_prints() -> None:
    script = node("console.log(JSON.stringify(require('./start.js')))")
    (on,) = script["run"][0]["params"]["on"]
    pattern = re.fullmatch(r"/(.*)/", on["event"])
    assert pattern and on["done"]
    code = f"console.log(JSON.stringify([...'x http://127.0.0.1:7861\\n'.matchAll({on['event']}g)].map(m => m[1])))"
    assert node(code) == ["http://127.0.0.1:7861"]
    assert script["run"][1]["params"]["url"] == "{{input.event[1]}}"
    assert "{{port}}" not in (ROOT / "start.js").read_text(), "unfilled, it would reach argparse"


def test_the_scripts_are_there_and_the_icon_is_a_picture() -> None:
    text = (ROOT / "pinokio.js").read_text("utf-8")
    assert all((ROOT / name).exists() for name in (*SCRIPTS, "icon.svg")) and 'icon: "icon.svg"' in text
    assert ElementTree.parse(ROOT / "icon.svg").getroot().tag.endswith("}svg")
    assert all(script in text for script in SCRIPTS)


# ---- The scripts for people without Pinokio --------------------------------------------------------------------------


def test_the_windows_script_has_windows_lines_and_only_calls_launch_py() -> None:
    data = (ROOT / "run.bat").read_bytes()
    assert data.isascii() and data.count(b"\n") == data.count(b"\r\n")
    called = re.findall(rb'(?m)^\s*(?:py|python|uv) .*"%launch%" %\*', data)
    assert len(called) == 3 and b"winget install Python.Python.3.12" in data
    for label in re.findall(rb"goto (\w+)", data):
        assert b":" + label in data


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="no shell here")
def test_the_shell_script_hands_over_or_says_what_is_missing(tmp_path: Path) -> None:
    checkout = tmp_path / "Müsik & möre"
    checkout.mkdir()
    shutil.copy(ROOT / "run.sh", checkout)
    (checkout / "launch.py").touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("dirname", "uname"):
        (programs / name).symlink_to(str(shutil.which(name)))

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", str(checkout / "run.sh"), *args]
        return subprocess.run(command, env={"PATH": str(programs)}, capture_output=True, text=True, timeout=60)

    answer = run()
    assert answer.returncode == 4 and "Then start again." in answer.stderr and answer.stderr.count("\n") == 2
    old = programs / "python3"  # a Python too old is passed over
    old.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 1\necho old "$@"\n')
    new = programs / "python3.12"
    new.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s|" "$@"\n')
    for path in (old, new):
        path.chmod(0o755)
    assert run("make", "--title", "a b").stdout == f"{checkout}/launch.py|make|--title|a b|"
