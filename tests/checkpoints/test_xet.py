"""The second way for large files: hf-xet itself, against a stand-in for the chunked storage, and which way is taken."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from downloads import ENTRY, refusal, same
from hub_server import Handler, Hub

from yuegp.checkpoints import download, locate, xet
from yuegp.checkpoints import hub as hub_room
from yuegp.checkpoints.hub import HubFile
from yuegp.checkpoints.xet import HTTP, XET, Ways
from yuegp.errors import Cancelled

pytest.importorskip("hf_xet")
SIZE, TRIAL = 400_000, 50_000


@pytest.fixture
def repo(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    hub.xet = hub.url
    monkeypatch.setattr(xet, "TRIAL", TRIAL)
    folder = hub.root / ENTRY.repo
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(SIZE))
    (folder / "config.json").write_bytes(b"{}")
    return folder


def chunked(hub: Hub) -> list[str | None]:
    """The ranges in which the chunked storage was asked for its containers."""
    return [span for _, path, span in hub.log if path.startswith("/xorb/")]


def prefer(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """As if this way had been measured to be the faster."""
    made = Ways.__init__

    def init(self: Ways) -> None:
        made(self, {XET: 1.0, HTTP: 1.0, way: 2.0})

    monkeypatch.setattr(Ways, "__init__", init)


@pytest.mark.parametrize("faster", [XET, HTTP])
def test_each_way_is_tried_and_the_faster_brings_the_rest(
    hub: Hub, repo: Path, faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def measured(self: Ways, way: str, size: int, seconds: float) -> None:
        if size >= TRIAL:
            seen.append(way)
            self.rates[way] = 2.0 if way == faster else 1.0

    monkeypatch.setattr(Ways, "measured", measured)
    assert same(download.get(ENTRY), repo)
    assert seen == [XET, HTTP, faster] and chunked(hub) and hub.gets("model.safetensors")
    assert locate.read_pin(ENTRY) and download.check_pin(ENTRY, locate.own_folder(ENTRY))


def test_by_the_chunked_way_it_goes_on_at_the_byte_where_it_stopped(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, XET)
    part = locate.own_folder(ENTRY) / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((repo / "model.safetensors").read_bytes()[:123_457])
    assert same(download.get(ENTRY), repo)
    assert hub.gets("model.safetensors") == [] and all(span != "bytes=0-" for span in chunked(hub))


def test_what_comes_by_the_chunked_way_is_held_to_the_checksum(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, XET)
    true = Hub.kept
    monkeypatch.setattr(Hub, "kept", lambda self, name: b"y" + true(self, name)[1:])
    assert "arrived damaged: checksum" in refusal(lambda: download.get(ENTRY)).what


@pytest.mark.parametrize("broken", ["no xet", "no key", "no storage", "garbage", "no package", "forbidden"])
def test_where_the_chunked_way_fails_plain_http_goes_on(
    hub: Hub, repo: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, XET)
    if broken == "no xet":
        hub.xet = None
    elif broken == "no key":
        monkeypatch.setattr(hub_room, "metadata", lambda *asked: SimpleNamespace(
            size=SIZE, etag=None, xet_file_data=SimpleNamespace(refresh_route=f"{hub.url}/nowhere", file_hash="0" * 64)
        ))  # fmt: skip
    elif broken == "no storage":
        hub.answers["xorb"] = lambda handler, data: handler.answer(403, b"")
    elif broken == "garbage":
        hub.answers["xorb"] = lambda handler, data: handler.answer(206, b"\xff" * len(data))
    elif broken == "no package":
        monkeypatch.setattr(xet, "_held", [])
        monkeypatch.setitem(__import__("sys").modules, "hf_xet", None)
    else:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert same(download.get(ENTRY), repo) and hub.gets("model.safetensors")
    if broken in ("no package", "forbidden", "no xet", "no key"):
        assert chunked(hub) == []


def test_a_key_from_another_host_is_not_asked_for_with_the_users_token(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, XET)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.xet = hub.store.url
    assert same(download.get(ENTRY), repo)
    assert not any("xet-read-token" in path for _, path, _ in hub.log) and "Bearer hf_secret" not in hub.tokens["store"]


def test_the_token_is_shown_for_the_key_and_not_to_the_storage(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, XET)
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert same(download.get(ENTRY), repo) and chunked(hub)
    assert all("hf_secret" not in shown for shown in hub.tokens["store"])


def test_nothing_is_reported_and_nothing_written_elsewhere(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf-xet tells its makers of every transfer unless it is told not to, and writes logs beside the hub's cache."""
    prefer(monkeypatch, XET)
    assert same(download.get(ENTRY), repo) and chunked(hub)
    assert {method for method, _, _ in hub.log} <= {"GET", "HEAD"}
    assert not (tmp_path / "hf").exists() and os.environ["HF_XET_LOG_DEST"] == os.devnull


def test_a_storage_that_falls_silent_is_left_for_http(hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, XET)
    silent = threading.Event()

    def wait(handler: Handler, data: bytes) -> None:
        silent.wait()
        handler.close_connection = True

    hub.answers["xorb"] = wait
    monkeypatch.setattr(hub_room, "READ", 0.5)
    try:
        assert same(download.get(ENTRY), repo) and hub.gets("model.safetensors")
    finally:
        silent.set()


def test_a_download_by_the_chunked_way_can_be_cancelled(hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, XET)
    monkeypatch.setattr(download, "LINGER", 0.0)
    held = threading.Event()

    def wait(handler: Handler, data: bytes) -> None:
        held.wait()
        handler.close_connection = True

    def stop(what: str, done: int, total: int) -> None:
        if chunked(hub):
            raise Cancelled

    hub.answers["xorb"] = wait
    with pytest.raises(Cancelled):
        download.get(ENTRY, stop)
    held.set()
    hub.answers.clear()
    assert locate.unfinished(ENTRY) and same(download.get(ENTRY), repo)


# Which way


LARGE = HubFile("model.safetensors", 10 * xet.TRIAL, "0" * 64)


def test_small_files_come_by_http() -> None:
    ways = Ways({XET: 2.0, HTTP: 1.0}, _lost=False)
    assert ways.pick(HubFile("tokenizer.model", 1000, "0" * 64), 1000) == (HTTP, 1000)
    assert ways.pick(HubFile("config.json", LARGE.size, None, "0" * 40), LARGE.size)[0] == HTTP
    assert ways.pick(LARGE, 1000) == (XET, 1000)


def test_both_ways_are_tried_at_once_by_files_that_come_at_once_and_then_the_faster_is_kept() -> None:
    ways, size = Ways(_lost=False), LARGE.size
    assert [ways.pick(LARGE, size) for _ in range(2)] == [(XET, xet.TRIAL), (HTTP, xet.TRIAL)]
    ways.measured(XET, xet.TRIAL // 2, 1.0)  # broken off: says nothing
    ways.measured(HTTP, xet.TRIAL, 2.0)
    assert ways.pick(LARGE, size) == (XET, xet.TRIAL)
    ways.measured(XET, xet.TRIAL, 1.0)
    assert ways.pick(LARGE, size) == (XET, size)
    ways.drop()
    assert ways.pick(LARGE, size) == (HTTP, size)
