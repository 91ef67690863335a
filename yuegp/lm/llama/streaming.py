"""Streams layers that do not fit the card from main memory, one by one, during every pass.

Each waiting layer is one pinned buffer (`offload/pinned.py`), and the card has room for two. While the network computes
with one, a second CUDA stream copies the next. On a processor the same code copies within main memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from offload.pinned import PinnedBuffer

from .network import Layer

ALIGN = 256
"""Byte alignment of tensors within a buffer, as kernels expect of an allocation."""

ROOMS = 2


class _Part(NamedTuple):
    start: int
    stop: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]


class StreamedLayers:
    """All layers of a network, in order; the first `resident` stay, the others are streamed. Iterating is one pass.

    `layers` is consumed one by one, each already on `device`; a streamed layer is moved out before the next."""

    def __init__(self, layers: Iterable[Layer], resident: int, device: torch.device) -> None:
        self.device, self.resident = device, resident
        self._kept: list[Layer] = []
        self._waiting: list[PinnedBuffer] = []
        self._rooms: list[Tensor] = []
        self._shown: list[Layer] = []
        for layer in layers:
            if len(self._kept) < resident:
                self._kept.append(layer)
            else:
                self._park(layer)
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._arrived = [torch.cuda.Event() for _ in self._rooms] if self._cuda else []
        self._free = [torch.cuda.Event() for _ in self._rooms] if self._cuda else []
        self._sent = self._used = 0
        self._restart()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the layers that stay on the device."""
        return sum(t.numel() * t.element_size() for layer in self._kept for t in layer.tensors())

    @property
    def streamed_bytes(self) -> int:
        """Bytes moved in every pass."""
        return sum(run.size for run in self._waiting)

    @property
    def room_bytes(self) -> int:
        """Bytes on the device reserved for streamed layers."""
        return sum(room.numel() for room in self._rooms)

    def __iter__(self) -> Iterator[Layer]:
        if self._waiting and (self._used % len(self._waiting) or self._sent != self._used + ROOMS):
            self._restart()  # the last pass was abandoned half-way
        yield from self._kept
        for _ in self._waiting:
            room = self._used % ROOMS
            if self._cuda:
                torch.cuda.current_stream(self.device).wait_event(self._arrived[room])
            yield self._shown[room]
            if self._cuda:
                self._free[room].record(torch.cuda.current_stream(self.device))
            self._used += 1
            self._send()

    def transfer_seconds(self) -> float:
        """Seconds one pass spends moving layers, measured with one layer."""
        if not self._waiting:
            return 0.0
        self._settle()
        start = time.perf_counter()
        self._waiting[self._sent % len(self._waiting)].send(self._rooms[self._sent % ROOMS])
        self._settle()
        seconds = (time.perf_counter() - start) * len(self._waiting)
        self._restart()
        return seconds

    def _park(self, layer: Layer) -> None:
        parts, stop = [], 0
        for tensor in layer.tensors():
            start = -(-stop // ALIGN) * ALIGN
            stop = start + tensor.numel() * tensor.element_size()
            parts.append(_Part(start, stop, tensor.dtype, tensor.shape, tensor.stride()))
        packed = torch.empty(stop, dtype=torch.uint8)
        for tensor, view in zip(layer.tensors(), _views(packed, parts), strict=True):
            view.copy_(tensor)
        run = PinnedBuffer(stop, pinned=self.device.type == "cuda")
        run.take(packed)
        self._waiting.append(run)
        if not self._rooms:  # all layers of a Llama are alike
            self._rooms = [torch.empty(stop, dtype=torch.uint8, device=self.device) for _ in range(ROOMS)]
            for room in self._rooms:
                views = iter(_views(room, parts))
                self._shown.append(layer.map(lambda _, views=views: next(views)))  # type: ignore[misc]

    def _restart(self) -> None:
        """Restart at the first streamed layer, with both buffers on the card filled ahead."""
        self._settle()
        self._sent = self._used = 0
        for _ in self._rooms:
            self._send()

    def _send(self) -> None:
        """Send the next layer to the buffer that was freed first."""
        room, run = self._sent % ROOMS, self._waiting[self._sent % len(self._waiting)]
        with torch.cuda.stream(self._stream) if self._cuda else contextlib.nullcontext():
            if self._stream is not None and self._sent >= ROOMS:
                self._stream.wait_event(self._free[room])
            run.send(self._rooms[room])
            if self._stream is not None:
                self._arrived[room].record(self._stream)
        self._sent += 1

    def _settle(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)


def _views(memory: Tensor, parts: list[_Part]) -> list[Tensor]:
    """The tensors in a buffer of bytes, with their original strides."""
    flat = (memory[part.start : part.stop].view(part.dtype) for part in parts)
    return [torch.as_strided(view, part.size, part.stride) for view, part in zip(flat, parts, strict=True)]
