"""Migrates songs of older formats: one function per kind of file and format, applied in order.

Nothing here touches a file; `store` reads, and writes the newest format whenever it writes at all.

    1 → 2   takes carry their own request; a span names its take and seed; the title moved to the song's cover page
    2 → 3   an `edit` says with values what `how` said in English; `later` is called `kept_sections`
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from yuegp.checked import Fault, build, object_of
from yuegp.song.schema import Edit, EditKind


def migrate_song(data: dict[str, Any]) -> dict[str, Any]:
    """Content of a song.json of any known format, converted to the newest."""
    if data["format"] == 1:
        data = {**data, "format": 2, "song": {"title": data["request"]["title"]}}
    if data["format"] == 2:
        data = {**data, "format": 3}  # only takes changed
    return data


def migrate_take(data: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Content of a take.json of any known format, converted to the newest; `request` is that of its song.json."""
    if data["format"] == 1:
        old = data["take"]
        spans = [{**span, "take": old["number"], "seed": old["seed"]} for span in old["spans"]]
        take = {
            **{name: old[name] for name in ("number", "stage", "parent", "made_with", "seconds")},
            "request": {**request, "seed": old["seed"], "sampling": old["sampling"]},
            "spans": spans,
            "later": [],
            "seams": [],
            "muted": [],
        }
        data = {"format": 2, "take": take}
    if data["format"] == 2:
        take = dict(object_of(data["take"]))
        take["edit"] = _edit(take.pop("how", "made"))
        take["kept_sections"] = take.pop("later")
        data = {"format": 3, "take": take}
    return data


_EDITS = {
    EditKind.CONTINUE: r"continued",
    EditKind.REDO: r"section (?P<section>\d+) redone",
    EditKind.CANDIDATE: r"section (?P<section>\d+), candidate (?P<candidate>\d+) of (?P<candidates>\d+)",
    EditKind.REWIND_SECTION: r"rewound to section (?P<section>\d+)",
    EditKind.REWIND_SECOND: r"rewound to (?P<seconds>[\d.]+) s",
    EditKind.TRIM: r"section (?P<section>\d+) trimmed by (?P<seconds>[\d.]+) s",
    EditKind.MUTE: r"sections (?P<sections>[\d, ]+) muted",
    EditKind.UNMUTE: r"nothing muted",
}
"""The English of format 2."""

_VALUES: dict[str, Callable[[str], Any]] = {
    "section": lambda text: int(text) - 1,
    "sections": lambda text: [int(number) - 1 for number in text.split(",")],
    "candidate": int,
    "candidates": int,
    "seconds": float,
}


def _edit(how: Any) -> dict[str, Any] | None:
    """What format 2 says in words of how a take came to be, as the fields of an `Edit`; None if it was simply made."""
    if not isinstance(how, str):
        raise Fault("is not a text", "take.how")
    if how == "made":
        return None
    for kind, pattern in _EDITS.items():
        if match := re.fullmatch(pattern, how):
            try:
                edit = {"kind": kind, **{name: _VALUES[name](text) for name, text in match.groupdict().items()}}
                build(Edit, edit)
                return edit
            except ValueError:  # a section 0, or a number beyond all
                break
    return {"kind": EditKind.OTHER, "text": how}
