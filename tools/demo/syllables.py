"""Any text as sung syllables: a class of consonant, one of five vowels, and the characters they stand in.

The songs the demo set learns from and the measures it is judged by share this one reading. It is no phonetics: a run
of vowel letters is a syllable, and a few rules mend what is most audible in English.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from typing import NamedTuple

VOWELS = "aeiou"
CONSONANTS = ("none", "fricative", "plosive", "sonorant")
"""Classes of onset, by which a syllable begins."""

_RUNS = {"ee": "i", "ea": "i", "ie": "i", "oo": "u", "ou": "u", "ai": "e", "ay": "e", "au": "o", "aw": "o"}
"""Vowel runs that are not sung as their first letter."""

_CLASS = dict.fromkeys("sfvzhx", 1) | dict.fromkeys("pbtdkgqjc", 2) | dict.fromkeys("mnlrwy", 3)
_FRICATIVE_PAIRS = ("th", "sh", "ch", "ph")
_SILENT_E = re.compile(r"[^aeiouy']es?$|[^aeioutdy']ed$")
"""The ends of "name", "times" and "turned"."""

_SUNG_LE = re.compile(r"[^aeiouy]les?$")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d")
_WIDE = ("CJK UNIFIED", "CJK COMPATIBILITY IDEO", "HIRAGANA", "KATAKANA", "HANGUL SYLLABLE")


class Syllable(NamedTuple):
    """One sung syllable of a text. `span` holds its vowel: `text[span[0]:span[1]]`."""

    consonant: int
    """Index into `CONSONANTS`."""
    vowel: int
    """Index into `VOWELS`."""
    span: tuple[int, int]


def syllabify(text: str) -> list[Syllable]:
    """The syllables of `text` in singing order; empty for a text without letters and digits.

    Latin words by their letters, Japanese and Korean signs by the vowel in their Unicode name, everything else by a
    fixed hash: each Chinese character is one syllable, other scripts make one of every two letters."""
    found: list[Syllable] = []
    for word in _WORD.finditer(text):
        start = word.start()
        run = ""
        for at, char in enumerate(word[0], start):
            if unicodedata.name(char, "").startswith(_WIDE):
                found += [*_latin(run, at - len(run)), _wide(char, at)]
                run = ""
            else:
                run += char
        found += _latin(run, word.end() - len(run))
    return found


def _plain(char: str) -> str:
    """A letter without case and accents, always one character long."""
    return unicodedata.normalize("NFD", char)[0].lower()[0]


def _latin(word: str, start: int) -> list[Syllable]:
    plain = "".join(map(_plain, word)).replace("qu", "qw")
    if not plain:
        return []
    if not re.search("[a-z]", plain):
        return [_hashed(plain[i : i + 2], start + i, min(2, len(plain) - i)) for i in range(0, len(plain), 2)]
    runs = [run.span() for run in re.finditer(r"[aeiou]+y?(?![aeiou])|[aeiou]+|y(?![aeiou])", plain)]
    if len(runs) > 1 and _SILENT_E.search(word.lower()) and not _SUNG_LE.search(plain):
        runs.pop()
    if not runs:
        return [Syllable(_CLASS.get(plain[0], 0), VOWELS.index("e"), (start, start + len(plain)))]
    found, stop = [], 0
    for first, last in runs:
        letters = plain[first:last].replace("y", "i") if plain[first] == "y" else plain[first:last]
        vowel = _RUNS.get(letters[:2], letters[0])
        found.append(Syllable(_onset(plain[stop:first], vowel), VOWELS.index(vowel), (start + first, start + last)))
        stop = last
    return found


def _onset(letters: str, vowel: str) -> int:
    """The class of the consonants between two vowels: of the last one, which is sung into the vowel."""
    if letters.endswith(_FRICATIVE_PAIRS) or (letters.endswith("c") and vowel in "ei"):
        return 1
    if letters.endswith("wh"):
        return 3
    return _CLASS.get(letters[-1:], 0)


def _wide(char: str, at: int) -> Syllable:
    sound = unicodedata.name(char).split()[-1].lower()
    vowels = [letter for letter in sound if letter in VOWELS]
    if "CJK" in unicodedata.name(char) or not vowels:
        return _hashed(char, at, 1)
    return Syllable(_CLASS.get(sound[0], 0), VOWELS.index(vowels[0]), (at, at + 1))


def _hashed(letters: str, at: int, length: int) -> Syllable:
    number = zlib.crc32(letters.encode("utf-8", "surrogatepass"))
    return Syllable(number // 5 % 4, number % 5, (at, at + length))
