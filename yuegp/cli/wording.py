"""In English words: what the program keeps as codes and values."""

from __future__ import annotations

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


def edit_in_words(edit: Edit | None) -> str:
    """What was done to a take's parent: `section 2 redone`."""
    return _EDITS[edit.kind].format(**edit.values()) if edit else "made"
