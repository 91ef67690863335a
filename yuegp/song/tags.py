"""Tags, the words that describe the music: five lists of what the model knows best, and advice on a line of tags.

A line of tags reaches the model as written: blanks, commas and case are part of what it was trained on. Only
`without_voice`, for instrumental songs, rewrites a line.

The lists (`assets/tags.json`, most frequent first) are YuE's published top 200 of each component without its
duplicates (case, spaces and hyphens fold; the more frequent spelling stays) and without entries that describe nothing.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from yuegp.errors import RequestError

from .notes import Note, NoteCode, Word, note

COMPONENTS = {
    "genre": ("pop", "jazz"),
    "instrument": ("piano", "guitar"),
    "mood": ("uplifting", "sad"),
    "gender": ("female", "male"),
    "timbre": ("airy vocal", "bright vocal"),
}
"""What a line should name, each at least once, with two examples. Source: YuE's prompt guide."""

LANGUAGES = ("Mandarin", "Cantonese")
"""Valid tags outside the lists, needed because the script of the lyrics does not tell the two apart."""

LONGEST = 500
"""Most characters of a line. A rich one has 100, and the model reads the line before everything else."""

_VOICES = frozenset("voice vocal vocals singing rap rapping beatboxing choir vocalsamples 人声 声乐 主唱 女声".split())
"""Entries of the instrument list, folded, that are voices."""

_SINGERS = {
    Word.MAN: ("male", "tenor", "男声"),
    Word.WOMAN: ("female", "soprano", "mezzosoprano", "女声"),
    Word.CHILD: ("child", "children", "童声"),
}
_TOGETHER = re.compile(r"\b(duet|duo|choir)\b|[对對合]唱", re.IGNORECASE)
_VOCAL = re.compile(r"(vocals?|voices?|[人男女童][声聲])$", re.IGNORECASE)
_COMMA = ",，、;；"


@functools.cache
def vocabulary() -> Mapping[str, tuple[str, ...]]:
    """Component to its tags, most frequent first. Read from the package on first use."""
    text = (resources.files("yuegp") / "assets" / "tags.json").read_text(encoding="utf-8")
    return MappingProxyType({component: tuple(tags) for component, tags in json.loads(text).items()})


def _known() -> dict[str, tuple[str, ...]]:
    return {**vocabulary(), "language": LANGUAGES}


def fold(tag: str) -> str:
    """Key shared by the spellings of one tag: `Hip-Hop`, `hip hop` and `hiphop` give `hiphop`."""
    return re.sub(r"[\s-]+", "", tag).casefold()


def parse(line: str) -> str:
    """The line as the model gets it: stripped, otherwise verbatim. Raises RequestError."""
    line = line.strip()
    example = "For example: inspiring female uplifting pop airy vocal piano"
    if not line:
        raise RequestError("There are no tags.", f"Name genre, instrument, mood, gender and timbre. {example}")
    if "[" in line:
        what = f"The tags hold a square bracket: {line[line.index('[') :][:20]!r}."
        raise RequestError(what, "Labels and words to sing belong into the lyrics.")
    if (rows := len(line.splitlines())) > 1:
        raise RequestError(f"The tags have {rows} lines; they must be one.", f"Join them. {example}")
    if len(line) > LONGEST:
        raise RequestError(f"The tags have {len(line)} characters; the limit is {LONGEST}.", f"Ten words do. {example}")
    if bad := next((char for char in line if char != "\t" and unicodedata.category(char) in ("Cc", "Cs")), None):
        raise RequestError(f"The tags hold the control character U+{ord(bad):04X}.", "Remove it.")
    return line


@dataclass(frozen=True)
class _Piece:
    """`start:stop` of a line: a known tag in the vocabulary's spelling, or the user's own words (category `own`)."""

    category: str
    tag: str
    start: int
    stop: int

    @property
    def voice(self) -> bool:
        """Whether it describes the singer or the singing."""
        if self.category == "instrument":
            return fold(self.tag) in _VOICES
        return self.category in ("gender", "timbre") or (self.category == "own" and bool(_VOCAL.search(self.tag)))


@functools.cache
def _index() -> tuple[Mapping[str, tuple[str, str]], int]:
    """Folded tag to (category, tag), and the most words a tag has. A tag of two components counts for the first."""
    entries = [(category, tag) for category, tags in _known().items() for tag in tags]
    most = max(len(re.split(r"[\s-]", tag)) for _, tag in entries)
    return {fold(tag): (category, tag) for category, tag in reversed(entries)}, most


