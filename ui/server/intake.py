"""What a request brings along: how much, which files, and that nothing in it sends the server elsewhere."""

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
"""Endings of files that may be uploaded: sound, also kinds we cannot read (the page says so better), and words."""

NAMING = ("path", "url", "proxy_url")
"""Where a file's description in JSON says where the file is. Gradio fetches what is an address there."""

TAIL = 8192
"""Bytes kept of what has passed, for a header of an upload that the network cuts; longer ones Gradio refuses."""

_ADDRESS = re.compile(r"[\x00-\x20]*(?:[a-z][a-z0-9+.-]+:|[\\/][\x00-\x20]*[\\/])", re.IGNORECASE)
"""How an address begins: a scheme, which has two letters or more (`C:` is a drive), or two strokes, as on Windows a
path that leads to another machine does."""


class Refused(Exception):
    """A request turned out to be what it may not be, half-way through."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class LimitedBody:
    """A request's body: raises `Refused` once more than `most` bytes have come, or a kind of file that is not taken."""

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
        """Take in a body of JSON and look through it; returns what gives it again. Refused when it is something else,
        or names an address that is not on this `host`."""
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
    """What the descriptions of files in `value` name that is an address, but for files that `host` itself gives out."""
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
    """The file names in a piece of a multipart body. A line that is cut off at the end is seen with the next piece."""
    for line in re.findall(rb"(?i)content-disposition:([^\r\n]*)\r\n", part):
        if b"filename" in line.lower():
            found = re.search(rb'(?i)filename\s*=\s*"([^"]*)"', line)
            yield found[1].decode("utf-8", "replace") if found else ""
