"""Safetensors headers: names, dtypes, shapes and offsets of tensors, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yuegp.checked import build, object_of, parse
from yuegp.errors import ModelError
from yuegp.progress import Progress

SCAN_LIMIT = 200_000_000
"""Largest file, in bytes, searched for NaN before every song; larger ones by `models check` and while loading."""


SCAN_BLOCK = 1 << 25
"""Values examined at once: 128 MB of float32 at most."""


MOST_HEADER = 100_000_000
"""Most bytes of a header, which is read whole. Source: the safetensors library's own limit."""


AGAIN = "Download this file again."


def first_five(items: list[str]) -> str:
    """The first five items, and how many more there are."""
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def refuse_pointer(path: Path) -> None:
    """Raise ModelError for the pointer of about 130 bytes that cloning without git-lfs leaves for each large file."""
    try:
        pointer, empty = is_pointer(path), not path.stat().st_size
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror or exc}.", AGAIN) from exc
    if pointer:
        raise ModelError(
            f"{path} is only a git-lfs pointer; the file itself was never downloaded.",
            "Run `git lfs pull` in that folder, or let `python launch.py models get` download it.",
        )
    if empty:
        raise ModelError(f"{path} is empty.", AGAIN)


def is_pointer(path: Path) -> bool:
    """Whether a file is a git-lfs pointer. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


class StoredTensor(NamedTuple):
    """A tensor in a file: `dtype` as the format writes it (`BF16` …), `start` and `stop` as byte offsets."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of one value."""


_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
"""The exponent bits of each float type: all set means NaN or infinity."""


def safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """Read a safetensors header: the file's tensors by name. Raises ModelError when the file is a git-lfs pointer, cut
    short, too long, or no safetensors file."""
    refuse_pointer(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ModelError(
                    f"{path} is cut short or is no safetensors file: it has {size:,} bytes, "
                    f"its first eight announce a header of {length:,}.",
                    AGAIN,
                )
            if length > MOST_HEADER:
                raise ModelError(f"{path} announces a header of {length:,} bytes; none is so long.", AGAIN)
            raw = object_of(parse(file.read(length)))
        tensors = {name: _stored(entry, 8 + length) for name, entry in raw.items() if name != "__metadata__"}
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror or exc}.", AGAIN) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"{path} is no safetensors file: {type(exc).__name__} {exc}.", AGAIN) from exc
    promised = max((tensor.stop for tensor in tensors.values()), default=8 + length)
    if promised != size:
        state = "cut short" if size < promised else "too long"
        raise ModelError(f"{path} is {state}: it has {size:,} bytes, its header promises {promised:,}.", AGAIN)
    return tensors


def _stored(entry: dict[str, Any], base: int) -> StoredTensor:
    shape, (start, stop) = build(tuple[int, ...], entry["shape"]), build(tuple[int, int], entry["data_offsets"])
    wanted = math.prod(shape) * WIDTHS[entry["dtype"]]
    if start < 0 or min(shape, default=0) < 0 or stop - start != wanted:
        raise ValueError(f"bytes {start} to {stop} for {entry['dtype']} of shape {shape}")
    return StoredTensor(entry["dtype"], shape, base + start, base + stop)


def not_numbers(bits: np.ndarray, dtype: str) -> bool:
    """Whether values of type `dtype`, given as unsigned integers, include NaN or infinity."""
    mask = _EXPONENT.get(dtype)
    return mask is not None and bool(np.any((bits & mask) == mask))


def scan_file(path: Path, header: Mapping[str, StoredTensor], progress: Progress | None = None) -> None:
    """Raise ModelError for NaN or infinite weights. Reads every float of the file, block by block."""
    size, broken = path.stat().st_size, []
    for name, tensor in header.items():
        if tensor.dtype not in _EXPONENT:
            continue
        integer = f"<u{WIDTHS[tensor.dtype]}"
        count, offset = math.prod(tensor.shape), tensor.start
        while count:
            bits = np.fromfile(path, integer, count=min(count, SCAN_BLOCK), offset=offset)
            if not len(bits):
                raise ModelError(f"{path} became shorter while it was read.", AGAIN)
            if not_numbers(bits, tensor.dtype):
                broken.append(name)
                break
            count, offset = count - len(bits), offset + bits.nbytes
            if progress:
                progress(path.name, offset, size)
    if broken:
        raise ModelError(
            f"{path} holds weights that are not numbers (NaN or infinite): {first_five(broken)}.",
            "The file is damaged; download or convert it again.",
        )
