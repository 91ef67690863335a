"""Songs as sound: a voice of harmonics and formants, and small bands of synthesizers and fixed drum samples.

Every element starts on a frame with its phase at zero and ends within its last frame, so equal notes and equal bars
are equal sample for sample wherever they stand. Elements are made at 44.1 kHz and resampled one by one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

from yuegp.codec.layout import UPSAMPLED_FRAME, UPSAMPLED_RATE

from .songs import BASS, CHORDS, FILL, LONGEST_NOTE, PITCH_UNIT, SIXTEENTH, Song

PERIOD = 8
"""Frames after which every held note repeats: 50 Hz / 6.25 Hz."""

HIGHEST = 16000
"""Hz, of any harmonic."""

_VIBRATO = 0.007
_FORMANTS = (
    (730, 1090, 2440, 3400),
    (530, 1840, 2480, 3400),
    (270, 2290, 3010, 3500),
    (570, 840, 2410, 3300),
    (300, 870, 2240, 3200),
)
"""Hz, of a man's a e i o u (Peterson and Barney's means, rounded, with a fourth of ours); a woman's lie 17 % higher."""

_FORMANT_GAIN, _FORMANT_WIDTH = (1.0, 0.7, 0.4, 0.25), (90, 110, 160, 220)
_MURMUR = (250, 1000, 2200, 3100)
"""Formants of the hum by which m, n, l and r begin."""

_FEMALE = 1.17
_VOICE_LEVEL, _BAND_LEVEL = 0.11, 0.3
"""RMS of a sung note, and of a bar with all instruments."""


