"""The released `.pth` files of the codec folder as safetensors, once.

A `.pth` is a pickle, which can hold code; ours are read through torch's restricted unpickler only, which runs none.
Each is then written beside itself as safetensors: every tensor, bit for bit, without the training state, and with the
SHA-256 of the `.pth` in the new file's metadata. From then on the pickle is not opened any more (`files.codec_file`).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from pathlib import Path

from .. import disk
from ..errors import LibraryError, ModelError
from ..models import safetensors_header
from .files import AGAIN, CODEC, CODEC_ENTRY, UPSAMPLERS, read_state

Watch = Callable[[str, int, int], None]
"""watch(file, done, total), in bytes; may raise `Cancelled`."""

SOURCE = "source_sha256"
"""The entry of the metadata that says which `.pth` a file was made from."""


def convert(folder: Path, watch: Watch | None = None) -> list[Path]:
    """Write the safetensors files that are missing from a codec folder, or were made from another `.pth`, and return
    them. Safetensors files that we did not make are left alone. ModelError when a `.pth` is not plain tensors, holds
    NaN, or the folder cannot be written."""
    written = []
    for name, entry in [(CODEC, CODEC_ENTRY), *((name, None) for name in UPSAMPLERS.values())]:
        source, target = folder / f"{name}.pth", folder / f"{name}.safetensors"
        if not source.is_file():
            continue
        if target.is_file() and (made_from := source_of(target)) is None:
            continue
        digest = _digest(source, watch)
        if not target.is_file() or made_from != digest:
            _write(source, target, entry, digest)
            written.append(target)
    return written


def source_of(path: Path) -> str | None:
    """The SHA-256 of the `.pth` that a safetensors file was made from; None when we did not make it."""
    try:
        safetensors_header(path)
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except ModelError as exc:
        raise ModelError(exc.what, "Delete it: it is made again from the .pth file.") from exc
    made_from = header.get("__metadata__", {}).get(SOURCE)
    return None if made_from is None else str(made_from)


def _digest(path: Path, watch: Watch | None) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if watch:
                watch(path.name, done, total)
    return digest.hexdigest()


def _write(source: Path, target: Path, entry: str | None, digest: str) -> None:
    import torch
    from safetensors.torch import save_file

    state = read_state(source, entry)
    if broken := [n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]:
        raise ModelError(f"{source} holds values that are not numbers (NaN or infinity): {broken[0]}.", AGAIN)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # clone: two names may share one storage in a pickle, and safetensors knows no sharing
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        save_file(tensors, temporary, metadata={"format": "pt", SOURCE: digest})
        disk.put(temporary, target)
    except LibraryError as exc:
        raise ModelError(exc.what, exc.hint) from exc
    except OSError as exc:
        raise ModelError(
            f"{target} cannot be written: {exc.strerror or exc}.", "Free some space, or check the folder's permissions."
        ) from exc
    finally:
        disk.discard(temporary)
