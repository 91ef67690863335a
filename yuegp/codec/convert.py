"""Converts the released `.pth` files of the codec folder to safetensors, once.

A `.pth` is a pickle, which can hold code; `torchfile` reads it without running any. `convert` writes a safetensors file
beside it: every tensor, bit for bit, without the training state, with the SHA-256 of the `.pth` in its metadata. From
then on the pickle is not opened any more (`files.codec_file`). Only one tensor at a time is in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from pathlib import Path

from yuegp import files
from yuegp.checkpoints.safetensors import WIDTHS, not_numbers
from yuegp.checkpoints.sets import safetensors_header
from yuegp.checkpoints.torchfile import read_bits, read_table
from yuegp.errors import LibraryError, ModelError
from yuegp.progress import Progress

from .files import AGAIN, CODEC, ENTRIES, UPSAMPLERS

SOURCE = "source_sha256"
"""Metadata key with the SHA-256 of the `.pth` a file was made from."""


class NotWritten(ModelError):
    """The pickles are sound, but the folder has no room or no permission for the converted files."""


def convert(folder: Path, progress: Progress | None = None) -> list[Path]:
    """Write and return the safetensors files that a codec folder lacks or that were made from another `.pth`.

    Safetensors files of other origin stay untouched. Raises ModelError when a `.pth` holds no table of tensors or NaN,
    NotWritten when the folder cannot be written."""
    written = []
    for name in (CODEC, *UPSAMPLERS.values()):
        source, target = folder / f"{name}.pth", folder / f"{name}.safetensors"
        if not source.is_file():
            continue
        if target.is_file() and (made_from := source_of(target)) is None:
            continue
        digest = _digest(source, progress)
        if not target.is_file() or made_from != digest:
            _write(source, target, ENTRIES.get(name), digest)
            written.append(target)
    return written


def is_converted(folder: Path) -> bool:
    """Whether there is a safetensors file for each of the codec folder's files."""
    return all((folder / f"{name}.safetensors").is_file() for name in (CODEC, *UPSAMPLERS.values()))


def source_of(path: Path) -> str | None:
    """SHA-256 of the `.pth` that a safetensors file was made from; None when `convert` did not make it."""
    try:
        safetensors_header(path)
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except ModelError as exc:
        raise ModelError(exc.what, "Delete it: it is made again from the .pth file.") from exc
    made_from = header.get("__metadata__", {}).get(SOURCE)
    return None if made_from is None else str(made_from)


def _digest(path: Path, progress: Progress | None) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if progress:
                progress(path.name, done, total)
    return digest.hexdigest()


def _write(source: Path, target: Path, entry: str | None, digest: str) -> None:
    table = read_table(source, entry)
    names = sorted(table, key=lambda name: (-WIDTHS[table[name].dtype], name))  # wide types first: all stay aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt", SOURCE: digest}}
    stop = 0
    for name in names:
        start, stop = stop, stop + math.prod(table[name].shape) * WIDTHS[table[name].dtype]
        header[name] = {"dtype": table[name].dtype, "shape": table[name].shape, "data_offsets": (start, stop)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                bits = read_bits(source, table[name])
                if not_numbers(bits, table[name].dtype):
                    raise ModelError(f"{source} holds values that are not numbers (NaN or infinity): {name}.", AGAIN)
                file.write(bits.astype(bits.dtype.newbyteorder("<"), copy=False).tobytes())
        files.put(temporary, target)
    except LibraryError as exc:
        raise NotWritten(exc.what, exc.hint) from exc
    except OSError as exc:
        raise NotWritten(
            f"{target} cannot be written: {exc.strerror or exc}.", "Free some space, or check the folder's permissions."
        ) from exc
    finally:
        files.discard(temporary)
