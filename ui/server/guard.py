"""The security middleware: decides which requests reach the application, and how much of them.

On this machine alone, the threat is other web sites in the same browser: they can send requests to 127.0.0.1, or point
their own name at that address (DNS rebinding). So the Host header must name us (`hosts`), and the request must come
from our own page (`origin`); a link on another site may lead to the page and nowhere else. Only routes that the page
uses are answered (`allowed`), and a body that names an address is refused (`intake`). On the network a password is
required as well (`password`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import allowed, hosts, origin
from .allowed import PAGE, Body, Route
from .answers import labelled
from .hosts import Host, Hosts
from .intake import LimitedBody, Refused
from .password import COOKIE, PasswordGate

__all__ = ["COOKIE", "REQUEST_BYTES", "UPLOAD_BYTES", "PasswordGate", "SecurityMiddleware"]

UPLOAD_BYTES = 400 << 20
"""Largest upload: half an hour of CD sound as WAV is 320 MB."""

REQUEST_BYTES = 4 << 20
"""Largest other request: a whole song's words are some kilobytes."""

OTHERS = "Requests from other pages are refused."

HIDDEN = ("x-forwarded-host", "x-forwarded-prefix", "x-gradio-server", "forwarded")
"""Headers that Gradio, or a later version of it, might trust. What is true in them stands in the scope."""

_PREFIX = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


@dataclass(frozen=True)
class _Way:
    """How a request got here: the host it names, whether it came over https, and the path a proxy serves us under."""

    host: Host
    secure: bool
    prefix: str


class SecurityMiddleware:
    """ASGI middleware before `app` at `port`. `listening`: other machines can connect, which needs a `gate`. `names`
    are host names allowed besides our own. `stranger(name, command)` is the page for a name that is not allowed, where
    `command` would allow it."""

    def __init__(
        self,
        app: ASGIApp,
        port: int,
        listening: bool = False,
        gate: PasswordGate | None = None,
        names: tuple[str, ...] = (),
        stranger: Callable[[str, str], str] | None = None,
    ) -> None:
        if listening and gate is None:
            raise ValueError("listening without a password")
        self.app, self.port, self.gate = app, port, gate
        self.hosts, self.stranger = Hosts(listening, names), stranger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the page uses none
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        route = allowed.find(scope["method"], scope["path"], login=self.gate is not None)
        way, refusal = self._judge(scope, headers)
        if way is None or route is None or refusal:
            answer = refusal or PlainTextResponse("There is nothing here.", 404)
        elif self.gate and not self.gate.open_to(headers):
            answer = await self.gate.login_response(route, headers, receive, way.prefix, way.secure)
        elif route is allowed.LOGIN:  # signed in already
            answer = RedirectResponse(f"{way.prefix}/", 303)
        else:
            await self._pass(_forwarded(scope, way), route, way, receive, labelled(send, route.media, scope["path"]))
            return
        await answer(scope, receive, labelled(send, PAGE, scope["path"]))

    def _judge(self, scope: Scope, headers: Headers) -> tuple[_Way | None, Response | None]:
        """How the request got here, and the answer that refuses it, if any."""
        host = hosts.read(headers.get("host", ""))
        if host is None or len(headers.getlist("host")) > 1 or not self.hosts.ours(host):
            return None, self._unknown(host, headers)
        said = headers.get("x-forwarded-proto", scope["scheme"]).partition(",")[0].strip().lower()
        prefix = headers.get("x-forwarded-prefix", "").rstrip("/")
        way = _Way(host, said == "https", prefix if len(prefix) < 200 and _PREFIX.fullmatch(prefix) else "")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return way, PlainTextResponse("There is nothing to be done that way.", 405)
        if origin.foreign(headers, host, way.secure):
            return way, self._from_elsewhere(scope, headers, way)
        return way, None

    def _from_elsewhere(self, scope: Scope, headers: Headers, way: _Way) -> Response | None:
        """The refusal of a request from another site; None for a link to a page, which may be followed. A link with a
        query is redirected without it, because Gradio's scripts act on queries."""
        link = scope["method"] == "GET" and scope["path"] in allowed.LINKED and origin.is_link(headers)
        if link and scope["query_string"]:
            return RedirectResponse(way.prefix + scope["path"], 303)
        if link:
            return None
        known = hosts.read_origin(headers.get("origin", ""))
        if known and known[1] != way.host and self.hosts.ours(known[1]) and known[1].name != way.host.name:
            return PlainTextResponse(
                f"{OTHERS} If a proxy stands between: it has to pass on the name it was asked for, in the header Host.",
                403,
            )
        return PlainTextResponse(OTHERS, 403)

    def _unknown(self, host: Host | None, headers: Headers) -> Response:
        if host is None:
            return PlainTextResponse("This server does not answer under that name.", 421)
        command = f"python launch.py ui{' --listen' if self.hosts.listening else ''} --allow-host {host}"
        if self.stranger and "text/html" in headers.get("accept", ""):
            return HTMLResponse(self.stranger(str(host), command), 421)
        return PlainTextResponse(
            f"This server does not answer under the name {host}; on its own computer it is "
            f"http://127.0.0.1:{self.port}. If the name is yours, end the program and start it with `{command}`; "
            f"in a container, set {hosts.VARIABLE}={host}.",
            421,
        )

    async def _pass(self, scope: Scope, route: Route, way: _Way, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        upload = route.body is Body.UPLOAD
        body = LimitedBody(receive, UPLOAD_BYTES if upload else REQUEST_BYTES, upload)
        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            if not body.refused:  # the application's own answer to a refused body is dropped
                began = True
                await send(message)

        with contextlib.suppress(Refused):
            body.check_announced(headers.get("content-length", "0"))
            taken = await body.read_json(headers, way.host) if route.body is Body.JSON else body.receive
            await self.app(scope, taken, sending)
        if body.refused and not began:
            await PlainTextResponse(body.refused.why, body.refused.status)(scope, receive, send)


def _forwarded(scope: Scope, way: _Way) -> Scope:
    """The scope for the application: with the path a proxy serves us under, and with https if the proxy says so."""
    inner = {**scope, "scheme": "https" if way.secure else "http"}
    headers = MutableHeaders(raw=[(k, v) for k, v in scope["headers"] if k.decode("latin-1").lower() not in HIDDEN])
    headers["x-forwarded-proto"] = inner["scheme"]
    inner["headers"] = headers.raw
    if way.prefix:
        inner |= {"root_path": way.prefix, "path": way.prefix + scope["path"]}
        inner["raw_path"] = way.prefix.encode() + scope.get("raw_path", b"")
    return inner
