"""What was done to a take's parent, in the language of the page."""

from __future__ import annotations

from ui.texts import Texts
from yuegp.song.schema import Edit, EditKind


def in_words(edit: Edit | None, t: Texts) -> str:
    """`section 2 made again`; what an older program told in words we do not know, as it is written."""
    if edit is None:
        return t("song.how.made")
    return edit.text if edit.kind is EditKind.OTHER else t(f"song.how.{edit.kind}", **edit.values())
