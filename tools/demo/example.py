"""The example song of the report: made by the program's own command line with a finished set, timed, and kept as MP3
and as a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import soundfile
import soxr

from .pictures import Row, sheet

ROOT = Path(__file__).resolve().parent.parent.parent
LYRICS = ROOT / "examples" / "paper-lanterns.txt"
TAGS = "pop piano happy female bright vocal"
SEED = 2
KEPT_SECONDS = 30
"""Seconds of the song in the MP3, whose file stays under a megabyte."""
SHOWN_SECONDS = 16
MP3_RATE = 32000


def make(model: Path, home: Path, *options: str) -> dict[str, Any]:
    """Result of `yuegp make --json`, with the command's wall time in `command_seconds`. Other songs lie under
    `home`."""
    command = [sys.executable, "-m", "yuegp", "make", "--lyrics", str(LYRICS), "--tags", TAGS, "--seed", str(SEED)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--model", str(model), "--json", *options],
        cwd=ROOT,
        env=dict(os.environ, YUEGP_HOME=str(home), OMP_NUM_THREADS="2"),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return json.loads(done.stdout) | {"command_seconds": round(time.monotonic() - began, 1)}


def example(model: Path, work: Path) -> dict[str, float]:
    """Seconds of music, and seconds of work per second of it: for the whole song with the set's own sampling, and for
    its first three sections with YuE's guidance. Leaves `song.mp3` and `song.png` in `work`."""
    whole = make(model, work / "home")
    guided = make(model, work / "home", "--sections", "3", "--guidance", "1.5", "--guidance-later", "1.2")
    wave, rate = soundfile.read(whole["mix"], dtype="float32", stop=KEPT_SECONDS * 44100)
    soundfile.write(work / "song.mp3", soxr.resample(wave, rate, MP3_RATE), MP3_RATE, format="MP3")
    stems = [
        soundfile.read(whole[name], dtype="float32")[0][: SHOWN_SECONDS * rate] for name in ("vocal", "instrumental")
    ]
    sheet([Row(name, stem, rate) for name, stem in zip(("voice", "band"), stems, strict=True)], work / "song.png")
    return {
        "seconds": whole["seconds"],
        "made_in": round(whole["command_seconds"] / whole["seconds"], 3),
        "made_in_guided": round(guided["command_seconds"] / guided["seconds"], 3),
    }
