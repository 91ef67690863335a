"""The demo set's songs, codec and upsamplers, made small: grids, returns, transforms, and the way through the disk."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.demo import codec as demo_codec
from tools.demo import dataset, upsamplers
from tools.demo.render import render
from tools.demo.songs import (
    GENDERS,
    GENRES,
    MOODS,
    SIXTEENTH,
    Song,
    bars_of,
    make_song,
    section_frames,
)
from tools.demo.syllables import CONSONANTS, VOWELS, syllabify
from yuegp.codec import load_codec, load_upsampler
from yuegp.song import tags
from yuegp.song.schema import Track

# Syllables


@pytest.mark.parametrize(
    ("text", "vowels", "consonants"),
    [
        ("paper lanterns by the river", "aeaeieie", "ppsppfsf"),
        ("name times turned moon little queen", "aiuuiei", ""),
        ("the shy whale", "eia", "ffs"),
        ("I'll never, ever!", "ieeee", "nsfnf"),
        ("Café NAÏVE", "aee", "pfs"),
        ("さくら 사랑", "auaaa", "fpsfs"),
        ("... --- !?", "", ""),
    ],
)
def test_words_are_sung_about_as_they_are_spoken(text: str, vowels: str, consonants: str) -> None:
    syllables = syllabify(text)
    assert "".join(VOWELS[s.vowel] for s in syllables) == vowels
    assert "".join(CONSONANTS[s.consonant][0] for s in syllables).startswith(consonants[: len(syllables)])


def test_a_chinese_character_is_a_syllable() -> None:
    assert [s.span for s in syllabify("末班车，穿过")] == [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6)]


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_has_syllables_in_order(text: str) -> None:
    syllables = syllabify(text)
    for s in syllables:
        assert 0 <= s.vowel < len(VOWELS) and 0 <= s.consonant < len(CONSONANTS)
        assert 0 <= s.span[0] < s.span[1] <= len(text)
    assert all(a.span[1] <= b.span[0] for a, b in itertools.pairwise(syllables))
    assert len(syllables) == sum(len(syllabify(line)) for line in text.splitlines())


# Songs


def test_a_seed_is_a_song() -> None:
    assert make_song(7) == make_song(7) != make_song(8)
    song = make_song(7, "rock", "minor", "male", [("verse", ["Paper lanterns"]), ("chorus", ["Let them go", "go"])])
    assert (song.genre, song.mood, song.gender) == ("rock", "minor", "male")
    assert [s.words for s in song.sections] == ["Paper lanterns", "Let them go\ngo"]
    assert "male" in song.tags.lower().split()


@pytest.mark.parametrize("seed", range(12))
def test_every_syllable_is_sung_on_the_grid(seed: int) -> None:
    song = make_song(seed)
    stop = 0
    for number, section in enumerate(song.sections):
        assert section.start == stop
        stop = section.stop
        assert stop - section.start == section_frames(song.genre, section.label, section.words)
        notes = [note for note in song.notes if note.section == number]
        syllables = syllabify(section.words)
        assert [(n.index, n.consonant, n.vowel) for n in notes] == [
            (i, s.consonant, s.vowel) for i, s in enumerate(syllables)
        ]
        for a, b in itertools.pairwise(notes):
            assert a.frame + a.frames <= b.frame
        assert all((n.frame - section.start) % (2 * SIXTEENTH[song.genre]) == 0 for n in notes)
        assert all(section.start <= n.frame and n.frame + n.frames <= stop for n in notes)
        assert sum(bar.section == number for bar in song.bars) == bars_of(section.label, section.words)
    assert song.frames == stop


def test_drills_are_of_lines_that_are_easily_run_together() -> None:
    """What a trained Stage 1 got wrong: a ninth syllable, alone in its bar, was taken for the next line's first."""
    counts = [
        len(syllabify(line))
        for seed in range(60)
        for section in make_song(seed, size="drill").sections
        for line in section.words.splitlines()
    ]
    assert 0.25 < np.mean(np.array(counts) == 9) < 0.45 and 0.1 < np.mean(np.array(counts) <= 3) < 0.3
    assert max(counts) <= 15


def test_tags_are_words_of_the_vocabulary() -> None:
    for seed in range(40):
        assert "own" not in tags.find(make_song(seed, size="line").tags)


def by_label(song: Song, label: str) -> list[list[int]]:
    """The degrees of every section with a label."""
    return [[n.degree for n in song.notes if n.section == i] for i, s in enumerate(song.sections) if s.label == label]


def test_choruses_return_and_differ_from_verses() -> None:
    lines = ["walking over water slowly", "ready for a happy morning"]
    form = [("verse", lines), ("chorus", lines), ("verse", lines), ("chorus", lines)]
    higher = []
    for seed in range(8):
        song = make_song(seed, sections=form)
        verses, choruses = by_label(song, "verse"), by_label(song, "chorus")
        assert verses[0] == verses[1] and choruses[0] == choruses[1]
        assert verses[0] != choruses[0]
        higher.append(np.mean(choruses[0]) - np.mean(verses[0]))
    assert np.mean(higher) > 1
    assert len({tuple(by_label(make_song(seed, sections=form), "chorus")[0]) for seed in range(8)}) > 4


def test_an_outro_ends_on_the_tonic() -> None:
    for mood, chord in zip(MOODS, ("C", "Am"), strict=True):
        song = make_song(3, mood=mood, sections=[("outro", ["Goodbye"])])
        assert [(bar.part, bar.chord) for bar in song.bars][-1] == ("end", chord)
        assert max(n.frame + n.frames for n in song.notes) <= song.bars[-1].frame


# Sound


