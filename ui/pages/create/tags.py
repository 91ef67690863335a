"""The tag picker's half on the server: finds the known tags in a line, and gives advice."""

from __future__ import annotations

from typing import Any

from ui.pages.wording import note_in_words
from ui.texts import Texts
from yuegp.errors import RequestError
from yuegp.song import tags
from yuegp.song.notes import NoteCode


def vocabulary() -> dict[str, list[str]]:
    """Category → its tags, most frequent first; the languages come last."""
    return {**{name: list(known) for name, known in tags.vocabulary().items()}, "language": list(tags.LANGUAGES)}


def read(line: str, language: str, instrumental: bool, t: Texts) -> dict[str, Any]:
    """`folded`: the known tags of a line as the picker compares them; `hints`: sentences, with tags to add at once
    where a few would do. No line raises anything."""
    if not line.strip():
        return {"folded": [], "hints": []}
    try:
        line = tags.parse(line)
    except RequestError as exc:
        return {"folded": [], "hints": [{"text": f"{exc.what} {exc.hint}"}]}
    folded = [tags.fold(tag) for known in tags.find(line).values() for tag in known]
    hints: list[dict[str, Any]] = []
    for note in tags.advise(line, language, instrumental):
        offer = tags.LANGUAGES if note.code is NoteCode.CHINESE_UNNAMED else ()
        hints.append({"text": note_in_words(note, t), "add": list(offer)})
    return {"folded": folded, "hints": hints}
