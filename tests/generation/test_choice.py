"""One answer to what a card gets: the README's table, what is fetched, planned and shown, and what a song uses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Hub
from released import SOUND, STAGE1, STAGE2, pretend_exl2, write_released
from repository import ROOT

from offload import device
from offload.device import GIB, Card, Machine, imagined
from ui import machine
from ui.pages import setup
from ui.texts import Texts
from yuegp import paths
from yuegp.checkpoints import registry, sets
from yuegp.checkpoints.registry import CHECKPOINTS
from yuegp.cli.main import main
from yuegp.generation import choice, memory, plan
from yuegp.song.schema import Section, SongRequest
from yuegp.system import environment, provision
from yuegp.units import file_size

SIZES = (6, 8, 10, 12, 16, 24)
SETS = [(language, mode) for language in registry.LANGUAGES for mode in registry.MODES]


def table() -> dict[int, tuple[str, str]]:
    """Size of card to what both models are held as, as the README says."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) GB \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    return {int(size): (one.strip(), two.strip()) for size, one, two in rows}


def installed(monkeypatch: pytest.MonkeyPatch, *names: str, **versions: str) -> None:
    """Let these top-level packages be there and no other part of ExLlamaV2, with the versions that are given."""
    spec, version = importlib.util.find_spec, importlib.metadata.version

    def find(name: str, package: str | None = None) -> object:
        return (object() if name in names else None) if name.startswith("exllamav2") else spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or version(name))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "exllamav2", "exllamav2_ext")


def card(gigabytes: float, capability: tuple[int, int] = (8, 6)) -> Card:
    """A real one with a screen on it, as the table counts them."""
    return replace(imagined(int(gigabytes * GIB)), name="NVIDIA card", capability=capability, imagined=False)


def here(monkeypatch: pytest.MonkeyPatch, *cards: Card, ram: int = 16) -> None:
    monkeypatch.setattr(device, "_cards", lambda: cards)
    monkeypatch.setattr(machine, "describe_machine", lambda: Machine(cards, 2 * ram * GIB, ram * GIB))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("originals"), pth=True)