def _pieces(line: str) -> Iterator[_Piece]:
    """Split the line from left to right, taking the longest known tag each time; commas end a tag.

    Consecutive unknown words are one own tag. Before a plain `vocal` they form a timbre with it: all of them in a line
    with commas (`slightly smoky vocal, jazz`), the last one in a line without (`vaporwave smoky vocal`)."""
    index, most = _index()
    commas = any(comma in line for comma in _COMMA)
    for part in re.finditer(f"[^{_COMMA}]+", line):
        words = [(word.start() + part.start(), word.end() + part.start()) for word in re.finditer(r"\S+", part[0])]
        at = unknown = 0
        while at < len(words):
            for stop in range(min(len(words), at + most), at, -1):
                text = line[words[at][0] : words[stop - 1][1]]
                if hit := index.get(fold(text)):
                    break
            else:
                at += 1
                continue
            if unknown < at and fold(text) in ("vocal", "vocals", "voice"):
                first = unknown if commas else at - 1
                yield from _own(line, words[unknown:first])
                yield from _own(line, words[first:stop])
            else:
                yield from _own(line, words[unknown:at])
                yield _Piece(*hit, words[at][0], words[stop - 1][1])
            at = unknown = stop
        yield from _own(line, words[unknown:])


def _own(line: str, words: list[tuple[int, int]]) -> Iterator[_Piece]:
    if words:
        start, stop = words[0][0], words[-1][1]
        yield _Piece("own", line[start:stop], start, stop)


def find(line: str) -> dict[str, tuple[str, ...]]:
    """Tags in the line by category, each once, in the line's order. Categories without a tag are absent.

    Categories are those of `COMPONENTS`, `language`, and `own` for words in no list. Known tags get the lists'
    spelling, own ones stay as written."""
    found: dict[str, dict[str, None]] = {}
    for piece in _pieces(line):
        found.setdefault(piece.category, {})[piece.tag] = None
    return {category: tuple(tags) for category, tags in found.items()}


def advise(line: str, lyrics_language: str | None = None, instrumental: bool = False) -> tuple[Note, ...]:
    """What is missing, doubled or contradictory. `lyrics_language` as `lyrics.language` gives it."""
    pieces = list(_pieces(line))
    voices = [piece for piece in pieces if piece.voice]
    singers = [who for who, tags in _SINGERS.items() if any(fold(piece.tag) in tags for piece in pieces)]
    named = {piece.category for piece in pieces if not (piece.voice and piece.category == "instrument")}
    named |= {"timbre"} if any(piece.category == "own" for piece in voices) else set()
    named |= {"gender"} if singers else set()
    hints: list[Note] = []
    for component, (first, second) in COMPONENTS.items():
        if component not in named and not (instrumental and component in ("gender", "timbre")):
            hints.append(note(NoteCode.MISSING_TAG, component=Word(component), first=first, second=second))
    if instrumental and voices:
        hints.append(note(NoteCode.VOICE_IN_INSTRUMENTAL, tags=", ".join(piece.tag for piece in voices)))
    if not instrumental and len(singers) > 1 and not _TOGETHER.search(line):
        hints.append(note(NoteCode.SEVERAL_SINGERS, singers=tuple(singers)))
    if not instrumental and lyrics_language == "zh" and not any(piece.category == "language" for piece in pieces):
        hints.append(note(NoteCode.CHINESE_UNNAMED))
    for tag, count in Counter(piece.tag.casefold() for piece in pieces).items():
        if count > 1:
            hints.append(note(NoteCode.REPEATED_TAG, tag=tag, count=count))
    return tuple(hints)


def without_voice(line: str) -> str:
    """The line for an instrumental song: no gender, no timbre, no singing; the rest as written.

    Source: YuE issue 18, where maintainers and users found this recipe. Raises RequestError when nothing remains."""
    rest = line = parse(line)
    for piece in reversed([piece for piece in _pieces(line) if piece.voice]):
        rest = rest[: piece.start].rstrip() + " " + rest[piece.stop :].lstrip()
    if rest != line:
        rest = re.sub(rf"\s*([{_COMMA}])[\s{_COMMA}]*(?=[{_COMMA}])", "", rest)
        rest = re.sub(rf"\s+(?=[{_COMMA}])", "", rest).strip(f" {_COMMA}")
    if not rest:
        what = f"The tags only describe a voice, and an instrumental song has none: {line}."
        raise RequestError(what, "Add a genre or an instrument, for example: ambient piano")
    return rest
