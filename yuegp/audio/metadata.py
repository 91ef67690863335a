"""Metadata in sound files: title, lyrics, labels and settings, written and read without touching the sound.

    MP3    an ID3v2.3 tag in front of the frames
    FLAC   one VORBIS_COMMENT block; every other block stays, STREAMINFO first
    WAV    a `LIST INFO` chunk for old programs and an `id3 ` chunk with everything, behind the other chunks

Written from the formats' descriptions (id3.org, xiph.org and RFC 9639, the RIFF note of 1991), because the usual
library is under the GPL. Reads what other programs write, too: ID3v2.4, its four text encodings, unsynchronisation.
(FFmpeg drops the `id3 ` chunk when it copies a WAV.) `library/export.py` decides what the tags say and when to write
them.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yuegp.checked import Fault
from yuegp.errors import RequestError
from yuegp.files import read_bytes

LABEL = "AI-generated"
"""Label of exported songs: YuE's authors ask publishers to say that a song is generated, and to name the model."""

LARGEST_FILE = 2**30
"""Most bytes of a file. A ten-minute stereo WAV has 160 million."""

LARGEST_TEXT = 2_000_000
"""Most characters of all texts together. FLAC's blocks end at 16 MB, and lyrics have at most 0.2 MB."""


@dataclass(frozen=True)
class Tags:
    """The tags of a sound file; empty ones are not written. NUL is dropped and a lone surrogate becomes U+FFFD."""

    title: str = ""
    artist: str = ""
    genre: str = ""
    """The song's tag line."""
    date: str = ""
    """YYYY or YYYY-MM-DD, the only forms of ID3v2.3."""
    comment: str = ""
    lyrics: str = ""
    software: str = ""
    settings: str = ""
    """Everything needed to make the song again, as `library/export.py` writes it."""


_ID3 = {"title": "TIT2", "artist": "TPE1", "genre": "TCON", "software": "TSSE", "comment": "COMM", "lyrics": "USLT"}
_VORBIS = {**{field.name: field.name.upper() for field in dataclasses.fields(Tags)}, "settings": "YUEGP"}
_INFO = {
    "title": b"INAM",
    "artist": b"IART",
    "genre": b"IGNR",
    "date": b"ICRD",
    "comment": b"ICMT",
    "software": b"ISFT",
}

_UNWRITABLE = re.compile("[\ud800-\udfff]")
_DATE = re.compile(r"(\d{4})(?:-(\d\d)-(\d\d))?", re.ASCII)


# Files


def read_tags(path: Path | str) -> Tags:
    """The tags of a WAV, FLAC or MP3 file; the first value of each. Raises RequestError."""
    data = _bytes(path)
    try:
        found = _read(data)
    except ValueError as exc:
        raise _damaged(str(path), exc) from exc
    names = {field.name for field in dataclasses.fields(Tags)}
    return Tags(**{name: text for name, text in found.items() if name in names})


def embed(data: bytes, tags: Tags, name: str = "The file") -> bytes:
    """The sound file `data` with its tags replaced. Raises RequestError, whose message begins with `name`."""
    texts = {
        key: _UNWRITABLE.sub("\ufffd", text.replace("\0", ""))
        for key, text in dataclasses.asdict(tags).items()
        if text.replace("\0", "")
    }
    if (size := sum(map(len, texts.values()))) > LARGEST_TEXT:
        raise RequestError(
            f"The texts for {name} have {size:,} characters; {LARGEST_TEXT:,} fit into a sound file.",
            "Shorten the lyrics or the comment.",
        )
    try:
        kind, start = _kind(data)
        if kind == "wav":
            return _write_wav(data, texts)
        if kind == "flac":
            return _write_flac(data[start:], texts)
        return _id3(texts) + data[start:]
    except ValueError as exc:
        raise _damaged(name, exc) from exc


def _bytes(path: Path | str) -> bytes:
    try:
        return read_bytes(Path(path), LARGEST_FILE)
    except FileNotFoundError as exc:
        raise RequestError(f"The sound file {path} does not exist.", "Check the path.") from exc
    except OSError as exc:
        raise RequestError(f"{path} cannot be read: {exc.strerror or exc}.", "Choose another file.") from exc
    except Fault as exc:
        raise RequestError(f"{path} cannot be read: {exc}.", "Give a file that yuegp exported.") from exc


def _damaged(name: str, exc: ValueError) -> RequestError:
    return RequestError(f"{name} cannot be used: {exc}.", "Give a WAV, FLAC or MP3 file that plays elsewhere.")


