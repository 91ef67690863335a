"""Composes training songs by rule from a seed, as data. `render.py` turns them into sound.

Everything happens on frames of 1/50 s: a sixteenth is a whole number of them, and every pitch is a whole multiple of
6.25 Hz, so that a held note repeats after at most eight frames. Songs stand on C (150 Hz) or its relative minor.

A line of lyrics fills bars with eighth notes, eight to a bar, one per syllable; the next line begins with the next
bar. So the words alone say how long a section is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .syllables import VOWELS, syllabify

PITCH_UNIT = 6.25
"""Hz. Pitches are whole multiples of it."""

SIXTEENTH = {"pop": 6, "rock": 5, "ballad": 8, "dance": 6}
"""Frames of a sixteenth, by genre: 125, 150, 94 and 125 beats a minute."""

GENRES, MOODS, GENDERS = tuple(SIXTEENTH), ("major", "minor"), ("female", "male")
SLOTS = 8
"""Eighth notes in a bar: the syllables it has room for."""

LONGEST_NOTE = 4
"""Eighths the last syllable of a line is held at most."""

LABELS = ("intro", "verse", "chorus", "bridge", "outro", "inst")
PARTS = ("verse", "chorus", "bridge", "end")
"""What the accompaniment can play in a bar."""

FILL = 12
"""The sixteenth from which the drums announce a section's last words. Not earlier: the model cannot know it before most
of them are sung."""

SIZES = ("line", "short", "whole", "drill", "long")
"""Sizes of songs: see `make_song`."""

SILENT_BARS = 2
"""Bars of a section without words."""

CHORDS = {"C": (48, 60, 72), "Em": (45, 60, 72), "F": (48, 64, 80), "G": (45, 54, 72), "Am": (48, 60, 80)}
"""Three notes each, in units of 6.25 Hz, just intonation."""

BASS = {"C": 12, "Em": 15, "F": 16, "G": 18, "Am": 20}

SCALE = (36, 40, 45, 48, 54, 60, 64, 72, 80)
"""Scale of a woman's voice, G to A. A man's is an octave lower, with C in place of the low B."""

LOW_SCALE = (18, 20, 24, 24, 27, 30, 32, 36, 40)
_DEGREES = {"C": (0, 3, 5, 7), "Em": (0, 2, 5, 7), "F": (1, 3, 6, 8), "G": (0, 2, 4, 7), "Am": (1, 3, 5, 8)}

_LOOPS = {
    ("major", "verse"): ("C Am F G", "C G Am F", "C F C G"),
    ("major", "chorus"): ("C G F G", "C F Am G", "C Em F G"),
    ("major", "bridge"): ("F C F G",),
    ("minor", "verse"): ("Am F C G", "Am G F Em", "Am Em F G"),
    ("minor", "chorus"): ("Am F G Am", "Am C F Em", "Am G Am G"),
    ("minor", "bridge"): ("Em Am F Em",),
}
"""Loops of four chords, by mood and role; a song keeps one for each role."""

_ROLE = {"chorus": "chorus", "bridge": "bridge", "inst": "chorus"}
_RANGE = {"verse": (0, 5), "chorus": (3, 8), "bridge": (2, 7)}
"""The part of the scale a melody moves in."""

_GENRE_TAGS = {
    "pop": ("pop", "pop", "indie pop", "electro pop", "K-pop"),
    "rock": ("rock", "rock", "indie-rock", "hard rock", "classic rock", "punk"),
    "ballad": ("folk", "folk", "ballad", "country", "singer-songwriter"),
    "dance": ("dance", "electronic", "house", "disco", "techno"),
}
_INSTRUMENT_TAGS = {
    "pop": ("piano", "keyboard", "piano bass drums"),
    "rock": ("electric guitar", "guitar drums", "electric guitar bass"),
    "ballad": ("acoustic guitar", "strings", "acoustic guitar strings"),
    "dance": ("synthesizer", "drum machine", "synth bass"),
}
_MOOD_TAGS = {
    "major": ("happy", "uplifting", "inspiring", "hopeful", "joyful", "upbeat"),
    "minor": ("sad", "melancholic", "dark", "emotional", "nostalgic", "longing"),
}
_TIMBRE_TAGS = {
    "female": ("bright vocal", "airy vocal", "clear vocal", "sweet vocal"),
    "male": ("full vocal", "mellow vocal", "rich vocal", "deep vocal"),
}
TAG_WORDS = tuple(
    sorted(
        {
            word.lower()
            for table in (_GENRE_TAGS, _INSTRUMENT_TAGS, _MOOD_TAGS, _TIMBRE_TAGS)
            for tag in itertools.chain(*table.values())
            for word in tag.split()
        }
        | set(GENDERS)
    )
)
"""Words of all tags."""

LONGEST_SECTION = 24 * 50
"""Most frames of a section of a long song."""

_FORMS = (
    "verse chorus",
    "verse chorus outro",
    "chorus verse chorus",
    "intro verse chorus outro",
    "verse chorus verse chorus",
    "verse chorus bridge chorus outro",
    "verse verse chorus outro",
    "intro verse chorus inst chorus outro",
)
_LONG_FORMS = (
    "verse chorus verse chorus",
    "verse chorus verse chorus outro",
    "verse chorus bridge chorus outro",
    "verse chorus verse chorus bridge outro",
    "verse chorus verse chorus bridge chorus",
    "intro verse chorus verse chorus outro",
)


@dataclass(frozen=True)
class SongSection:
    """`words` are the lines as they stand in a prompt; `start` and `stop` are frames."""

    label: str
    words: str
    start: int
    stop: int


@dataclass(frozen=True)
class Note:
    """One sung syllable."""

    frame: int
    frames: int
    """How long it sounds, release included."""
    section: int
    index: int
    """Which of the section's syllables, as `syllabify(words)` counts them."""
    consonant: int
    vowel: int
    degree: int
    """Index into the singer's scale."""


