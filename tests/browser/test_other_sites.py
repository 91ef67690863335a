"""Another web site in the same browser, a real one, that tries everything a script can do against the page's server.

It stands once on another port of the same machine (which browsers call the same site) and once under another name. What
it sends may reach nothing but the page itself, and that only as a link in a tab of its own."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from ui.server import guard, origin, serve
from ui.server.hosts import Host

PAGES = ("/", "/en/")

TARGETS = (
    *("/en/config", "/en/gradio_api/queue/data?session_hash=a", "/en/gradio_api/file=http://127.0.0.1:1/x.png"),
    *("/en/gradio_api/upload", "/en/gradio_api/component_server/", "/api/gradio_api/call/make", "/api/"),
    *("/sound/song/1/mix.flac", *PAGES),
)

HIDDEN = """async (targets) => {
  const done = [], wait = (what) => done.push(Promise.race([what, new Promise(r => setTimeout(r, 3000))]));
  const add = (tag, set) => wait(new Promise(r => {
    const made = document.createElement(tag);
    made.onload = made.onerror = r;
    Object.assign(made, set);
    document.body.append(made);
  }));
  const send = (target, options) => wait(fetch(target, options).catch(() => {}));
  for (const to of targets) {
    for (const tag of ["iframe", "img", "script", "audio", "embed"]) add(tag, {src: to});
    add("object", {data: to});
    add("script", {src: to, type: "module"});
    for (const rel of ["stylesheet", "prefetch", "preload", "modulepreload", "manifest", "icon"])
      add("link", {rel, href: to, as: "fetch"});
    add("iframe", {srcdoc: `<meta http-equiv=refresh content="0;url=${to}">`});
    add("iframe", {srcdoc: `<script>location = "${to}"</script>`, sandbox: "allow-scripts"});
    for (const mode of ["no-cors", "cors"]) for (const credentials of ["include", "omit"]) {
      send(to, {mode, credentials});
      for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
        send(to, {mode, credentials, method: "POST", body: '{"data": []}', headers: {"Content-Type": type}});
    }
    send(to, {method: "POST", body: "{}", headers: {"Content-Type": "application/json"}});
    send(to, {method: "PUT", body: "{}"});
    send(to, {mode: "no-cors", referrerPolicy: "no-referrer"});
    navigator.sendBeacon(to, '{"data": []}');
    new EventSource(to);
    new WebSocket(to.replace("http", "ws"));
    try { new Worker(to); } catch {}
    try { new Worker(URL.createObjectURL(new Blob([`importScripts("${to}")`]))); } catch {}
    for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
      const frame = document.body.appendChild(document.createElement("iframe"));
      frame.name = "f" + Math.random();
      const form = document.body.appendChild(document.createElement("form"));
      Object.assign(form, {method: "post", action: to, enctype, target: frame.name});
      const field = form.appendChild(document.createElement("input"));
      Object.assign(field, {name: '{"data": ["', value: '"]}'});
      form.submit();
    }
  }
  const rules = document.createElement("script");
  rules.type = "speculationrules";
  rules.textContent = JSON.stringify({
    prefetch: [{source: "list", urls: targets}], prerender: [{source: "list", urls: targets}],
  });
  document.body.append(rules);
  await Promise.all(done);
  await new Promise(r => setTimeout(r, 500));
}"""
"""Everything that does not leave the tab."""


@dataclass
class Target:
    """What stands behind a guard and writes down what reaches it: method, address, body."""

    port: int
    reached: list[tuple[str, str, bytes]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")
        query = scope["query_string"].decode()
        self.reached.append((scope["method"], scope["path"] + (f"?{query}" if query else ""), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<title>secret</title><script>window.ran = 1</script>"})


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    place = serve.bind(serve.HERE, 0)
    made = Target(place.getsockname()[1])
    config = uvicorn.Config(guard.SecurityMiddleware(made, made.port), log_level="critical", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    yield made
    running.should_exit = True
    thread.join()


class Blank(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>other</title><body>")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def other() -> Iterator[int]:
    """The other site's port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(params=["127.0.0.1", "localhost"])