def _kind(data: bytes) -> tuple[str, int]:
    """`wav`, `flac` or `mp3`, and the offset behind an ID3 tag, which some programs put in front of FLAC too."""
    start = _id3_length(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav", 0
    if data[start : start + 4] == b"fLaC":
        return "flac", start
    if start or (data[:1] == b"\xff" and data[1:2] >= b"\xe0"):
        return "mp3", start
    raise ValueError("it is neither WAV nor FLAC nor MP3" if data else "it is empty")


def _read(data: bytes) -> dict[str, str]:
    kind, start = _kind(data)
    if kind == "mp3":
        return _read_id3(data[:start])
    if kind == "flac":
        comments = [body for number, body in _flac_blocks(data, start)[0] if number == _COMMENTS]
        return _read_comments(comments[0]) if comments else {}
    found: dict[str, str] = {}
    for chunk, start, stop in _wav_chunks(data):
        if _is_info(data, chunk, start):
            found = {**_read_info(data, start + 4, stop), **found}
        elif chunk.lower() == b"id3 ":
            found.update(_read_id3(data[start:stop]))
    return found


# ID3


def _id3(texts: dict[str, str]) -> bytes:
    """An ID3v2.3 tag, every text in UTF-16 with its byte order mark."""

    def frame(name: str, *strings: str, language: bytes = b"") -> bytes:
        body = b"\1" + language + b"\0\0".join(b"\xff\xfe" + s.encode("utf-16-le") for s in strings)
        return struct.pack(">4sIH", name.encode(), len(body), 0) + body

    frames = []
    for key, text in texts.items():
        if key == "settings":
            frames.append(frame("TXXX", "YUEGP", text))
        elif key == "date":
            if date := _DATE.fullmatch(text):
                frames.append(frame("TYER", date[1]))
                if date[2]:
                    frames.append(frame("TDAT", date[3] + date[2]))
        elif key in ("comment", "lyrics"):
            frames.append(frame(_ID3[key], "", text, language=b"eng"))
        else:  # in a genre, an opening parenthesis begins a number
            frames.append(frame(_ID3[key], "(" + text if key == "genre" and text[0] == "(" else text))
    body = b"".join(frames)
    if not body:
        return b""  # a tag has at least one frame
    return b"ID3\3\0\0" + bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0)) + body


def _id3_length(data: bytes) -> int:
    """Bytes of the ID3v2 tag at the beginning, 0 without one. Raises ValueError for one that is cut off."""
    if data[:3] != b"ID3":
        return 0
    length = 10 + _seven_bits(data[6:10]) + 10 * (data[3] >= 4 and bool(data[5] & 0x10))
    if length > len(data):
        raise ValueError(f"its ID3 tag is to have {length} bytes, but the file ends after {len(data)}")
    return length


def _seven_bits(data: bytes) -> int:
    if len(data) < 4 or max(data) > 127:
        raise ValueError("its ID3 tag is damaged: a length is not one")
    return data[0] << 21 | data[1] << 14 | data[2] << 7 | data[3]


def _read_id3(tag: bytes) -> dict[str, str]:
    """Fields of `Tags` from an ID3v2.3 or 2.4 tag. Skips compressed and encrypted frames."""
    length = _id3_length(tag)
    if not length or tag[3] not in (3, 4):
        return {}
    newer, flags, body = tag[3] == 4, tag[5], tag[10:length]
    if flags & 0x80 and not newer:
        body = body.replace(b"\xff\0", b"\xff")
    at = 0
    if flags & 0x40:  # an extended header; only the newer version includes itself in its length
        at = _seven_bits(body[:4]) if newer else 4 + int.from_bytes(body[:4], "big")
    found: dict[str, str] = {}
    while re.fullmatch(rb"[A-Z0-9]{4}", name := body[at : at + 4]):
        size = _seven_bits(body[at + 4 : at + 8]) if newer else int.from_bytes(body[at + 4 : at + 8], "big")
        marks = int.from_bytes(body[at + 8 : at + 10], "big")
        content = body[at + 10 : at + 10 + size]
        if len(content) < size:
            raise ValueError(f"its ID3 frame {name.decode()} is to have {size} bytes, but {len(content)} are there")
        at += 10 + size
        if marks & (0x0C if newer else 0xC0):
            continue
        content = content[bool(marks & (0x40 if newer else 0x20)) :]  # group number
        if newer:
            content = content[4 * (marks & 1) :]  # data length indicator
            if marks & 2 or flags & 0x80:
                content = content.replace(b"\xff\0", b"\xff")
        for key, text in _read_frame(name.decode(), content):
            found.setdefault(key, text)
    if year := found.pop("year", ""):
        day = found.pop("day", "")
        found.setdefault("date", f"{year}-{day[2:]}-{day[:2]}" if len(day) == 4 else year)
    return found


