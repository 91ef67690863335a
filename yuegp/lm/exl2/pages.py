"""Bookkeeping of paged caches in plain numbers: which part of the pool each row has, and how long each row is.

One pool of KV positions serves all rows of a session. A row gets consecutive whole pages, so its positions are one
slice of the pool: a rewind lowers a number, a copy is one move, and an attention that is not paged needs no gathering.
"""

from __future__ import annotations

from collections.abc import Sequence

PAGE = 256
"""Positions per page. flash-attn accepts multiples of 256 only; ExLlamaV2 uses 256."""


class Pages:
    """Rows of given capacities, empty at first. `lengths` is the number of ids in each row."""

    def __init__(self, capacities: Sequence[int], page: int = PAGE) -> None:
        if not capacities or min(capacities) < 1:
            raise ValueError(f"rows need room for at least one id each, got {list(capacities)}")
        self.page = page
        self.capacities = list(capacities)
        self.lengths = [0] * len(capacities)
        self.counts = [-(-capacity // page) for capacity in capacities]
        self.first = [sum(self.counts[:row]) for row in range(len(capacities))]

    @property
    def positions(self) -> int:
        """Positions of the whole pool."""
        return sum(self.counts) * self.page

    def start(self, row: int) -> int:
        """Where in the pool a row begins."""
        return self.first[row] * self.page

    def table(self, rows: Sequence[int]) -> list[list[int]]:
        """Page numbers of the rows, equally many for each: a shorter row repeats its last page, which is never read
        there because the row ends before it."""
        width = max(self.counts[row] for row in rows)
        return [[self.first[row] + min(i, self.counts[row] - 1) for i in range(width)] for row in rows]

    def check_room(self, row: int, more: int) -> None:
        """Raise ValueError when `more` ids exceed the row's capacity, even if its last page has room left."""
        if self.lengths[row] + more > self.capacities[row]:
            raise ValueError(
                f"{more} more ids do not fit a row of {self.lengths[row]} ids with room for {self.capacities[row]}"
            )

    def grow(self, rows: Sequence[int], more: int) -> None:
        """Add `more` to the length of each of the rows."""
        for row in rows:
            self.lengths[row] += more

    def truncate(self, row: int, length: int) -> None:
        """Forget everything of a row from position `length` on."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"cannot cut a row of {self.lengths[row]} ids to {length}")
        self.lengths[row] = length

    def copy(self, src: int, dst: int) -> tuple[int, int, int]:
        """Make `dst` as long as `src`. Returns what the caller must move in the pool: (from, to, positions), in whole
        pages because quantized caches may pack neighbouring positions together."""
        length = self.lengths[src]
        if length > self.capacities[dst]:
            raise ValueError(f"a row of {length} ids does not fit one with room for {self.capacities[dst]}")
        self.lengths[dst] = length
        return self.start(src), self.start(dst), -(-length // self.page) * self.page
