"""The command line as a user meets it: real processes, real exit codes, folders with spaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from repository import ROOT

from yuegp.__main__ import main
from yuegp.cli.progress import ProgressBar
from yuegp.generation.plan import Event
from yuegp.jobs.queue import JobProgress, State
from yuegp.library import store
from yuegp.song.schema import Stage

TAGS = "inspiring female uplifting pop airy vocal electronic bright vocal"
LYRICS = "[verse]\nOne two three\n\n[chorus]\nfour five\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Paths with spaces and letters beyond ASCII, everywhere."""
    folder = tmp_path / "my songs ü 歌"
    folder.mkdir()
    (folder / "some words.txt").write_text(LYRICS, encoding="utf-8")
    return folder


def yuegp(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "YUEGP_HOME": str(cwd)}
    command = [sys.executable, "-m", "yuegp", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, input=stdin, capture_output=True, timeout=120)


def fails(code: int, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run in this process; the error as printed: a sentence, and a next step."""
    assert main(arguments) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) >= 2 and all(line.endswith((".", ")", "…")) or ":" in line for line in said[-2:]), said
    return "\n".join(said)


def test_make_writes_a_playable_song(folder: Path) -> None:
    """Inherited fault: paths with spaces."""
    done = yuegp("make", "--lyrics", "some words.txt", "--tags", TAGS, "--seed", "7", "--section-seconds", "2",
                 "--out", "out here", "--title", "A/B: 歌?", "--json", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["seed"] == 7 and len(report["spans"]) == 2
    for name in ("mix", "vocal", "instrumental"):
        wave, rate = soundfile.read(report[name])
        assert rate == 44100 and len(wave) == round(report["seconds"] * rate)
        assert np.abs(wave).max() > 0.001
    song = store.open_song(report["song"])
    assert song.folder.parent == folder / "out here"
    assert song.request.title == "A/B: 歌?"
    assert (song.folder / "lyrics.txt").read_text(encoding="utf-8") == LYRICS


def test_make_tells_what_it_does(folder: Path) -> None:
    done = yuegp("make", "--lyrics", "-", "--tags", TAGS, "--sections", "1", "--section-seconds", "1",
                 cwd=folder, stdin=LYRICS.encode())  # fmt: skip
    text, progress = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, progress
    assert "1 of 2 sections" in text and "Done: take 1, 1.0 s of music, seed" in text and "A tiny model" in text
    for part in ("writing: section 1 of 1", "refining: both tracks", "sound: vocal stem", "sound: instrumental stem"):
        assert part in progress
    (song,) = (folder / "songs").iterdir()
    assert str(song) in text


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent differently there")
def test_ctrl_c_keeps_finished_sections_and_says_how_to_go_on(folder: Path) -> None:
    """Inherited fault: finished takes thrown away on Stop."""
    arguments = ["make", "--lyrics", "some words.txt", "--tags", TAGS, "--seed", "1", "--section-seconds", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "yuegp", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "YUEGP_HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line.decode())
        if "section 2 of 2" in said[-1]:
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Kept 1 finished section in " in "".join(said) and "resume" in "".join(said)
    (song,) = (folder / "songs").iterdir()
    take = store.open_song(song).take(1)
    assert len(take.info.spans) == 1 and take.load_stage1().shape[2] == take.frames > 0

    resumed = yuegp("resume", str(song), "--json", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr.decode()
    after = store.open_song(song).take(1)
    assert after.info.stage is Stage.RENDERED and after.info.spans[0] == take.info.spans[0]
    assert (after.load_stage1()[:, :, : take.frames] == take.load_stage1()).all()


def test_lyrics_shows_sections_words_and_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "a b.txt"
    path.write_text("lost line\n[Verse 2]\nla la la (oh) [x2]\n[chorus]\n", encoding="utf-8")
    assert main(["lyrics", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in shown["sections"]] == ["verse", "Verse 2", "chorus"]
    assert [row["model_label"] for row in shown["sections"]] == ["verse", "verse", "chorus"]
    assert [row["words"] for row in shown["sections"]] == [2, 5, 0]
    assert {warning["line"] for warning in shown["warnings"]} >= {1, 3}
    assert main(["lyrics", str(path)]) == 0
    assert "Verse 2 → verse" in capsys.readouterr().out


BAD_LYRICS = {
    "empty": b"",
    "blank": b" \n\t\n",
    "binary": bytes(range(256)) * 10,
    "ten megabytes": b"la " * 3_500_000,
    "not utf-8": "[verse]\nétoile".encode("latin-1"),
    "far too many words": b"[verse]\n" + b"la " * 1000,
}


@pytest.mark.parametrize("name", BAD_LYRICS)
@pytest.mark.parametrize("command", ["lyrics", "make"])
def test_bad_lyrics_are_refused(name: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / f"{name}.txt"
    path.write_bytes(BAD_LYRICS[name])
    arguments = [command, str(path)] if command == "lyrics" else [command, "--lyrics", str(path), "--tags", TAGS]
    fails(2, *arguments, capsys=capsys)
    assert not (folder / "songs").exists()


GOOD_LYRICS = {
    "byte order mark": b"\xef\xbb\xbf[verse]\nla la\n",
    "carriage returns": b"[verse]\r\nla la\r\n\r\n[chorus]\r\nla\r\n",
    "no label": b"la la la\nla la\n",
    "unclosed": b"[verse]\nla [la la\n",
    "before the first label": b"la la\n[chorus]\nla\n",
    "no final newline": b"[verse]\nla\n[outro]\nbye",
}


@pytest.mark.parametrize("name", GOOD_LYRICS)
def test_odd_lyrics_are_understood(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inherited faults: missing final newline loses a section; `[x2]` inside a line opens one."""
    path = folder / f"{name}.txt"
    path.write_bytes(GOOD_LYRICS[name])
    assert main(["lyrics", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    words = " ".join(f"{row['label']} {row['text']}" for row in shown["sections"])
    for word in GOOD_LYRICS[name].decode("utf-8-sig").replace("[verse]", "").split():
        assert word.strip("[]") in words


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["make", "--tags", TAGS], 2, "no lyrics"),
        (["make", "--lyrics", "nowhere.txt", "--tags", TAGS], 2, "nowhere.txt"),
        (["make", "--lyrics", "{f}", "--tags", ""], 2, "tags"),
        (["make", "--lyrics", "{f}", "--tags", "pop, " * 500], 2, "2,?49"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--sections", "9"], 2, "it can be 1 to 2"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--reference-start", "3"], 2, "no reference"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--reference", "x.wav"], 2, "x.wav"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--reference-vocal", "{f}"], 2, "Only the vocal"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--reference", "{f}"], 2, "cannot be read as sound"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--model", "suno"], 3, "no model called"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--model", "yue-en-cot"], 3, "YuE-s1-7B-anneal-en-cot"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--device", "cuda"], 4, "CUDA"),
        (["make", "--lyrics", "{f}", "--tags", TAGS, "--out", "{f}"], 5, "some words.txt"),
        (["resume", "nowhere"], 5, "nowhere"),
    ],
)
def test_refusals_have_exit_codes_values_and_a_next_step(
    arguments: Sequence[str], code: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    if "cuda" in arguments:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a card")
    filled = [argument.replace("{f}", str(folder / "some words.txt")) for argument in arguments]
    message = fails(code, *filled, capsys=capsys)
    assert re.search(said, message), message


SOUNDS: dict[str, tuple[Any, str]] = {
    "silent": ((np.zeros((48000, 1)), 16000), "silent"),
    "short": ((np.full((8000, 1), 0.1), 16000), "0.50 s"),
    "ten channels": ((np.full((48000, 10), 0.1), 16000), "10 channels"),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_bad_references_are_refused(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (wave, rate), said = SOUNDS[name]
    path = folder / f"{name}.wav"
    soundfile.write(path, wave * np.sin(np.arange(len(wave)))[:, None], rate)
    words = str(folder / "some words.txt")
    assert said in fails(2, "make", "--lyrics", words, "--tags", TAGS, "--reference", str(path), capsys=capsys)
    assert not (folder / "songs").exists()


def test_a_window_outside_the_reference_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "four seconds.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(4 * 16000)), 16000)
    for window in (("5", "9"), ("3.5", "9"), ("3", "2")):
        arguments = ["--reference", str(path), "--reference-start", window[0], "--reference-end", window[1]]
        fails(2, "make", "--lyrics", str(folder / "some words.txt"), "--tags", TAGS, *arguments, capsys=capsys)


@pytest.mark.parametrize("arguments", [["make", "--volume", "11"], ["sing"], ["make", "--seed", "x"]])
def test_unknown_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_errors_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make", "--lyrics", "nowhere.txt", "--tags", TAGS, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert "nowhere.txt" in error["error"] and error["hint"] and error["exit"] == 2


LIGHT = """
import sys
from yuegp.__main__ import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "gradio"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["lyrics", "some words.txt"], 0),
        (["make", "--lyrics", "nowhere.txt", "--tags", TAGS], 2),
        (["make", "--lyrics", "some words.txt", "--tags", TAGS, "--sections", "5"], 2),
        (["make", "--lyrics", "some words.txt", "--tags", TAGS, "--reference", "some words.txt"], 2),
        (["make", "--lyrics", "some words.txt", "--tags", TAGS, "--model", "suno"], 3),
    ],
)
def test_refusals_come_before_torch(arguments: list[str], code: int, folder: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LIGHT, *arguments], cwd=folder, env=env, capture_output=True)
    assert done.returncode == code, done.stderr.decode()


def test_the_progress_line_has_stage_part_rate_and_time() -> None:
    class Gauge:
        def update(self, event: Event) -> None: ...

        def progress(self) -> JobProgress:
            return JobProgress(job=1, state=State.RUNNING, rate=100.0, eta=75.0)

    line = ProgressBar(quiet=True, gauge=Gauge()).line(Event("writing", "section 2 of 4", 900, 2400, "ids", 300))
    assert line.startswith("writing   section 2 of 4")
    assert "38%" in line and "100 ids/s" in line and "about 1:15 left" in line


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("ui", "lyrics", "make", "resume", "quant", "bench"):
        assert f"    {command}" in text


def test_without_a_command_the_page_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("ui.server.serve.serve", lambda *given, **named: shown.append((given, named)))
    monkeypatch.setenv("YUEGP_HOME", str(tmp_path))
    monkeypatch.delenv("YUEGP_PASSWORD", raising=False)
    assert main([]) == 0
    assert shown == [((tmp_path / "songs", None, False, ""), {"browse": True})]


def test_cards_are_counted_as_the_drivers_tool_counts_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where nobody went through launch.py. Without it CUDA puts the fastest card first, nvidia-smi does not."""
    monkeypatch.setenv("YUEGP_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert main(["songs"]) == 0 and os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    assert main(["songs"]) == 0 and os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
