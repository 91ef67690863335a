"""Songs from the command line: made, redone, continued, compared, listed, exported, thrown away and taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tools.write_commands import PAGE, page
from yuegp.cli.main import main

TAGS = "pop piano happy female airy vocal"


class Shell:
    """The command line in one songs folder; every answer as JSON."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys

    def __call__(self, *arguments: object) -> Any:
        code = main([str(a) for a in arguments] + ["--out", str(self.root), "--json"])
        out, err = self.capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    def says(self, *arguments: object) -> str:
        assert main([str(a) for a in arguments] + ["--out", str(self.root)]) == 0
        return self.capsys.readouterr().out

    def fails(self, code: int, *arguments: object) -> str:
        assert main([str(a) for a in arguments] + ["--out", str(self.root)]) == code
        return self.capsys.readouterr().err


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "my songs", capsys)


@pytest.fixture
def song(shell: Shell, tiny_set: Path, tmp_path: Path) -> str:
    words = tmp_path / "sea song.txt"
    words.write_text("[verse]\none two\n\n[chorus]\nthree four\n\n[outro]\nfive\n", encoding="utf-8")
    made = shell("make", "--lyrics", words, "--tags", TAGS, "--model", tiny_set, "--seed", 3, "--section-seconds", 1)
    assert made["take"] == 1 and len(made["spans"]) == 3
    return "sea song"


def test_a_song_is_worked_on_take_by_take(shell: Shell, song: str, tmp_path: Path) -> None:
    redone = shell("redo", song, 2, "--seed", 9)
    assert (redone["take"], redone["parent"], redone["seed"]) == (2, 1, 9)
    assert [span["take"] for span in redone["spans"]] == [1, 2, 1]

    more = tmp_path / "bridge.txt"
    more.write_text("[bridge]\nsix seven\n", encoding="utf-8")
    longer = shell("continue", song, "--lyrics", more)
    assert longer["take"] == 3 and longer["parent"] == 2 and len(longer["spans"]) == 4

    several = shell("takes", song, 1, "-n", 2, "--seed", 20)
    assert [take["take"] for take in several["takes"]] == [4, 5] and [t["seed"] for t in several["takes"]] == [20, 21]
    assert shell("pick", song, 4)["picked"] == 4

    rewound = shell("rewind", song, "--second", "1.5", "--seed", 30)
    assert rewound["parent"] == 4 and len(rewound["spans"]) == 4
    trimmed = shell("trim", song, 1, "0.2", "--take", 1)
    assert trimmed["parent"] == 1 and trimmed["spans"][0]["stop"] == 40
    assert shell("mute", song, 1, 2)["take"] == 8

    shown = shell("show", song)
    assert [take["number"] for take in shown["takes"]] == list(range(1, 9))
    assert [take["parent"] for take in shown["takes"]] == [None, 1, 2, 3, 3, 4, 1, 4]
    assert [take["number"] for take in shown["takes"] if take["chosen"]] == [4]
    text = shell.says("show", song)
    assert "* take 4, ready, seed 20, from take 3: section 1, candidate 1 of 2" in text
    assert "kept from take 1" in text and "muted" in text


def test_songs_are_listed_named_rated_and_thrown_away(shell: Shell, song: str) -> None:
    assert shell("rename", song, "Salt & Light: 海")["title"] == "Salt & Light: 海"
    assert shell("rate", "salt", 4)["rating"] == 4
    (entry,) = shell("songs", "LIGHT", "--rating", 4, "--tag", "piano", "--sort", "rating")
    assert entry["title"] == "Salt & Light: 海" and entry["seconds"] == 3.0
    assert shell("songs", "--rating", 5) == [] and shell("songs", "polka") == []
    assert "★★★★" in shell.says("songs") and "0:03" in shell.says("songs")
    shell("trash", "salt")
    assert shell("songs") == [] and len(shell("songs", "--trash")) == 1
    assert "No songs in" in shell.says("songs")
    shell("restore", "salt")
    assert len(shell("songs")) == 1


def test_a_song_is_exported_and_its_settings_imported(
    shell: Shell, song: str, tmp_path: Path, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YUEGP_MODELS", str(tiny_set.parent))  # files name a model set, not where it lay
    folder = shell("show", song)["folder"]
    for kind, ending in (("wav24", "wav"), ("flac", "flac"), ("mp3", "mp3")):
        files = [Path(f) for f in shell("export", folder, "--kind", kind, "--to", tmp_path / kind, "--stems")["files"]]
        sounds = [path for path in files if path.suffix == f".{ending}"]
        assert len(sounds) == 3 and all(soundfile.info(str(path)).frames > 0 for path in sounds)
        again = shell("import", next(path for path in sounds if "mix" in path.name))
        made = shell("resume", again["song"])
        assert made["seed"] == 3 and len(made["spans"]) == 3
    codes = {json.dumps([s["spans"] for s in shell("show", e["folder"])["takes"]]) for e in shell("songs")}
    assert len(codes) == 1, "the same settings make the same song"


def test_what_there_is_not_is_said(shell: Shell, song: str) -> None:
    assert "finished" in shell.fails(5, "resume", song)
    assert "no take 7" in shell.fails(5, "redo", song, 1, "--take", 7)
    assert "no section 9" in shell.fails(2, "redo", song, 9)
    assert "All 3 sections" in shell.fails(2, "continue", song)
    assert "polka" in shell.fails(5, "show", "polka")
    assert "polka" in shell.fails(5, "restore", "polka")
    assert shell.fails(2, "rate", song, 6)
    assert shell.fails(5, "pick", song, 6)


def test_sections_made_one_by_one(shell: Shell, song: str) -> None:
    assert len(shell("redo", song, 1, "--later", "stop", "--seed", 4)["spans"]) == 1
    assert len(shell("continue", song, "--sections", 2)["spans"]) == 2
    assert len(shell("continue", song)["spans"]) == 3


def test_songs_are_lined_up_and_made_one_after_the_other(shell: Shell, song: str, tmp_path: Path) -> None:
    (first,) = shell("redo", song, 1, "--seed", 5, "--queue")
    (second,) = shell("redo", song, 2, "--seed", 6, "--queue", "--take", 1)
    assert (first["state"], second["state"], second["take"]) == ("waiting", "waiting", 3)
    shell("queue", "move", second["number"], 1)
    assert [job["take"] for job in shell("queue", "list")] == [3, 2]
    shell("queue", "pause", first["number"])
    assert [job["state"] for job in shell("queue", "run")] == ["done", "paused"]
    assert "paused" in shell.says("queue", "list")
    shell("queue", "resume", "all")
    assert [job["state"] for job in shell("queue", "run")] == ["done", "done"]
    assert [t["stage"] for t in shell("show", song)["takes"]] == ["rendered"] * 3
    assert len(shell("queue", "clear")) == 2 and shell("queue", "list") == []
    assert "empty" in shell.says("queue", "list")
    assert "no job 7" in shell.fails(2, "queue", "cancel", 7)
    assert "'x' is not a number" in shell.fails(2, "queue", "pause", "x")
    assert "a job and its new place" in shell.fails(2, "queue", "move", 1)


def test_the_page_of_commands_is_what_the_parser_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tools/write_commands.py"