@pytest.fixture
def stocked(hub: Hub, originals: Path, yue_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with every copy of the English models that can be chosen for a card, whoever publishes it."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
    shutil.copytree(originals / SOUND, hub.root / "m-a-p" / SOUND)
    safe = write_released(tmp_path / "safe") / SOUND
    shutil.copytree(safe, hub.root / CHECKPOINTS["codec-safetensors"].repo)
    for entry in CHECKPOINTS.values():
        if (entry.role, entry.language, entry.mode) in (("stage1", "en", "cot"), ("stage2", "any", "any")):
            source = originals / (STAGE1 if entry.role == "stage1" else STAGE2)
            target = hub.root / (entry.repo + (f"@{entry.revision}" if entry.revision else ""))
            if entry.stored == "exl2" and not target.exists():
                pretend_exl2(source, target, entry.bits)
            elif entry.stored == "bfloat16":
                shutil.copytree(source, target)
                shutil.copy(yue_tokenizer, target / "tokenizer.model")
    return hub


def song(model: str) -> plan.SongPlan:
    sections = tuple(Section("verse", "la la la") for _ in range(choice.SECTIONS))
    return plan.plan(SongRequest(sections, "pop piano happy female bright vocal", model=model))


# The chain


@pytest.mark.parametrize("size", SIZES)
def test_table_choice_plan_page_doctor_and_song_say_the_same(
    size: int, stocked: Hub, engine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(monkeypatch, card(size))
    said = table()[size]
    chosen = provision.choose("en", "cot", card(size))
    assert chosen.plan is not None and (str(chosen.plan.stage1_format), str(chosen.plan.stage2_format)) == said

    imaginary = provision.choose("en", "cot", imagined(size * GIB))
    assert imaginary.checkpoints == chosen.checkpoints, "a card that is not here gets what it would get here"
    for asked in (["plan", "--vram", f"{size}GB", "--ram", "16GB"], ["plan"]):
        assert main([*asked, "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert (row["stage1"], row["stage2"]) == said
    profile = setup.profile(Texts())
    assert profile is not None and said[0] in profile["text"] and said[1] in profile["text"]
    fast = {"exllamav2": environment.Package("0.3.2")}
    assert environment._foreseen(fast) == (said[0], "")
    about = sum(c.about for c in chosen.checkpoints)
    offered = setup._model_row("yue-en-cot", Texts())
    assert file_size(about) in offered["text"], "the page says the size of what it would get"

    assert main(["models", "get", "--language", "en", "--yes", "--quiet"]) == 0
    assert registry.notes()["sets"]["yue-en-cot"] == [c.id for c in chosen.checkpoints]
    found = choice.find("yue-en-cot")
    ids = {places_id(found.stage1), places_id(found.stage2)}
    assert ids == {c.id for c in chosen.checkpoints[:2]}
    used = memory.foresee(song("yue-en-cot"), device.machine())
    assert (used.stage1_format.engine, str(used.stage1_format).partition(",")[0]) == (
        chosen.plan.stage1_format.engine,
        said[0],
    )
    capsys.readouterr()
    assert main(["plan", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["models"] == found.title and row["stage1"].partition(",")[0] == said[0]


def places_id(folder: Path) -> str:
    return next(c.id for c in CHECKPOINTS.values() if c.folder == folder.name)


@pytest.mark.parametrize("size", (10, 24))
def test_of_many_copies_on_the_disk_a_song_takes_what_would_be_chosen(
    size: int, stocked: Hub, engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No set was ever settled: the folders were copied there by hand."""
    here(monkeypatch, card(size))
    for entry in (CHECKPOINTS[name] for name in ("s1-en-cot", "s1-en-cot-exl2-8.0", "s1-en-cot-exl2-4.0", "s2",
                                                 "s2-exl2-8.0", "codec")):  # fmt: skip
        shutil.copytree(stocked.root / entry.repo, paths.models_dir() / entry.folder)
    found = song("yue-en-cot").models
    assert [places_id(found.stage1), places_id(found.stage2)] == [
        c.id for c in provision.choose("en", "cot", card(size)).checkpoints[:2]
    ]
    installed(monkeypatch)
    assert places_id(song("yue-en-cot").models.stage1) == "s1-en-cot", "what no engine here can read is left"


# One truth, whatever the machine


@pytest.mark.parametrize(("language", "mode"), SETS)
@pytest.mark.parametrize("fast", [True, False])
def test_a_plan_is_of_what_is_fetched_for_every_set(language: str, mode: str, fast: bool) -> None:
    for size in (None, 4, *SIZES):
        that = card(size) if size else None
        found = provision.choose(language, mode, that, fast, 16 * GIB)
        first, second, _ = found.checkpoints
        assert (first.language, first.mode) == (language, mode)
        assert (fast and that) or "exl2" not in (first.stored, second.stored)
        if found.plan:
            assert found.plan.stage1_format in choice.ways(first, that) and found.plan.stage2_format in choice.ways(
                second, that
            )
            assert str(found.plan.stage1_format) in found.reason and str(found.plan.stage2_format) in found.reason


@pytest.mark.parametrize(
    ("names", "versions", "that", "lacks"),
    [
        ((), {}, card(24), "the package exllamav2"),
        (("exllamav2",), {"exllamav2": "0.3.2"}, card(24), "the compiled part of the package exllamav2"),
        (("exllamav2", "exllamav2_ext"), {"exllamav2": "0.2.9"}, card(24), "version 0.3.2"),
        (("exllamav2", "exllamav2_ext"), {"exllamav2": "0.3.2+cu128.torch2.9.0", "torch": "2.13.0"}, card(24),
         "torch 2.9, for which"),
        (("exllamav2", "exllamav2_ext"), {}, card(24, (5, 2)), "a newer card than the NVIDIA card"),
        (("exllamav2", "exllamav2_ext"), {"exllamav2": "0.3.2+cu128.torch2.9.0", "torch": "2.9.0+cu128"},
         card(11, (7, 5)), ""),
    ],
)  # fmt: skip
def test_an_engine_that_could_not_start_is_not_counted_on(
    names: tuple[str, ...], versions: dict[str, str], that: Card, lacks: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("YUEGP_EXL2_BUILD", raising=False)
    installed(monkeypatch, *names, **versions)
    here(monkeypatch, that)
    found = provision.choose("en", "cot", that)
    assert (found.checkpoints[0].stored == "exl2") == (not lacks)
    assert lacks in found.reason and lacks in choice.lacking(that)
    profile = setup.profile(Texts())
    assert (
        profile
        and found.plan
        and str(found.plan.stage1_format) in profile["text"]
        and lacks in " ".join(profile["reasons"])
    )


def test_a_turing_card_is_given_what_it_can_compute_in() -> None:
    found = provision.choose("zh", "cot", card(24, (7, 5)), exl2=True)
    assert found.plan and (found.plan.stage1_format.weights, found.plan.stage2_format.weights) == ("float16", "float16")
    assert found.checkpoints[0].id == "s1-zh-cot"


def test_a_processor_gets_weights_that_it_need_not_unpack_for_every_id() -> None:
    found = provision.choose("en", "cot", None, ram=48 * GIB)
    assert [c.id for c in found.checkpoints[:2]] == ["s1-en-cot", "s2"]
    few = provision.choose("en", "cot", None, ram=14 * GIB)
    assert few.plan and few.checkpoints[0].bits < 16


def test_little_ram_changes_what_waits_and_not_what_is_fetched() -> None:
    much, little = (provision.choose("en", "cot", card(24), True, ram * GIB) for ram in (32, 2))
    assert much.checkpoints == little.checkpoints


# What is here already


def on_disk(originals: Path, name: str) -> None:
    entry = CHECKPOINTS[name]
    source = originals / (STAGE1 if entry.role == "stage1" else STAGE2)
    if entry.stored == "exl2":
        pretend_exl2(source, paths.models_dir() / entry.folder, entry.bits)
    else:
        shutil.copytree(source, paths.models_dir() / entry.folder)


def ids(size: int, **more: bool) -> list[str]:
    return [c.id for c in provision.choose("en", "cot", card(size), True, 16 * GIB, **more).checkpoints[:2]]


def test_what_is_here_and_as_good_is_used_and_it_is_said_what_would_be_faster(originals: Path) -> None:
    on_disk(originals, "s1-en-cot")
    on_disk(originals, "s2")
    assert ids(24) == ["s1-en-cot", "s2"]
    reason = provision.choose("en", "cot", card(24), True, 16 * GIB).reason
    assert "here already" in reason and "s1-en-cot-exl2-8.0 would be faster" in reason
    on_disk(originals, "s1-en-cot-exl2-8.0bpw-h8")
    assert ids(24) == ["s1-en-cot-exl2-8.0bpw-h8", "s2"], "another publisher's copy of the same bits"


def test_what_is_here_and_worse_or_damaged_is_not_used_instead(originals: Path) -> None:
    on_disk(originals, "s1-en-cot-exl2-4.0")
    on_disk(originals, "s2")
    path = paths.models_dir() / STAGE2 / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert ids(10) == ["s1-en-cot-exl2-8.0", "s2-exl2-8.0"]


def test_another_programs_copy_counts_when_it_is_looked_for(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(originals / STAGE1, tmp_path / "theirs" / STAGE1)
    monkeypatch.setenv("YUEGP_MODEL_DIRS", str(tmp_path / "theirs"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
    assert ids(24)[0] == "s1-en-cot-exl2-8.0" and ids(24, elsewhere=True)[0] == "s1-en-cot"


def test_a_settled_set_is_used_exactly(originals: Path, engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, card(24))
    for name in ("s1-en-cot", "s1-en-cot-exl2-8.0", "s2", "s2-exl2-8.0"):
        on_disk(originals, name)
    shutil.copytree(originals / SOUND, paths.models_dir() / SOUND)
    registry.remember(sets={"yue-en-cot": ["s1-en-cot", "s2-exl2-8.0", "codec"]})
    found = choice.find("yue-en-cot")
    assert (places_id(found.stage1), places_id(found.stage2)) == ("s1-en-cot", "s2-exl2-8.0")
    installed(monkeypatch)
    found = choice.find("yue-en-cot")
    assert (places_id(found.stage1), places_id(found.stage2)) == ("s1-en-cot", "s2"), "the engine is gone"
    assert sets.find("yue-en-cot").stage2 != found.stage2
