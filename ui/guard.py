"""Who may talk to the page's server, and how much it listens to. Stands before everything else that answers.

On this machine alone, what has to be kept out are other web sites in the same browser: they can send requests to
127.0.0.1, or give their own name that address (DNS rebinding). Hence: the Host must be ours, and what a browser says of
where a request comes from (Origin, Sec-Fetch-Site) must be ourselves. On the network a password comes on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import PurePath
from typing import NoReturn
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD_BYTES = 400 << 20
"""Largest upload: half an hour of CD sound, as WAV, is 320 MB."""

REQUEST_BYTES = 4 << 20
"""Largest other request: a whole song's words are some kilobytes."""

UPLOADS = frozenset(".wav .wave .flac .mp3 .ogg .oga .opus .aif .aiff .m4a .mp4 .aac .wma .webm .txt .lrc".split())
"""Endings of files that may be uploaded: sound, also kinds we cannot read (the page says so better), and words."""

COOKIE = "yuegp"

CLOSED = re.compile(
    r"(?:/[a-z]+)?/(?:gradio_api/)?(?:proxy=|runs|run-history|vibe-|undo-vibe-|dev/|process_recording|deep_link"
    r"|custom_component/|stream/|monitoring|mcp|file/)"
)
"""Doors that Gradio opens and nothing of ours uses."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # Gradio's page and its HTML templates need both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""What the browser is told the page may load: nothing from elsewhere, whatever stands in it."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass
class Door:
    """A password, and the one cookie that says it was given. `page` is the form that asks for it."""

    password: str
    page: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    def open_to(self, headers: Headers) -> bool:
        """Whether a request brings the cookie."""
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return kept is not None and hmac.compare_digest(kept.value.encode(), self.token.encode())

    async def answer(self, scope: Scope, headers: Headers, receive: Receive) -> Response:
        """To somebody without the cookie: the form, or what becomes of its password. Wrong ones take a second each,
        one after the other, so that guessing takes forever."""
        human = "text/html" in headers.get("accept", "")
        if not (scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/login")):
            return HTMLResponse(self.page, 401) if human else PlainTextResponse("A password is needed.", 401)
        given = parse_qs(await _body(receive, 4096)).get("password", [""])[0]
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.password.encode()):
            async with self._one_at_a_time:
                await asyncio.sleep(1)
            return HTMLResponse(self.page, 401) if human else PlainTextResponse("This is not the password.", 401)
        answer = RedirectResponse("/", 303) if human else PlainTextResponse("Welcome.")
        answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", path="/")
        return answer


async def _body(receive: Receive, most: int) -> str:
    body = b""
    while len(body) <= most:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body[:most].decode("utf-8", "replace")


class _Refused(Exception):
    """An upload turned out to be what it may not be, half-way through."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Guard:
    """Stands before `app`. `listening` is True when other machines may come; then there must be a door."""

    def __init__(self, app: ASGIApp, port: int, listening: bool = False, door: Door | None = None) -> None:
        if listening and door is None:
            raise ValueError("listening without a password")
        self.app, self.port, self.listening, self.door = app, port, listening, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # nothing of ours speaks websocket
        headers = Headers(scope=scope)
        send = _with_headers(send)
        if refusal := self._refusal(scope, headers):
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)
            return
        if self.door and not self.door.open_to(headers):
            answer = await self.door.answer(scope, headers, receive)
            await answer(scope, receive, send)
            return
        await self._pass(scope, headers, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 421, "This server does not answer under that name."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "Requests from other pages are refused."
        site = headers.get("sec-fetch-site", "none")
        document = headers.get("sec-fetch-dest") == "document" and scope["method"] == "GET"
        if site not in ("none", "same-origin") and not document:  # a link to us may be followed, nothing else
            return 403, "Requests from other pages are refused."
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "There is nothing to be done that way."
        if CLOSED.match(scope["path"]):
            return 404, "There is nothing here."
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names us: this machine's own name for itself, or, when others may come, its address
        or its name on the network. A name that somebody else has pointed at us is none of these."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").rstrip("."), parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path:
            return False
        if name in ("127.0.0.1", "localhost", "::1"):
            return True
        return self.listening and (_is_address(name) or name in _own_names())

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        upload = scope["path"].rstrip("/").endswith("/gradio_api/upload")
        intake = _Intake(receive, UPLOAD_BYTES if upload else REQUEST_BYTES, upload)
        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            if not intake.refused:  # what the application makes of a refusal in its midst is nobody's business
                began = True
                await send(message)

        with contextlib.suppress(_Refused):
            intake.check_announced(headers.get("content-length", "0"))
            await self.app(scope, intake.receive, sending)
        if intake.refused and not began:
            await PlainTextResponse(intake.refused.why, intake.refused.status)(scope, receive, send)


class _Intake:
    """A request's body on its way in: raises `_Refused` once too much has come, or a kind of file that is not taken."""

    def __init__(self, receive: Receive, most: int, upload: bool) -> None:
        self.refused: _Refused | None = None
        self._receive, self._most, self._upload = receive, most, upload
        self._count, self._tail = 0, b""

    def check_announced(self, length: str) -> None:
        if length.isdecimal() and int(length) > self._most:
            self._refuse(413, f"That is too large: at most {self._most >> 20} MB are taken.")

    async def receive(self) -> Message:
        message = await self._receive()
        body = message.get("body", b"")
        self._count += len(body)
        self.check_announced(str(self._count))
        if self._upload:
            seen = self._tail + body
            if any(PurePath(name).suffix.lower() not in UPLOADS for name in _names(seen)):
                self._refuse(415, "Only sound files and texts are taken.")
            self._tail = seen[-1024:]
        return message

    def _refuse(self, status: int, why: str) -> NoReturn:
        self.refused = _Refused(status, why)
        raise self.refused


def _names(part: bytes) -> Iterator[str]:
    """The file names in a piece of a multipart body. A line that is cut off at the end is seen with the next piece."""
    for line in re.findall(rb"(?i)content-disposition:([^\r\n]*)\r\n", part):
        if b"filename" in line.lower():
            found = re.search(rb'(?i)filename\s*=\s*"([^"]*)"', line)
            yield found[1].decode("utf-8", "replace") if found else ""


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sending


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> tuple[str, ...]:
    name = socket.gethostname().lower()
    return name, f"{name}.local", f"{name}.lan", f"{name}.home"
