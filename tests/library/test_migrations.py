"""Takes of older formats: what they said in English becomes an `Edit`, and whatever they hold is kept or named."""

from __future__ import annotations

from typing import Any

import pytest

from yuegp.checked import Fault
from yuegp.library.migrations import migrate_take
from yuegp.song.schema import Edit, EditKind, Section, SongRequest, Span, TakeInfo, take_from_dict, to_dict

NOW = TakeInfo(2, SongRequest((Section("verse"), Section("chorus")), "pop"), parent=1)


def of_format_2(how: Any, **changes: Any) -> dict[str, Any]:
    take = to_dict(NOW)
    del take["edit"]
    return {"format": 2, "take": {**take, "later": take.pop("kept_sections"), "how": how, **changes}}


def migrated(data: dict[str, Any]) -> TakeInfo:
    return take_from_dict(migrate_take(data, {})["take"])


@pytest.mark.parametrize(
    ("how", "edit"),
    [
        ("made", None),
        ("continued", Edit(EditKind.CONTINUE)),
        ("section 2 redone", Edit(EditKind.REDO, 1)),
        ("section 2, candidate 3 of 10", Edit(EditKind.CANDIDATE, 1, candidate=3, candidates=10)),
        ("rewound to section 1", Edit(EditKind.REWIND_SECTION, 0)),
        ("rewound to 12.5 s", Edit(EditKind.REWIND_SECOND, seconds=12.5)),
        ("section 1 trimmed by 0.25 s", Edit(EditKind.TRIM, 0, seconds=0.25)),
        ("sections 1, 3 muted", Edit(EditKind.MUTE, sections=(0, 2))),
        ("nothing muted", Edit(EditKind.UNMUTE)),
        *((text, Edit(EditKind.OTHER, text=text)) for text in (
            "", "turned upside down", "section 0 redone", "rewound to 1.2.3 s", "sections , muted",
            f"section {'9' * 5000} redone", f"rewound to {'9' * 400} s",
        )),
    ],
)  # fmt: skip
def test_what_format_2_says_in_english_becomes_an_edit(how: str, edit: Edit | None) -> None:
    assert migrated(of_format_2(how)).edit == edit


def test_kept_sections_keep_their_place_and_a_take_without_how_was_made() -> None:
    data = of_format_2("made", later=[to_dict(Span(1, 100, 200, True))])
    del data["take"]["how"]
    found = migrated(data)
    assert found.kept_sections == (Span(1, 100, 200, True),) and found.edit is None


@pytest.mark.parametrize("how", [None, 7, ["section 2 redone"], {}])
def test_what_is_no_text_is_named(how: Any) -> None:
    with pytest.raises(Fault, match=r"take\.how is not a text"):
        migrated(of_format_2(how))
