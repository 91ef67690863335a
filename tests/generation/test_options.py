"""What may be wished of how the models are held: which words there are, what goes together, what a machine can do."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from offload import plan as memory_plan
from offload.device import GIB, Card, Machine
from yuegp.checkpoints import sets
from yuegp.cli.main import main
from yuegp.errors import DeviceError, RequestError
from yuegp.generation import memory, options, pipeline
from yuegp.generation.options import ANY, ModelOptions
from yuegp.generation.plan import plan_for
from yuegp.library.store import create
from yuegp.song.schema import Section, SongRequest, TakeInfo

CARD = Card(0, "a card", 24 * GIB, 24 * GIB, (8, 6))
HERE = Machine((CARD,), 64 * GIB, 48 * GIB)
NO_CARD = Machine((), 64 * GIB, 48 * GIB)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if exllamav2 was installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if "exllamav2" in name else real(name))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "exllamav2" else real(name))


def exl2_set(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Let the large model of a set be taken for an EXL2 one."""
    stage1 = sets.find(model).stage1
    real = memory.stored_as
    monkeypatch.setattr(memory, "stored_as", lambda folder: "exl2" if folder == stage1 else real(folder))
    monkeypatch.setattr(memory, "_exl2_bits", lambda folder: Fraction(6))


def test_the_words_are_those_of_the_plan() -> None:
    assert options.CACHES == (options.AUTO, *memory_plan.CACHES)


@pytest.mark.parametrize("words", [{"engine": "exl3"}, {"weights": "int4"}, {"kv": "q2"}, {"kv": ""}])
def test_unknown_words_are_refused_with_those_there_are(words: dict[str, str]) -> None:
    with pytest.raises(RequestError) as caught:
        ModelOptions(**words)
    assert repr(next(iter(words.values()))) in caught.value.what and "auto" in caught.value.hint


@pytest.mark.parametrize(
    "words", [{"engine": "torch", "kv": "q8"}, {"engine": "exl2", "weights": "nf4"}, {"weights": "int8", "kv": "q4"},
              {"engine": "torch", "weights": "exl2"}],
)  # fmt: skip
def test_what_cannot_go_together_anywhere_is_refused(words: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="cannot go together") as caught:
        ModelOptions(**words)
    assert all(value in caught.value.what for value in words.values()) and caught.value.hint


def test_nothing_wished_for_is_what_the_plan_chooses_from(tiny_set: Path) -> None:
    found = sets.find(str(tiny_set))
    assert memory.wished(found, CARD, ANY) == (memory.ways(found.stage1, 1, CARD), memory.ways(found.stage2, 2, CARD))


@pytest.mark.parametrize(("weights", "card"), [("nf4", CARD), ("int8", CARD), ("nf4", None), ("int8", None)])
def test_a_wish_narrows_how_the_large_model_is_held(tiny_set: Path, weights: str, card: Card | None) -> None:
    found = sets.find(str(tiny_set))
    ways1, ways2 = memory.wished(found, card, ModelOptions(weights=weights))
    assert [way.weights for way in ways1] == [weights] and ways1[0].converted
    assert ways2 == memory.ways(found.stage2, 2, card), "the small one is not asked to be smaller"


def test_an_exl2_model_is_held_with_the_wished_cache(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch, package: None
) -> None:
    exl2_set(monkeypatch, str(tiny_set))
    ways1, ways2 = memory.wished(sets.find(str(tiny_set)), CARD, ModelOptions(engine="exl2", kv="q6"))
    assert [(way.engine, way.kv) for way in ways1] == [("exl2", "q6")]
    assert {way.engine for way in ways2} == {"torch"}, "its files allow nothing else"
    for refused in (ModelOptions(weights="nf4"), ModelOptions(engine="torch")):
        with pytest.raises(RequestError, match="stored as exl2") as caught:
            memory.allow(str(tiny_set), refused, HERE)
        assert "auto" in caught.value.hint


@pytest.mark.parametrize("wish", [{"engine": "exl2"}, {"weights": "exl2"}, {"kv": "q8"}])
def test_the_fast_engine_without_card_or_package_is_refused(
    tiny_set: Path, no_package: None, wish: dict[str, str]
) -> None:
    model = str(tiny_set)
    for here, device, lacking in ((NO_CARD, "auto", "a graphics card"), (HERE, "cpu", "a graphics card"),
                                  (HERE, "auto", "the package exllamav2")):  # fmt: skip
        with pytest.raises(DeviceError, match=lacking) as caught:
            memory.allow(model, ModelOptions(**wish), here, device)
        assert "auto" in caught.value.hint


@pytest.mark.parametrize("wish", [{"engine": "exl2"}, {"kv": "q8"}])
def test_the_fast_engine_does_not_read_other_models(tiny_set: Path, package: None, wish: dict[str, str]) -> None:
    with pytest.raises(RequestError, match=r"stored as (float32|bfloat16)") as caught:
        memory.allow(str(tiny_set), ModelOptions(**wish), HERE)
    assert next(iter(wish.values())) in caught.value.what and "models list" in caught.value.hint


REQUEST = SongRequest((Section("verse", "la"),), "pop piano happy female vocal", section_seconds=1)


@pytest.mark.parametrize("weights", ["float", "int8", "nf4"])
def test_a_song_is_made_as_wished_and_says_so(tiny_set: Path, tmp_path: Path, weights: str) -> None:
    song = create(SongRequest(REQUEST.sections, REQUEST.tags, model=str(tiny_set), section_seconds=1), tmp_path)
    take = song.new_take(TakeInfo(0, song.request))
    pipeline.run(plan_for(take), take, device="cpu", wishes=ModelOptions(weights=weights), previews=False)
    assert take.info.made_with
    assert take.info.made_with.engine.split()[1] == {"float": "float32"}.get(weights, weights)
    assert take.mix.exists()


def test_what_became_impossible_is_refused_when_it_runs(tiny_set: Path, tmp_path: Path) -> None:
    song = create(SongRequest(REQUEST.sections, REQUEST.tags, model=str(tiny_set), section_seconds=1), tmp_path)
    take = song.new_take(TakeInfo(0, song.request))
    with pytest.raises(DeviceError, match="a graphics card"):
        pipeline.run(plan_for(take), take, device="cpu", wishes=ModelOptions(kv="q8"))
    assert take.frames == 0


def test_the_command_line_refuses_before_anything_is_written_or_queued(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("[verse]\nla la\n")
    make: list[Any] = ["make", "--lyrics", str(words), "--tags", "pop", "--model", str(tiny_set), "--device", "cpu",
                       "--out", str(tmp_path / "songs"), "--queue", "--json"]  # fmt: skip
    assert main([*make, "--engine", "exl2"]) == DeviceError.exit_code
    assert main([*make, "--engine", "torch", "--kv", "q4"]) == RequestError.exit_code
    assert not (tmp_path / "songs").exists()
    capsys.readouterr()
    assert main([*make, "--weights", "nf4"]) == 0
    assert '"weights": "nf4"' in capsys.readouterr().out
    (song,) = (tmp_path / "songs").iterdir()
    capsys.readouterr()
    assert main(["redo", str(song), "1", "--out", str(tmp_path / "songs"), "--device", "cpu", "--kv", "q8"]) == 4
    assert "graphics card" in capsys.readouterr().err
    assert len(list((song / "takes").iterdir())) == 1