def render(song: Song, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Vocal and instrumental of a song, mono float32, at 16 kHz (320 samples per frame) or 44.1 kHz (882)."""
    hop = rate // 50
    vocal, instrumental = np.zeros(song.frames * hop, np.float32), np.zeros(song.frames * hop, np.float32)
    for note in song.notes:
        whole = _note(song.gender, song.pitch(note), note.vowel, note.consonant, rate)
        wave = whole[: note.frames * hop] * _release(note.frames, rate)
        vocal[note.frame * hop : note.frame * hop + len(wave)] = wave
    for bar in song.bars:
        wave = _bar(song.genre, bar.chord, bar.part, bar.variant, bar.fill, rate)
        instrumental[bar.frame * hop : bar.frame * hop + len(wave)] = wave
    return vocal, instrumental


@functools.cache
def _release(frames: int, rate: int) -> np.ndarray:
    """Envelope: one, then down to zero within the first three quarters of the last frame. The codec's frames overlap by
    the last quarter, which the next note must not share."""
    hop = rate // 50
    gain = np.ones(frames * hop, np.float32)
    fade = hop * 3 // 4
    gain[-hop : fade - hop] = 0.5 + 0.5 * np.cos(np.pi * np.arange(fade) / fade)
    gain[fade - hop :] = 0
    return gain


def _resampled(wave: np.ndarray, rate: int) -> np.ndarray:
    """Resample whole frames from 44.1 kHz to `rate`, at 16 kHz without anything above 7.8 kHz."""
    if rate == UPSAMPLED_RATE:
        return wave.astype(np.float32)
    frames = len(wave) // UPSAMPLED_FRAME + 2  # silence behind the end, where the filter may ring
    spectrum = np.fft.rfft(wave, frames * UPSAMPLED_FRAME)
    hertz = np.arange(len(spectrum)) * UPSAMPLED_RATE / (frames * UPSAMPLED_FRAME)
    spectrum *= 0.5 + 0.5 * np.cos(np.pi * np.clip((hertz - 6800) / 1000, 0, 1))
    size = frames * rate // 50
    slow = np.fft.irfft(spectrum[: size // 2 + 1], size) * (size / (frames * UPSAMPLED_FRAME))
    return slow[: len(wave) // UPSAMPLED_FRAME * (rate // 50)].astype(np.float32)


def _seconds(frames: int) -> np.ndarray:
    return np.arange(frames * UPSAMPLED_FRAME) / UPSAMPLED_RATE


def _noise(frames: int, low: float, high: float, seed: int) -> np.ndarray:
    """A deterministic band of noise, of RMS 1."""
    white = np.random.default_rng(seed).standard_normal(frames * UPSAMPLED_FRAME)
    spectrum = np.fft.rfft(white)
    hertz = np.arange(len(spectrum)) * UPSAMPLED_RATE / len(white)
    spectrum *= 1 / np.sqrt(1 + (low / np.maximum(hertz, 1)) ** 6) / np.sqrt(1 + (hertz / high) ** 6)
    wave = np.fft.irfft(spectrum, len(white))
    return wave / np.sqrt(np.mean(wave**2))


# Voice


def _voiced(pitch: int, formants: tuple[float, ...], vibrato: float) -> np.ndarray:
    """One period (8 frames) of a held tone, RMS 1."""
    base, t = pitch * PITCH_UNIT, _seconds(PERIOD)
    swing = vibrato * base / PITCH_UNIT * (1 - np.cos(2 * np.pi * PITCH_UNIT * t))
    wave = np.zeros(len(t))
    for k in range(1, int(HIGHEST / base) + 1):
        hertz = k * base
        gain = 0.01 + sum(
            g * (w / 2) / math.hypot(hertz - f, w / 2)
            for f, w, g in zip(formants, _FORMANT_WIDTH, _FORMANT_GAIN, strict=True)
        )
        wave += gain / (1 + hertz / 1200) * np.sin(2 * np.pi * hertz * t + k * swing)
    return wave / np.sqrt(np.mean(wave**2))


@functools.cache
def _note(gender: str, pitch: int, vowel: int, consonant: int, rate: int) -> np.ndarray:
    """The longest possible note. It begins with its consonant; vibrato sets in after eight frames."""
    frames = LONGEST_NOTE * 2 * max(SIXTEENTH.values())
    size = _FEMALE if gender == "female" else 1.0
    formants = tuple(f * size for f in _FORMANTS[vowel])
    periods = frames // PERIOD
    wave = np.concatenate([_voiced(pitch, formants, 0.0), np.tile(_voiced(pitch, formants, _VIBRATO), periods - 1)])
    t = np.arange(len(wave)) / UPSAMPLED_FRAME  # frames
    if consonant == 1:
        hiss = _noise(4, 4000 * size, 12000, 11)
        hiss = hiss * np.interp(t[: len(hiss)], [0, 1, 2, 3], [0, 0.5, 0.5, 0])
        wave *= np.clip((t - 2) / 1.5, 0, 1)
        wave[: len(hiss)] += hiss
    elif consonant == 2:
        burst = _noise(2, 1500, 9000, 12)
        burst = burst * np.interp(t[: len(burst)], [0, 0.1, 0.5, 1], [0, 1.2, 0.3, 0])
        wave *= np.clip((t - 1) / 0.4, 0, 1)
        wave[: len(burst)] += burst
    elif consonant == 3:
        hum = np.tile(_voiced(pitch, tuple(f * size for f in _MURMUR), 0.0), periods)
        mix = np.clip((t - 2) / 1.5, 0, 1)
        wave = (0.55 * (1 - mix) * hum + mix * wave) * np.clip(t / 0.7, 0, 1)
    else:
        wave *= np.clip(t / 0.9, 0, 1)
    return _resampled(_VOICE_LEVEL * wave, rate)


# Band

_DRUM_FRAMES = {"kick": 7, "snare": 7, "clap": 6, "hat": 2, "open": 6, "shaker": 2, "rim": 2, "tom": 8, "crash": 24}

_PATTERNS = {
    # genre, part, variant: drum to sixteenths
    ("pop", "verse", 0): {"kick": "x.......x.x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ("pop", "verse", 1): {"kick": "x.....x.x.......", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.xx"},
    ("pop", "chorus", 0): {
        "kick": "x.....x.x.x.....",
        "clap": "....x.......x...",
        "hat": "x.x.x.x.x.x.x...",
        "open": "..............x.",
    },
    ("pop", "chorus", 1): {"kick": "x..x..x.x..x....", "clap": "....x.......x...", "hat": "xxx.xxx.xxx.xxx."},
    ("pop", "bridge", 0): {"kick": "x...............", "rim": "........x......."},
    ("rock", "verse", 0): {"kick": "x.......x.x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ("rock", "verse", 1): {"kick": "x.x.....x.......", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ("rock", "chorus", 0): {"kick": "x.x...x.x.x...x.", "snare": "....x.......x...", "open": "x...x...x...x..."},
    ("rock", "chorus", 1): {"kick": "x...x...x.x.x...", "snare": "..x...x...x...x.", "open": "x...x...x...x..."},
    ("rock", "bridge", 0): {"kick": "x.......x.......", "tom": "....x...x...x.x."},
    ("ballad", "verse", 0): {"kick": "x...............", "rim": "........x.......", "shaker": "..x...x...x...x."},
    ("ballad", "verse", 1): {"kick": "x.........x.....", "rim": "........x.......", "shaker": "..x...x...x...x."},
    ("ballad", "chorus", 0): {"kick": "x.........x.....", "snare": "........x.......", "shaker": "x.x.x.x.x.x.x.x."},
    ("ballad", "chorus", 1): {"kick": "x.....x.........", "snare": "........x.......", "shaker": "x.x.x.x.x.x.x.x."},
    ("ballad", "bridge", 0): {"shaker": "....x.......x..."},
    ("dance", "verse", 0): {"kick": "x...x...x...x...", "open": "..x...x...x...x."},
    ("dance", "verse", 1): {"kick": "x...x...x...x...", "hat": "..x...x...x...xx", "rim": "...x..x....x..x."},
    ("dance", "chorus", 0): {"kick": "x...x...x...x...", "clap": "....x.......x...", "open": "..x...x...x...x."},
    ("dance", "chorus", 1): {
        "kick": "x...x...x...x.x.",
        "clap": "....x.......x...",
        "open": "..x...x...x...x.",
        "shaker": "x..xx..xx..xx..x",
    },
    ("dance", "bridge", 0): {"clap": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ("pop", "end", 0): {"kick": "x...............", "crash": "x..............."},
    ("rock", "end", 0): {"kick": "x...............", "crash": "x...............", "snare": "x..............."},
    ("ballad", "end", 0): {"shaker": "x..............."},
    ("dance", "end", 0): {"kick": "x...............", "crash": "x..............."},
}
"""Drum patterns. Parts without a second variant use the first."""

_FILLS = {
    "pop": {"snare": "xxxx", "tom": "..xx"},
    "rock": {"snare": "xx..", "tom": "x.xx"},
    "ballad": {"tom": "x.x."},
    "dance": {"snare": "xxxx"},
}
"""Drum patterns for the last four sixteenths of a fill."""

_CHORD_RHYTHM = {
    ("pop", "verse"): "x...x...x...x...",
    ("pop", "chorus"): "x..x..x.x..x..x.",
    ("pop", "bridge"): "x.......x.......",
    ("rock", "verse"): "x.x.x.x.x.x.x.x.",
    ("rock", "chorus"): "x.....x.x.....x.",
    ("rock", "bridge"): "x...............",
    ("ballad", "verse"): "x.x.x.x.x.x.x.x.",
    ("ballad", "chorus"): "x.x.x.x.x.x.x.x.",
    ("ballad", "bridge"): "x.......x.......",
    ("dance", "verse"): "..x...x...x...x.",
    ("dance", "chorus"): "x.xx.xx.x.xx.xx.",
    ("dance", "bridge"): "x...............",
}
_BASS_RHYTHM = {
    ("pop", "verse"): "x.......x.......",
    ("pop", "chorus"): "x.....x.x.....x.",
    ("rock", "verse"): "x.x.x.x.x.x.x.x.",
    ("rock", "chorus"): "x.x.x.x.x.x.x.x.",
    ("ballad", "chorus"): "x.......x.......",
    ("dance", "verse"): "..x...x...x...x.",
    ("dance", "chorus"): "..xx..xx..xx..xx",
}
"""Sixteenths on which chord and bass are struck again. Unlisted ones are struck once and held."""

_ALL_AT_ONCE = "x..............."
_BROKEN = (0, 1, 2, 1, 2, 1, 2, 1)
"""Order in which a broken chord's notes come."""


@functools.cache
def _drum(name: str) -> np.ndarray:
    frames = _DRUM_FRAMES[name]
    t = _seconds(frames)
    if name == "kick":
        wave = 1.3 * np.sin(2 * np.pi * (48 * t + 90 * 0.03 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.06)
    elif name == "tom":
        wave = 0.8 * np.sin(2 * np.pi * (95 * t + 60 * 0.05 * (1 - np.exp(-t / 0.05)))) * np.exp(-t / 0.08)
    elif name == "snare":
        wave = 0.5 * np.sin(2 * np.pi * 190 * t) * np.exp(-t / 0.04)
        wave += 0.3 * _noise(frames, 1200, 9000, 1) * np.exp(-t / 0.05)
    elif name == "clap":
        hands = 0.4 + 0.6 * (np.floor(t / 0.01) % 2 == 0) * (t < 0.04)
        wave = 0.3 * hands * _noise(frames, 900, 5000, 2) * np.exp(-t / 0.05)
    elif name == "rim":
        wave = 0.5 * (np.sin(2 * np.pi * 820 * t) + np.sin(2 * np.pi * 1650 * t)) * np.exp(-t / 0.008)
    else:
        decay = {"hat": 0.012, "open": 0.06, "shaker": 0.02, "crash": 0.16}[name]
        level = {"hat": 0.12, "open": 0.12, "shaker": 0.09, "crash": 0.16}[name]
        low = 3500 if name in ("shaker", "crash") else 5500
        wave = level * _noise(frames, low, 15000, 3) * np.exp(-t / decay)
    return wave * np.clip(t / 0.001, 0, 1)


_BRIGHTEST = {"bass": 900, "string": 5000, "piano": 6000}
"""Hz, of the highest harmonic of an instrument."""


@functools.cache
def _tone(pitches: tuple[int, ...], kind: str) -> np.ndarray:
    """One period (8 frames) of notes sounding together, RMS 1."""
    t = _seconds(PERIOD)
    wave = np.zeros(len(t))
    for pitch in pitches:
        base = pitch * PITCH_UNIT
        for k in range(1, int(_BRIGHTEST.get(kind, HIGHEST) / base) + 1):
            gain = k ** -{"piano": 1.6, "bass": 1.3}.get(kind, 1.0)
            if kind == "string":
                gain *= math.exp(-k * base / 3000)
            wave += gain * np.sin(2 * np.pi * k * base * t + 0.3 * k * k)
    if kind == "guitar":
        wave = np.tanh(2.0 * wave)
    return wave / np.sqrt(np.mean(wave**2))


def _hits(pattern: str) -> Iterator[tuple[int, int]]:
    """Every stroke of a pattern: its sixteenth, and sixteenths until the next one."""
    onsets = [i for i, sign in enumerate(pattern) if sign == "x"]
    yield from zip(onsets, np.diff([*onsets, len(pattern)]).tolist(), strict=True)


_SOUNDS = {
    # genre: kind of tone, its level, seconds of decay in verse and bridge, in the chorus
    "pop": ("piano", 0.30, 0.45, 0.35),
    "rock": ("guitar", 0.26, 0.10, 0.8),
    "ballad": ("string", 0.34, 0.30, 0.30),
    "dance": ("saw", 0.22, 0.12, 0.10),
}
_POWER = {"C": (24, 36), "Em": (30, 45), "F": (32, 48), "G": (36, 54), "Am": (40, 60)}
"""Root and fifth, which is what a distorted guitar bears."""

_PAD = {"pop": 0.0, "rock": 0.0, "ballad": 0.12, "dance": 0.10}
"""Level of the strings that join in the chorus and carry the bridge."""


@functools.cache
def _bar(genre: str, chord: str, part: str, variant: int, fill: bool, rate: int) -> np.ndarray:
    """A bar of the whole band."""
    step = SIXTEENTH[genre]
    wave = np.zeros(16 * step * UPSAMPLED_FRAME)

    def strike(sixteenth: int, length: int, sound: np.ndarray, decay: float | None) -> None:
        """Add a sound, repeated if it is too short, for at most `length` sixteenths."""
        frames = length * step
        if decay is None:
            frames = min(frames, len(sound) // UPSAMPLED_FRAME)
            piece = sound[: frames * UPSAMPLED_FRAME]
        else:
            t = _seconds(frames)
            piece = np.resize(sound, len(t)) * np.exp(-t / decay) * np.clip(t / 0.004, 0, 1)
        start = sixteenth * step * UPSAMPLED_FRAME
        wave[start : start + len(piece)] += piece * _release(frames, UPSAMPLED_RATE)

    drums = _PATTERNS.get((genre, part, variant)) or _PATTERNS[genre, part, 0]
    if fill:
        last, rest = _FILLS[genre], "." * (16 - FILL)
        drums = {name: drums.get(name, "." * 16)[:FILL] + last.get(name, rest) for name in {**drums, **last}}
    for drum, pattern in drums.items():
        for sixteenth, length in _hits(pattern):
            strike(sixteenth, length, _drum(drum), None)
    kind, level, short, long = _SOUNDS[genre]
    dying = 16 * step / 50 / 3  # the last bar's sounds fall by 26 dB
    decay = dying if part == "end" else 1.2 if part == "bridge" else long if part == "chorus" else short
    notes: tuple[int, ...] = _POWER[chord] if genre == "rock" and part != "bridge" else CHORDS[chord]
    for number, (sixteenth, length) in enumerate(_hits(_CHORD_RHYTHM.get((genre, part), _ALL_AT_ONCE))):
        broken = (genre == "ballad" and part != "end") or (genre, part) == ("dance", "chorus")
        struck = (notes[_BROKEN[number % 8]],) if broken else notes
        strike(sixteenth, length, level * _tone(struck, kind), decay)
    for sixteenth, length in _hits(_BASS_RHYTHM.get((genre, part), _ALL_AT_ONCE)):
        strike(sixteenth, length, 0.4 * _tone((BASS[chord],), "bass"), dying if part == "end" else 0.7)
    if _PAD[genre] and part in ("chorus", "bridge"):
        strike(0, 16, _PAD[genre] * _tone(notes, "string"), 4.0)
    if part == "end":
        wave *= np.linspace(1, 0.2, len(wave))  # never silent: silence is the voice's
    return _resampled(_BAND_LEVEL * wave, rate)
