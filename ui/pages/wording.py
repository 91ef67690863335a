"""In the language of the page: what the program keeps as codes and values."""

from __future__ import annotations

from ui.texts import Texts
from yuegp.song.notes import Note, Value, Word
from yuegp.song.schema import Edit, EditKind


def edit_in_words(edit: Edit | None, t: Texts) -> str:
    """What was done to a take's parent; what an older program told in words we do not know, as it is written."""
    if edit is None:
        return t("song.how.made")
    return edit.text if edit.kind is EditKind.OTHER else t(f"song.how.{edit.kind}", **edit.values())


def note_in_words(note: Note, t: Texts) -> str:
    """What a note says, after the line it is about."""
    text = t(f"note.{note.code}", **{name: _word(value, t) for name, value in note.values.items()})
    return t("note.line", line=note.line, text=text) if note.line else text


def _word(value: Value, t: Texts) -> str | float:
    if isinstance(value, tuple):
        return t("note.and").join(t(f"note.word.{word}") for word in value)
    return t(f"note.word.{value}") if isinstance(value, Word) else value