@dataclass(frozen=True)
class Bar:
    """One bar of the accompaniment. Bars that are equal but for `frame` and `section` sound the same."""

    frame: int
    section: int
    chord: str
    part: str
    """`verse`, `chorus`, `bridge` or `end` (the last bar of a song's outro)."""
    variant: int
    fill: bool = False
    """The drums announce the next section, or the end, from the sixteenth `FILL` on."""


@dataclass(frozen=True)
class Song:
    seed: int
    genre: str
    mood: str
    gender: str
    tags: str
    sections: tuple[SongSection, ...]
    notes: tuple[Note, ...]
    bars: tuple[Bar, ...]

    @property
    def sixteenth(self) -> int:
        return SIXTEENTH[self.genre]

    @property
    def frames(self) -> int:
        return self.sections[-1].stop

    def pitch(self, note: Note) -> int:
        """Pitch of a note, in units of 6.25 Hz."""
        return (SCALE if self.gender == "female" else LOW_SCALE)[note.degree]


def eighth(genre: str) -> int:
    """Frames of an eighth note."""
    return 2 * SIXTEENTH[genre]


def bars_of(label: str, words: str) -> int:
    """Number of bars of a section. An outro has one more, for its final chord."""
    counts = [len(syllabify(line)) for line in words.splitlines()]
    bars = sum(-(-count // SLOTS) for count in counts) or SILENT_BARS
    return bars + (label == "outro")


def section_frames(genre: str, label: str, words: str) -> int:
    """Number of frames of a section with these words."""
    return bars_of(label, words) * 16 * SIXTEENTH[genre]


def make_song(
    seed: int,
    genre: str | None = None,
    mood: str | None = None,
    gender: str | None = None,
    sections: Sequence[tuple[str, Sequence[str]]] | None = None,
    size: str = "whole",
) -> Song:
    """Compose the song of a seed, drawing whatever is not given. `sections` are labels with their lines of words.

    `size` says what is drawn in their place: `line` (one section of one or two lines), `short` (up to three sections
    of two lines), `whole` (two to six sections of 6 to 12 s), `drill` (short sections of lines that are hard to keep
    apart) or `long` (four to six sections of up to `LONGEST_SECTION`, with lines about as long as each other)."""
    rng = np.random.default_rng([seed, 0x50A6])
    genre = genre or str(rng.choice(GENRES))
    mood = mood or str(rng.choice(MOODS))
    gender = gender or str(rng.choice(GENDERS))
    tags = _tags(rng, genre, mood, gender)
    if sections is None:
        sections = _lyrics(rng, genre, size)
    tune = {role: _melody(rng, mood, role) for role in _RANGE}
    variants = {role: int(rng.integers(2)) for role in _RANGE}
    notes: list[Note] = []
    bars: list[Bar] = []
    placed: list[SongSection] = []
    beat, frame = eighth(genre), 0
    for number, (label, lines) in enumerate(sections):
        words = "\n".join(lines)
        role = _ROLE.get(label, "verse")
        chords, melody = tune[role]
        count = bars_of(label, words)
        for bar in range(count):
            start, fill = frame + bar * SLOTS * beat, bar == count - 1 - (label == "outro")
            if label == "outro" and bar == count - 1:
                bars.append(Bar(start, number, chords[0], "end", 0))
            else:
                bars.append(Bar(start, number, chords[bar % len(chords)], role, variants[role], fill))
        first_bar = index = 0
        for line in lines:
            syllables = syllabify(line)
            for place, syllable in enumerate(syllables):
                bar, slot = first_bar + place // SLOTS, place % SLOTS
                last = place == len(syllables) - 1
                degree = melody[bar % len(melody)][slot]
                if last:
                    degree = _nearest(_DEGREES[chords[bar % len(chords)]], degree, _RANGE[role])
                held = min(LONGEST_NOTE, SLOTS - slot) if last else 1
                start = frame + (bar * SLOTS + slot) * beat
                note = Note(start, held * beat, number, index, syllable.consonant, syllable.vowel, degree)
                notes.append(note)
                index += 1
            first_bar += -(-len(syllables) // SLOTS)
        placed.append(SongSection(label, words, frame, frame + count * SLOTS * beat))
        frame = placed[-1].stop
    return Song(seed, genre, mood, gender, tags, tuple(placed), tuple(notes), tuple(bars))


def _nearest(degrees: tuple[int, ...], to: int, within: tuple[int, int]) -> int:
    inside = [d for d in degrees if within[0] <= d <= within[1]] or list(degrees)
    return min(inside, key=lambda degree: abs(degree - to))


def _melody(rng: np.random.Generator, mood: str, role: str) -> tuple[list[str], list[list[int]]]:
    """Four chords and a tune over them, one degree per eighth: a motif three times, each time on its chord, and an
    answer. Chord tones stand on the first and third beat."""
    loops = _LOOPS[mood, role]
    chords = loops[rng.integers(len(loops))].split()
    low, high = _RANGE[role]
    shape = np.concatenate([[0], np.cumsum(rng.choice([-2, -1, -1, 0, 0, 1, 1, 2], SLOTS - 1))])
    answer = np.concatenate([[0], np.cumsum(rng.choice([-1, -1, 0, 1], SLOTS - 1))])
    start = int(rng.integers(low + 1, high))
    bars = []
    for bar, chord in enumerate(chords):
        first = _nearest(_DEGREES[chord], start, (low, high))
        walk = [int(np.clip(first + step, low, high)) for step in (answer if bar == 3 else shape)]
        for strong in (0, SLOTS // 2):
            walk[strong] = _nearest(_DEGREES[chord], walk[strong], (low, high))
        bars.append(walk)
    return chords, bars


def _tags(rng: np.random.Generator, genre: str, mood: str, gender: str) -> str:
    """A line of tags in any order. Instrument and timbre are sometimes left out."""
    parts = [gender, str(rng.choice(_GENRE_TAGS[genre])), str(rng.choice(_MOOD_TAGS[mood]))]
    if rng.random() < 0.8:
        parts.append(str(rng.choice(_INSTRUMENT_TAGS[genre])))
    if rng.random() < 0.8:
        parts.append(str(rng.choice(_TIMBRE_TAGS[gender])))
    joint = ", " if rng.random() < 0.15 else " "
    line = joint.join(parts[i] for i in rng.permutation(len(parts)))
    return line.title() if rng.random() < 0.1 else line


# Lyrics


@functools.cache
def _words() -> tuple[str, ...]:
    text = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8")
    return tuple(dict.fromkeys(text.split()))


def _lyrics(rng: np.random.Generator, genre: str, size: str) -> list[tuple[str, list[str]]]:
    if size == "line":
        label = str(rng.choice(LABELS[1:5], p=(0.35, 0.35, 0.15, 0.15)))
        return [(label, [_line(rng) for _ in range(rng.integers(1, 3))])]
    if size == "drill":
        labels = [str(label) for label in rng.choice(LABELS[1:4], rng.integers(1, 3))]
        return [(label, [_hard_line(rng) for _ in range(rng.integers(2, 5))]) for label in labels]
    if size == "long":
        labels = str(rng.choice(_LONG_FORMS)).split()
        chorus = _even_stanza(rng, genre)
        words = {"chorus": chorus, "intro": [], "outro": _even_stanza(rng, genre)[:2]}
        return [(label, words[label] if label in words else _even_stanza(rng, genre)) for label in labels]
    if size == "short":
        labels = [str(rng.choice(LABELS[1:4], p=(0.45, 0.4, 0.15))) for _ in range(rng.integers(1, 4))]
        bars = (2, 3)
    else:
        labels = str(rng.choice(_FORMS)).split()
        shortest = {"pop": 4, "dance": 4, "rock": 4, "ballad": 3}[genre]
        bars = (shortest, shortest + 2)
    chorus = _stanza(rng, bars)
    words = {"chorus": chorus, "intro": [], "inst": [], "outro": [_line(rng)]}
    return [(label, words[label] if label in words else _stanza(rng, bars)) for label in labels]


def _stanza(rng: np.random.Generator, bars: tuple[int, int]) -> list[str]:
    """Lines that fill at least the smaller number of bars."""
    wanted = int(rng.integers(bars[0], bars[1] + 1))
    lines: list[str] = []
    while sum(-(-len(syllabify(line)) // SLOTS) for line in lines) < wanted:
        lines.append(_line(rng))
    return lines


def _even_stanza(rng: np.random.Generator, genre: str) -> list[str]:
    """Two to six lines of about as many syllables each, as far as they fit into `LONGEST_SECTION`."""
    count, most = int(rng.choice([2, 4, 6], p=(0.25, 0.6, 0.15))), int(rng.choice([6, 8, 10, 12, 14, 16]))
    lines = [_line(rng, most - 2 - int(rng.integers(2)), most) for _ in range(count)]
    while section_frames(genre, "outro", "\n".join(lines)) > LONGEST_SECTION:
        lines.pop()
    return lines


def _hard_line(rng: np.random.Generator) -> str:
    """A line whose last syllable stands alone in a bar, or nearly; very short ones; and a few others."""
    low, high = ((9, 9), (10, 10), (11, 15), (1, 3), (8, 8), (4, 7))[rng.choice(6, p=(0.35, 0.1, 0.1, 0.2, 0.1, 0.15))]
    return _line(rng, low, high)


def _line(rng: np.random.Generator, low: int = 0, high: int = 0) -> str:
    """A line of `low` to `high` syllables. Else of four to eight; one in four is longer, one in twenty shorter."""
    if not high:
        kind = rng.random()
        low, high = (1, 3) if kind < 0.05 else (9, 15) if kind < 0.3 else (4, 8)
    wanted, words, count = int(rng.integers(low, high + 1)), [], 0
    while count < wanted:
        word = _pseudo(rng) if rng.random() < 0.35 else _words()[rng.integers(len(_words()))]
        length = len(syllabify(word))
        if count + length <= wanted:
            words.append("I" if word == "i" else word)
            count += length
    line = " ".join(words)
    line = line[0].upper() + line[1:] if rng.random() < 0.8 else line
    return line + str(rng.choice(["", "", "", ",", "."]))


def _pseudo(rng: np.random.Generator) -> str:
    """A word of open syllables, such as `melo` or `shuna`."""
    onsets = [*"b c d f g h j k l m n p r s t v w z th sh ch br tr st".split(), ""]
    return "".join(
        str(rng.choice(onsets if part else onsets[:-1])) + VOWELS[rng.integers(len(VOWELS))]
        for part in range(rng.integers(1, 4))
    )
