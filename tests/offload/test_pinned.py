"""Runs of bytes in main memory: nothing is lost, and pinned ones take no more than they hold."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offload import pinned
from offload.pinned import LARGEST, SMALLEST, PinnedBuffer, pieces
from offload.ram import Ram


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
    run, target = PinnedBuffer(size, pinned=False), torch.zeros(size, dtype=torch.uint8)
    run.take(source)
    run.send(target)
    assert run.size == size and torch.equal(source, target)


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine of 4 MB of RAM whose driver pins at most 1.5; the sizes of what was asked for so."""
    asked: list[int] = []
    real = torch.empty

    def empty(size: int, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        if pin_memory:
            asked.append(size)
            if sum(asked) > 3 * SMALLEST // 2:
                raise RuntimeError("CUDA error: out of memory")
        return real(size, dtype=dtype)

    monkeypatch.setattr(pinned.torch, "empty", empty)
    monkeypatch.setattr(pinned, "ram", lambda: Ram(4 * SMALLEST, 4 * SMALLEST))
    monkeypatch.setattr(PinnedBuffer, "_all_pinned", 0)
    return asked


def test_no_more_than_half_of_ram_is_pinned(pins: list[int]) -> None:
    first = PinnedBuffer(SMALLEST, pinned=True)
    assert first.pinned and PinnedBuffer._all_pinned == SMALLEST
    second = PinnedBuffer(SMALLEST + 1, pinned=True)
    assert not second.pinned and pins == [SMALLEST], "the driver is not even asked"
    del first
    gc.collect()
    assert PinnedBuffer._all_pinned == 0


def test_what_the_system_does_not_pin_is_plain_memory(pins: list[int]) -> None:
    """Windows and WSL pin less than asked for when much is pinned elsewhere."""
    runs: list[Any] = [PinnedBuffer(SMALLEST, pinned=True) for _ in range(2)]
    assert [run.pinned for run in runs] == [True, False] and PinnedBuffer._all_pinned == SMALLEST
    source, target = torch.full((SMALLEST,), 7, dtype=torch.uint8), torch.zeros(SMALLEST, dtype=torch.uint8)
    runs[1].take(source)
    runs[1].send(target)
    assert torch.equal(source, target)
