"""The doctor: every fault has a finding that names it, and the report can be shown to anybody."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from yuegp import cli, doctor, facts, jobs
from yuegp.doctor import FAIL, OK, WARN, Finding, judge
from yuegp.facts import Card, Facts, Package

GIB = 1 << 30
NOW = datetime(2026, 6, 1, tzinfo=UTC)
NEEDED = "torch soundfile soxr transformers safetensors sentencepiece gradio huggingface_hub"
WHOLE = {name: Package("1.0") for name in NEEDED.split()}
CPU = Facts(
    system="Linux 6, x86_64",
    python=(3, 12, 1),
    packages=WHOLE,
    ram_free=16 * GIB,
    home=Path("/home/somebody/yuegp"),
    disk_free=100 * GIB,
    songs=2,
    models=(("demo", ""),),
    formats=frozenset({"WAV", "FLAC", "MP3", "OGG"}),
    now=NOW,
    newest=NOW - timedelta(days=1),
)
CARD = Card("NVIDIA GeForce RTX 3060", 12 * GIB, 11 * GIB, "560.94")
GPU = replace(
    CPU,
    packages=WHOLE | dict.fromkeys(("exllamav2", "flash_attn", "bitsandbytes"), Package("1.0")),
    torch_cuda="12.8",
    torch_ready=True,
    torch_archs=("sm_80", "sm_86", "sm_90", "sm_120", "compute_120"),
    torch_cards=((CARD.name, 8, 6),),
    cards=(CARD,),
)


def packages(**changed: Package) -> dict[str, Package]:
    return {**GPU.packages, **changed}


FAULTS: list[tuple[str, Facts, str, str, str]] = [
    ("old Python", replace(CPU, python=(3, 10, 2)), "python", FAIL, "3.10.2 is too old"),
    ("new Python", replace(CPU, python=(3, 15, 0)), "python", WARN, "newer than 3.13"),
    ("packages hang", replace(CPU, packages={}, probe_error="asking took more than 90 s"), "packages", FAIL, "90 s"),
    ("no gradio", replace(CPU, packages=WHOLE | {"gradio": Package()}), "packages", FAIL, "gradio is not installed"),
    (
        "soundfile without its library",
        replace(CPU, packages=WHOLE | {"soundfile": Package("0.13", "OSError: sndfile library not found")}),
        "packages",
        FAIL,
        "sndfile library not found",
    ),
    ("torch of the wrong kind", replace(CPU, cards=(CARD,)), "torch", WARN, "build for machines without a card"),
    ("driver too old", replace(GPU, torch_ready=False, torch_cards=()), "torch", FAIL, "driver 560.94"),
    (
        "CUDA build, card gone",
        replace(GPU, torch_ready=False, torch_cards=(), cards=()),
        "torch",
        WARN,
        "no NVIDIA driver that answers",
    ),
    (
        "RTX 50 with a build from before it",
        replace(GPU, torch_cards=(("NVIDIA GeForce RTX 5090", 12, 0),), torch_archs=("sm_80", "sm_90")),
        "torch",
        FAIL,
        "compute capability 12.0",
    ),
    ("no exllamav2", replace(GPU, packages=packages(exllamav2=Package())), "exllamav2", WARN, "not installed"),
    (
        "exllamav2 without its compiled part",
        replace(GPU, packages=packages(exllamav2=Package("0.3.2", "ImportError: its compiled part"))),
        "exllamav2",
        WARN,
        "its compiled part",
    ),
    (
        "flash-attn for another torch",
        replace(GPU, packages=packages(flash_attn=Package("2.8", "ImportError: undefined symbol"))),
        "flash-attn",
        WARN,
        "undefined symbol",
    ),
    ("no bitsandbytes", replace(GPU, packages=packages(bitsandbytes=Package())), "bitsandbytes", WARN, "run slowly"),
    (
        "card taken by a game",
        replace(GPU, cards=(replace(CARD, free=2 * GIB, held=(("game.exe", 9 * GIB),)),)),
        "card",
        WARN,
        "game.exe 9.0 GB",
    ),
    ("small card", replace(GPU, cards=(replace(CARD, total=4 * GIB, free=4 * GIB),)), "card", WARN, "4.0 GB"),
    ("little memory", replace(CPU, ram_free=GIB), "memory", WARN, "1.0 GB of memory"),
    ("little disk", replace(CPU, disk_free=GIB), "disk", WARN, "1.0 GB are free"),
    ("home not writable", replace(CPU, home_error="/x may not be written."), "folder", FAIL, "may not be written"),
    ("broken song", replace(CPU, broken=(("2026-song", "song.json is cut short."),)), "songs", WARN, "cut short"),
    ("broken queue", replace(CPU, queue_error="queue.json is damaged."), "queue", FAIL, "damaged"),
    ("power cut", replace(CPU, interrupted=1), "queue", WARN, "1 song was interrupted"),
    (
        "failed job",
        replace(CPU, failed=(jobs.Job(7, "/s", 1, what="Out of memory.", hint="Close games."),)),
        "queue",
        WARN,
        "Job 7 failed: Out of memory.",
    ),
    (
        "model cut short",
        replace(CPU, models=(("demo", ""), ("yue-en-cot", "a shard is cut short."))),
        "models",
        WARN,
        "cut short",
    ),
    ("demo model damaged", replace(CPU, models=(("demo", "NaN"),)), "models", FAIL, "demo model"),
    ("no MP3", replace(CPU, formats=frozenset({"WAV", "FLAC"})), "sound", WARN, "Cannot write MP3"),
    ("no FLAC", replace(CPU, formats=frozenset({"WAV"})), "sound", FAIL, "FLAC"),
    ("port taken", replace(CPU, page="other"), "page", WARN, "Another program uses port"),
    ("clock in the past", replace(CPU, now=NOW - timedelta(days=400)), "clock", WARN, "clock says 2025"),
    (
        "a wheel that could not be installed",
        replace(GPU, launched={"failed": {"flash-attn": "no wheel for Python 3.13"}}),
        "launcher",
        WARN,
        "no wheel for Python 3.13",
    ),
]


@pytest.mark.parametrize("facts, name, state, words", [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_every_fault_is_named_with_a_next_step(facts: Facts, name: str, state: str, words: str) -> None:
    found = [f for f in judge(facts) if f.name == name and f.state == state]
    assert found, [f for f in judge(facts) if f.state != OK]
    assert words in found[0].what and (found[0].hint or name == "queue")


@pytest.mark.parametrize("facts", [CPU, GPU, replace(GPU, page="yuegp")], ids=["cpu", "gpu", "page open"])
def test_nothing_is_wrong_with_a_machine_that_is_well(facts: Facts) -> None:
    assert {finding.state for finding in judge(facts)} == {OK}


def test_a_build_serves_later_cards_of_its_generation_and_those_its_ptx_reaches() -> None:
    ada, blackwell, turing = (("4090", 8, 9), ("5090", 12, 0), ("2060", 7, 5))
    assert doctor._served(ada, ("sm_80", "sm_86"))
    assert not doctor._served(blackwell, ("sm_80", "sm_90")) and doctor._served(blackwell, ("sm_90", "compute_90"))
    assert not doctor._served(turing, ("sm_80", "compute_80"))


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
        "import sys, json; from yuegp import doctor; found = doctor.examine(1); "
        "print(json.dumps([[f.name, f.state, f.what] for f in found] + ['torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=dict(os.environ, YUEGP_HOME=str(tmp_path)),
        cwd=Path(__file__).parent.parent,
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
    assert cli.main(["doctor", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["findings"][0]["hint"] == "Do this."
    monkeypatch.setattr(doctor, "examine", found(WARN))
    assert cli.main(["doctor"]) == 0
    assert "warn  sound: Cannot write FLAC.\n      Do this." in capsys.readouterr().out


def test_nvidia_smi_is_read_with_who_holds_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "*query-gpu*) echo 'GPU-1, NVIDIA GeForce RTX 3060, 12288, 2048, 560.94';;\n"
        "*) echo 'GPU-1, /usr/bin/game, 9000'; echo 'GPU-2, other, 5'; echo 'GPU-1, hidden, [N/A]';;\nesac\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (card,) = facts._cards()
    assert card == Card("NVIDIA GeForce RTX 3060", 12 * GIB, 2 * GIB, "560.94", (("game", 9000 << 20),))
