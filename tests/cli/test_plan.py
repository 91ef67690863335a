"""`plan`: what a song would get on a card, asked for without the card and without the models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from repository import ROOT

from offload import device
from yuegp.cli.main import main

LYRICS = str(ROOT / "examples" / "paper-lanterns.txt")


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cards", lambda: ())


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["plan", "--lyrics", LYRICS, "--ram", "16GB", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_song_is_planned_for_any_card(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {size: planned(capsys, "--vram", f"{size}GB") for size in (6, 10, 24)}
    assert [row["stage1"] for row in rows.values()] == ["EXL2 4.25 bit", "EXL2 8 bit", "EXL2 8 bit"]
    assert all(row["peak"] <= row["budget"] for row in rows.values())  # type: ignore[operator]
    assert planned(capsys, "--vram", "8GB")["stage1"] == "EXL2 6 bit"
    assert planned(capsys, "--vram", "8GB", "--headless")["stage1"] == "EXL2 8 bit"


def test_the_table_says_what_lies_where_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--lyrics", LYRICS, "--vram", "10GB", "--ram", "16GB"]) == 0
    text = capsys.readouterr().out
    assert "a card of 10 GB" in text and "Stage 1, EXL2 8 bit" in text and "they take turns" in text


def test_the_rehearsed_card_is_planned_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUEGP_PRETEND_VRAM", "8GB")
    assert planned(capsys)["stage1"] == "EXL2 6 bit"


def test_what_does_not_fit_shows_the_nearest_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--lyrics", LYRICS, "--vram", "6GB", "--bits", "8", "--ram", "16GB"]) == 4
    told = capsys.readouterr()
    assert "are missing" in told.err and "Stage 1 as EXL2 4.25 bit fits" in told.err
    assert "Stage 1, EXL2 4.25 bit" in told.out


def test_a_set_on_disk_is_planned_as_it_is(capsys: pytest.CaptureFixture[str], tiny_set: Path) -> None:
    row = planned(capsys, "--model", str(tiny_set))
    assert (row["card"], row["stage1"], row["models"]) == (None, "float32", "Random weights")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--vram", "much"), 2, "'much' is no amount of memory"),
        ((), 3, "Add --vram"),
        (("--vram", "10GB", "--model", "suno"), 3, "no model called 'suno'"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert main(["plan", "--lyrics", LYRICS, *arguments]) == code
    assert said in capsys.readouterr().err
