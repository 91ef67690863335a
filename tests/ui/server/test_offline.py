"""The server fetches nothing that a request names: no address gets in, and none would be asked if it did."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import start, stop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ui.server import guard, intake, uploaded
from ui.server.hosts import Host

ROOT = Path(__file__).resolve().parents[3]


class Listener:
    """A server on loopback that counts who connects."""

    def __init__(self) -> None:
        self.place = socket.create_server(("127.0.0.1", 0))
        self.port, self.count = self.place.getsockname()[1], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self.place.accept()
                self.count += 1
                with line:
                    line.recv(65536)
                    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi")


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.place.close()


# What no request may name


def client() -> TestClient:
    async def echo(request: Request) -> Response:
        return PlainTextResponse((await request.body()).decode("utf-8", "surrogateescape"))

    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
    return TestClient(guard.SecurityMiddleware(app, 7860), base_url="http://127.0.0.1:7860")


JSON = {"content-type": "application/json"}
FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.1/x.png", "https://a.example", "HTTP://a", "hTTps://a", " http://a", "\thttp://a", "\u0000http://a",
        "ftp://a", "file:///etc/passwd", "data:text/html,x", "javascript:x", "//a.example/x", "\\\\a\\share", "/\\a",
        "gopher:x", "hf:x", "http:a", "/ /a",
    ],
)  # fmt: skip
def test_an_address_is_refused_wherever_a_file_is_described(address: str) -> None:
    for field in ("path", "url", "proxy_url"):
        file = {"path": "/uploads/a.wav", **FILE, field: address}
        for data in (file, [file], [{"reference": {"mix": file}}], [[[{"value": [file]}]]]):
            for route in ("/en/gradio_api/queue/join", "/en/gradio_api/run/predict", "/api/gradio_api/call/make"):
                answer = client().post(route, json={"data": data, "session_hash": "a", "fn_index": 1})
                assert answer.status_code == 403 and "upload it first" in answer.text


def test_files_of_ours_and_words_that_look_like_addresses_are_let_in() -> None:
    own = "http://127.0.0.1:7860/en/gradio_api/file=/u/a.wav"
    for data in (
        [{"path": "/uploads/a.wav", "url": own, **FILE}],
        [{"path": "C:\\Users\\Jürgen\\a.wav", "url": None, **FILE}],
        [{"path": "uploads/a b.wav", "url": "/en/gradio_api/file=/u/a.wav"}],
        ["[verse]\nhttp://a.example //b", {"title": "http://a.example", "lyrics": "data: mine"}],
        [{"path": 3, "url": ["http"]}],
    ):
        assert client().post("/en/gradio_api/run/predict", json={"data": data}).status_code == 200


def test_a_url_of_ours_is_one_of_this_name_port_and_door() -> None:
    for url in (
        "http://127.0.0.1:7861/en/gradio_api/file=/u/a.wav",
        "http://localhost:7860/en/gradio_api/file=/u/a.wav",
        "http://127.0.0.1:7860@a.example/en/gradio_api/file=/u/a.wav",
        "http://127.0.0.1:7860.a.example/gradio_api/file=/a",
        "http://a.example/http://127.0.0.1:7860/gradio_api/file=/a",
        "http://127.0.0.1:7860/en/gradio_api/queue/data",
    ):
        answer = client().post("/en/gradio_api/run/predict", json={"data": [{"path": "/a", "url": url}]})
        assert answer.status_code == 403, url


def test_what_is_not_plainly_json_is_refused() -> None:
    body = b'{"data": [{"path": "http://10.0.0.1/"}]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", ""):
        headers = {"content-type": kind} if kind else {}
        answer = client().post("/en/gradio_api/component_server/", content=body, headers=headers)
        assert answer.status_code == 415, kind
    for bad in (b"", b"{", b"\xff", b'{"data": ' + b"[" * 100_000, b"1" * 5000, b"data=1"):
        assert client().post("/en/gradio_api/queue/join", content=bad, headers=JSON).status_code == 400, bad[:20]


def test_an_address_is_seen_in_every_spelling_of_json() -> None:
    for body in (
        b'{"data": {"pa\\u0074h": "\\u0068ttp://10.0.0.1/"}}',
        b'{"data": {"path": "a", "path": "http://10.0.0.1/"}}',
        '{"data": {"path": "http://10.0.0.1/"}}'.encode("utf-16"),
        '{"data": {"path": "http://10.0.0.1/"}}'.encode("utf-32-le"),
        b'\xef\xbb\xbf{"data": {"path": "http://10.0.0.1/"}}',
    ):
        assert client().post("/en/gradio_api/queue/join", content=body, headers=JSON).status_code == 403, body


def test_a_body_comes_through_as_it_was_however_the_network_cuts_it() -> None:
    body = b'{"data": ["' + "ü".encode() * 1000 + b'"]}'
    for size in (1, 7, len(body)):
        pieces = (body[at : at + size] for at in range(0, len(body), size))
        answer = client().post("/en/gradio_api/queue/join", content=pieces, headers=JSON)
        assert answer.text == body.decode()


def test_nested_without_end_is_looked_through_without_recursion() -> None:
    deep: Any = {"path": "http://10.0.0.1/"}
    for _ in range(50_000):
        deep = [deep]
    assert next(intake.addresses(deep, Host("127.0.0.1"))) == "http://10.0.0.1/"


# Only what was uploaded is given out


def test_only_files_in_the_uploads_folder_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    (folder / "ab").mkdir(parents=True)
    (folder / "ab" / "a.wav").write_bytes(b"sound")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "out").symlink_to(tmp_path)
    inside = folder / "ab" / "a.wav"
    assert uploaded.find(folder, str(inside)) == inside
    assert uploaded.find(folder, f"{folder}/x/../ab/./a.wav") == inside
    for bad in (
        "", "ab/a.wav", str(tmp_path / "secret.txt"), f"{folder}/../secret.txt", f"{folder}/link.txt", f"{folder}/ab",
        f"{folder}/out/secret.txt", f"/{inside}", f"{inside}\0", f"{inside}/", f"{folder}x/a.wav", "/" + "a" * 5000,
        f"http://10.0.0.1{inside}", f"file://{inside}", f" {inside}", "~/a.wav", f"{folder}/ab/nothing.wav",
    ):  # fmt: skip
        assert uploaded.find(folder, bad) in (None, inside if bad == f"{inside}/" else None), bad
    (tmp_path / "moved").symlink_to(folder)
    assert uploaded.find(tmp_path / "moved", f"{tmp_path}/moved/ab/a.wav")


# And if something got in


ATTACK = """
import json, sys
from pathlib import Path
from ui.server import offline, serve
port, home, ways_out = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
serve.prepare()
from starlette.testclient import TestClient
from ui.context import AppContext
from yuegp.jobs.queue import Queue
app = serve.application(AppContext(home / "songs", Queue()))
import safehttpx
safehttpx.is_public_ip = lambda ip: True  # as if the listener stood somewhere in the world
if ways_out == "closed":
    offline.close()
