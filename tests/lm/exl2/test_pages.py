"""Pages and lengths of rows: no two rows ever share a place, and what is stated of a row is what was done to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yuegp.lm.exl2.pages import PAGE, Pages


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_rows_lie_one_behind_the_other_and_fill_the_pool(capacities: list[int]) -> None:
    pages = Pages(capacities)
    owned = [range(pages.start(row), pages.start(row) + pages.counts[row] * PAGE) for row in range(len(capacities))]
    assert [place for part in owned for place in (part.start, part.stop)][1:-1] == [
        place for part in owned[1:] for place in (part.start, part.start)
    ]
    assert owned[0].start == 0 and owned[-1].stop == pages.positions
    for row, capacity in enumerate(capacities):
        assert len(owned[row]) >= capacity > len(owned[row]) - PAGE


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8))
def test_the_table_names_a_rows_own_pages_only(capacities: list[int]) -> None:
    pages = Pages(capacities)
    table = pages.table(range(len(capacities)))
    assert {len(line) for line in table} == {max(pages.counts)}
    for row, line in enumerate(table):
        own = list(range(pages.first[row], pages.first[row] + pages.counts[row]))
        assert line[: len(own)] == own and set(line) == set(own)


def test_guidance_of_stage_1_takes_76_pages() -> None:
    """16,384 ids with guidance's short row of 1 + 3000: 64 and 12 pages, in the table of one joint step."""
    pages = Pages([16384, 3001])
    assert (pages.counts, pages.positions) == ([64, 12], 19456)
    assert pages.table([0, 1])[1] == [*range(64, 76)] + [75] * 52


def test_capacity_and_not_the_last_page_is_the_limit() -> None:
    pages = Pages([10, 300])
    pages.grow([0], 10)
    with pytest.raises(ValueError, match="1 more ids do not fit a row of 10 ids with room for 10"):
        pages.check_room(0, 1)
    pages.check_room(1, 300)
    with pytest.raises(ValueError, match="cannot cut a row of 10 ids to 11"):
        pages.truncate(0, 11)
    with pytest.raises(ValueError, match="cannot cut"):
        pages.truncate(0, -1)


def test_a_copy_moves_whole_pages_and_takes_over_the_length() -> None:
    pages = Pages([600, 10, 600])
    pages.grow([0], 257)
    assert pages.copy(0, 2) == (0, 4 * PAGE, 2 * PAGE)
    assert pages.lengths == [257, 0, 257]
    with pytest.raises(ValueError, match="257 ids does not fit"):
        pages.copy(0, 1)
    pages.truncate(0, 0)
    assert pages.copy(0, 2)[2] == 0 and pages.lengths == [0, 0, 0]


@pytest.mark.parametrize("capacities", [[], [4, 0]])
def test_a_row_has_room(capacities: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one id"):
        Pages(capacities)
