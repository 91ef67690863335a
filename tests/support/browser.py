"""A real browser on a real page: fixtures for the tests of every page. One server and one browser per test file.

`page_server` is the program as a user starts it, in a process and a home of its own, with the demo set; `browser_page`
is a fresh person at it, and fails the test when the page complained on its console or asked anybody but the server.
Both skip, and say why, where playwright or a Chromium is missing (`YUEGP_CHROMIUM` names one elsewhere)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]

PATIENCE_SECONDS = 240
"""For the server to answer, and for anything to appear: a cold disk and a busy machine need most of it."""

SERVE = """
import sys
from ui.server.serve import serve
from yuegp.paths import songs_dir
serve(songs_dir().absolute(), int(sys.argv[1]), browse=False)
"""

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks without a proxy, whatever the environment says: `urlopen` keeps the proxies of its first call."""

HARMLESS = ("Method not implemented.",)
"""What Gradio's own components say on the console."""


@dataclass
class PageServer:
    """The page, running. `url` ends with a slash."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def songs(self) -> Path:
        return self.home / "songs"


def _port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(home: Path) -> PageServer:
    """Start the page with its own home, and wait until it answers."""
    port = _port()
    home.mkdir(parents=True, exist_ok=True)
    log = (home / "server.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        cwd=ROOT,
        env={**os.environ, "YUEGP_HOME": str(home), "PYTHONUNBUFFERED": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = PageServer(f"http://127.0.0.1:{port}/", home, process)
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with DIRECT.open(server.url, timeout=5):
                return server
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    stop(server)
    pytest.fail(f"the page did not start:\n{(home / 'server.log').read_text(errors='replace')}")


def stop(server: PageServer) -> None:
    """End the page as Ctrl-C does, and wait for it."""
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGINT)
        try:
            server.process.wait(15)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[PageServer]:
    """The running page of this test file. Asks for the browser first: without one there is nothing to start it for."""
    server = start(tmp_path_factory.mktemp("page") / "home")
    yield server
    stop(server)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("YUEGP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium; install one or name it in YUEGP_CHROMIUM")
    with api.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=program, args=["--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        )
        yield running
        running.close()


@pytest.fixture
def new_person(browser: Any, page_server: PageServer) -> Iterator[Callable[..., Any]]:
    """A function that opens the page as a person nobody has seen before: options are those of a browser context.
    `person.context.new_page()` is a second tab of the same person. All their pages are watched."""
    contexts: list[Any] = []
    faults: list[str] = []

    def watch(page: Any) -> None:
        def heard(message: Any) -> None:
            if message.type == "error" and message.text not in HARMLESS:
                faults.append(f"console: {message.text} ({message.location.get('url', '')})")

        def asked(request: Any) -> None:
            parts = urlsplit(request.url)
            if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
                faults.append(f"request to {request.url}")

        page.on("console", heard)
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("request", asked)

    def enter(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        context.on("page", watch)
        contexts.append(context)
        page = context.new_page()
        page.goto(page_server.url)
        page.wait_for_selector("#tabs")
        return page

    yield enter
    for context in contexts:
        context.close()
    assert not faults, "\n".join(faults)


@pytest.fixture
def browser_page(new_person: Callable[..., Any]) -> Any:
    """The page, open in a browser."""
    return new_person()
