"""Migrates songs of older formats: one function per kind of file and format, applied in order.

Opens no files: `store.py` reads them, and always writes the newest format.

    1 → 2   takes carry their own request; a span names its take and seed; the title moved to the song's cover page
"""

from __future__ import annotations

from typing import Any


def migrate_song(data: dict[str, Any]) -> dict[str, Any]:
    """Content of a song.json of any known format, converted to the newest."""
    if data["format"] == 1:
        data = {**data, "format": 2, "song": {"title": data["request"]["title"]}}
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
    return data