def site(request: pytest.FixtureRequest, browser: Any, target: Target, other: int) -> Iterator[Any]:
    """A tab with the other site in it."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://{request.param}:{other}/")
    target.reached.clear()
    yield page
    context.close()


@pytest.mark.browser
def test_nothing_that_another_site_loads_or_sends_reaches_anything(site: Any, target: Target) -> None:
    site.evaluate(HIDDEN, [f"http://127.0.0.1:{target.port}{path}" for path in TARGETS])
    assert target.reached == []


@pytest.mark.browser
def test_the_same_from_the_page_itself_reaches_everything(browser: Any, target: Target) -> None:
    """That the attack is one: same-origin, each of its kinds arrives."""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{target.port}/en/")
    target.reached.clear()
    page.evaluate(HIDDEN, ["/en/config", "/en/gradio_api/upload"])
    assert {(method, path) for method, path, _ in target.reached} >= {
        ("GET", "/en/config"),
        ("POST", "/en/gradio_api/upload"),
    }
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("way", ["go", "open", "click", "form"])
def test_a_link_from_another_site_leads_to_the_page_and_nowhere_else(site: Any, target: Target, way: str) -> None:
    address = f"http://127.0.0.1:{target.port}"
    for path in (*TARGETS, "/en/?__theme=dark&view=api&deep_link=x", "/?x=1"):
        with site.context.expect_page() as opened:
            site.evaluate(
                """([to, way]) => {
                  const made = document.createElement(way === "form" ? "form" : "a");
                  Object.assign(made, {href: to, action: to, method: "post", target: "_blank", rel: "opener"});
                  document.body.append(made);
                  if (way === "go") window.w = window.open("about:blank"), window.w.location = to;
                  else if (way === "open") window.w = window.open(to);
                  else if (way === "click") made.click();
                  else made.submit();
                }""",
                [address + path, way],
            )
        tab = opened.value
        tab.wait_for_url(f"{address}/**")
        if path.split("?")[0] in PAGES and way != "form":
            assert tab.title() == "secret" and not tab.evaluate("window.opener") and "?" not in tab.url
        else:
            assert tab.title() != "secret"
        seen = site.evaluate("(() => { try { return window.w && window.w.document.title } catch { return '' } })()")
        assert not seen
        tab.close()
    reached = {(method, path) for method, path, _ in target.reached} - {("GET", "/favicon.ico")}  # the page's own
    assert reached == (set() if way == "form" else {("GET", path) for path in PAGES})


@pytest.mark.browser
def test_a_file_that_is_opened_in_a_tab_runs_nothing(browser: Any, target: Target) -> None:
    """The user opens the address by hand; what comes back claims to be HTML."""
    page = browser.new_page()
    for path in ("/en/gradio_api/file=/tmp/a.txt", "/en/config"):
        page.goto(f"http://127.0.0.1:{target.port}{path}")
        assert page.evaluate("[typeof window.ran, self.origin]") == ["undefined", "null"]
    page.close()


# Browsers that say less

HOST = Host("127.0.0.1", 7860)
OWN = "http://127.0.0.1:7860"
OLD = {"user-agent": "Mozilla/5.0 (Macintosh) Version/15.6 Safari/605.1.15", "accept": "text/html,*/*;q=0.8"}
NEW = {**OLD, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),  # a program
        ({"user-agent": "curl/8.5", "accept": "text/html"}, False),
        ({"sec-fetch-site": "none"}, False),  # somebody typed it
        ({"sec-fetch-site": "same-origin", "origin": OWN}, False),
        ({**OLD, "referer": f"{OWN}/en/"}, False),
        ({**OLD, "origin": OWN}, False),
        (OLD, True),  # our own page always sends where it is
        ({**OLD, "referer": "https://evil.example/"}, True),
        ({**OLD, "referer": "http://127.0.0.1:8000/"}, True),
        ({**OLD, "referer": f"{OWN}.evil.example/"}, True),
        ({**OLD, "referer": "http://127.0.0.1:7860@evil.example/"}, True),
        ({**OLD, "referer": ""}, True),
        ({**OLD, "origin": "null"}, True),
        ({**OLD, "origin": OWN + "/"}, False),
        ({"referer": "https://evil.example/"}, True),
        ({"sec-fetch-site": "same-site"}, True),
        ({"sec-fetch-site": "something new"}, True),
        ({"sec-fetch-site": ""}, True),
        ({"sec-fetch-site": "same-origin", "origin": "http://evil.example"}, True),
        ({"sec-fetch-site": "none", "origin": "null"}, True),
    ],
)
def test_where_a_request_comes_from(headers: dict[str, str], foreign: bool) -> None:
    assert origin.foreign(Headers(headers), HOST, False) is foreign


def test_a_header_that_stands_twice_is_believed_by_nobody() -> None:
    for name, values in (
        ("origin", (OWN, "http://evil.example")),
        ("sec-fetch-site", ("same-origin", "cross-site")),
        ("referer", (OWN, "http://evil.example")),
    ):
        raw = [(name.encode(), value.encode()) for value in values]
        assert origin.foreign(Headers(raw=raw), HOST, False)


@pytest.mark.parametrize(
    ("headers", "link"),
    [
        (NEW, True),
        (OLD, True),
        *(({**NEW, "sec-fetch-dest": d}, False) for d in ("iframe", "frame", "object", "embed", "empty", "")),
        ({**NEW, "sec-fetch-dest": "fencedframe"}, False),
        *(({**NEW, "sec-fetch-mode": m}, False) for m in ("no-cors", "cors", "websocket", "same-origin")),
        *(({**NEW, "sec-purpose": p}, False) for p in ("prefetch", "prefetch;prerender")),
        ({**NEW, "purpose": "prefetch"}, False),
        ({**OLD, "x-moz": "prefetch"}, False),
        ({**OLD, "accept": "*/*"}, False),
        ({**OLD, "accept": "image/avif,image/webp"}, False),
        ({**OLD, "origin": "http://evil.example"}, False),
    ],
)  # fmt: skip
def test_what_is_a_link(headers: dict[str, str], link: bool) -> None:
    assert origin.is_link(Headers(headers)) is link


def test_the_targets_are_on_the_list() -> None:
    """Else the tests above would show nothing."""
    from ui.server import allowed

    for path in TARGETS:
        if "http" not in path:
            assert any(allowed.find(method, path.split("?")[0]) for method in ("GET", "POST")), json.dumps(path)
