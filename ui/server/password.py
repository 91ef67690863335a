"""The password of the page, and the cookie of browsers that gave it."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive

from .allowed import LOGIN, PAGE, Route

COOKIE = "yuegp"


@dataclass
class PasswordGate:
    """Asks for `password` with the form `page`. The cookie of browsers that gave it holds `token`, one per run."""

    password: str
    page: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    def open_to(self, headers: Headers) -> bool:
        """Whether a request has the cookie."""
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return kept is not None and hmac.compare_digest(kept.value.encode(), self.token.encode())

    async def login_response(
        self, route: Route, headers: Headers, receive: Receive, prefix: str, secure: bool
    ) -> Response:
        """The answer to a request without the cookie: the form, or the result of the password it sends. Wrong passwords
        take a second each, one after the other, against guessing. `prefix` is the path a proxy serves us under;
        `secure` restricts the cookie to https."""
        human = route.media == PAGE and "text/html" in headers.get("accept", "")
        if route is not LOGIN:
            return HTMLResponse(self.page, 401) if human else PlainTextResponse("A password is needed.", 401)
        given = parse_qs(await _body(receive, 4096)).get("password", [""])[0]
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.password.encode()):
            async with self._one_at_a_time:
                await asyncio.sleep(1)
            return HTMLResponse(self.page, 401) if human else PlainTextResponse("This is not the password.", 401)
        answer = RedirectResponse(f"{prefix}/", 303) if human else PlainTextResponse("Welcome.")
        answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", path=f"{prefix}/", secure=secure)
        return answer


async def _body(receive: Receive, most: int) -> str:
    body = b""
    while len(body) <= most:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body[:most].decode("utf-8", "replace")
