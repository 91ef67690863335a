"""Codes of songs by lookup: every note and every bar the generator knows is encoded once, then songs are put together.

The generator makes equal notes and bars equal sample for sample, and the codec sees only a frame and its neighbours. So
lookup gives the codes of encoding the whole song, hundreds of times faster, except for a few frames at borders, counted
by `agreement`. That gives Stage 1 as many different songs as it needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from yuegp.codec.layout import SAMPLE_RATE
from yuegp.codec.xcodec import XCodec

from . import songs, syllables
from .render import render

NoteKey = tuple[str, int, int, int, int]
"""Gender, degree, vowel, consonant, frames."""
BarKey = tuple[str, str, str, int, bool]
"""Genre, chord, part, variant, and whether it ends in a fill."""

PIECE = 1500
"""Frames encoded at once."""
REST = 24
"""Frames of silence that follow some of the notes."""


class Phrasebook:
    """Codebook-0 codes of every note and bar, and of vocal silence."""

    def __init__(self, notes: dict[NoteKey, np.ndarray], bars: dict[BarKey, np.ndarray], silence: int) -> None:
        self.notes, self.bars, self.silence = notes, bars, silence

    @staticmethod
    def make(codec: XCodec, say: Callable[[str], None] = lambda line: None) -> Phrasebook:
        """Encode everything once, in random order, so that all kinds of borders occur."""
        rng = np.random.default_rng(0)
        bars: dict[BarKey, np.ndarray] = {}
        for genre in songs.GENRES:
            keys = [
                (genre, chord, part, variant, fill)
                for chord, part in itertools.product(songs.CHORDS, songs.PARTS)
                for variant, fill in ([(0, False)] if part == "end" else itertools.product((0, 1), (False, True)))
            ]
            length = 16 * songs.SIXTEENTH[genre]
            order = [keys[i] for i in rng.permutation(len(keys))]
            placed = [songs.Bar(n * length, 0, *key[1:]) for n, key in enumerate(order)]
            codes = codec.encode(render(_song(genre, "female", [], placed, len(placed) * length), SAMPLE_RATE)[1])[0]
            for bar, key in zip(placed, order, strict=True):
                bars[key] = codes[bar.frame : bar.frame + length].astype(np.int16)
        say(f"phrasebook: {len(bars)} bars")
        notes: dict[NoteKey, np.ndarray] = {}
        rests: list[np.ndarray] = []
        lengths = sorted({2 * s * n for s in songs.SIXTEENTH.values() for n in range(1, songs.LONGEST_NOTE + 1)})
        degrees, vowels, consonants = range(len(songs.SCALE)), range(len(syllables.VOWELS)), range(4)
        kinds = list(itertools.product(songs.GENDERS, degrees, vowels, consonants, lengths))
        for gender in songs.GENDERS:
            order = [kinds[i] for i in rng.permutation(len(kinds)) if kinds[i][0] == gender]
            while order:
                frame, sung = 0, []
                while order and frame < PIECE:
                    _, degree, vowel, consonant, frames = order.pop()
                    sung.append(songs.Note(frame, frames, 0, 0, consonant, vowel, degree))
                    frame += frames + (REST if rng.random() < 0.2 else 0)
                codes = codec.encode(render(_song("pop", gender, sung, [], frame), SAMPLE_RATE)[0])[0].astype(np.int16)
                for note, following in itertools.pairwise([*sung, None]):
                    end = note.frame + note.frames
                    notes[gender, note.degree, note.vowel, note.consonant, note.frames] = codes[note.frame : end]
                    if following and following.frame > end:
                        rests.append(codes[end + 2 : following.frame - 2])
            say(f"phrasebook: {len(notes)} of {len(kinds)} notes")
        return Phrasebook(notes, bars, int(np.bincount(np.concatenate(rests)).argmax()))

    def codes(self, song: songs.Song) -> np.ndarray:
        """Codebook 0 of both tracks, (2, frames)."""
        codes = np.full((2, song.frames), self.silence, np.int16)
        for note in song.notes:
            key = (song.gender, note.degree, note.vowel, note.consonant, note.frames)
            codes[0, note.frame : note.frame + note.frames] = self.notes[key]
        for bar in song.bars:
            played = self.bars[song.genre, bar.chord, bar.part, bar.variant, bar.fill]
            codes[1, bar.frame : bar.frame + len(played)] = played
        return codes

    def agreement(self, known: Iterable[tuple[songs.Song, np.ndarray]]) -> tuple[float, float]:
        """Share of frames equal to those of songs encoded whole, vocal and instrumental."""
        same = [(self.codes(song) == codes).mean(1) for song, codes in known]
        vocal, instrumental = np.mean(same, axis=0)
        return float(vocal), float(instrumental)

    def save(self, path: Path) -> None:
        arrays = {"note " + " ".join(map(str, key)): codes for key, codes in self.notes.items()}
        arrays |= {"bar " + " ".join(map(str, key)): codes for key, codes in self.bars.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, silence=np.array(self.silence), **arrays)

    @staticmethod
    def load(path: Path) -> Phrasebook:
        notes: dict[NoteKey, np.ndarray] = {}
        bars: dict[BarKey, np.ndarray] = {}
        with np.load(path) as arrays:
            for name in arrays.files:
                kind, *key = name.split()
                if kind == "note":
                    degree, vowel, consonant, frames = map(int, key[1:])
                    notes[key[0], degree, vowel, consonant, frames] = arrays[name]
                elif kind == "bar":
                    bars[key[0], key[1], key[2], int(key[3]), key[4] == "True"] = arrays[name]
            return Phrasebook(notes, bars, int(arrays["silence"]))


def _song(genre: str, gender: str, notes: list[songs.Note], bars: list[songs.Bar], frames: int) -> songs.Song:
    section = songs.SongSection("verse", "", 0, frames)
    return songs.Song(0, genre, "major", gender, "", (section,), tuple(notes), tuple(bars))
