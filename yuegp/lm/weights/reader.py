"""Reads weights from a model folder directly to their device.

A tensor is read in pieces through one buffer of `PIECE` bytes (pinned when a card is the target) and converted on the
target. Main memory holds only that buffer and what stays there, whatever the size of a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from yuegp.checkpoints.formats import Place, format_of, tensors
from yuegp.checkpoints.sets import StoredTensor
from yuegp.errors import ModelError
from yuegp.progress import Progress, quiet

from . import nf4
from .int8 import Int8
from .packed import Matrix

PIECE = 64 << 20

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Reader:
    """The tensors of a folder by name. Floats come in `dtype`, on `device`."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, progress: Progress | None = None
    ) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self._where = tensors(folder)
        self.stored = format_of(folder, self._where)
        if self.stored == "exl2":
            raise ModelError(
                f"The weights in {folder} are stored as EXL2, which the torch engine does not read.",
                "Use the exl2 engine for this model, or the released bfloat16 model.",
            )
        self._progress: Progress = progress or quiet
        self._done, self._total = 0, sum(place.stop - place.start for _, place in self._where.values())
        self._buffer: Tensor | None = None

    def floats(self, name: str, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """A tensor as plain numbers in `dtype`, decoded if stored packed. Raises as `matrix`."""
        weight = self.matrix(name, shape, device)
        return weight if isinstance(weight, Tensor) else weight.floats(self.dtype).to(device or self.device)

    def matrix(self, name: str, shape: tuple[int, ...], device: torch.device | None = None) -> Matrix:
        """A tensor as stored: packed, or floats in `dtype`. Raises ModelError when it is missing, has another shape, or
        holds NaN or infinity."""
        path, place = self._place(name)
        if place.dtype == "U8" and name + nf4.STATE in self._where:
            weight = nf4.stored(name, shape, self.raw)
            return weight.to(device or self.device, self.dtype) if isinstance(weight, Tensor) else weight
        if place.shape != shape:
            raise ModelError(
                f"{path}: the tensor {name} has shape {place.shape}, but config.json asks for {shape}.",
                "The weights and config.json come from different models; download both again.",
            )
        for scale, factor in ((name + ".scale", 1.0), (name.removesuffix("weight") + "SCB", 1 / 127)):
            if place.dtype == "I8" and scale in self._where:
                return Int8(self.raw(name), self.raw(scale).float().view(-1, 1) * factor)
        if place.dtype not in ("F64", "F32", "F16", "BF16"):
            raise ModelError(
                f"{path}: the tensor {name} is stored as {place.dtype}, which yuegp does not read.",
                "Use the released bfloat16 model.",
            )
        return self._read(name, device or self.device, self.dtype)

    def raw(self, name: str) -> Tensor:
        """A tensor in its stored type, on the device."""
        return self._read(name, self.device, torch_dtype(name, *self._place(name)))

    def _place(self, name: str) -> Place:
        if name not in self._where:
            raise ModelError(f"The tensor {name} is missing from the model.", "Download the model again.")
        return self._where[name]

    def _read(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        path, place = self._place(name)
        if self._buffer is None:
            self._buffer = staging(self.device)
        return read_tensor(name, path, place, device, dtype, self._buffer, self._advance)

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress("loading", self._done, self._total)


def staging(device: torch.device) -> Tensor:
    """A buffer for `read_tensor`, pinned when `device` is a card and the system has pinned memory left: WSL and Windows
    sometimes have little."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            return torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
    return torch.empty(PIECE, dtype=torch.uint8)


def torch_dtype(name: str, path: Path, place: StoredTensor) -> torch.dtype:
    """The stored type of a tensor. Raises ModelError for types without use here, such as eight-bit floats."""
    if place.dtype not in DTYPES:
        raise ModelError(
            f"{path}: the tensor {name} is stored as {place.dtype}, which yuegp does not read.",
            "Use the released bfloat16 model.",
        )
    return DTYPES[place.dtype]


def read_tensor(
    name: str,
    path: Path,
    place: StoredTensor,
    device: torch.device,
    dtype: torch.dtype,
    buffer: Tensor | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Read one tensor of a safetensors file, piece by piece through `buffer` (uint8). `advance` receives bytes read; an
    exception from it ends the reading. Raises ModelError, with file and tensor, for missing bytes, NaN or infinity.

    Python opens the files, so paths may have any letters on every system."""
    stored = torch_dtype(name, path, place)
    size = stored.itemsize
    tensor = torch.empty(place.shape, dtype=dtype, device=device)
    flat, sound = tensor.view(-1), torch.ones((), dtype=torch.bool, device=device)
    direct = device.type == "cpu" and dtype == stored
    if buffer is None:
        buffer = torch.empty(min(PIECE, flat.numel() * size), dtype=torch.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(place.start)
            for start in range(0, flat.numel(), PIECE // size):
                piece = flat[start : start + PIECE // size]
                source = piece if direct else buffer[: piece.numel() * size].view(stored)
                _fill(file, source, path, name)
                if not direct:  # copied first, then converted: a card converts faster
                    piece.copy_(source if dtype == stored else source.to(device))
                if dtype.is_floating_point:
                    sound &= torch.isfinite(torch.stack(torch.aminmax(piece))).all()  # NaN is both extremes
                advance(piece.numel() * size)
    except OSError as exc:
        raise ModelError(
            f"{path} cannot be read at the tensor {name}: {exc.strerror or exc}.", "Download this file again."
        ) from exc
    if not bool(sound):
        raise ModelError(
            f"{path}: the tensor {name} contains values that are not numbers.",
            "The file is damaged, or the weights overflow in this precision. Download it again.",
        )
    return tensor


def _fill(file: FileIO, target: Tensor, path: Path, name: str) -> None:
    """Fill `target` from the file. Raises ModelError when bytes are missing."""
    view = memoryview(target.view(torch.uint8).numpy().data)
    while view:
        count = file.readinto(view)
        if not count:
            raise ModelError(
                f"{path} is cut short: {len(view):,} bytes of the tensor {name} are missing.",
                "Download this file again.",
            )
        view = view[count:]
