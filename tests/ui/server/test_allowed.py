"""What the server answers at all: every registered route stands on our list or is refused, however it is asked."""

from __future__ import annotations

import itertools
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from ui.context import AppContext
from ui.server import allowed, guard, serve
from ui.texts import LANGUAGES
from yuegp.jobs.queue import Queue

MOUNTS = ("/api", *(f"/{language}" for language in LANGUAGES))

OURS = (
    {("GET", "/"), ("HEAD", "/")}
    | {
        (method, f"{before}{path}")
        for method in ("GET", "HEAD")
        for before in ("", "/{language}")
        for path in ("/favicon.ico", "/sound/{song}/{take}/{file:path}", "/export/{song}/{file}")
    }
    | {(method, "/{language}/gradio_api/file={path:path}") for method in ("GET", "HEAD")}
)

BOTH = {
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/config"),
    ("GET", "/assets/{path:path}"),
    ("GET", "/static/{path:path}"),
    ("GET", "/theme.css"),
    ("GET", "/favicon.ico"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/app_id"),
    ("GET", "/gradio_api/heartbeat/{session_hash}"),
    ("GET", "/gradio_api/queue/data"),
    ("GET", "/gradio_api/upload_progress"),
    ("GET", "/gradio_api/file={path_or_url:path}"),  # answered by ours, which comes first
    ("HEAD", "/gradio_api/file={path_or_url:path}"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/queue/join"),
}

EXPECTED = {
    *OURS,
    *((method, f"{mount}{path}") for mount in MOUNTS for method, path in BOTH),
    *((method, f"/{language}/") for language in LANGUAGES for method in ("GET", "HEAD")),
    *(("POST", f"/{language}/gradio_api/run/{{api_name}}") for language in LANGUAGES),
    *(("POST", f"/{language}/gradio_api/component_server/") for language in LANGUAGES),
    ("POST", "/api/gradio_api/call/{api_name}"),
    ("GET", "/api/gradio_api/call/{api_name}/{event_id}"),
    ("POST", "/api/gradio_api/cancel"),
    ("POST", "/api/gradio_api/reset"),
} - {("GET", "/api/favicon.ico")}
"""Every route that may be reached, as it is registered. A version of Gradio that registers another one under a path
that we let through fails here; one that it registers elsewhere is refused anyway."""

PROBES = (
    "x", "1", "ab12", "0" * 32, "make", "predict", "v2", "en", "api", "index-Ab_1.js", "/tmp/a.wav", "mix.flac",
    "js/iframeResizer.contentWindow.min.js", "http://10.0.0.1/x.png", "hear/section-00.flac",
)  # fmt: skip
"""What a place in a path is tried with."""


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Method and path of every route in the application, those that Gradio mounts among them."""
    folder = tmp_path_factory.mktemp("routes")
    return set(walk(serve.application(AppContext(folder / "songs", Queue(folder))).router.routes))


def walk(routes: Any, before: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        if inner := getattr(route, "original_router", None):  # how FastAPI keeps a router that was included
            yield from walk(inner.routes, before + (route.include_context.prefix or ""))
        elif getattr(route, "methods", None):
            yield from ((method, before + route.path) for method in route.methods)
        else:
            assert type(route).__name__ == "Mount", f"a route of a kind this test does not know: {route!r}"
            yield from walk(route.routes, before + route.path)


def filled(path: str) -> Iterator[str]:
    """The path with everything in its places that is tried."""
    pieces = re.split(r"\{[^}]+\}", path)
    some = PROBES if len(pieces) <= 3 else ("en", "x", "1", "ab12", "mix.flac")
    for values in itertools.product(some, repeat=len(pieces) - 1):
        yield "".join(itertools.chain(*itertools.zip_longest(pieces, values, fillvalue="")))


def test_every_registered_route_is_on_the_list_or_refused(registered: set[tuple[str, str]]) -> None:
    open_ones = {(m, p) for m, p in registered if any(allowed.find(m, tried, login=False) for tried in filled(p))}
    assert open_ones == EXPECTED


def test_gradio_opens_more_doors_than_we_let_through(registered: set[tuple[str, str]]) -> None:
    """That the walk sees them: those that are dangerous, and that they are refused."""
    for method, path in (
        ("GET", "/en/gradio_api/proxy={url_path:path}"),
        ("POST", "/en/gradio_api/vibe-edit"),
        ("POST", "/ko/gradio_api/process_recording"),
        ("GET", "/api/gradio_api/deep_link"),
        ("GET", "/api/gradio_api/call/v2/{api_name}/{event_id}"),
        ("POST", "/en/gradio_api/api/{api_name}"),
        ("GET", "/en/monitoring/{key}"),
        ("GET", "/en/svelte/{path:path}"),
        ("GET", "/en/gradio_api/file/{path:path}"),
    ):
        assert (method, path) in registered, path
        assert not any(allowed.find(method, tried) for tried in filled(path)), path


def test_every_entry_of_the_list_leads_to_a_route(registered: set[tuple[str, str]]) -> None:
    tried = [(method, path) for method, template in registered for path in filled(template)]
    idle = [r.path.pattern for r in allowed.ROUTES if not any(m in r.methods and r.path.fullmatch(p) for m, p in tried)]
    assert idle == []


def test_a_password_is_taken_only_where_there_is_one() -> None:
    for path in ("/login", "/api/login", "/ko/login", "/login/"):
        assert allowed.find("POST", path, login=True) is allowed.LOGIN
        assert allowed.find("POST", path) is None and allowed.find("GET", path, login=True) is None


# As the network sends it


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, list[str]]]:
    """The guard on a port of its own, before something that writes down what it is asked."""
    reached: list[str] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            reached.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": b"reached"})

    place = serve.bind(serve.HERE, 0)
    port = place.getsockname()[1]
    config = uvicorn.Config(guard.SecurityMiddleware(inner, port), log_level="critical", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    yield port, reached
    running.should_exit = True
    thread.join()


def send(port: int, target: str, method: str = "GET", *headers: str) -> str:
    """What a request is answered whose target is sent as it stands."""
    lines = (f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close", *headers)
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall("\r\n".join((*lines, "", "")).encode("utf-8"))
        return b"".join(iter(lambda: line.recv(65536), b"")).decode("utf-8", "replace")


CLOSED = "/en/gradio_api/proxy=http://10.0.0.1/"


@pytest.mark.parametrize(
    "target",
    [
        CLOSED,
        "/en/gradio_api/%70roxy=http://10.0.0.1/",
        "/en/gradio_api%2fproxy=http:%2f%2f10.0.0.1%2f",
        "/en%2Fgradio_api%2Fproxy=x",
        "//en/gradio_api/proxy=x",
        "/en//gradio_api/proxy=x",
        "/en/./gradio_api/proxy=x",
        "/en/assets/../gradio_api/proxy=x",
        "/en/assets/%2e%2e/gradio_api/proxy=x",
        "/en/assets/..%2fgradio_api%2fproxy=x",
        "/en/assets/..%5c..%5cx.js",
        "/en/assets/..;/gradio_api/proxy=x",
        "/en;/gradio_api/proxy=x",
        "/EN/gradio_api/queue/data",
        "/en/Gradio_API/queue/data",
        "/en/gradio_api/queue/data.",
        "/en/gradio_api/queue/data/",
        "/en/gradio_api/queue/data%0a",
        "/en/config%0a",
        "/en/config%00",
        "/en/config%20",
        "/en\\config",
        "/en/config;x",
        "/ｅｎ/config",
        "/%ef%bd%85n/config",
        "/en/sound/a%0d%0ab/1/mix.flac",
        "http://127.0.0.1/en/config",
        "http://evil.example/en/config",
        "/en/gradio_api/call/make",
        "/api/gradio_api/call/v2/make",
        "/api/gradio_api/call/make/../v2/0123",
        "/api/gradio_api/run/predict",
        "/dev/reload",
        "/gradio_api/queue/data",
        "/config",
        "/openapi.json",
        "/en/openapi.json",
        "/docs",
        "/xx/gradio_api/file=/tmp/a.wav",
        "/en/en/config",
        "*",
    ],
)
def test_whatever_is_not_on_the_list_reaches_nobody(server: tuple[int, list[str]], target: str) -> None:
    port, reached = server
    reached.clear()
    for method in ("GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "TRACE", "get"):
        answer = send(port, target, method)
        assert re.match(r"HTTP/1.1 4\d\d ", answer), (method, answer)
    assert reached == []


def test_an_encoded_path_is_judged_by_what_it_means(server: tuple[int, list[str]]) -> None:
    port, reached = server
    reached.clear()
    assert "reached" in send(port, "/en/gradio_api/queue%2Fdata?session_hash=a")
    assert reached == ["/en/gradio_api/queue/data"]


def test_a_websocket_is_not_answered(server: tuple[int, list[str]]) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
    answer = send(server[0], "/en/gradio_api/queue/data", "GET", *upgrade).partition("\r\n")[0]
    assert "101" not in answer


def test_answers_that_are_not_pages_are_shut_in_and_have_types_of_ours(server: tuple[int, list[str]]) -> None:
    port, _ = server
    for target, media, disposition in (
        ("/en/gradio_api/file=/tmp/a.wav", "audio/wav", ""),
        ("/en/gradio_api/file=/tmp/a.TXT", "text/plain; charset=utf-8", ""),
        ("/en/gradio_api/file=/tmp/a.html", "application/octet-stream", "attachment"),
        ("/en/gradio_api/file=/tmp/a.svg.xhtml", "application/octet-stream", "attachment"),
        ("/en/gradio_api/file=/tmp/a", "application/octet-stream", "attachment"),
        ("/en/export/song/a.zip", "application/octet-stream", "attachment"),
        ("/sound/song/1/mix.flac", "audio/flac", ""),
        ("/en/config", "application/json", ""),
        ("/en/theme.css", "text/css; charset=utf-8", ""),
        ("/favicon.ico", "image/svg+xml", ""),
    ):
        head = send(port, target).partition("\r\n\r\n")[0].lower() + "\r\n"
        assert f"\r\ncontent-type: {media}\r\n" in head, head
        assert "\r\ncontent-security-policy: sandbox; default-src 'none';" in head
        assert "\r\nx-content-type-options: nosniff\r\n" in head
        assert (f"\r\ncontent-disposition: {disposition}\r\n" in head) == bool(disposition)
    page = send(port, "/en/").lower()
    assert "content-type: text/html" in page and "sandbox" not in page and "default-src 'self'" in page


def test_the_calls_on_the_list_are_those_of_the_interface(tmp_path: Path) -> None:
    from ui.server import api

    named = {fn.api_name for fn in api.build(AppContext(tmp_path, Queue(tmp_path))).fns.values()}
    assert named == set(allowed.CALLS)
