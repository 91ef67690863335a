"""The lyrics editor's half on the server: parses a text as a song would, into plain values for the script."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ui.pages.wording import note_in_words
from ui.texts import Texts
from yuegp.errors import RequestError
from yuegp.song import lyrics

SHAPES = {
    "pop": ("verse", "chorus", "verse", "chorus", "bridge", "chorus", "outro"),
    "ballad": ("verse", "verse", "chorus", "verse", "chorus", "outro"),
    "short": ("verse", "chorus"),
}
"""Section labels of the empty songs to start from, by name. They begin with a verse: intros come out less well."""

SECTION_SECONDS = 30.0
"""Seconds of singing in a full section on the budget bars: the length YuE was trained on."""


@dataclass(frozen=True)
class Example:
    """An example song: what Create fills into its fields."""

    name: str
    title: str
    tags: str
    lyrics: str
    instrumental: bool


@cache
def examples() -> tuple[Example, ...]:
    """The example songs, from `assets/examples.json`."""
    text = (resources.files("ui") / "assets" / "examples.json").read_text(encoding="utf-8")
    return tuple(Example(**{**entry, "lyrics": "\n".join(entry["lyrics"])}) for entry in json.loads(text))


def shape(name: str) -> str:
    """An empty song of one of `SHAPES`, as text."""
    return "\n".join(f"[{label}]\n" for label in SHAPES[name])


def read(text: str, t: Texts, section_seconds: float = SECTION_SECONDS) -> dict[str, Any]:
    """Sections, notes, length and language of a text. Notes say which words will not be sung (`kind` is `unsung`), what
    is wrong (`bad`), and give advice (empty). No text raises an error."""
    if not text.strip():
        return {"sections": [], "notes": [], "total": t("create.words.empty"), "language": "en"}
    try:
        parsed = lyrics.parse(text)
    except RequestError as exc:
        sections = [_row("verse", text, t, section_seconds)] if len(text) < lyrics.LARGEST_FILE else []
        note = {"kind": "bad", "text": f"{exc.what} {exc.hint}"}
        return {"sections": sections, "notes": [note], "total": "", "language": "en"}
    notes = [{"kind": "unsung", "text": note_in_words(note, t)} for note in parsed.notes]
    notes += [{"kind": "", "text": note_in_words(note, t)} for note in lyrics.advise(parsed, section_seconds)]
    sung = sum(lyrics.seconds_estimate(section.words) for section in parsed.sections)
    words = sum(lyrics.word_count(section.words) for section in parsed.sections)
    total = "create.words.total_one" if len(parsed.sections) == 1 else "create.words.total"
    return {
        "sections": [_row(section.label, section.words, t, section_seconds) for section in parsed.sections],
        "notes": notes,
        "total": t(total, sections=len(parsed.sections), words=words, seconds=round(sung)),
        "language": lyrics.language(parsed.sections),
    }


def _row(label: str, words: str, t: Texts, limit: float) -> dict[str, Any]:
    seconds, count = lyrics.seconds_estimate(words), lyrics.word_count(words)
    trained = lyrics.trained_label(label)
    hint = ""
    if trained not in lyrics.TRAINED_LABELS:
        hint = t("create.words.unknown_label")
    elif trained != label:
        hint = t("create.words.read_as", label=trained)
    text = t("create.words.count", words=count, seconds=round(seconds), limit=round(limit))
    if not count:
        text = t("create.words.silent")
    return {"label": label, "words": words, "seconds": seconds, "limit": limit, "count": text, "hint": hint}
