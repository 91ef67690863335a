"""Recognises genre, mood, voice, vowels, pitch and beat in codes and sound.

`Ear.fit` counts the codes of generated songs, whose notes and chords are known; recognition only looks up those counts.
So the ear is simple, and its error rate on real songs is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from . import songs, syllables

CODES = 1024
VOWELS = len(syllables.VOWELS)
ATTACK = 3
"""First frames of a syllable that are counted separately; the later ones count together."""
SHORTEST = 8
"""Shortest syllable in frames; the generator's shortest has ten."""

FLUX_RATE = 100
"""Onset strengths per second."""


def state_labels(song: songs.Song) -> np.ndarray:
    """For each frame 0 in silence, else 1 + vowel * (ATTACK + 1) + frame of the syllable (up to ATTACK)."""
    labels = np.zeros(song.frames, np.int64)
    for note in song.notes:
        phases = np.minimum(np.arange(note.frames), ATTACK)
        labels[note.frame : note.frame + note.frames] = (1 + note.vowel * (ATTACK + 1) + phases)[
            : song.frames - note.frame
        ]
    return labels


def pitch_labels(song: songs.Song) -> np.ndarray:
    """Pitch of each frame in units of 6.25 Hz, 0 in silence."""
    labels = np.zeros(song.frames, np.int64)
    for note in song.notes:
        labels[note.frame : note.frame + note.frames] = song.pitch(note)
    return labels


def bar_frames(song: songs.Song) -> int:
    """Frames of a bar."""
    return 16 * song.sixteenth


@dataclass
class Ear:
    """Log probabilities of codes, (class, 1024): `genre` of instrumental codes, `mood` of those in the first
    bar of a section, `gender` and the sung
    `states` of vocal ones; `pitch` is the usual pitch of each vocal code."""

    genre: np.ndarray
    mood: dict[str, np.ndarray]
    gender: np.ndarray
    states: np.ndarray
    pitch: np.ndarray

    @staticmethod
    def fit(known: Iterable[tuple[songs.Song, np.ndarray]]) -> Ear:
        """Count songs with their codes (2, frames)."""
        genre = np.full((len(songs.GENRES), CODES), 0.1)
        mood = {name: np.full((len(songs.MOODS), CODES), 0.1) for name in songs.GENRES}
        gender = np.full((len(songs.GENDERS), CODES), 0.1)
        states = np.full((1 + VOWELS * (ATTACK + 1), CODES), 0.01)
        pitch = np.zeros((max(songs.SCALE) + 1, CODES))
        for song, (vocal, instrumental) in known:
            np.add.at(genre[songs.GENRES.index(song.genre)], instrumental, 1)
            for section in song.sections:
                first = instrumental[section.start : section.start + bar_frames(song)]
                np.add.at(mood[song.genre][songs.MOODS.index(song.mood)], first, 1)
            labels, pitches = state_labels(song), pitch_labels(song)
            np.add.at(gender[songs.GENDERS.index(song.gender)], vocal[labels > 0], 1)
            np.add.at(states, (labels, vocal), 1)
            np.add.at(pitch, (pitches, vocal), 1)
        return Ear(
            _log_shares(genre),
            {name: _log_shares(counts) for name, counts in mood.items()},
            _log_shares(gender),
            _log_shares(states),
            pitch.argmax(0),
        )

    def genre_of(self, instrumental: np.ndarray) -> str:
        return songs.GENRES[int(self.genre[:, instrumental].sum(1).argmax())]

    def mood_of(self, instrumental: np.ndarray, genre: str) -> str:
        """Mood from the codes of a section's first bar, whose chord tells it."""
        return songs.MOODS[int(self.mood[genre][:, instrumental].sum(1).argmax())]

    def gender_of(self, vocal: np.ndarray) -> str:
        sung = self.states[0, vocal] < self.states[1:, vocal].max(0)
        return songs.GENDERS[int(self.gender[:, vocal[sung]].sum(1).argmax())]

    def melody_of(self, vocal: np.ndarray) -> np.ndarray:
        """Pitch of each frame in units of 6.25 Hz, 0 in silence."""
        return self.pitch[vocal]

    def vowels_of(self, vocal: np.ndarray) -> list[int]:
        """The sung vowels in order, without alignment: the likeliest path through silence and syllables of at least
        `SHORTEST` frames."""
        steps = 1 + VOWELS * SHORTEST
        kind = np.array([0] + [1 + v * (ATTACK + 1) + min(p, ATTACK) for v in range(VOWELS) for p in range(SHORTEST)])
        starts = 1 + np.arange(VOWELS) * SHORTEST
        ends = starts + SHORTEST - 1
        moves = np.full((steps, steps), -np.inf)
        moves[0, 0] = np.log(0.9)
        moves[0, starts] = np.log(0.1 / VOWELS)
        for first, last in zip(starts, ends, strict=True):
            moves[np.arange(first, last), np.arange(first + 1, last + 1)] = 0
            moves[last, last] = np.log(0.8)
            moves[last, starts] = np.log(0.18 / VOWELS)
            moves[last, 0] = np.log(0.02)
        emit = self.states[kind][:, vocal]
        best = np.full(steps, -np.inf)
        best[[0, *starts]] = 0
        best = best + emit[:, 0]
        back = np.zeros((len(vocal), steps), np.int64)
        for t in range(1, len(vocal)):
            scores = best[:, None] + moves
            back[t] = scores.argmax(0)
            best = scores.max(0) + emit[:, t]
        path = [int(best.argmax())]
        for t in range(len(vocal) - 1, 0, -1):
            path.append(int(back[t, path[-1]]))
        return [(state - 1) // SHORTEST for state in reversed(path) if state in starts]


def _log_shares(counts: np.ndarray) -> np.ndarray:
    return np.log(counts / counts.sum(1, keepdims=True))


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions that turn `b` into `a`."""
    row = np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        previous, row = row, np.empty_like(row)
        row[0] = i
        for j, y in enumerate(b, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y))
    return int(row[-1])


def onset_strength(wave: np.ndarray, rate: int) -> np.ndarray:
    """Onset strength, `FLUX_RATE` times a second: half-wave rectified differences of the logarithmic spectrum, summed,
    with the slow part removed."""
    hop = rate // FLUX_RATE
    size = 4 * hop
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (size // 2, size // 2)), size)[::hop]
    bands = np.abs(np.fft.rfft(frames * np.hanning(size)))
    rises = np.maximum(0, np.diff(np.log1p(100 * bands / (bands.max() + 1e-9)), axis=0)).sum(1)
    slow = np.convolve(rises, np.ones(FLUX_RATE) / FLUX_RATE, "same")
    return rises - slow


def beat_correlation(wave: np.ndarray, rate: int, seconds: float) -> float:
    """Autocorrelation of the onset strength at a beat of so many seconds, -1 to 1."""
    flux = onset_strength(wave, rate)
    lag = round(seconds * FLUX_RATE)
    a, b = flux[:-lag] - flux[:-lag].mean(), flux[lag:] - flux[lag:].mean()
    return float((a * b).sum() / max(1e-12, np.sqrt((a * a).sum() * (b * b).sum())))


def si_sdr(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB."""
    target = truth * (estimate @ truth / (truth @ truth + 1e-12))
    return float(10 * np.log10((target @ target + 1e-12) / (((estimate - target) ** 2).sum() + 1e-12)))
