"""The page's server: who gets an answer, what is served, how it begins and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PageServer, start, stop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ui.context import AppContext
from ui.server import guard, serve, sound
from yuegp.errors import RequestError
from yuegp.jobs.queue import Queue, State
from yuegp.library import store
from yuegp.song.schema import Section, SongRequest, TakeInfo

ROOT = Path(__file__).resolve().parents[3]
HOST = "127.0.0.1:7860"


# Who gets an answer


def guarded(**options: Any) -> TestClient:
    async def echo(request: Request) -> Response:
        return PlainTextResponse(f"{request.url.path} {len(await request.body())}")

    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
    return TestClient(guard.SecurityMiddleware(app, 7860, **options), base_url=f"http://{HOST}", follow_redirects=False)


@pytest.mark.parametrize(
    "host",
    [HOST, "localhost:7860", "[::1]:7860", "LOCALHOST:7860", "localhost.", "127.0.0.1:9000", "127.0.0.1", "[::1]:80"],
)
def test_this_machine_is_answered_under_its_own_names_whichever_port_leads_here(host: str) -> None:
    """A container, a tunnel and a proxy have ports of their own; nobody else can be meant by these names."""
    assert guarded().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:7860",
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example:7860",
        "localhost.evil.example",
        "192.168.1.5:7860",
        "0.0.0.0:7860",
        "127.1:7860",
        "2130706433:7860",
        "0x7f.0.0.1:7860",
        "[::ffff:127.0.0.1]:7860",
        "[127.0.0.1]:7860",
        "127.0.0.1:7860:7860",
        "127.0.0.1:99999",
        "127.0.0.1:",
        "127.0.0.1:7860,evil.example",
        "127.0.0.1:7860/evil.example",
        "localhost#evil.example",
        "localhost\\evil.example",
        "",
        "a@127.0.0.1:7860",
        "127.0.0.1:x",
    ],
)
def test_dns_rebinding_a_name_that_is_not_ours_is_refused(host: str) -> None:
    assert guarded().get("/", headers={"host": host}).status_code == 421


def test_on_the_network_our_address_is_ours_and_a_strangers_name_is_not() -> None:
    client = guarded(listening=True, gate=guard.PasswordGate("word", "form"))
    client.cookies.set(guard.COOKIE, client.app.gate.token)  # type: ignore[attr-defined]
    for host, status in (("192.168.1.5:7860", 200), (f"{socket.gethostname()}:7860", 200), ("evil.example:7860", 421)):
        assert client.get("/", headers={"host": host}).status_code == status, host


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "sec-fetch-dest": "audio"},
    ],
)
def test_requests_that_another_page_sends_are_refused(headers: dict[str, str]) -> None:
    assert guarded().post("/en/gradio_api/queue/join", headers=headers).status_code == 403
    assert guarded().get("/sound/a/1/mix.flac", headers=headers).status_code == 403


def test_our_own_page_programs_and_links_to_us_are_answered() -> None:
    own = {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
    assert ask(guarded(), headers=own).status_code == 200
    assert ask(guarded()).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    assert guarded().get("/", headers=link).status_code == 200
    assert guarded().post("/", headers=link).status_code == 403


def test_every_answer_forbids_the_browser_to_load_from_elsewhere() -> None:
    for answer in (guarded().get("/"), guarded().get("/", headers={"host": "evil.example"})):
        assert re.match("default-src 'self'|sandbox; default-src 'none'", answer.headers["content-security-policy"])
        assert "http" not in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY" and answer.headers["x-content-type-options"] == "nosniff"


def test_a_song_may_be_called_like_a_closed_door() -> None:
    assert guarded().get("/en/sound/proxy=runs/1/mix.flac").status_code == 200


# How much is listened to


def ask(client: TestClient, body: bytes = b"{}", **options: Any) -> Any:
    options["headers"] = {"content-type": "application/json", **options.get("headers", {})}
    return client.post("/en/gradio_api/queue/join", content=body, **options)


def upload(client: TestClient, name: str, body: bytes = b"x", **headers: str) -> Any:
    return client.post("/en/gradio_api/upload", files={"files": (name, body)}, headers=headers)


@pytest.mark.parametrize("name", ["song.wav", "Ü b.FLAC", "a.b.mp3", "words.txt"])
def test_sound_and_words_may_be_uploaded(name: str) -> None:
    assert upload(guarded(), name).status_code == 200


@pytest.mark.parametrize("name", ["page.html", "drawing.svg", "run.exe", "song.wav.js", "noending", "wav"])
def test_other_files_may_not(name: str) -> None:
    assert upload(guarded(), name).status_code == 415


def test_a_forbidden_file_behind_an_allowed_one_is_seen_wherever_the_network_cuts() -> None:
    boundary = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n'
    body = boundary % b"a.wav" + b"s" * 3000 + b"\r\n" + boundary % b"page.html" + b"<p>\r\n--b--\r\n"

    for size in (1, 7, 1000, len(body)):

        def pieces(size: int = size) -> Iterator[bytes]:
            for at in range(0, len(body), size):
                yield body[at : at + size]

        answer = guarded().post(
            "/en/gradio_api/upload", content=pieces(), headers={"content-type": "multipart/form-data; boundary=b"}
        )
        assert answer.status_code == 415, size


def test_too_large_is_refused_by_what_is_announced_and_by_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "UPLOAD_BYTES", 1000)
    monkeypatch.setattr(guard, "REQUEST_BYTES", 100)
    assert upload(guarded(), "a.wav", b"x" * 2000).status_code == 413
    assert ask(guarded(), b'"%s"' % (b"x" * 99)).status_code == 413
    assert ask(guarded(), iter([b'"' + b"x" * 59, b"x" * 60])).status_code == 413
    assert ask(guarded(), iter([b'"' + b"x" * 59, b"x" * 39 + b'"'])).text == "/en/gradio_api/queue/join 100"


# The password


def test_listening_without_a_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="password"):
        serve.serve(tmp_path, listen=True)
    with pytest.raises(ValueError, match="password"):
        guard.SecurityMiddleware(PlainTextResponse("x"), 7860, listening=True)


def test_without_the_password_there_is_only_the_form() -> None:
    client = guarded(gate=guard.PasswordGate("secret wörd", "the form"))
    assert client.get("/sound/a/1/mix.flac").status_code == 401
    page = client.get("/en/", headers={"accept": "text/html"})
    assert (page.status_code, page.text) == (401, "the form")
    client.cookies.set(guard.COOKIE, "guessed")
    assert client.get("/").status_code == 401


def test_the_password_opens_the_door_for_people_and_for_programs() -> None:
    for path, accept, status in (("/login", "text/html", 303), ("/api/login", "*/*", 200)):
        client = guarded(gate=guard.PasswordGate("secret wörd", "the form"))
        wrong = client.post(path, data={"username": "x", "password": "secret"}, headers={"accept": accept})
        assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
        right = client.post(path, data={"username": "x", "password": "secret wörd"}, headers={"accept": accept})
        assert right.status_code == status
        assert "HttpOnly" in right.headers["set-cookie"] and "samesite=strict" in right.headers["set-cookie"].lower()
        assert client.get("/en/").status_code == 200


# Sound


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """A songs folder with one song and one take, a secret beside it, and links to it."""
    root = tmp_path / "songs"
    song = store.create(SongRequest(sections=(Section("verse", "la"),), tags="pop", title="One"), root)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    take.mix.write_bytes(bytes(range(200)))
    (take.folder / "hear").mkdir()
    (take.folder / "hear" / "section-00.flac").write_bytes(b"heard")
    (tmp_path / "mix.flac").write_bytes(b"secret")
    (root / "mix.flac").write_bytes(b"secret")
    take.vocal.symlink_to(tmp_path / "mix.flac")
    (take.folder.parent / "002").symlink_to(tmp_path)
    (root / "linked").symlink_to(song.folder)
    (root / "nosong" / "takes" / "001").mkdir(parents=True)
    (root / "nosong" / "takes" / "001" / "mix.flac").write_bytes(b"secret")
    song.folder.rename(root / "song")
    return root


PIECES = st.sampled_from(
    ["..", ".", "", "/", "\\", "song", "linked", "nosong", "takes", "001", "1", "002", "2", "mix.flac", "vocal.flac",
     "hear", "section-00.flac", "take.json", "song.json", "%2e%2e", "\0", "C:", "~", "１", "é"]
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.lists(PIECES, max_size=5).map("/".join) | PIECES | st.text(max_size=8), min_size=3, max_size=3)
)
def test_whatever_is_asked_for_only_known_files_of_songs_are_found(songs: Path, names: list[str]) -> None:
    found = sound.find(songs, *names)
    if found is not None:
        inside = songs.resolve() / "song" / "takes" / "001"
        assert found.resolve() in (inside / "mix.flac", inside / "hear" / "section-00.flac")


def test_the_sounds_of_a_take_are_found(songs: Path) -> None:
    assert sound.find(songs, "song", "1", "mix.flac") and sound.find(songs, "song", "001", "hear/section-00.flac")
    for song, take, file in (
        ("song", "1", "vocal.flac"),  # a link that leads out
        ("song", "2", "mix.flac"),  # below such a link
        ("linked", "1", "mix.flac"),
        ("nosong", "1", "mix.flac"),
        ("song", "1", "instrumental.flac"),  # not made
        ("song", "1", "take.json"),
        ("song/takes/..", "1", "mix.flac"),
        (".trash", "1", "mix.flac"),
    ):
        assert sound.find(songs, song, take, file) is None, (song, take, file)


def test_sound_is_sent_in_ranges_and_paths_that_climb_lead_nowhere(songs: Path) -> None:
    app = Starlette(routes=[Route("/sound/{song}/{take}/{file:path}", sound.sound_response)])
    app.state.context = AppContext(songs, Queue())
    client = TestClient(app)
    part = client.get("/sound/song/1/mix.flac", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    assert part.headers["content-type"] == "audio/flac"
    for path in (
        "/sound/song/1/..%2f..%2f..%2fmix.flac",
        "/sound/%2e%2e/1/mix.flac",
        "/sound/song/..%2f..%2f../mix.flac",
    ):
        assert client.get(path).status_code == 404, path


# Where, and what is loaded


def test_a_taken_port_gives_the_next_free_one() -> None:
    with serve.bind(serve.HERE, 0) as first:
        taken = first.getsockname()[1]
        with serve.bind(serve.HERE, taken) as second:
            assert second.getsockname()[1] > taken


def test_the_page_is_shown_without_torch(tmp_path: Path) -> None:
    """The whole application in one process: every page built in every language, and the first requests answered."""
    code = """
