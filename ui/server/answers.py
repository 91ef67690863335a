"""Headers of every answer. A page may load what this server has and nothing else. Any other answer is sandboxed: shown
in a browser, it can do nothing. Its content type is set here and never taken from a file."""

from __future__ import annotations

from pathlib import PurePosixPath

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from .allowed import BY_ENDING, JSON, PAGE

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
"""Content-Security-Policy of pages: they load nothing from other servers, whatever stands in them."""

SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""Content-Security-Policy of all other answers: no script, no form, and an origin that is not ours."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Yuegp": "1",  # tells the doctor that the program on this port is ours
}

UNKNOWN = "application/octet-stream"

TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".ttf": "font/ttf",
    ".wav": "audio/wav",
    ".wave": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".m4a": "audio/mp4",
    ".mp4": "audio/mp4",
    ".aac": "audio/aac",
    ".wma": "audio/x-ms-wma",
    ".webm": "audio/webm",
    ".txt": "text/plain; charset=utf-8",
    ".lrc": "text/plain; charset=utf-8",
    ".json": JSON,
}
"""Content types by ending. Any other file is sent as bytes to save."""


def media_of(media: str, path: str) -> str:
    """The content type of a successful answer on a route of `media`."""
    return TYPES.get(PurePosixPath(path).suffix.lower(), UNKNOWN) if media == BY_ENDING else media


def labelled(send: Send, media: str, path: str) -> Send:
    """`send`, adding the security headers and the content type of an answer on a route of `media`."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            _label(headers, message["status"], media, path)
        await send(message)

    return sending


def _label(headers: MutableHeaders, status: int, media: str, path: str) -> None:
    said = headers.get("content-type", "")
    shown = media == PAGE and said.startswith("text/html")
    headers["Content-Security-Policy"] = POLICY if shown else SANDBOX
    for name, value in HEADERS.items():
        headers[name] = value
    if shown or not said:
        return
    kind = media_of(media, path)
    if media == PAGE or status >= 400:  # what Gradio says of a failure is JSON, and ours is a sentence
        kind = JSON if said.startswith(JSON) else "text/plain; charset=utf-8"
    headers["Content-Type"] = kind
    if kind == UNKNOWN and not headers.get("content-disposition", "").startswith("attachment"):
        headers["Content-Disposition"] = "attachment"
