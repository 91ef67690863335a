"""Telling a model of YuE's from whatever else lies in other programs' folders, before anything is built of what a
stranger's file says: a look at names and small files that costs nothing, whatever is in them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from yuegp.errors import ModelError

from .registry import VOCABULARIES, read_name
from .wander import ask, read_small

MOST_CONFIG, MOST_HEADER = 1 << 20, 1 << 24
"""Bytes of a config.json and of a safetensors header beyond which it is no model of YuE's; theirs have 1 and 50 KB."""

MOST_LAYERS, MOST_WIDTH = 200, 1 << 16
"""The same of layers, and of the largest width."""


class AnotherKind(Exception):
    """The folder has nothing to do with YuE."""


def screen(folder: Path, files: frozenset[str]) -> None:
    """Tell, before anything is built of it, a model of YuE's from whatever else lies in other programs' folders.
    AnotherKind, or ModelError where it is YuE's and cannot be used."""
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
    """Refuse, with a ModelError, a folder whose name no file of ours can hold: one that is not text."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ModelError(f"The name of the folder {readable(str(folder))} is no text.", "Give it another.") from None


def readable(text: str) -> str:
    """A text with names of files in it, for screens and files: what is no text is shown as question marks."""
    return text.encode("utf-8", "replace").decode()


def is_named(folder: Path) -> bool:
    """Whether a folder's own name says that it holds one of YuE's models."""
    return "role" in read_name(folder.name)


def _config(folder: Path) -> dict[str, object]:
    try:
        data = json.loads(read_small(folder / "config.json", MOST_CONFIG) or b"")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _plausible(config: dict[str, object]) -> bool:
    """Whether the sizes are such that something may be counted with them."""
    limits = {"num_hidden_layers": MOST_LAYERS, "hidden_size": MOST_WIDTH, "intermediate_size": MOST_WIDTH}
    return all(isinstance(n := config.get(key), int) and 0 < n <= most for key, most in limits.items())


def _header(path: Path) -> int:
    """Bytes of a safetensors file's header as it announces them; none when it has no room for so many."""

    def read(name: str) -> int:
        with open(name, "rb") as file:
            announced = int.from_bytes(file.read(8), "little")
            return announced if announced < os.fstat(file.fileno()).st_size else 0

    return ask(read, path) or 0


def name(folder: Path) -> str:
    """What a folder is called by whoever keeps it: the hub and other programs put owner or branch above it, ModelScope
    writes a dot as three underlines."""
    return "/".join(folder.parts[-3:]).replace("___", ".")