import sys
from pathlib import Path
from ui.server import serve
serve.prepare()
from ui.context import AppContext
from yuegp.jobs.queue import Queue
from starlette.testclient import TestClient
app = serve.guarded(serve.application(AppContext(Path(sys.argv[1]) / "songs", Queue())), 7860)
with TestClient(app, base_url="http://127.0.0.1:7860") as client:
    for path in ("/", "/en/", "/zh/", "/en/config", "/api/config", "/favicon.ico"):
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.status_code)
    assert client.get("/en/gradio_api/file=" + sys.argv[1] + "/secret.txt").status_code == 403
print(*sorted({"torch", "transformers", "bitsandbytes"} & set(sys.modules)), "none")
"""
    (tmp_path / "secret.txt").write_text("secret")
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "YUEGP_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["none"]


# The program as a user starts it


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    server = start(tmp_path_factory.mktemp("serve") / "home")
    yield server
    stop(server)


def test_exactly_one_line_is_printed_and_it_is_the_address(page: PageServer) -> None:
    assert (page.home / "server.log").read_text().splitlines() == [page.url.rstrip("/")]


def test_the_page_leads_to_the_chosen_language_and_follows_another_choice_on_reload(page: PageServer) -> None:
    import httpx

    def led(path: str, accept: str = "en") -> str:
        answer = httpx.get(page.url + path, headers={"accept-language": accept})
        return answer.headers.get("location", str(answer.status_code))

    assert (led(""), led("", "ko-KR,ko;q=0.9,en;q=0.5"), led("", "fr")) == ("/en/", "/ko/", "/en/")
    assert led("ja/") == "200"
    (page.home / "settings.json").write_text(json.dumps({"format": 1, "language": "zh"}))
    assert (led(""), led("en/"), led("zh/")) == ("/zh/", "/zh/", "200")
    (page.home / "settings.json").write_text("{damaged")
    assert (led(""), led("zh/")) == ("/en/", "200")


def test_a_second_page_of_the_same_home_says_that_the_first_one_makes_the_songs(page: PageServer) -> None:
    other = start(page.home)
    try:
        log = page.home / "server.log"
        _until(lambda: "is already making music here" in log.read_text(), log.read_text)
    finally:
        stop(other)


def test_ctrl_c_ends_everything_and_keeps_finished_sections(tmp_path: Path) -> None:
    home = tmp_path / "home"
    request = SongRequest(sections=tuple(Section("verse", "la la") for _ in range(12)), tags="pop", seed=1)
    song = store.create(request, home / "songs")
    take = song.new_take(TakeInfo(number=0, request=song.request))
    queue = Queue(home)
    queue.add(song.folder, take.info.number)
    server = start(home)
    try:
        _until(lambda: song.take(1).info.spans, (home / "server.log").read_text)
        generator = int((home / "queue" / "worker.lock").read_text())
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == -signal.SIGINT or server.process.returncode in (1, 130)
    finally:
        stop(server)
    assert song.take(1).info.spans and song.take(1).load_stage1().shape[2] == song.take(1).frames
    assert [job.state for job in queue.jobs()] == [State.INTERRUPTED]
    with pytest.raises(ProcessLookupError):
        os.kill(generator, 0)


def test_the_maker_ends_with_a_page_that_is_killed(tmp_path: Path) -> None:
    server = start(tmp_path / "home")
    lock = tmp_path / "home" / "queue" / "worker.lock"
    try:
        _until(lambda: lock.exists() and lock.read_text(), lambda: "no generator")
        generator = int(lock.read_text())
        server.process.kill()
        server.process.wait()
        _until(lambda: not _lives(generator), lambda: f"process {generator} is still there")
    finally:
        stop(server)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _until(done: Any, say: Any) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, say()
        time.sleep(0.05)
