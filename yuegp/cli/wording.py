"""In English words: what the program keeps as codes and values."""

from __future__ import annotations

from yuegp.song.notes import Note, NoteCode, Value, Word
from yuegp.song.schema import Edit, EditKind

_EDITS = {
    EditKind.CONTINUE: "continued",
    EditKind.REDO: "section {section} redone",
    EditKind.CANDIDATE: "section {section}, candidate {candidate} of {candidates}",
    EditKind.REWIND_SECTION: "rewound to section {section}",
    EditKind.REWIND_SECOND: "rewound to {seconds} s",
    EditKind.TRIM: "section {section} trimmed by {seconds} s",
    EditKind.MUTE: "sections {sections} muted",
    EditKind.UNMUTE: "nothing muted",
    EditKind.OTHER: "{text}",
}

_NOTES = {
    NoteCode.NO_LABEL: (
        "There is no label, so all words became one [verse]. Write a line such as [verse] or [chorus], and "
        "the words to sing below it."
    ),
    NoteCode.BEFORE_LABEL: (
        "The words before the first label (up to line {last}) became a [verse]; they will be sung."
    ),
    NoteCode.MARK_IS_LABEL: "{mark} is a mark of the model's own; the section is called [{label}].",
    NoteCode.MARK_IS_SUNG: "{mark} is a mark of the model's own; it is sung as {words}.",
    NoteCode.UNNAMED_LABEL: "{bracket} has no name; the section is called [verse].",
    NoteCode.WORDS_BEHIND_LABEL: "[{label}] opens a section, though more follows on its line.",
    NoteCode.BRACKET_IS_SUNG: "{bracket} is no label here; it is sung as {words}.",
    NoteCode.BRACKET_LEFT_OUT: "{bracket} is no label here; it is left out.",
    NoteCode.BRACKET_IN_LINE: "{bracket} stands inside a line, so it is no label; it is sung as written.",
    NoteCode.LONE_BRACKET: "A square bracket has no partner; it is sung as written.",
    NoteCode.TOKEN_IS_SUNG: "{token} is sung as text.",
    NoteCode.MANY_SECTIONS: "{count} sections are many: beyond {most} lines tend to be skipped.",
    NoteCode.NO_WORDS: "No section has words: this will be an instrumental song.",
    NoteCode.UNKNOWN_LABEL: (
        "[{label}] is not among the labels the model knows, such as {known}. If it is to be sung, write ({label})."
    ),
    NoteCode.BEGINS_WITH_INTRO: "Songs that begin with [{label}] come out less reliably than with [verse] or [chorus].",
    NoteCode.NO_WORDS_HERE: "[{label}] has no words: it will be instrumental.",
    NoteCode.CROWDED: (
        "[{label}] has {words} words, about {seconds:.0f} s of singing in {limit:.0f} s: lines may be "
        "skipped. Make two of it."
    ),
    NoteCode.CROWDED_MANY: (
        "{count} sections have more words than can be sung in {limit:.0f} s (about {words:.0f}): lines may be skipped."
    ),
    NoteCode.MISSING_TAG: "No tag is a known {component}; adding one helps, such as {first} or {second}.",
    NoteCode.VOICE_IN_INSTRUMENTAL: "An instrumental song has no voice, but the tags describe one: {tags}.",
    NoteCode.SEVERAL_SINGERS: "The tags ask for {singers}, which can confuse the model: keep one, or add duet.",
    NoteCode.CHINESE_UNNAMED: (
        "Chinese lyrics need the tag Mandarin or Cantonese: the script does not say which is sung."
    ),
    NoteCode.REPEATED_TAG: "{tag} is named {count} times; once is enough.",
    NoteCode.WORDS_NOT_SUNG: "The song is instrumental: the words of the lyrics are kept but not sung.",
    NoteCode.REFERENCE_EXPECTED: (
        "The model {model} expects a reference recording; without one a cot model does better."
    ),
    NoteCode.REFERENCE_DULL: "{path} is sampled at {rate} Hz only; its missing treble will colour the song.",
    NoteCode.REFERENCE_UNEQUAL: (
        "The two reference files differ in length ({first:.1f} s and {second:.1f} s): only the length of the "
        "shorter one is used."
    ),
    NoteCode.REFERENCE_ENDS: "The reference ends at {seconds:.1f} s, before the {end:g} s asked for.",
    NoteCode.REFERENCE_LOST: (
        "The song follows a reference recording ({start:g} s to {end:g} s of {files}), which is not in the "
        "file: give it again."
    ),
    NoteCode.TAKE_WAS_JOINED: "The take was joined from several: made again in one go, it will sound different.",
}

_WORDS = {
    Word.GENRE: "genre",
    Word.INSTRUMENT: "instrument",
    Word.MOOD: "mood",
    Word.GENDER: "gender",
    Word.TIMBRE: "timbre",
    Word.MAN: "a man",
    Word.WOMAN: "a woman",
    Word.CHILD: "a child",
}


def edit_in_words(edit: Edit | None) -> str:
    """What was done to a take's parent: `section 2 redone`."""
    return _EDITS[edit.kind].format(**edit.values()) if edit else "made"


def note_in_words(note: Note) -> str:
    """`sentence`, after the line it is about."""
    return f"Line {note.line}: {sentence(note)}" if note.line else sentence(note)


def sentence(note: Note) -> str:
    """What a note says."""
    return _NOTES[note.code].format(**{name: _word(value) for name, value in note.values.items()})


def _word(value: Value) -> str | float:
    if isinstance(value, tuple):
        return " and ".join(_WORDS[word] for word in value)
    return _WORDS[value] if isinstance(value, Word) else value
