"""The interface for programs, used as a stranger would: through gradio_client, against the demo set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from browser import PageServer, start, stop
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from ui.pages.create import fields
from ui.server import api
from yuegp.errors import RequestError
from yuegp.library import store

WORDS = "[verse]\nla la\n\n[chorus]\nlo lo\n"
TAGS = "pop piano happy female bright vocal"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    server = start(tmp_path_factory.mktemp("api") / "home")
    yield server
    stop(server)


@pytest.fixture(scope="module")
def client(page: PageServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    found = Client(
        f"{page.url}api", verbose=False, analytics_enabled=False, download_files=tmp_path_factory.mktemp("got")
    )
    yield found
    found.close()


def wait(client: Client, song: str, *states: str) -> dict[str, Any]:
    """Ask for the status until it is one of these."""
    end = time.monotonic() + 120
    while (status := client.predict(song, api_name="/status"))["state"] not in states:
        assert time.monotonic() < end and status["state"] not in ("failed", "interrupted"), status
        time.sleep(0.1)
    return status


def test_a_song_from_words_to_a_file_that_sounds(client: Client, page: PageServer) -> None:
    begun = client.predict(WORDS, TAGS, {"title": "By a program", "seed": 7, "section_seconds": 3}, api_name="/make")
    assert begun["state"] in ("waiting", "running") and begun["model"] == "demo" and begun["seed"] == 7
    done = wait(client, begun["song"], "done")
    assert (done["written"], done["sections"], done["error"]) == (2, 2, "")
    assert set(done["sound"]) == {"mix", "vocal", "instrumental"}
    heard = httpx.get(page.url.rstrip("/") + done["sound"]["mix"], headers={"range": "bytes=0-3"})
    assert (heard.status_code, heard.content) == (206, b"fLaC")
    for kind, part in (("mp3", "mix"), ("wav24", "vocal")):
        file = Path(client.predict(begun["song"], kind, part, api_name="/export"))
        samples, rate = soundfile.read(file)
        assert file.suffix == "." + kind[:3] and "By a program" in file.name
        assert abs(len(samples) / rate - done["seconds"]) < 0.2
        assert np.abs(samples).max() > 0.01
    listed = client.predict("by a PROGRAM", api_name="/songs")
    assert [(song["song"], song["stage"], song["takes"]) for song in listed] == [(begun["song"], "rendered", 1)]
    assert client.predict("no such words", api_name="/songs") == []


def test_a_stopped_song_keeps_what_is_finished(client: Client) -> None:
    begun = client.predict("[verse]\nla\n" * 10, TAGS, {"section_seconds": 5}, api_name="/make")
    end = time.monotonic() + 120
    while not client.predict(begun["song"], api_name="/status")["written"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    client.predict(begun["song"], api_name="/stop")
    stopped = wait(client, begun["song"], "stopped")
    assert 1 <= stopped["written"] < 10 and stopped["seconds"] > 0
    with pytest.raises(AppError, match="has no sound yet"):
        client.predict(begun["song"], api_name="/export")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("/make", ("", TAGS), "no words"),
        ("/make", (WORDS, TAGS, {"tempo": 90}), "no setting 'tempo'"),
        ("/make", (WORDS, TAGS, {"seed": "seven"}), "seed is 'seven'"),
        ("/make", (WORDS, TAGS, {"model": "/etc"}), "no model '/etc'"),
        ("/make", (WORDS, TAGS, {"top_p": 7}), "top p is 7"),
        ("/status", ("../songs",), "no song"),
        ("/status", ("nothing",), "no song"),
        ("/stop", ("/etc/passwd",), "no song"),
        ("/export", ("nothing",), "no song"),
        ("/songs", ("", None, "", "", "loudness"), "sorted"),
    ],
)
def test_what_cannot_be_is_said_in_words(client: Client, name: str, values: tuple[Any, ...], said: str) -> None:
    with pytest.raises(AppError, match="(?i)" + said):
        client.predict(*values, api_name=name)


def test_a_recording_to_follow_is_uploaded_with_the_call(client: Client, page: PageServer, tmp_path: Path) -> None:
    tune = tmp_path / "tune.wav"
    soundfile.write(tune, 0.3 * np.sin(np.arange(4 * 16000) / 9), 16000)
    settings = {
        "reference": {"mix": handle_file(tune), "start": 1, "end": 3},
        "section_seconds": 1,
        "first_sections": 1,
    }
    begun = client.predict(WORDS, TAGS, settings, api_name="/make")
    wait(client, begun["song"], "done")
    asked = store.open_song(page.songs / begun["song"]).request.reference
    assert asked and asked.mix and (asked.start, asked.end, asked.vocal) == (1, 3, None)
    assert Path(asked.mix).read_bytes() == tune.read_bytes()
    sent = httpx.post(f"{page.url}api/gradio_api/upload", files={"files": (tune.name, tune.read_bytes())}).json()[0]
    named = {"mix": {"path": sent, "meta": {"_type": "gradio.FileData"}}}
    again = client.predict(WORDS, TAGS, {**settings, "reference": named}, api_name="/make")
    client.predict(again["song"], api_name="/stop")
    followed = store.open_song(page.songs / again["song"]).request.reference
    assert followed and followed.mix and Path(followed.mix).read_bytes() == tune.read_bytes()
    soundfile.write(tune, np.zeros(21 * 60 * 1000), 1000)
    with pytest.raises(AppError, match="21 minutes; at most 20"):
        client.predict(WORDS, TAGS, {"reference": {"mix": handle_file(tune)}}, api_name="/make")
    tune.write_text("no sound")
    with pytest.raises(AppError, match="tune"):
        client.predict(WORDS, TAGS, {"reference": {"mix": handle_file(tune)}}, api_name="/make")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tune.wav", "has to be an object"),
        ({"song": 1}, "has to be an object"),
        ({"mix": "/etc/hostname"}, "uploaded file"),
        ({"mix": {"path": "/etc/hostname"}}, "uploaded file"),
        ({"mix": {"path": 3}}, "uploaded file"),
        ({"start": "1"}, "number of seconds"),
        ({"end": True}, "number of seconds"),
    ],
)
def test_nothing_but_an_upload_can_be_followed(given: Any, said: str) -> None:
    with pytest.raises(RequestError) as told:
        api.read_settings(WORDS, TAGS, {"reference": given})
    assert said in str(told.value) + told.value.hint


def test_no_file_of_this_computer_can_be_named_as_an_upload(page: PageServer, tmp_path: Path) -> None:
    """Of a page that is mounted, not launched, Gradio would hand out any file that a visitor names."""
    secret = tmp_path / "secret.txt"
    secret.write_text("nobody's business")
    named = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    for values in ([named, TAGS, None], [WORDS, TAGS, {"title": named}]):
        asked = httpx.post(f"{page.url}api/gradio_api/call/make", json={"data": values}).json()
        answer = httpx.get(f"{page.url}api/gradio_api/call/make/{asked['event_id']}", timeout=30).text
        assert "not uploaded by a user" in answer
    assert not list(page.home.rglob("secret.txt"))


def test_these_are_all_the_calls_there_are(client: Client, page: PageServer) -> None:
    described = client.view_api(return_format="dict", print_info=False)
    assert set(described["named_endpoints"]) == {"/make", "/status", "/stop", "/songs", "/export"}
    assert described["unnamed_endpoints"] == {}


def test_what_the_page_does_inside_is_nobodys_interface(page: PageServer) -> None:
    config = httpx.get(f"{page.url}en/config").json()
    shown = [(d["id"], d["targets"]) for d in config["dependencies"] if d["api_visibility"] != "private"]
    assert shown == []
    assert httpx.get(f"{page.url}en/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_every_setting_of_the_page_is_one_for_programs_and_of_its_kind() -> None:
    wrong: dict[str, Any] = {"text": 1, "number": "1", "whole": 1.5, "switch": 1, "choice": 1}
    for field in fields.FIELDS:
        with pytest.raises(RequestError, match=field.name):
            api.read_settings(WORDS, TAGS, {field.name: wrong[field.kind]})
    read = api.read_settings(WORDS, TAGS, {"instrumental": True, "temperature": 1})
    assert read["instrumental"] is True and set(read) == {*fields.BY_NAME, "words", "tags", "reference"}


def test_the_calls_are_described(repo_root: Path) -> None:
    page = (repo_root / "docs" / "http-api.md").read_text("utf-8")
    for name in ("/make", "/status", "/stop", "/songs", "/export", *(f"`{field.name}`" for field in fields.FIELDS)):
        assert name in page, name
