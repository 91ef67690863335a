"""What a user should know about a song that is asked for, as codes and values. `yuegp.cli` and the page word it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class NoteCode(StrEnum):
    """What there is to say. The comments name the values."""

    # How lyrics were read
    NO_LABEL = "no-label"
    BEFORE_LABEL = "before-label"  # last: line of the last such words
    MARK_IS_LABEL = "mark-is-label"  # mark, label
    MARK_IS_SUNG = "mark-is-sung"  # mark, words
    UNNAMED_LABEL = "unnamed-label"  # bracket
    WORDS_BEHIND_LABEL = "words-behind-label"  # label
    BRACKET_IS_SUNG = "bracket-is-sung"  # bracket, words
    BRACKET_LEFT_OUT = "bracket-left-out"  # bracket
    BRACKET_IN_LINE = "bracket-in-line"  # bracket
    LONE_BRACKET = "lone-bracket"
    TOKEN_IS_SUNG = "token-is-sung"  # token
    # What lyrics may lead to
    MANY_SECTIONS = "many-sections"  # count, most
    NO_WORDS = "no-words"
    UNKNOWN_LABEL = "unknown-label"  # label, known
    BEGINS_WITH_INTRO = "begins-with-intro"  # label
    NO_WORDS_HERE = "no-words-here"  # label
    CROWDED = "crowded"  # label, words, seconds, limit
    CROWDED_MANY = "crowded-many"  # count, limit, words
    # Tags
    MISSING_TAG = "missing-tag"  # component, first, second
    VOICE_IN_INSTRUMENTAL = "voice-in-instrumental"  # tags
    SEVERAL_SINGERS = "several-singers"  # singers
    CHINESE_UNNAMED = "chinese-unnamed"
    REPEATED_TAG = "repeated-tag"  # tag, count
    # The request as a whole
    WORDS_NOT_SUNG = "words-not-sung"
    REFERENCE_EXPECTED = "reference-expected"  # model
    REFERENCE_DULL = "reference-dull"  # path, rate
    REFERENCE_UNEQUAL = "reference-unequal"  # first, second: seconds
    REFERENCE_ENDS = "reference-ends"  # seconds, end
    # Settings that were imported
    REFERENCE_LOST = "reference-lost"  # start, end, files
    TAKE_WAS_JOINED = "take-was-joined"


class Word(StrEnum):
    """A value that is worded at the front like the note itself."""

    GENRE = "genre"
    INSTRUMENT = "instrument"
    MOOD = "mood"
    GENDER = "gender"
    TIMBRE = "timbre"
    MAN = "man"
    WOMAN = "woman"
    CHILD = "child"


Value = str | float | Word | tuple[Word, ...]


@dataclass(frozen=True)
class Note:
    """One thing to know. `line` of the lyrics counts from 1; 0 concerns the song as a whole."""

    code: NoteCode
    values: Mapping[str, Value] = field(default_factory=dict, hash=False)
    line: int = 0


def note(code: NoteCode, line: int = 0, **values: Value) -> Note:
    """A note with its values."""
    return Note(code, values, line)
