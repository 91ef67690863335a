"""Runs of bytes in main memory: nothing is lost, and pinned ones take no more than they hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offload.pinned import LARGEST, SMALLEST, Run, pieces


@given(st.integers(0, 1 << 34))
def test_no_piece_is_rounded_up_but_the_last_small_one(size: int) -> None:
    """torch gives pinned memory in powers of two."""
    found = pieces(size)
    assert sum(found) == size and max(found, default=0) <= LARGEST
    rounded = sum(1 << max(0, piece - 1).bit_length() for piece in found)
    assert rounded - size < SMALLEST


@pytest.mark.parametrize("size", [1, 1000, SMALLEST, SMALLEST + 1, 3 * SMALLEST + 17, LARGEST + 5 * SMALLEST + 3])
def test_a_run_gives_back_what_it_took(size: int) -> None:
    source = torch.randint(0, 256, (size,), dtype=torch.uint8)
    run, target = Run(size, pinned=False), torch.zeros(size, dtype=torch.uint8)
    run.take(source)
    run.send(target)
    assert run.size == size and torch.equal(source, target)
