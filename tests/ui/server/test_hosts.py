"""The page under other names: which are allowed, what is said under one that is not, proxies and their paths."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ui import settings
from ui.server import guard, hosts, login
from ui.server.hosts import Host
from ui.texts import LANGUAGES, Texts
from yuegp.__main__ import main
from yuegp.errors import RequestError

NAME = "music.tail1234.ts.net"


def client(*names: str, **options: Any) -> TestClient:
    async def tell(request: Request) -> Response:
        return PlainTextResponse(f"{request.url} {request.scope.get('root_path', '')} {sorted(request.headers.keys())}")

    app = Starlette(routes=[Route("/{path:path}", tell, methods=["GET", "POST"])])
    made = guard.SecurityMiddleware(
        app, 7860, names=names, stranger=functools.partial(login.stranger, Texts()), **options
    )
    return TestClient(made, base_url="http://127.0.0.1:7860", follow_redirects=False)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("nas", Host("nas")),
        ("NAS.Fritz.Box:8080", Host("nas.fritz.box", 8080)),
        ("nas.fritz.box.", Host("nas.fritz.box")),
        ("192.168.1.5:80", Host("192.168.1.5", 80)),
        ("[fe80::1]:80", Host("fe80::1", 80)),
        ("xn--mller-kva.example", Host("xn--mller-kva.example")),
        *((bad, None) for bad in ("", ".", "a..b", "-a", "a-", "a b", "a/b", "*.ts.net", "http://a", "a:0", "a:b")),
        *((bad, None) for bad in ("a:1:2", "fe80::1", "[fe80::1", "a\n", "ä", "１２７.0.0.1", "a" * 64, "300.1.1.1")),
        *((bad, None) for bad in ("<b>", "a'b", "[nas]", "[127.0.0.1]", "[::1]:")),
    ],
)  # fmt: skip
def test_what_looks_like_a_host(text: str, means: Host | None) -> None:
    assert hosts.read(text) == means
    if means:
        assert hosts.read(str(means)) == means


def test_an_allowed_name_is_answered_and_its_like_are_not() -> None:
    for host in (NAME, NAME.upper(), f"{NAME}:443", f"{NAME}:9000", f"{NAME}."):
        assert client(NAME).get("/", headers={"host": host}).status_code == 200, host
    for host in (f"evil.{NAME}", f"{NAME}.evil.example", "tail1234.ts.net", "ts.net", "other.tail1234.ts.net", "nas"):
        assert client(NAME).get("/", headers={"host": host}).status_code == 421, host


def test_an_allowed_port_is_meant() -> None:
    for host, status in (("nas:9000", 200), ("nas", 421), ("nas:7860", 421), ("nas:443", 421)):
        assert client("nas:9000").get("/", headers={"host": host}).status_code == status, host
    assert client("nas:443").get("/", headers={"host": "nas"}).status_code == 200


def test_under_another_name_the_command_that_allows_it_is_told() -> None:
    told = client().get("/en/config", headers={"host": NAME})
    assert told.status_code == 421 and f"`python launch.py ui --allow-host {NAME}`" in told.text
    assert f"YUEGP_ALLOW_HOST={NAME}" in told.text and "http://127.0.0.1:7860" in told.text
    page = client().get("/en/config", headers={"host": f"{NAME}:8443", "accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.status_code == 421 and f"<code>python launch.py ui --allow-host {NAME}:8443</code>" in page.text
    gate = guard.PasswordGate("word", "form")
    assert "ui --listen --allow-host nas`" in client(listening=True, gate=gate).get("/", headers={"host": "nas"}).text
    for host in ("<script>alert(1)</script>", "a'b", 'a"b', "a;b", "a b", "$(id)", "a`id`"):
        for accept in ("text/html", "*/*"):
            answer = client().get("/", headers={"host": host, "accept": accept})
            assert answer.status_code == 421 and "--allow-host" not in answer.text and host not in answer.text


def test_every_language_says_it_and_escapes() -> None:
    for language in LANGUAGES:
        page = login.stranger(Texts(language), "<b>", "run <b>")
        assert page.count("&lt;b&gt;") >= 3 and "<b>" not in page


# Kept, seen, forgotten


def run(*words: str, capsys: Any) -> list[str]:
    assert main(["ui", *words, "--hosts"]) == 0
    return capsys.readouterr().out.split()


def test_names_are_kept_listed_and_forgotten(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    settings.save(settings.Settings("ko"))
    assert run(capsys=capsys) == []
    assert run("--allow-host", "NAS.fritz.box", "--allow-host", NAME, capsys=capsys) == ["nas.fritz.box", NAME]
    assert run("--allow-host", "nas.fritz.box", capsys=capsys) == ["nas.fritz.box", NAME]
    assert settings.load() == settings.Settings("ko", ("nas.fritz.box", NAME))
    monkeypatch.setenv(hosts.VARIABLE, "box:9000, nas.fritz.box")
    assert run("--forget-host", NAME, capsys=capsys) == ["nas.fritz.box", "box:9000"]
    assert settings.load().hosts == ("nas.fritz.box",)


@pytest.mark.parametrize("name", ["https://nas/", "*.ts.net", "a b", "", "nas/"])
def test_what_is_no_name_is_refused_with_a_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--allow-host", name, "--hosts"]) == 2
    assert "music.example.org" in capsys.readouterr().err and settings.load().hosts == ()
    assert main(["ui", "--forget-host", "nas", "--hosts"]) == 2


def test_a_wrong_variable_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hosts.VARIABLE, "nas https://nas")
    with pytest.raises(RequestError, match="https://nas"):
        settings.hosts()


def test_names_in_other_scripts_are_kept_as_browsers_send_them() -> None:
    assert hosts.checked(["müsik.example"]) == ("xn--msik-0ra.example",)


@pytest.mark.parametrize(
    "data", [[], 1, None, {}, {"hosts": "nas"}, {"hosts": [1, {}, "a b", None]}, {"language": ["en"], "hosts": {}}]
)
def test_settings_that_make_no_sense_are_none(data: Any) -> None:
    settings.path().parent.mkdir(parents=True, exist_ok=True)
    settings.path().write_text(json.dumps(data))
    assert settings.load() == settings.Settings()


# Behind a proxy


def test_https_in_front_is_the_same_page() -> None:
    for proto in ({"x-forwarded-proto": "https"}, {}):
        own = {"host": NAME, "origin": f"https://{NAME}", "content-type": "application/json", **proto}
        assert client(NAME).post("/en/gradio_api/queue/join", content="{}", headers=own).status_code == 200
    for origin in (f"http://{NAME}", f"https://{NAME}:8443", "https://evil.example", "http://127.0.0.1:7860"):
        other = {**own, "origin": origin, "x-forwarded-proto": "https"}
        assert client(NAME).post("/en/gradio_api/queue/join", content="{}", headers=other).status_code == 403, origin


def test_name_and_port_of_an_origin_have_to_be_those_that_were_asked_for() -> None:
    for host, origin, status in (
        ("127.0.0.1:8888", "http://127.0.0.1:8888", 200),
        ("127.0.0.1:8888", "http://127.0.0.1:7860", 403),
        ("127.0.0.1:8888", "http://localhost:8888", 403),
        ("127.0.0.1", "http://127.0.0.1", 200),
        ("127.0.0.1:80", "http://127.0.0.1", 200),
        ("127.0.0.1", "http://127.0.0.1:7860", 403),
        ("[::1]:8888", "http://[::1]:8888", 200),
        ("[::1]:8888", "http://[::1]:1", 403),
        ("localhost:7860", "http://localhost.:7860", 200),
        ("localhost:7860", "http://x@localhost:7860", 403),
        ("localhost:7860", "file://localhost:7860", 403),
        ("localhost:7860", "null", 403),
    ):
        headers = {"host": host, "origin": origin, "content-type": "application/json"}
        answer = client().post("/en/gradio_api/queue/join", content="{}", headers=headers)
        assert answer.status_code == status, (host, origin)


def test_a_proxy_that_hides_the_name_is_told_what_to_pass_on() -> None:
    answer = client(NAME).post("/en/gradio_api/queue/join", content="{}", headers={"origin": f"https://{NAME}"})
    assert answer.status_code == 403 and "header Host" in answer.text


def test_the_path_that_a_proxy_strips_is_part_of_our_addresses() -> None:
    def seen(**headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client(NAME).get("/en/config", headers={"host": NAME, **named}).text

    assert seen(x_forwarded_prefix="/music/", x_forwarded_proto="https").startswith(
        f"https://{NAME}/music/en/config /music "
    )
    for prefix in ("//evil.example", "/a/../b", "music", "/a b", "/<b>", "/.", "/" + "a" * 300, "http://x/"):
        assert seen(x_forwarded_prefix=prefix).startswith(f"http://{NAME}/en/config  "), prefix
    lies = seen(x_forwarded_host="evil.example", x_gradio_server="http://evil.example", forwarded="host=evil.example")
    assert "evil" not in lies and "x-forwarded-host" not in lies and "x-gradio-server" not in lies


def test_the_cookie_belongs_to_our_path_and_over_https_stays_there() -> None:
    def cookie(**headers: str) -> str:
        asked = client(NAME, gate=guard.PasswordGate("word", "form"))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = asked.post("/login", data={"password": "word"}, headers={"host": NAME, "accept": "text/html", **named})
        assert answer.status_code == 303 and answer.headers["location"] == headers.get("x_forwarded_prefix", "") + "/"
        return str(answer.headers["set-cookie"])

    assert "Path=/music/;" in (kept := cookie(x_forwarded_proto="https", x_forwarded_prefix="/music"))
    assert "Secure" in kept and "HttpOnly" in kept and "samesite=strict" in kept.lower()
    assert "Secure" not in (kept := cookie()) and "Path=/;" in kept


def test_an_allowed_name_needs_the_password_where_there_is_one() -> None:
    asked = client(NAME, listening=True, gate=guard.PasswordGate("word", "form"))
    assert asked.get("/en/", headers={"host": NAME}).status_code == 401
