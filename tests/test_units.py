"""One meaning of GB for files, one for memory, and one place for each."""

from __future__ import annotations

import re

import pytest
from repository import ROOT

from offload.units import GIB, MIB, gigabytes, memory_size
from yuegp.units import file_size

IN_WORDS = re.compile(r"\{[^{}]*/ (2\*\*[23]0|1e[69]|10\*\*[69]|[GM]IB|1 << [23]0)\b[^{}]*\} ?[GM]i?B(?!/s)")


@pytest.mark.parametrize(
    ("count", "words"),
    [(12_450_000_000, "12.45 GB"), (10**9, "1.00 GB"), (890_000_000, "890 MB"), (2_690_000, "2.69 MB"), (0, "0.00 MB")],
)
def test_files_are_counted_as_hubs_do(count: int, words: str) -> None:
    assert file_size(count) == words


@pytest.mark.parametrize(
    ("count", "words"), [(12 * GIB, "12.0 GB"), (GIB, "1.0 GB"), (GIB - MIB, "1023 MB"), (550 * MIB, "550 MB")]
)
def test_memory_is_counted_as_makers_of_cards_do(count: int, words: str) -> None:
    assert memory_size(count) == words


def test_a_column_of_memory_is_in_one_unit() -> None:
    assert [gigabytes(size) for size in (12 * GIB, GIB // 2, 0)] == ["12.00 GB", "0.50 GB", "0.00 GB"]


def test_no_other_place_puts_bytes_into_words() -> None:
    """Inherited fault: one checkpoint of two sizes, because one page counted in 2^30 and the command line in 10^9."""
    assert IN_WORDS.search('f"{size / 2**30:.1f} GB"') and not IN_WORDS.search('f"{rate / 1e9:.0f} GB/s"')
    files = [path for room in ("yuegp", "offload", "quant", "ui") for path in (ROOT / room).rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in files if IN_WORDS.search(path.read_text("utf-8"))]
    found.remove("offload/device.py")  # names a card by the size that was asked for, as short as it can be written
    assert sorted(found) == ["offload/units.py", "yuegp/units.py"]
