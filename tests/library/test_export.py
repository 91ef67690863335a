"""Exports: stems that sum to the mix, names that never collide, words with times; and settings that come back."""

from __future__ import annotations

import errno
import importlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from exports import FRAMES, REQUEST, SPANS, TITLED, make_song
from hypothesis import given
from hypothesis import strategies as st

from yuegp.audio import files, metadata, mix
from yuegp.cli.wording import sentence
from yuegp.errors import Cancelled, LibraryError, RequestError
from yuegp.library import export
from yuegp.library.export import file_name, import_file
from yuegp.library.store import Take
from yuegp.song.schema import Reference, Section, SongInfo, Span, Stage, TakeInfo


def ints(path: Path, bits: int) -> np.ndarray:
    return soundfile.read(path, dtype="int32")[0].astype(np.int64) >> (32 - bits)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Sound


@pytest.mark.parametrize(("kind", "bits"), [("wav16", 16), ("wav24", 24), ("flac", 24)])
def test_stems_sum_to_the_mix_sample_by_sample(tmp_path: Path, kind: str, bits: int) -> None:
    """Inherited fault: stems that do not sum to the mix."""
    song, take = make_song(tmp_path / "songs")
    paths = export.export(song, take, tmp_path / "out", kind)
    ending = paths[0].suffix
    assert [path.name for path in paths] == [f"{name}{ending}" for name in TITLED] + ["Paper Lanterns.lrc"]
    assert names(tmp_path / "out") == sorted(path.name for path in paths)
    whole, vocal, instrumental = (ints(path, bits) for path in paths[:3])
    np.testing.assert_array_equal(whole, vocal + instrumental)
    for path, exported in ((take.mix, whole), (take.vocal, vocal), (take.instrumental, instrumental)):
        source = ints(path, 24) / 2**23
        assert np.abs(exported / 2 ** (bits - 1) - source).max() <= (1 + (bits == 24) / 2) / 2 ** (bits - 1)
    assert soundfile.info(paths[0]).subtype == f"PCM_{bits}" and len(whole) == FRAMES