def _read_frame(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    if name in ("COMM", "USLT"):
        described = _strings(content[:1] + content[4:])
        if len(described) > 1 and (name == "USLT" or not described[0]):
            yield ("comment" if name == "COMM" else "lyrics"), described[1]
        return
    strings = _strings(content)
    if name == "TXXX" and len(strings) > 1 and strings[0].upper() == "YUEGP":
        yield "settings", strings[1]
    elif name == "TCON":
        yield "genre", strings[0][strings[0].startswith("((") :]
    elif key := {"TDRC": "date", "TYER": "year", "TDAT": "day"}.get(name):
        yield key, strings[0]
    else:
        yield from ((key, strings[0]) for key, frame in _ID3.items() if frame == name)


def _strings(content: bytes) -> list[str]:
    """The strings of a text frame: a byte for the encoding, then strings separated by NUL."""
    codecs = ("latin-1", "utf-16", "utf-16-be", "utf-8")
    codec = codecs[content[0]] if content[:1] and content[0] < len(codecs) else "latin-1"
    first, *rest = content[1:].decode(codec, "replace").split("\0")
    return [first, *(s.removeprefix("\ufeff") if codec == "utf-16" else s for s in rest)]  # each has its own mark


# FLAC

_STREAMINFO, _COMMENTS = 0, 4


def _flac_blocks(data: bytes, start: int) -> tuple[list[tuple[int, bytes]], int]:
    """The metadata blocks as (type, content), and the offset of the sound."""
    blocks: list[tuple[int, bytes]] = []
    at, last = start + 4, False
    while not last:
        head = data[at : at + 4]
        body = data[at + 4 : at + 4 + int.from_bytes(head[1:], "big")]
        if len(head) < 4 or len(body) < int.from_bytes(head[1:], "big"):
            raise ValueError(f"it ends after {len(data)} bytes, inside a FLAC block")
        last = head[0] >= 128
        blocks.append((head[0] & 127, body))
        at += 4 + len(body)
    if blocks[0][0] != _STREAMINFO or len(blocks[0][1]) != 34:
        raise ValueError("its first FLAC block is not STREAMINFO")
    return blocks, at


def _write_flac(data: bytes, texts: dict[str, str]) -> bytes:
    blocks, sound = _flac_blocks(data, 0)
    old = [body for number, body in blocks if number == _COMMENTS]
    vendor = _comment_parts(old[0])[0] if old else b""
    comments = [f"{_VORBIS[key]}={text}".encode() for key, text in texts.items()]
    body = b"".join([_sized(vendor), struct.pack("<I", len(comments)), *map(_sized, comments)])
    blocks = [blocks[0], (_COMMENTS, body), *(block for block in blocks[1:] if block[0] != _COMMENTS)]
    out = [b"fLaC"]
    for i, (number, body) in enumerate(blocks):
        out += [bytes([number | (128 if i == len(blocks) - 1 else 0)]), len(body).to_bytes(3, "big"), body]
    return b"".join([*out, data[sound:]])


def _sized(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _comment_parts(body: bytes) -> list[bytes]:
    """The vendor string and the comments of a VORBIS_COMMENT block."""
    parts: list[bytes] = []
    at, count = 0, 1
    while len(parts) < count:
        size = int.from_bytes(body[at : at + 4], "little")
        if at + 4 + size > len(body):
            raise ValueError("its FLAC comments are damaged: a length leads out of them")
        parts.append(body[at + 4 : at + 4 + size])
        at += 4 + size
        if len(parts) == 1:
            count += int.from_bytes(body[at : at + 4], "little")
            at += 4
    return parts


def _read_comments(body: bytes) -> dict[str, str]:
    keys = {name: key for key, name in _VORBIS.items()}
    found: dict[str, str] = {}
    for comment in _comment_parts(body)[1:]:
        name, _, text = comment.decode("utf-8", "replace").partition("=")
        if key := keys.get(name.upper()):
            found.setdefault(key, text)
    return found


# WAV


def _wav_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Every chunk: its name, start and end of its content."""
    size = int.from_bytes(data[4:8], "little")
    end = 8 + size if 4 <= size <= len(data) - 8 else len(data)  # an interrupted recorder leaves no size
    at = 12
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > len(data):
            raise ValueError(f"it ends after {len(data)} bytes, inside its chunk {name.decode('latin-1')!r}")
        yield name, at + 8, at + 8 + size
        at += 8 + size + size % 2


def _is_info(data: bytes, name: bytes, start: int) -> bool:
    return name == b"LIST" and data[start : start + 4] == b"INFO"


def _write_wav(data: bytes, texts: dict[str, str]) -> bytes:
    chunks = [
        (name, data[start:stop])
        for name, start, stop in _wav_chunks(data)
        if not _is_info(data, name, start) and name.lower() != b"id3 "
    ]
    if not {b"fmt ", b"data"} <= {name for name, _ in chunks}:
        raise ValueError("there is no sound in it")
    info = [(_INFO[key], text.encode() + b"\0") for key, text in texts.items() if key in _INFO]
    if texts:
        chunks += [(b"LIST", b"INFO" + b"".join(_chunk(*entry) for entry in info)), (b"id3 ", _id3(texts))]
    body = b"WAVE" + b"".join(_chunk(*chunk) for chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _read_info(data: bytes, start: int, stop: int) -> dict[str, str]:
    """Fields from the content of a LIST INFO chunk: UTF-8 as we write it, else decoded as Windows-1252."""
    keys = {name: key for key, name in _INFO.items()}
    found: dict[str, str] = {}
    while start + 8 <= stop:
        name, size = struct.unpack_from("<4sI", data, start)
        text = data[start + 8 : min(start + 8 + size, stop)].split(b"\0")[0]
        if name in keys:
            try:
                found.setdefault(keys[name], text.decode())
            except UnicodeDecodeError:
                found.setdefault(keys[name], text.decode("cp1252", "replace"))
        start += 8 + size + size % 2
    return found
