"""The page behind something else: a proxy that shows it under a path and another name, a port that is mapped."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PATIENCE_SECONDS, PageServer, start, stop
from gradio_client import Client, handle_file

from ui.server import hosts

NAME = "music.localhost"
"""A name that browsers know to be this machine, and that the page does not."""

WORDS, TAGS = "[verse]\nla la\n", "pop piano"


class Proxy(http.server.BaseHTTPRequestHandler):
    """As nginx and Caddy do it: takes `prefix` off the path and says so, passes the name on, answers as it comes."""

    upstream, prefix = 0, ""

    def _pass(self) -> None:
        if not self.path.startswith(f"{self.prefix}/"):
            self.send_error(502)
            return
        asked = http.client.HTTPConnection("127.0.0.1", self.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        headers |= {"X-Forwarded-Proto": "http", "X-Forwarded-Host": self.headers["Host"]}
        if self.prefix:
            headers["X-Forwarded-Prefix"] = self.prefix
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked.request(self.command, self.path[len(self.prefix) :], body, headers)
        answer = asked.getresponse()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        while piece := answer.read1(65536):
            self.wfile.write(piece)
            self.wfile.flush()
        asked.close()

    do_GET = do_POST = do_HEAD = _pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(hosts.VARIABLE, NAME)
        server = start(tmp_path_factory.mktemp("proxy") / "home")
    yield server
    stop(server)


@pytest.fixture(params=["/music", ""], ids=["under a path", "another port"])
def proxy(request: pytest.FixtureRequest, page: PageServer) -> Iterator[str]:
    """The page's address behind a proxy, without the name, and without a slash at its end."""
    own = type("Proxy", (Proxy,), {"upstream": int(page.url.split(":")[2].strip("/")), "prefix": request.param})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), own) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{server.server_port}{request.param}"
        server.shutdown()


def test_programs_use_it_there(proxy: str, tmp_path: Path) -> None:
    import soundfile

    tune = tmp_path / "tune.wav"
    soundfile.write(tune, [0.0, 0.1] * 22050, 44100)
    client = Client(f"http://127.0.0.1:{proxy}/api", verbose=False, analytics_enabled=False)
    settings = {"reference": {"mix": handle_file(tune), "end": 1.0}}
    song = client.predict(WORDS, TAGS, settings, api_name="/make")["song"]
    assert song in [row["song"] for row in client.predict(api_name="/songs")]
    client.predict(song, api_name="/stop")
    client.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", NAME])
def test_people_use_it_there(proxy: str, browser: Any, name: str, tmp_path: Path) -> None:
    """Every tab, what a tab asks the server, and an upload; nothing is asked for outside the path, nothing refused."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    tab = context.new_page()
    wrong: list[str] = []
    base = f"http://{name}:{proxy}/"
    home = f"http://{name}:{proxy.partition('/')[0]}/favicon.ico"
    tab.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 and r.url != home else None)
    tab.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((base, "data:", "blob:", home)) else None)
    tab.goto(base)
    tab.wait_for_selector("#tabs")
    assert tab.url == f"{base}en/"
    for shown in ("library", "queue", "setup", "create"):
        tab.click(f"#tab-{shown}-button")
        tab.wait_for_selector(f"#{shown}")
    tab.click("#tab-library-button")
    tab.wait_for_selector("#library article, #library li, #library table, #library p")
    with tab.expect_response(lambda r: r.url == f"{base}en/gradio_api/run/predict") as answered:
        tab.click("#tab-queue-button")
    assert answered.value.status == 200
    context.close()
    assert wrong == []


@pytest.mark.browser
def test_a_name_that_is_not_allowed_is_told_how(proxy: str, browser: Any) -> None:
    tab = browser.new_page()
    answer = tab.goto(f"http://nas.localhost:{proxy}/")
    assert answer.status == 421
    port = proxy.partition("/")[0]
    assert tab.inner_text("code") == f"python launch.py ui --allow-host nas.localhost:{port}"
    tab.close()
