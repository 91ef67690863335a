"""Tags in sound files: what is written comes back, other readers agree, the sound does not change by one bit, and
damaged files are refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from yuegp.audio import files, metadata
from yuegp.audio.metadata import Tags, embed, read_tags
from yuegp.errors import RequestError

RATE = 44100
KINDS = {"wav16": ".wav", "wav24": ".wav", "flac16": ".flac", "flac24": ".flac", "mp3": ".mp3"}
TAGS = Tags(
    title="Papierlaternen 紙灯籠 🏮",
    artist="Ünï (cøde)",
    genre="(inspiring) female, pop",
    date="2026-11-20",
    comment=metadata.LABEL + "\nMade with YuE by HKUST/M-A-P",
    lyrics="[verse]\nخطوة على الرمل\n\n[chorus]\nпой со мной\n" + "la " * 30_000,
    software="yuegp 0.1.0",
    settings='{"format":2,"take":{}}',
)


def sound(kind: str, frames: int = 2205) -> bytes:
    wave = (0.3 * np.sin(2 * np.pi * 440 * np.arange(frames) / RATE)).astype(np.float32)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, **files.FORMATS[kind]) as file:
        file.write(wave)
    return buffer.getvalue()


SOUNDS = {kind: sound(kind) for kind in KINDS}


def saved(tmp_path: Path, kind: str, data: bytes | None = None) -> Path:
    path = tmp_path / f"a song é{KINDS[kind]}"
    path.write_bytes(SOUNDS[kind] if data is None else data)
    return path


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int32")[0]


def read_back(data: bytes) -> Tags:
    return Tags(**metadata._read(data))


# There and back


@pytest.mark.parametrize("kind", KINDS)
def test_tags_come_back_and_the_sound_stays_bit_for_bit(tmp_path: Path, kind: str) -> None:
    before = samples(saved(tmp_path, kind))
    path = saved(tmp_path, kind, embed(SOUNDS[kind], TAGS))
    assert read_tags(path) == TAGS
    np.testing.assert_array_equal(samples(path), before)
    assert soundfile.info(path).frames == len(before) == 2205
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_tagging_twice_is_tagging_once_and_no_tags_are_no_bytes(kind: str) -> None:
    once = embed(SOUNDS[kind], TAGS)
    assert embed(embed(SOUNDS[kind], Tags(title="first", lyrics="x" * 999)), TAGS) == once
    bare = embed(once, Tags())
    assert read_back(bare) == read_back(SOUNDS[kind]) == Tags()
    assert len(bare) == len(SOUNDS[kind])


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
DATES = st.just("") | st.dates(date(1000, 1, 1)).map(str) | st.integers(1000, 9999).map(str)


@pytest.mark.parametrize("kind", ["wav16", "flac16", "mp3"])
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXT, min_size=7, max_size=7), day=DATES)
def test_any_text_comes_back(kind: str, texts: list[str], day: str) -> None:
    title, artist, genre, comment, lyrics, software, config = texts
    tags = Tags(title, artist, genre, day, comment, lyrics, software, config)
    data = embed(SOUNDS[kind], tags)
    assert read_back(data) == tags
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.frames == 2205


@pytest.mark.parametrize("text", ["\ufeffmark", "((double", "(17)", "line\r\nline", "\u202eright to left", "=a=b"])
@pytest.mark.parametrize("kind", ["wav16", "flac16", "mp3"])
def test_texts_that_formats_stumble_over(kind: str, text: str) -> None:
    tags = Tags(**{f.name: text for f in dataclasses.fields(Tags) if f.name != "date"})
    assert read_back(embed(SOUNDS[kind], tags)) == tags


@pytest.mark.parametrize("kind", ["wav16", "flac16", "mp3"])
def test_what_no_format_can_hold_is_left_out_or_replaced(kind: str) -> None:
    assert read_back(embed(SOUNDS[kind], Tags(title="a\0b\ud800c", artist="\0"))) == Tags(title="ab\ufffdc")


def test_endless_text_is_refused() -> None:
    with pytest.raises(RequestError, match=r"song\.flac have 2,000,001 characters"):
        embed(SOUNDS["flac16"], Tags(lyrics="x" * 2_000_001), "song.flac")


# Other readers


@pytest.mark.parametrize("kind", ["wav24", "flac24"])
def test_libsndfile_reads_the_same_words(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, kind, embed(SOUNDS[kind], TAGS))
    with soundfile.SoundFile(path) as file:
        told = file.copy_metadata()
    expected = dataclasses.asdict(TAGS)
    assert told == {name: expected[name] for name in metadata._INFO}


def test_libsndfile_reads_the_title_of_an_mp3(tmp_path: Path) -> None:
    path = saved(tmp_path, "mp3", embed(SOUNDS["mp3"], TAGS))
    with soundfile.SoundFile(path) as file:
        assert file.title == TAGS.title and file.artist == TAGS.artist


@pytest.mark.parametrize("kind", ["wav16", "flac16"])
def test_words_that_libsndfile_wrote_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x{KINDS[kind]}"
    with soundfile.SoundFile(path, "w", RATE, 1, **files.FORMATS[kind]) as file:
        file.title, file.artist, file.comment = "Títle", "Årtist", "words"
        file.write(np.zeros(100, np.float32))
    got = read_tags(path)
    assert (got.title, got.artist, got.comment) == ("Títle", "Årtist", "words")


# MP3 and ID3


def id3v24(*frames: tuple[bytes, bytes, int], flags: int = 0, extended: bytes = b"") -> bytes:
    """A tag as other programs write it; frames are name, content and flags."""

    def seven(n: int) -> bytes:
        return bytes(n >> s & 127 for s in (21, 14, 7, 0))

    body = extended + b"".join(name + seven(len(c)) + struct.pack(">H", marks) + c for name, c, marks in frames)
    return b"ID3\4\0" + bytes([flags]) + seven(len(body)) + body + SOUNDS["mp3"]


def test_the_newer_id3_is_read_in_all_its_encodings() -> None:
    data = id3v24(
        (b"TIT2", b"\3" + "Tïtle 🏮\0second value".encode(), 0),
        (b"TPE1", b"\0Bj\xf6rk\0", 0),
        (b"TCON", b"\2" + "pöp".encode("utf-16-be"), 0),
        (b"TDRC", b"\x032026-11-20", 0),
        (b"COMM", b"\3engiTunNORM\0 00000A", 0),
        (b"COMM", b"\3deu\0nett", 0),
        (b"USLT", b"\1deu\xff\xfe\0\0\xff\xfe" + "Wörter".encode("utf-16-le"), 0),
        (b"TXXX", b"\1\xfe\xff" + "yuegp\0\ufeff{}".encode("utf-16-be"), 0),
        (b"APIC", b"\0image/png\0\3\0" + bytes(500), 0),
        flags=0x40,
        extended=b"\0\0\0\6\1\0",
    )
    assert read_back(data) == Tags("Tïtle 🏮", "Björk", "pöp", "2026-11-20", "nett", "Wörter", "", "{}")


def test_unsynchronised_grouped_and_compressed_frames() -> None:
    text = b"\1" + "\ufeffÿĀ".encode("utf-16-le")
    pulled = text.replace(b"\xff", b"\xff\0")
    length = struct.pack(">I", len(text))
    assert read_back(id3v24((b"TIT2", length + pulled, 3), (b"TPE1", b"\7" + text, 0x40))) == Tags("ÿĀ", "ÿĀ")
    assert read_back(id3v24((b"TIT2", b"\3zip", 8), (b"TPE1", b"\3plain", 0))) == Tags(artist="plain")
    body = b"TIT2" + struct.pack(">IH", len(text), 0) + text
    old = body.replace(b"\xff", b"\xff\0")
    assert read_back(b"ID3\3\0\x80\0\0\0" + bytes([len(old)]) + old + SOUNDS["mp3"]) == Tags("ÿĀ")


def test_an_older_date_and_padding_are_read() -> None:
    data = embed(SOUNDS["mp3"], Tags(date="1999"))
    body = data[10 : -len(SOUNDS["mp3"])] + bytes(300)
    padded = b"ID3\3\0\0\0\0" + bytes([len(body) >> 7, len(body) & 127]) + body + SOUNDS["mp3"]
    assert read_back(padded) == Tags(date="1999")
    assert embed(padded, Tags(date="1999")) == data


def test_a_tag_older_than_ours_counts_as_none() -> None:
    assert read_back(b"ID3\2\0\0\0\0\0\x0bTT2\0\0\5\0abcd" + SOUNDS["mp3"]) == Tags()


# FLAC


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    return metadata._flac_blocks(data, 0)[0]


def test_flac_keeps_its_other_blocks_and_its_maker() -> None:
    plain = SOUNDS["flac24"]
    found, start = metadata._flac_blocks(plain, 0)
    other, padding = (2, b"test" + bytes(range(200))), (1, bytes(64))
    out = b"fLaC"
    foreign = [found[0], other, *found[1:], (4, b"\1\0\0\0x\0\0\0\0"), padding]
    for i, (number, body) in enumerate(foreign):
        out += bytes([number | (128 if i == len(foreign) - 1 else 0)]) + len(body).to_bytes(3, "big") + body
    data = embed(out + plain[start:], TAGS)
    got = blocks(data)
    assert got[0] == found[0] and [number for number, _ in got] == [0, 4, 2, 1]
    assert got[2:] == [other, padding]
    assert metadata._comment_parts(got[1][1])[0].startswith(b"reference libFLAC")
    assert soundfile.read(io.BytesIO(data))[0].tolist() == soundfile.read(io.BytesIO(plain))[0].tolist()


def test_flac_without_comments_gets_a_block_and_a_new_last_one() -> None:
    plain = SOUNDS["flac24"]
    info, start = plain[8:42], metadata._flac_blocks(plain, 0)[1]
    data = embed(b"fLaC\x80\0\0\x22" + info + plain[start:], TAGS)
    assert [number for number, _ in blocks(data)] == [0, 4] and data[4] == 0
    assert read_back(data) == TAGS and len(soundfile.read(io.BytesIO(data))[0]) == 2205


def test_flac_behind_an_id3_tag_is_flac() -> None:
    data = embed(SOUNDS["mp3"], Tags(title="other"))[: -len(SOUNDS["mp3"])] + embed(SOUNDS["flac24"], TAGS)
    assert read_back(data) == TAGS
    assert embed(data, TAGS)[:4] == b"fLaC"


# WAV


def chunks(data: bytes) -> list[tuple[bytes, int]]:
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    return [(name, stop - start) for name, start, stop in metadata._wav_chunks(data)]


def test_wav_sizes_and_padding_are_right() -> None:
    odd = sound("wav24", 333)  # 999 bytes of sound
    for data in (embed(odd, TAGS), embed(odd, Tags(title="x")), embed(odd[:-1] if len(odd) % 2 == 0 else odd, TAGS)):
        names = [name for name, _ in chunks(data)]
        assert names == [b"fmt ", b"data", b"LIST", b"id3 "] and len(data) % 2 == 0
        assert dict(chunks(data))[b"data"] == 999
        assert len(soundfile.read(io.BytesIO(data))[0]) == 333


def test_wav_keeps_chunks_it_does_not_know_and_lists_of_another_kind() -> None:
    plain = SOUNDS["wav16"]
    extra = b"cue \3\0\0\0abc\0" + b"LIST\4\0\0\0adtl" + b"LIST\x12\0\0\0INFOINAM\5\0\0\0old!\0\0"
    data = embed(plain[:4] + struct.pack("<I", len(plain) - 8 + len(extra)) + plain[8:] + extra, Tags(title="new"))
    assert [name for name, _ in chunks(data)] == [b"fmt ", b"data", b"cue ", b"LIST", b"LIST", b"id3 "]
    assert b"cue \3\0\0\0abc\0" in data and b"old!" not in data


def test_wav_with_words_from_an_old_windows_program(tmp_path: Path) -> None:
    extra = b"LIST\x14\0\0\0INFOINAM\7\0\0\0Caf\xe9\0\0\0\0"
    plain = SOUNDS["wav16"]
    path = saved(tmp_path, "wav16", plain[:4] + struct.pack("<I", len(plain) - 8 + len(extra)) + plain[8:] + extra)
    assert read_tags(path).title == "Café"


def test_wav_that_never_got_its_size_is_read() -> None:
    data = embed(SOUNDS["wav16"], TAGS)
    for size in (0, 0xFFFFFFFF):
        assert read_back(data[:4] + struct.pack("<I", size) + data[8:]) == TAGS


# Refusals


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"just some words", "neither WAV nor FLAC nor MP3"),
        (b"OggS" + bytes(100), "neither WAV nor FLAC nor MP3"),
        (b"ID3\3\0\0\0\0\7\7short", "its ID3 tag is to have"),
        (b"ID3\3\0\0\xff\0\0\0" + bytes(9), "a length is not one"),
        (b"ID3\3", "a length is not one"),
        (b"fLaC", "inside a FLAC block"),
        (b"fLaC\x80\0\0\1x", "not STREAMINFO"),
        (SOUNDS["flac16"][:30], "inside a FLAC block"),
        (SOUNDS["wav16"][:100], "inside its chunk 'data'"),
    ],
)
def test_files_that_are_none_are_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = saved(tmp_path, "wav16", data)
    for act in (lambda: read_tags(path), lambda: embed(data, TAGS, str(path))):
        with pytest.raises(RequestError, match=message) as caught:
            act()
        assert str(path) in caught.value.what and caught.value.hint


def test_wav_without_sound_gets_no_tags() -> None:
    with pytest.raises(RequestError, match="no sound in it"):
        embed(b"RIFF\4\0\0\0WAVE", TAGS)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        read_tags(tmp_path / "none.wav")
    with pytest.raises(RequestError, match="cannot be read"):
        read_tags(tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_read_or_refused_but_never_crashes(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["wav16", "flac16", "mp3"]))
    whole = bytearray(embed(SOUNDS[kind], Tags(title="title", comment="comment", lyrics="words", settings="{}")))
    for _ in range(data.draw(st.integers(1, 4))):
        near = data.draw(st.integers(0, 400))
        at = near if kind != "wav16" or near < 60 else len(whole) - near
        whole[at] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    with contextlib.suppress(ValueError):
        metadata._read(cut)
    with contextlib.suppress(RequestError):
        embed(cut, Tags(title="new"))
