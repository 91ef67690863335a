"""Getting models from the page: another process, a stand-in for the hub, what is said before, meanwhile and after."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from released import STAGE2, write_released

from ui.context import AppContext
from ui.pages import setup
from ui.processes.downloader import DownloadProcess, Getting
from ui.texts import Texts
from yuegp import paths
from yuegp.checkpoints import sets
from yuegp.errors import RequestError
from yuegp.jobs.queue import Queue
from yuegp.system import provision

T = Texts()
NAME = "yue-en-cot"
PATIENCE = 60.0
"""Seconds after which a test that waits for the other process has failed."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def stocked(hub: Hub, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub with English without reference; the other process finds nothing of other programs'. As on the page, this
    process is not to ask anybody."""
    chosen = [checkpoint.id for checkpoint in provision.choose("en", "cot").checkpoints]
    if chosen != ["s1-en-cot", "s2", "codec"]:
        pytest.skip(f"for this machine {chosen} are chosen, which the stand-in does not have")
    shutil.copytree(originals, hub.root / "m-a-p")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return hub


@pytest.fixture
def context(tmp_path: Path) -> Iterator[AppContext]:
    context = AppContext(tmp_path / "songs", Queue(tmp_path))
    yield context
    context.downloader.stop()


def wait(downloader: DownloadProcess, until: Callable[[Getting], Any]) -> Getting:
    """Look until it is so."""
    end = time.monotonic() + PATIENCE
    while not until(now := downloader.look()):
        assert time.monotonic() < end, now
        time.sleep(0.02)
    return now


def click(context: AppContext, do: str, name: str = NAME) -> dict[str, Any]:
    return setup.handle_action(context, {"do": do, "name": name}, T)


def over(now: Getting) -> bool:
    return now.state in ("done", "failed", "stopped")


def test_nothing_is_downloaded_before_somebody_agreed_to_its_size_and_then_it_is_here(
    context: AppContext, stocked: Hub
) -> None:
    assert click(context, "ask")["state"] == "asking" and "Asking" in click(context, "go")["text"]
    offered = wait(context.downloader, lambda now: now.state != "asking")
    assert offered.state == "offered" and offered.missing > 0 and offered.free > 0, offered
    said = setup.download(context, T)["text"]
    assert "MB to download" in said and "free on that disk" in said and offered.parts[0] in said
    assert not any(path.name.endswith(".safetensors") for path in paths.models_dir().rglob("*"))
    assert click(context, "go")["state"] == "getting"
    assert wait(context.downloader, over).state == "done"
    assert "It is here" in setup.download(context, T)["text"]
    assert sets.find(NAME).stage1.is_dir()
    assert {row["name"]: row["here"] for row in setup.model_rows(T)}[NAME]


def test_a_download_is_cancelled_and_goes_on_later(context: AppContext, stocked: Hub) -> None:
    stocked.slow = threading.Event()
    click(context, "ask")
    whole = wait(context.downloader, lambda now: now.state == "offered").missing
    click(context, "go")
    wait(context.downloader, lambda now: now.done > 0)
    view = setup.download(context, T)
    assert "Downloading" in view["text"] and 0 < view["share"] < 1
    with pytest.raises(RequestError, match="being got already"):
        context.downloader.ask("yue-zh-cot")
    click(context, "stop")
    stopped = wait(context.downloader, over)
    assert stopped.state == "stopped" and "goes on from there" in setup.download(context, T)["text"]
    stocked.slow.set()
    stocked.slow = None
    click(context, "ask")
    assert wait(context.downloader, lambda now: now.state == "offered").missing < whole


def test_what_the_hub_refuses_is_said_with_a_next_step(context: AppContext, stocked: Hub) -> None:
    stocked.refuse = {"m-a-p/YuE-s1-7B-anneal-en-cot": (401, "GatedRepo"), "m-a-p/YuE-s2-1B-general": (404, "")}
    click(context, "ask")
    failed = wait(context.downloader, over)
    assert failed.state == "failed" and failed.message.count(". ") >= 1
    assert setup.download(context, T)["text"] == failed.message
    stocked.refuse = {}
    click(context, "ask")
    assert wait(context.downloader, lambda now: now.state != "asking").state == "offered", "it can be tried again"


def test_what_is_taken_in_the_place_of_something_is_said_with_the_offer(context: AppContext, stocked: Hub) -> None:
    shutil.move(stocked.root / "m-a-p" / STAGE2, stocked.root / "Alissonerdx" / f"{STAGE2}-int8")
    click(context, "ask")
    offered = wait(context.downloader, lambda now: now.state != "asking")
    said = setup.download(context, T)["text"]
    assert "s2-int8" in offered.parts and "s2-int8 is taken in the place of s2." in said and "MB to download" in said


def test_an_offer_that_nobody_takes_is_given_up_for_another(context: AppContext, stocked: Hub) -> None:
    click(context, "ask")
    wait(context.downloader, lambda now: now.state == "offered")
    first = context.downloader._process
    click(context, "ask")
    assert first and first.wait(PATIENCE) == 0
    assert wait(context.downloader, lambda now: now.state != "asking").state == "offered"


@pytest.mark.parametrize("asked", [None, {}, {"do": "ask"}, {"do": "ask", "name": "../x"}, {"do": "look"},
                                   {"do": "ask", "name": "demo"}, {"do": "ask", "name": ["yue-en-cot"]}])  # fmt: skip
def test_nonsense_from_a_browser_starts_nothing(context: AppContext, asked: Any) -> None:
    assert setup.handle_action(context, asked, T)["error"]
    assert context.downloader.look() == Getting()
