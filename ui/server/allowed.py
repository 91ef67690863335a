"""The allow list: every method and route that the page, or a program, uses. Gradio has many more routes, and each
version adds some; a request reaches none that is not listed here.

Paths are matched after decoding, as the routers match them. `tests/ui/server/test_allowed.py` walks every
registered route and wants it listed here or refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from ui.texts import LANGUAGES

CALLS = ("make", "status", "stop", "songs", "export")
"""API calls for programs."""

PAGE = "page"
"""In place of a content type: a document that a browser shows, with scripts."""

BY_ENDING = "by ending"
"""In place of a content type: `answers.TYPES` has it, by the ending of the path."""

JSON, EVENTS = "application/json", "text/event-stream"

_LANGUAGE = f"(?:{'|'.join(LANGUAGES)})"
_ANY = f"/(?:{'|'.join(LANGUAGES)}|api)"
_CALL = f"/api/gradio_api/call/(?:{'|'.join(CALLS)})"


class Body(Enum):
    """What the body of a request may be."""

    NOTHING = auto()
    JSON = auto()
    UPLOAD = auto()
    FORM = auto()


@dataclass(frozen=True)
class Route:
    """An allowed route. `media` is the content type of its successful answer, or `PAGE`, or `BY_ENDING`."""

    methods: tuple[str, ...]
    path: re.Pattern[str]
    media: str
    body: Body = Body.NOTHING


def _look(path: str, media: str, *methods: str) -> Route:
    return Route(methods or ("GET",), re.compile(path), media)


def _send(path: str, body: Body = Body.JSON, media: str = JSON) -> Route:
    return Route(("POST",), re.compile(path), media, body)


LOGIN = _send(f"(?:{_ANY})?/login/?", Body.FORM, PAGE)
"""Takes the password. Allowed only when one is set."""

ROUTES = (
    _look(f"/|{_ANY}/?", PAGE, "GET", "HEAD"),
    _look(f"(?:/{_LANGUAGE})?/favicon\\.ico", "image/svg+xml", "GET", "HEAD"),
    _look(f"(?:/{_LANGUAGE})?/sound/[^/]+/[0-9]+/(?:hear/)?[a-z0-9-]+\\.flac", BY_ENDING, "GET", "HEAD"),
    _look(f"(?:/{_LANGUAGE})?/export/[^/]+/[^/]+", BY_ENDING, "GET", "HEAD"),
    _look(f"{_ANY}/gradio_api/file=.+", BY_ENDING, "GET", "HEAD"),
    _look(f"{_ANY}/assets/[A-Za-z0-9_-]+(?:\\.[A-Za-z0-9_-]+)*\\.(?:js|css|woff2?|ttf|svg)", BY_ENDING),
    _look(f"{_ANY}/static/js/iframeResizer\\.contentWindow\\.min\\.js", BY_ENDING),
    _look(f"{_ANY}/theme\\.css", BY_ENDING),
    _look(f"{_ANY}/config", JSON),
    _look(f"{_ANY}/gradio_api/(?:info|app_id)", JSON),
    _look(f"{_ANY}/gradio_api/(?:heartbeat/[A-Za-z0-9-]{{1,64}}|queue/data|upload_progress)", EVENTS),
    _send(f"{_ANY}/gradio_api/upload", Body.UPLOAD),
    _send(f"{_ANY}/gradio_api/queue/join"),
    _send(f"/{_LANGUAGE}/gradio_api/(?:run/predict|component_server/)"),
    _send("/api/gradio_api/(?:cancel|reset)"),
    _send(_CALL),
    _look(f"{_CALL}/[0-9a-f]{{32}}", EVENTS),
)

LINKED = frozenset(("/", *(f"/{language}/" for language in LANGUAGES)))
"""Pages that a link on another web site may lead to."""


def find(method: str, path: str, login: bool = False) -> Route | None:
    """The route of a request; None when it is not allowed. `login`: a password is set."""
    if any(character < " " or character == "\x7f" for character in path):
        return None
    routes = (*ROUTES, LOGIN) if login else ROUTES
    return next((r for r in routes if method in r.methods and r.path.fullmatch(path)), None)
