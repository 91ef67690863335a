"""The doctor: every fault has a finding that names it, and the report can be shown to anybody."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tools.faults import CPU, FAULTS, GIB, GPU, Fault
from tools.write_troubleshooting import PAGE, page
from yuegp.cli import main
from yuegp.system import doctor, environment
from yuegp.system.doctor import FAIL, OK, WARN, Finding, judge
from yuegp.system.environment import CardReport, Environment


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.story for fault in FAULTS])
def test_every_fault_is_named_with_a_next_step(fault: Fault) -> None:
    found = [f for f in judge(fault.facts) if (f.name, f.state) == (fault.name, fault.state)]
    assert found, [f for f in judge(fault.facts) if f.state != OK]
    assert fault.words in found[0].what and found[0].hint


@pytest.mark.parametrize("check", doctor.CHECKS)
def test_every_check_finds_some_fault(check: Callable[[Environment], Iterator[Finding]]) -> None:
    assert any(finding.state != OK for fault in FAULTS for finding in check(fault.facts))


def test_the_troubleshooting_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/write_troubleshooting.py"


@pytest.mark.parametrize("facts", [CPU, GPU, replace(GPU, page="yuegp")], ids=["cpu", "gpu", "page open"])
def test_nothing_is_wrong_with_a_machine_that_is_well(facts: Environment) -> None:
    assert {finding.state for finding in judge(facts)} == {OK}


def test_a_build_serves_later_cards_of_its_generation_and_those_its_ptx_reaches() -> None:
    ada, blackwell, turing = (("4090", 8, 9), ("5090", 12, 0), ("2060", 7, 5))
    assert doctor._served(ada, ("sm_80", "sm_86"))
    assert not doctor._served(blackwell, ("sm_80", "sm_90")) and doctor._served(blackwell, ("sm_90", "compute_90"))
    assert not doctor._served(turing, ("sm_80", "compute_80"))


def test_the_page_is_looked_for_where_it_was_asked_to_be() -> None:
    for answer, words in (("yuegp", "127.0.0.1:9000."), ("other", "port 9000."), ("", "Port 9000 ")):
        assert any(words in finding.what for finding in judge(replace(CPU, page=answer, port=9000)))


def test_the_report_holds_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "annika")
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("/home/annika")))
    text = doctor.report(
        [
            Finding("a", OK, "/home/annika/yuegp and /media/annika/disk"),
            Finding("b", FAIL, "token hf_abcdefghijklmnop", "Run /home/annika/x."),
        ],
        "0",
    )
    assert "annika" not in text and "abcdefgh" not in text
    assert text.index("FAIL") < text.index("ok"), "what matters comes first"


def test_it_looks_at_this_machine_without_loading_torch_here(tmp_path: Path) -> None:
    """In a process of its own, with a home that holds a damaged song and an interrupted job."""
    damaged = tmp_path / "songs" / "2026-01-01-broken-abc"
    damaged.mkdir(parents=True)
    (damaged / "song.json").write_text("{", encoding="utf-8")
    program = (
        "import sys, json; from yuegp.system import doctor; found = doctor.examine(1); "
        "print(json.dumps([[f.name, f.state, f.what] for f in found] + ['torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=dict(os.environ, YUEGP_HOME=str(tmp_path)),
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    *found, torch_loaded = json.loads(done.stdout.splitlines()[-1])
    assert not torch_loaded
    states = {(name, state) for name, state, _ in found}
    assert {("songs", WARN), ("torch", OK), ("sound", OK), ("models", OK), ("python", OK)} <= states
    assert any("2026-01-01-broken-abc" in what for _, _, what in found)


def test_the_command_ends_with_4_when_something_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(state: str) -> Callable[[int], list[Finding]]:
        return lambda port: [Finding("sound", state, "Cannot write FLAC.", "Do this.")]

    monkeypatch.setattr(doctor, "examine", found(FAIL))
    assert main.main(["doctor", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["findings"][0]["hint"] == "Do this."
    monkeypatch.setattr(doctor, "examine", found(WARN))
    assert main.main(["doctor"]) == 0
    assert "warn  sound: Cannot write FLAC.\n      Do this." in capsys.readouterr().out


def test_nvidia_smi_is_read_with_who_holds_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "*query-gpu*) echo 'GPU-1, NVIDIA GeForce RTX 3060, 12288, 2048, 560.94';;\n"
        "*) echo 'GPU-1, /usr/bin/game, 9000'; echo 'GPU-2, other, 5'; echo 'GPU-1, hidden, [N/A]';\n"
        "   echo 'GPU-1, /opt/Maya, 2026/maya, 50';;\nesac\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (card,) = environment.cards()
    held = (("game", 9000 << 20), ("maya", 50 << 20))
    assert card == CardReport("NVIDIA GeForce RTX 3060", 12 * GIB, 2 * GIB, "560.94", held)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, []),
        ({"ALL_PROXY": "socks4://me:pass@word@127.0.0.1:1080"}, [("ALL_PROXY", "socks4://127.0.0.1:1080", True)]),
        ({"HTTPS_PROXY": "http://me:secret@proxy.example:8080"}, [("HTTPS_PROXY", "http://proxy.example:8080", False)]),
        ({"http_proxy": "me:secret@proxy.example:8080"}, [("http_proxy", "proxy.example:8080", False)]),
        ({"https_proxy": "http://proxy.example:x"}, [("https_proxy", "http://proxy.example:x", True)]),
        ({"https_proxy": "http://a:99999", "HTTP_PROXY": "http://"}, [("https_proxy", "http://a:99999", True)]),
        ({"ALL_PROXY": "ftp://a", "NO_PROXY": "b, *"}, []),
    ],
)
def test_proxies_are_found_tried_and_told_without_their_password(
    variables: dict[str, str], found: list[tuple[str, str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    seen = environment._proxies()
    assert [(where, address, bool(why)) for where, address, why in seen][: len(found)] == found
    said = " ".join(finding.what for finding in judge(replace(CPU, proxies=seen)) if finding.name == "proxy")
    assert not any(private in said for private in ("me:", "secret", "word"))


def test_a_proxy_with_socks_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it works depends on a package."""
    import importlib.util

    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1080")
    why = next(why for where, _, why in environment._proxies() if where == "all_proxy")
    assert ("socksio" in why) == (importlib.util.find_spec("socksio") is None)


def test_our_own_page_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that asks for a password is ours too."""
    import http.server
    import threading

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("X-Yuegp", "1")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert environment._page(server.server_port) == "yuegp"
