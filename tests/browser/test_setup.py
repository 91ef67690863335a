"""The Set-up page: what it says of models and of the machine, and the language that it changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import PageServer

from offload.device import Card, Machine
from ui import machine, settings
from ui.context import AppContext
from ui.pages import setup
from ui.texts import Texts
from yuegp import paths
from yuegp.checkpoints import sets
from yuegp.errors import LibraryError
from yuegp.jobs.queue import Queue
from yuegp.system import doctor

T = Texts()


def rows() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in setup.model_rows(T)}


def test_the_demo_is_here_and_the_others_say_what_they_cost_and_how_to_get_them() -> None:
    found = rows()
    assert found["demo"]["here"] and "hums" in found["demo"]["note"]
    for name in sets.RELEASED:
        assert not found[name]["here"] and found[name]["get"] == f"models get {name}"
        parts = sets.candidates(name).values()
        least, most = (sum(pick(c.about for c in some) for some in parts) for pick in (min, max))
        size = float(found[name]["text"].split(" GB")[0].rpartition(" ")[2]) * 2**30
        assert least <= size <= 1.1 * most


def test_a_set_that_is_on_disk_is_here_with_its_size(tiny_set: Path) -> None:
    folder = paths.models_dir() / "mine"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tiny_set)
    assert rows()["mine"]["here"]


def test_the_machine_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(0, "NVIDIA GeForce RTX 3060", 12 << 30, 11 << 30)
    monkeypatch.setattr(machine, "describe_machine", lambda: Machine((card,), 32 << 30, 20 << 30))
    assert dict(setup.machine_rows(T)) == {
        "Graphics card": "NVIDIA GeForce RTX 3060: 11.0 GB of 12.0 GB free",
        "Memory": "20.0 GB of 32.0 GB free",
        "Songs are made": "on the graphics card",
    }


def test_the_profile_is_the_plans_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def held(card: Card | None) -> dict[str, Any] | None:
        monkeypatch.setattr(machine, "describe_machine", lambda: Machine((card,) if card else (), 64 << 30, 48 << 30))
        return setup.profile(T)

    assert held(None) is None
    small, large = (held(Card(0, "a card", size << 30, size << 30, (8, 6))) for size in (10, 24))
    assert small and large and small["text"] != large["text"]
    assert "Stage 1 as" in large["text"] and len(large["reasons"]) > 2


def test_findings_come_worst_first_and_the_port_that_we_hold_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        doctor.Finding("python", doctor.OK, "Python 3.12."),
        doctor.Finding("page", doctor.WARN, "Another program uses port 7860."),
        doctor.Finding("disk", doctor.WARN, "Little room.", "Make some."),
        doctor.Finding("folder", doctor.FAIL, "Nothing can be saved."),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert [(one["state"], one["what"]) for one in setup.findings(T)] == [
        ("fail", "Nothing can be saved."), ("warn", "Little room."), ("ok", "Python 3.12.")
    ]  # fmt: skip


def choose(songs: Path, asked: Any) -> str:
    return str(setup.handle_action(AppContext(songs, Queue(songs)), asked, T)["error"])


def test_a_chosen_language_is_kept_and_nonsense_is_not(tmp_path: Path) -> None:
    assert settings.load().language == ""
    assert choose(tmp_path, {"do": "language", "value": "ko"}) == ""
    assert settings.load().language == "ko" and json.loads(settings.path().read_text())["format"] == settings.FORMAT
    for asked in (None, {}, *({"do": "language", "value": value} for value in ("../en", 7, None, []))):
        assert choose(tmp_path, asked)
    assert settings.load().language == "ko"


def test_settings_that_cannot_be_written_are_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("YUEGP_HOME", str(tmp_path / "file"))
    with pytest.raises(LibraryError):
        settings.save(settings.Settings("zh"))
    assert "cannot be written" in choose(tmp_path, {"do": "language", "value": "zh"})


@pytest.mark.browser
def test_the_language_changes_without_a_restart_and_holds(page_server: PageServer, browser_page: Any) -> None:
    from playwright.sync_api import expect

    page = browser_page
    page.click("#tab-setup-button")
    expect(page.locator("#setup-models li").first).to_contain_text("Demo")
    page.select_option("#setup-language", "zh")
    expect(page.locator("#tab-create-button")).to_have_text("创作")
    assert page.evaluate("document.documentElement.lang") == "zh"
    page.goto(page_server.url + "en/")
    expect(page.locator("#tab-create-button")).to_have_text("创作")
    page.click("#tab-setup-button")
    page.select_option("#setup-language", "")
    expect(page.locator("#tab-create-button")).to_have_text("Create")
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.browser
def test_the_check_up_ends_with_findings(browser_page: Any, new_person: Callable[..., Any]) -> None:
    from playwright.sync_api import expect

    browser_page.click("#tab-setup-button")
    expect(browser_page.locator("#setup-check")).to_be_enabled(timeout=90_000)
    assert browser_page.locator(".y-findings > li").count() > 2
