"""Tells YuE's models from other models in other programs' folders, from names and small files, at bounded cost whatever
these files contain.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from yuegp.errors import ModelError

from .registry import VOCABULARIES, read_name
from .wander import ask, read_small

MOST_CONFIG, MOST_HEADER = 1 << 20, 1 << 24
"""Most bytes of config.json and of a safetensors header in a model of YuE's; theirs have 1 and 50 KB."""

MOST_LAYERS, MOST_WIDTH = 200, 1 << 16
"""Most layers, and the largest width."""


class AnotherKind(Exception):
    """The folder has nothing to do with YuE."""


def screen(folder: Path, files: frozenset[str]) -> None:
    """Raise AnotherKind for a folder that is none of YuE's models, ModelError for one of YuE's that cannot be used."""
    if "config.json" in files:
        data = _config(folder)
        if data.get("vocab_size") not in VOCABULARIES.values() or not _plausible(data):
            if not is_named(folder):
                raise AnotherKind
            raise ModelError(f"{folder / 'config.json'} is not the configuration of one of YuE's models.")
        weights = {name for name in files if name.endswith(".safetensors")}
        if not weights:
            raise ModelError(f"{folder} holds no ordinary safetensors files.")
        if any(_header(folder / name) > MOST_HEADER for name in weights):
            raise ModelError(f"A file in {folder} has a header of more than {MOST_HEADER >> 20} MiB.")
        if odd := sorted({path.name for path in folder.glob("*.safetensors")} - weights):
            raise ModelError(f"{folder / odd[0]} is no file, or leads nowhere.")


def refuse_unwritable(folder: Path) -> None:
    """Raise ModelError for a folder whose name is not valid Unicode, because our files could not store it."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ModelError(f"The name of the folder {readable(str(folder))} is no text.", "Give it another.") from None


def readable(text: str) -> str:
    """A text with file names in it, for screens and files: invalid Unicode becomes question marks."""
    return text.encode("utf-8", "replace").decode()


def is_named(folder: Path) -> bool:
    """Whether a folder's own name is like that of one of YuE's models."""
    return "role" in read_name(folder.name)


def _config(folder: Path) -> dict[str, object]:
    try:
        data = json.loads(read_small(folder / "config.json", MOST_CONFIG) or b"")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _plausible(config: dict[str, object]) -> bool:
    """Whether the sizes are small enough to compute with."""
    limits = {"num_hidden_layers": MOST_LAYERS, "hidden_size": MOST_WIDTH, "intermediate_size": MOST_WIDTH}
    return all(isinstance(n := config.get(key), int) and 0 < n <= most for key, most in limits.items())


def _header(path: Path) -> int:
    """Announced header size of a safetensors file in bytes; 0 when the file is smaller than that."""

    def read(name: str) -> int:
        with open(name, "rb") as file:
            announced = int.from_bytes(file.read(8), "little")
            return announced if announced < os.fstat(file.fileno()).st_size else 0

    return ask(read, path) or 0


def name(folder: Path) -> str:
    """A folder's model name: with the owner or branch that the hub and other programs put in the folder above, and with
    dots for ModelScope's three underscores."""
    return "/".join(folder.parts[-3:]).replace("___", ".")
