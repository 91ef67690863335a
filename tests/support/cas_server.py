"""The hub's chunked storage ("Xet"), as hf-xet 1.8 asks it: which chunks a file is made of, and the chunks.

Source: the protocol's public description (huggingface.co/docs/xet: download protocol, xorb format). Every file is one
container ("xorb") of uncompressed chunks. Real ones are compressed and shared between files; neither matters to us."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

CHUNK = 8192
"""Bytes of a chunk; 64 KB on average in the real one."""

TERM = 4
"""Chunks that are fetched together."""


def hash_of(path: Path) -> str:
    """What the storage knows a file by. Ours is another hash than the real one, which no client computes."""
    return hashlib.sha256(b"xet" + path.read_bytes()).hexdigest()


def _container(data: bytes) -> list[bytes]:
    """A file's chunks with their headers: version, packed length, compression (none), length."""
    pieces = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
    return [b"\0" + (length := len(p).to_bytes(3, "little")) + b"\0" + length + p for p in pieces]


def _span(header: str | None, size: int) -> tuple[int, int]:
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "bytes=0-")
    assert asked
    return int(asked[1]), min(size, int(asked[2] or size) + 1)


def reconstruction(data: bytes, name: str, header: str | None, address: str) -> tuple[int, bytes]:
    """Status and body of an answer to `/v1/reconstructions/`: the chunks that cover a range of the file."""
    start, stop = _span(header, len(data))
    if start >= len(data):
        return 416, b""
    first, last = start // CHUNK, -(-stop // CHUNK)
    ends = [0]
    for piece in _container(data):
        ends.append(ends[-1] + len(piece))
    terms, where = [], []
    for at in range(first, last, TERM):
        chunks = {"start": at, "end": (end := min(at + TERM, last))}
        terms.append({"hash": name, "unpacked_length": min(len(data), end * CHUNK) - at * CHUNK, "range": chunks})
        where.append({"range": chunks, "url": address, "url_range": {"start": ends[at], "end": ends[end] - 1}})
    body = {"offset_into_first_range": start - first * CHUNK, "terms": terms, "fetch_info": {name: where}}
    return 200, json.dumps(body).encode()


def container(data: bytes, header: str | None) -> tuple[bytes, str]:
    """A range of a file's container, and the Content-Range that goes with it."""
    whole = b"".join(_container(data))
    start, stop = _span(header, len(whole))
    return whole[start:stop], f"bytes {start}-{stop - 1}/{len(whole)}"