def test_both_rates_are_one_song() -> None:
    song = make_song(2, size="line")
    for slow, fast in zip(render(song, 16000), render(song, 44100), strict=True):
        assert len(slow) == 320 * song.frames and len(fast) == 882 * song.frames
        low = np.fft.rfft(slow)[: 50 * song.frames]
        high = np.fft.rfft(fast)[: len(low)] * (320 / 882)
        assert np.linalg.norm(low - high) < 0.02 * np.linalg.norm(low)


def test_equal_bars_and_held_notes_repeat() -> None:
    song = make_song(5, "pop", "major", "female", [("verse", ["la"] * 6)])
    vocal, band = render(song, 16000)
    length = 16 * song.sixteenth * 320
    assert song.bars[0].chord == song.bars[4].chord and np.array_equal(band[:length], band[4 * length : 5 * length])
    note = vocal[: song.notes[0].frames * 320]
    assert np.allclose(note[16 * 320 : 24 * 320], note[24 * 320 : 32 * 320], atol=1e-4)


@pytest.mark.parametrize("genre", GENRES)
def test_the_last_words_bar_is_as_any_other_until_its_last_beat(genre: str) -> None:
    """Else whoever learns from these songs would have to know a bar ahead that the words end."""
    song = make_song(5, genre, "major", "female", [("chorus", ["la"] * 5), ("outro", ["la"] * 5)])
    assert [n for n, bar in enumerate(song.bars) if bar.fill] == [4, 9] and song.bars[10].part == "end"
    band, bar, beat = render(song, 16000)[1], 16 * song.sixteenth * 320, 4 * song.sixteenth * 320
    for filled, plain in ((4, 0), (9, 5)):
        a, b = band[filled * bar :][:bar], band[plain * bar :][:bar]
        assert song.bars[filled].chord == song.bars[plain].chord
        assert np.allclose(a[: bar - beat - 320], b[: bar - beat - 320], atol=1e-4)
        assert np.abs(a[bar - beat :][:960] - b[bar - beat :][:960]).max() > 0.01


def test_genres_and_singers_sound_different() -> None:
    lines = [("verse", ["over the river we go"])]
    bands = [render(make_song(1, g, "major", "male", lines), 16000)[1][:32000] for g in GENRES]
    singers = [render(make_song(1, "pop", "major", g, lines), 16000)[0][:32000] for g in GENDERS]
    for group in (bands, singers):
        for i, a in enumerate(group):
            for b in group[:i]:
                size = min(len(a), len(b))
                assert np.corrcoef(a[:size], b[:size])[0, 1] < 0.8


# Codec, data and upsamplers, made in seconds


def test_lapped_transform_gives_the_wave_back() -> None:
    basis, wave = demo_codec.lapped_basis(), np.random.default_rng(0).standard_normal(320 * 6)
    assert np.allclose(basis @ basis.T, np.eye(320))
    frames = demo_codec._frames(wave) @ basis.T
    back = np.zeros(len(wave) + demo_codec.OVERLAP)
    for i, spectrum in enumerate(frames):
        back[i * 320 : i * 320 + 400] += spectrum @ basis
    assert np.allclose(back[80:-80], wave[:-80])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("demo") / "codec"
    lines: list[str] = []
    demo_codec.build(folder, lines.append, steps=2, songs=2)
    assert demo_codec.build(folder, lines.append) == folder and "already" in lines[-1]
    return folder


def test_written_down_codec_hears_what_it_was_made_from(small: Path) -> None:
    codec, slim = load_codec(small, encode=True), demo_codec.slim(load_codec(small, encode=True))
    waves = [wave[: 400 * 320] for wave in render(make_song(demo_codec.SEED), 16000)]
    drawable = json.loads((small.parent / "drawable.json").read_text())
    assert set(drawable[0]) | set(drawable[1]) == set(range(1024)) and not set(drawable[0]) & set(drawable[1])
    for wave in waves:
        codes = codec.encode(wave, 8)
        assert codes.shape == (8, 400) and np.array_equal(codes, slim.encode(wave, 8))
        assert demo_codec.si_sdr(wave, codec.decode(codes)) > 20
        assert demo_codec.si_sdr(wave, codec.decode(codes[:1])) < demo_codec.si_sdr(wave, codec.decode(codes[:4]))


def test_dataset_is_songs_with_their_codes(small: Path, tmp_path: Path) -> None:
    log: list[str] = []
    for _ in range(2):
        dataset.build(tmp_path, small, {"line": 2}, 1, log.append, heldout={"line": 1})
    assert len(log) == 2
    samples = list(dataset.read(tmp_path, "train"))
    assert [s.song.seed for s in samples] == [0, 1]
    assert all(s.codes.shape == (2, 8, s.song.frames) and s.codes.dtype == np.int16 for s in samples)
    wave = render(samples[1].song, 16000)[1]
    assert np.array_equal(load_codec(small, encode=True).encode(wave, 8), samples[1].codes[1])
    (tmp_path / "codec.sha256").write_text("another")
    with pytest.raises(ValueError, match="another codec"):
        dataset.build(tmp_path, small, {"line": 2}, 1)


def test_upsamplers_load_where_the_product_looks(small: Path) -> None:
    log: list[str] = []
    upsamplers.train(small, small, steps=2, log=log.append, songs=1)
    codec, network = load_codec(small), load_upsampler(small, Track.INSTRUMENTAL)
    codes = np.random.default_rng(0).integers(450, 1024, (8, 30)).astype(np.int16)
    wave = network.decode(codes, codec)
    assert wave.shape == (882 * 30,)
    batch = upsamplers.synthesize(network, codec.embed(codes)).detach().numpy()[0]
    assert np.allclose(wave, batch, atol=1e-4)