def test_24_bits_are_the_takes_own(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    paths = export.export(song, take, tmp_path, "flac", ("instrumental", "vocal"))
    np.testing.assert_array_equal(ints(paths[0], 24), ints(take.instrumental, 24))
    np.testing.assert_array_equal(ints(paths[1], 24), ints(take.vocal, 24))


@pytest.mark.parametrize(("kind", "bits"), [("wav16", 16), ("flac", 24)])
def test_the_released_crossover_keeps_its_own_mix(tmp_path: Path, kind: str, bits: int) -> None:
    song, take = make_song(tmp_path / "songs", replace(REQUEST, crossover="yue"))
    files.write(take.mix, ints(take.vocal, 24).astype(np.float64) / 2**24, mix.RATE)
    paths = export.export(song, take, tmp_path, kind, ("mix",))
    expected = (ints(take.mix, 24) + (1 << (23 - bits) if bits < 24 else 0)) >> (24 - bits)
    np.testing.assert_array_equal(ints(paths[0], bits), expected)


def test_full_scale_is_not_wrapped_around_by_rounding(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    for path in (take.vocal, take.mix):
        files.write(path, np.ones(FRAMES), mix.RATE)
    files.write(take.instrumental, np.zeros(FRAMES), mix.RATE)
    for path in export.export(song, take, tmp_path, "wav16", ("mix", "vocal"))[:2]:
        assert set(ints(path, 16)) == {32767}


def test_mp3_has_320_kilobits_keeps_its_length_and_stays_below_full_scale(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    wave = (mix.CEILING / 2 * np.sin(2 * np.pi * 997 * np.arange(FRAMES) / mix.RATE)).astype(np.float32)
    for path, tone in ((take.vocal, wave), (take.instrumental, wave), (take.mix, wave + wave)):
        files.write(path, tone, mix.RATE)
    path = export.export(song, take, tmp_path, "mp3", ("mix",))[0]
    got, rate = soundfile.read(path)
    assert rate == mix.RATE and len(got) == FRAMES
    assert np.abs(got).max() < 1 and np.abs(got - 2 * wave).max() < 0.01
    data = path.read_bytes()
    assert data[:4] == b"ID3\3"
    frames = data[metadata._id3_length(data) :]
    assert frames[2] >> 4 == 14, "the bit rate in the first frame's header is 320"
    assert len(frames) == pytest.approx(FRAMES / mix.RATE * 40_000, rel=0.03)


def test_silence_and_a_song_of_one_block_and_a_bit(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    for path in (take.vocal, take.instrumental, take.mix):
        files.write(path, np.zeros(files.BLOCK + 1, np.float32), mix.RATE)
    assert not ints(export.export(song, take, tmp_path, "wav16")[0], 16).any()


# Names


def test_a_second_export_never_replaces_the_first(tmp_path: Path) -> None:
    """Inherited fault: outputs overwritten by the next run."""
    song, take = make_song(tmp_path / "songs")
    out = tmp_path / "out"
    first = {path: path.read_bytes() for path in export.export(song, take, out, "wav16")}
    second = export.export(song, take, out, "wav16")
    assert [path.name for path in second] == [
        "Paper Lanterns (2) - mix.wav",
        "Paper Lanterns (2) - vocal.wav",
        "Paper Lanterns (2) - instrumental.wav",
        "Paper Lanterns (2).lrc",
    ]
    assert {path: path.read_bytes() for path in first} == first
    (out / "Paper Lanterns (3) - vocal.wav").symlink_to(out / "nowhere")
    assert export.export(song, take, out, "wav16")[0].name == "Paper Lanterns (4) - mix.wav"
    assert len(names(out)) == 13


def test_another_format_of_the_same_take_shares_its_words(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    words = [export.export(song, take, tmp_path / "out", kind, ("mix",))[-1] for kind in ("wav16", "flac")]
    assert words[0] == words[1] and len(names(tmp_path / "out")) == 3
    other = replace(take.info, spans=SPANS[:2])
    took = export.export(song, Take(take.folder, other), tmp_path / "out", "mp3", ("mix",))
    assert [path.name for path in took] == ["Paper Lanterns (2) - mix.mp3", "Paper Lanterns (2).lrc"]


def test_a_name_instead_of_a_folder(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    target = tmp_path / "a b" / "Für Élise 🎹.wav"
    assert export.export(song, take, target, "wav16", ("mix",)) == [target, target.with_suffix(".lrc")]
    assert export.export(song, take, target, "wav16", ["mix"])[0].name == "Für Élise 🎹 (2).wav"
    paths = export.export(song, take, target, "wav16", ("vocal", "mix"))
    assert [path.name for path in paths[:2]] == ["Für Élise 🎹 - vocal.wav", "Für Élise 🎹 - mix.wav"]
    with pytest.raises(RequestError, match=r"ends in \.wav, but the format asked for is written as \.mp3"):
        export.export(song, take, target, "mp3")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Plain title", "Plain title"),
        ('a/b\\c:d*e?f"g<h>i|j', "a b c d e f g h i j"),
        ("../../etc/passwd", "etc passwd"),
        ("...", "song"),
        ("", "song"),
        (" . hidden . ", "hidden"),
        ("con", "_con"),
        ("Nul.txt", "_Nul.txt"),
        ("COM1 ", "_COM1"),
        ("Console", "Console"),
        ("tab\tnew\nline\0end", "tab new line end"),
        ("שיר \u202eevil", "שיר evil"),
        ("e\u0301 🏮", "é 🏮"),
        ("x" * 300, "x" * 120),
        ("紙" * 300, "紙" * 40),
        ("\ud800lone", "lone"),
    ],
)
def test_titles_as_file_names(title: str, name: str) -> None:
    assert file_name(title) == name


@given(st.text())
def test_any_title_is_a_name_that_every_system_takes(title: str) -> None:
    name = file_name(title)
    assert name and len(name.encode()) <= 121 and not set(name) & set('/\\:*?"<>|\0\n') and name[-1] not in " ."
    assert name[0] not in " ." and name.split(".")[0].upper().strip() not in export.RESERVED


def test_a_song_without_title_and_with_an_odd_one(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs", replace(REQUEST, title=""))
    paths = export.export(song, take, tmp_path / "out", "wav16", ("vocal",))
    assert paths[0].name == "song - vocal.wav" and metadata.read_tags(paths[0]).title == "(vocal)"
    song.save_info(replace(song.info, title="CON"))
    assert [path.name for path in export.export(song, take, tmp_path / "out", "wav16", ("mix",))] == [
        "_CON - mix.wav",
        "_CON.lrc",
    ]


# Words


def test_lrc_has_the_times_of_sections_and_spreads_their_lines(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    text = export.export(song, take, tmp_path, "wav16", ("mix",))[-1].read_bytes().decode()
    assert text.split("\n")[2:] == [
        "[00:00.00](verse)",
        "[00:00.00]paper lanterns",
        "[00:00.50]over the water",
        "[00:01.00](solo)",
        "[00:01.50](Refrain 2)",
        "[00:01.50]ランタン",
        "[00:02.00]פנס",
        "[00:02.50]light up the night",
        "[00:03.00]",
        "",
    ]
    assert text.startswith("[ti:Paper Lanterns]\n[re:yuegp ")


def test_lrc_of_a_long_and_of_an_instrumental_song() -> None:
    span = Span(0, 59 * 50, 100 * 60 * 50 + 1, True)
    lines = export.lrc(TakeInfo(1, REQUEST, spans=(span,)), "two\nlines").split("\n")
    assert lines[0] == "[ti:two lines]" and lines[2] == "[00:59.00](verse)" and lines[-2] == "[100:00.02]"
    silent = TakeInfo(1, replace(REQUEST, instrumental=True), spans=SPANS)
    assert export.lrc(silent, "").split("\n")[2:] == [
        "[00:00.00](verse)",
        "[00:01.00](solo)",
        "[00:01.50](Refrain 2)",
        "[00:03.00]",
        "",
    ]


@pytest.mark.parametrize("kind", export.KINDS)
def test_every_format_carries_the_labels_and_the_words(tmp_path: Path, kind: str) -> None:
    song, take = make_song(tmp_path / "songs")
    song.save_info(replace(song.info, title="Renamed"))
    path, stem = export.export(song, take, tmp_path, kind, ("mix", "vocal"), artist="Me")[:2]
    tags = metadata.read_tags(path)
    assert tags.comment.splitlines()[:2] == ["AI-generated", "Made with YuE by HKUST/M-A-P"]
    assert f"Model demo, seed {REQUEST.seed}, take 1, mix." in tags.comment
    assert (tags.title, tags.artist, tags.genre) == ("Renamed", "Me", REQUEST.tags)
    assert metadata.read_tags(stem).title == "Renamed (vocal)"
    assert tags.date == take.info.created[:10] and len(tags.date) == 10
    assert tags.lyrics.startswith("[verse]\npaper lanterns\n") and "ランタン" in tags.lyrics


# Refusals while exporting


@pytest.mark.parametrize("stage", [Stage.NEW, Stage.STAGE1, Stage.STAGE2])
def test_a_take_without_sound_is_to_be_resumed(tmp_path: Path, stage: Stage) -> None:
    song, take = make_song(tmp_path / "songs", stage=stage)
    with pytest.raises(LibraryError, match=f"no sound yet: it has come as far as {stage}") as caught:
        export.export(song, take, tmp_path / "out")
    assert "Resume" in caught.value.hint and not (tmp_path / "out").exists()


def test_unknown_formats_and_parts(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    with pytest.raises(RequestError, match="no export format 'ogg'"):
        export.export(song, take, tmp_path, "ogg")
    with pytest.raises(RequestError, match="no part called drums"):
        export.export(song, take, tmp_path, "flac", ("mix", "drums"))
    with pytest.raises(RequestError, match="No part"):
        export.export(song, take, tmp_path, "flac", ())


def test_damaged_sound_in_the_take_is_named(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    whole = take.vocal.read_bytes()
    for damage, message in (
        (lambda: take.vocal.write_bytes(whole[: len(whole) // 2]), "its sound cannot be read from"),
        (lambda: take.vocal.write_bytes(b"no sound"), "cannot be read as sound"),
        (lambda: take.vocal.unlink(), "cannot be read as sound"),
        (lambda: files.write(take.vocal, np.zeros(5, np.float32), mix.RATE), "do not have the same length"),
    ):
        damage()
        with pytest.raises(LibraryError, match=message) as caught:
            export.export(song, take, tmp_path / "out", "wav16")
        assert str(take.folder) in caught.value.what
        assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


@pytest.mark.parametrize("kind", export.KINDS)
@pytest.mark.parametrize("limit", [100, 50_000])
def test_a_full_disk_leaves_neither_a_file_nor_debris(tmp_path: Path, kind: str, limit: int) -> None:
    resource = importlib.import_module("resource")
    song, take = make_song(tmp_path / "songs")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(LibraryError, match=r"out cannot be written: ") as caught:
            export.export(song, take, tmp_path / "out", kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Free some space" in caught.value.hint and names(tmp_path / "out") == []


def test_every_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song, take = make_song(tmp_path / "songs")
    (tmp_path / "out").mkdir()
    real = os.fsync
    for stop in (1, 3, 4, 5, 6):  # the second is the folder's own, which some systems do not offer

        def failing(handle: int, left: list[int] = [stop]) -> None:  # noqa: B006 - a counter of its own in every round
            left[0] -= 1
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(LibraryError, match="out"):
            export.export(song, take, tmp_path / "out", "wav16")
        assert names(tmp_path / "out") == []


def test_a_target_that_is_a_file(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(LibraryError, match="cannot be written"):
        export.export(song, take, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_name_taken_at_the_last_moment_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song, take = make_song(tmp_path / "songs")
    rival = tmp_path / "Paper Lanterns - mix.wav"
    real = export._rename

    def raced(source: Path, target: Path) -> None:
        rival.write_text("another program's")
        real(source, target)

    monkeypatch.setattr(export, "_rename", raced)
    for without_links in (False, True):
        if without_links:
            rival.unlink()
            monkeypatch.setattr(os, "link", _no_links)
        with pytest.raises(LibraryError, match="cannot be written"):
            export.export(song, take, tmp_path, "wav16", ("mix",))
        assert rival.read_text() == "another program's"


def _no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_disks_without_second_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song, take = make_song(tmp_path / "songs")
    monkeypatch.setattr(os, "link", _no_links)
    assert all(path.is_file() for path in export.export(song, take, tmp_path / "out", "wav16"))


def test_progress_counts_up_and_can_stop_everything(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs")
    seen: list[tuple[str, int, int]] = []
    export.export(song, take, tmp_path / "a", "flac", progress=lambda *event: seen.append(event))
    assert [what for what, done, total in seen if done == total == FRAMES] == list(export.PARTS)
    assert [done for what, done, _ in seen if what == "vocal"] == [0, files.BLOCK, 2 * files.BLOCK, FRAMES]

    def stop(what: str, done: int, total: int) -> None:
        if what == "vocal" and done:
            raise Cancelled

    with pytest.raises(Cancelled):
        export.export(song, take, tmp_path / "b", "flac", progress=stop)
    assert names(tmp_path / "b") == []


# And back


@pytest.mark.parametrize("kind", export.KINDS)
def test_an_exported_file_gives_its_request_back(tmp_path: Path, kind: str) -> None:
    odd = replace(REQUEST, sections=(*REQUEST.sections, Section("a = b", 'quote " \\ \u2028 \ud800 🏮', 0)))
    song, take = make_song(tmp_path / "songs", odd)
    song.save_info(replace(song.info, title="Renamed"))
    for path in export.export(song, take, tmp_path / "out", kind)[:3]:
        request, notes = import_file(path)
        assert request == replace(odd, title="Renamed") and notes == ()
        assert request.sections[0].line == 1


def test_an_export_names_no_path_of_this_machine(tmp_path: Path) -> None:
    reference = tmp_path / "my private tune.wav"
    files.write(reference, np.zeros(100, np.float32), 16000, "wav16")
    request = replace(REQUEST, model="/home/me/models/mine", reference=Reference(mix=str(reference), start=2, end=12.5))
    song, take = make_song(tmp_path / "songs", request)
    path = export.export(song, take, tmp_path / "out", "flac", ("mix",))[0]
    tags = metadata.read_tags(path)
    assert not any(secret in path.read_bytes() for secret in (b"/home/me", b"private", str(tmp_path).encode()))
    assert "Model mine, seed" in tags.comment
    got, notes = import_file(path)
    assert got == replace(REQUEST, model="mine") and got.reference is None
    assert len(notes) == 1 and "(2 s to 12.5 s of mix.wav), which is not in the file" in sentence(notes[0])
    assert import_file(take.folder / "take.json")[0].reference is not None


def test_a_joined_take_says_that_it_cannot_be_made_in_one_go(tmp_path: Path) -> None:
    song, take = make_song(tmp_path / "songs", seams=(50,), spans=(*SPANS[:2], replace(SPANS[2], take=9)))
    path = export.export(song, take, tmp_path, "wav16", ("vocal",))[0]
    for source in (path, take.folder / "take.json"):
        assert "joined from several" in sentence(import_file(source)[1][0])


def test_song_folders_are_imported_from_any_of_their_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song, take = make_song(tmp_path / "songs", request=REQUEST)
    song.save_info(SongInfo("Renamed"))
    other = song.new_take(replace(take.info, request=replace(REQUEST, seed=5)), np.zeros((2, 1, 150), np.int16))
    for source in (song.folder, song.folder / "song.json", take.folder / "take.json"):
        assert import_file(source)[0] == replace(REQUEST, title="Renamed")
    assert import_file(other.folder / "take.json")[0] == replace(REQUEST, title="Renamed", seed=5)
    monkeypatch.chdir(take.folder)
    assert import_file("take.json")[0].seed == REQUEST.seed
    with pytest.raises(LibraryError, match="not a song"):
        import_file(tmp_path)
    with pytest.raises(RequestError, match="does not lie in a song's takes folder"):
        import_file("/take.json")


def test_a_song_of_format_1_is_imported(repo_root: Path) -> None:
    folder = repo_root / "tests" / "fixtures" / "song-format-1"
    for source in (folder, folder / "takes" / "001" / "take.json"):
        request, notes = import_file(source)
        assert (request.title, request.seed, len(request.sections), notes) == ("Format one", 11, 2, ())


def _with_settings(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.flac"
    files.write(path, np.zeros(100, np.float32), mix.RATE)
    path.write_bytes(metadata.embed(path.read_bytes(), metadata.Tags(settings=text)))
    return path


def test_a_file_without_settings(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="carries no settings of yuegp"):
        import_file(_with_settings(tmp_path, ""))
    with pytest.raises(RequestError, match="does not exist"):
        import_file(tmp_path / "none.mp3")


def test_settings_of_a_newer_program(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"newer yuegp \(format 99; this one reads up to \d+\)") as caught:
        import_file(_with_settings(tmp_path, '{"format": 99, "take": {}}'))
    assert "Update" in caught.value.hint


GOOD = json.loads(export.settings(TakeInfo(1, REQUEST, Stage.RENDERED, SPANS), "x"))


def changed(*keys: Any, value: Any) -> str:
    data = json.loads(json.dumps(GOOD))
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"format": "2", "take": {}}',
        "[" * 100_000,
        changed("take", value=None),
        changed("take", "request", "sections", value=[]),
        changed("take", "request", "sections", 0, "words", value=5),
        changed("take", "request", "sections", 0, "colour", value="red"),
        changed("take", "request", "seed", value="7"),
        changed("take", "request", "seed", value=True),
        changed("take", "request", "tags", value=None),
        changed("take", "request", "sampling", "top_k", value=1.5),
        changed("take", "request", "sampling", "exact", value=0),
        changed("take", "request", "reference", value={"mix": "a", "start": "b"}),
        changed("take", "request", "unknown", value=1),
        changed("take", "stage", value="sung"),
        changed("take", "spans", value=[7]),
    ],
)
def test_damaged_settings_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestError, match="are damaged"):
        import_file(_with_settings(tmp_path, text))


def test_whole_numbers_may_stand_for_fractions(tmp_path: Path) -> None:
    path = _with_settings(tmp_path, changed("take", "request", "section_seconds", value=30))
    assert import_file(path)[0].section_seconds == 30
