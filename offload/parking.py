"""Tensors moved out of a card's memory and back, without anybody who holds them noticing: they keep their shapes, views
and names, only their storage is empty meanwhile. What was captured with its addresses (a CUDA graph) must be dropped
by its owner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .pinned import PinnedBuffer


class ParkedTensors:
    """Copies of the storages of some tensors in RAM, pinned where there is a card. The copies of `kept` tensors, which
    nobody writes to (weights), stay for the next time, so that leaving again costs nothing."""

    def __init__(self, kept: Iterable[Tensor]) -> None:
        self._kept = _storages(kept)
        self._copies: dict[int, PinnedBuffer] = {}
        self._out: list[tuple[Any, PinnedBuffer]] = []

    @property
    def bytes(self) -> int:
        """RAM that the copies take."""
        return sum(copy.size for copy in {**self._copies, **{id(s): c for s, c in self._out}}.values())

    def leave(self, changing: Iterable[Tensor] = ()) -> None:
        """Empty the storages, those of `changing` tensors (caches) too. RuntimeError when they are empty already."""
        if self._out:
            raise RuntimeError("these tensors are aside already")
        for storage in self._kept:
            if id(storage) not in self._copies:
                self._copies[id(storage)] = _copy(storage)
            self._out.append((storage, self._copies[id(storage)]))
        self._out += [(storage, _copy(storage)) for storage in _storages(changing)]
        for storage, _ in self._out:
            storage.resize_(0)

    def back(self) -> None:
        """Fill them again. When memory runs out on the way, what is back stays, and calling again goes on."""
        on_card = any(storage.device.type == "cuda" for storage, _ in self._out)
        while self._out:
            storage, copy = self._out[-1]
            storage.resize_(copy.size)
            copy.send(_bytes(storage))
            self._out.pop()
        if on_card:
            torch.cuda.synchronize()


def _storages(tensors: Iterable[Tensor]) -> list[Any]:
    """The distinct storages under some tensors."""
    found: dict[int, Any] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found.setdefault(storage.data_ptr(), storage)
    return list(found.values())


def _bytes(storage: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _copy(storage: Any) -> PinnedBuffer:
    copy = PinnedBuffer(storage.nbytes(), pinned=storage.device.type == "cuda")
    copy.take(_bytes(storage))
    return copy