address = f"http://127.0.0.1:{port}/x.png"
file = {"path": address, "url": address, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
tried = 0
with TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False) as client:
    for mount in ("/en", "/api"):
        for way in (f"file={address}", f"file=%20{address}", f"proxy={address}", f"file/{address}"):
            client.get(f"{mount}/gradio_api/{way}")
            tried += 1
    for values in ([file, "", None], ["", "", {"reference": {"mix": file}}]):
        asked = client.post("/api/gradio_api/call/make", json={"data": values}).json()
        assert "event" in client.get(f"/api/gradio_api/call/make/{asked['event_id']}").text
        tried += 1
    mount = next(route for route in app.routes if getattr(route, "path", "") == "/en")
    for number, fn in mount.app.blocks.fns.items():
        if any(type(block).__name__ == "File" for block in fn.inputs):
            data = [file if type(block).__name__ == "File" else None for block in fn.inputs]
            body = {"data": data, "fn_index": number, "session_hash": "a"}
            client.post("/en/gradio_api/run/predict", json=body)
            tried += 1
print(tried)
"""


def attack(listener: Listener, home: Path, ways_out: str) -> int:
    """Every way there is to make what stands behind the guard fetch an address; returns how many were tried."""
    ran = subprocess.run(
        [sys.executable, "-c", ATTACK, str(listener.port), str(home), ways_out],
        cwd=ROOT,
        env={**os.environ, "YUEGP_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout.split()[-1])


def test_gradio_alone_would_fetch_what_a_request_names(listener: Listener, tmp_path: Path) -> None:
    """That the attack is one. The route for files is ours already."""
    assert attack(listener, tmp_path, "open") >= 12 and listener.count >= 2


def test_what_gets_past_the_guard_makes_the_server_connect_to_nobody(listener: Listener, tmp_path: Path) -> None:
    assert attack(listener, tmp_path, "closed") >= 12
    assert listener.count == 0


# Proxies


def test_the_page_starts_whatever_proxies_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio makes HTTP clients when it is imported, and they fail on proxies that they do not know."""
    for name, value in {
        "ALL_PROXY": "socks5://me:secret@127.0.0.1:1",
        "HTTP_PROXY": "socks4://127.0.0.1:1",
        "https_proxy": "http://127.0.0.1:x",
        "no_proxy": "127.0.0.1",  # for the test's own question whether the page answers
    }.items():
        monkeypatch.setenv(name, value)
    stop(start(tmp_path / "home"))
