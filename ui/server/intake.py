"""Checks of a request's body: its size, the kinds of files, and that no address in it makes the server fetch one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from .hosts import Host, read_origin

UPLOADS = frozenset(".wav .wave .flac .mp3 .ogg .oga .opus .aif .aiff .m4a .mp4 .aac .wma .webm .txt .lrc".split())
"""Endings of files that may be uploaded: texts, and sound, also of kinds we cannot read, which the page explains."""

NAMING = ("path", "url", "proxy_url")
"""Keys under which a file's description in JSON says where the file is. Gradio fetches an address that stands there."""

TAIL = 8192
"""Bytes of an upload kept to read a header that arrives in pieces. Gradio refuses longer headers."""

_ADDRESS = re.compile(r"[\x00-\x20]*(?:[a-z][a-z0-9+.-]+:|[\\/][\x00-\x20]*[\\/])", re.IGNORECASE)
"""How an address begins: a scheme, which has two letters or more (`C:` is a drive), or two strokes, as on Windows a
path that leads to another machine does."""


class Refused(Exception):
    """The body of a request is not allowed, which may show half-way through it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class LimitedBody:
    """A request's body. Raises `Refused` after more than `most` bytes, and for an upload of a kind not in `UPLOADS`."""

    def __init__(self, receive: Receive, most: int, upload: bool = False) -> None:
        self.refused: Refused | None = None
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
            self._tail = seen[-TAIL:]
        return message

    async def read_json(self, headers: Headers, host: Host) -> Receive:
        """Read and check a body of JSON; returns a `receive` that delivers it again. Refused when it is no JSON, or
        names an address that is not on this `host`."""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            self._refuse(415, "JSON is taken here: send Content-Type: application/json.")
        body, message = b"", await self.receive()
        while message["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
            message = await self.receive()
        try:
            strange = next(addresses(json.loads(body), host), None)
        except (ValueError, RecursionError):
            self._refuse(400, "This is not JSON.")
        if strange is not None:
            self._refuse(403, "Files are taken from this computer only: upload it first, and name what that answers.")
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return given.pop() if given else await self._receive()

        return again

    def _refuse(self, status: int, why: str) -> NoReturn:
        self.refused = Refused(status, why)
        raise self.refused


def addresses(value: Any, host: Host) -> Iterator[str]:
    """The addresses in the descriptions of files in `value`, except those of files that `host` itself serves."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for name, what in item.items():
                address = name in NAMING and isinstance(what, str) and _ADDRESS.match(what)
                if address and not (name == "url" and _is_own_file(what, host)):
                    yield what
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _is_own_file(url: str, host: Host) -> bool:
    found = read_origin(url)
    return found is not None and found[1] == host and "/gradio_api/file=" in urlsplit(url).path


def _names(part: bytes) -> Iterator[str]:
    """The file names in a piece of a multipart body. A line cut off at its end is read with the next piece."""
    for line in re.findall(rb"(?i)content-disposition:([^\r\n]*)\r\n", part):
        if b"filename" in line.lower():
            found = re.search(rb'(?i)filename\s*=\s*"([^"]*)"', line)
            yield found[1].decode("utf-8", "replace") if found else ""
