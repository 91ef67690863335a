"""Reads the model folders in ComfyUI's `extra_model_paths.yaml`. ComfyUI Desktop writes the same format under another
name. Source of the format: `extra_model_paths.yaml.example` and `utils/extra_config.py` of ComfyUI.
"""

from __future__ import annotations

import locale
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .wander import read_small

if TYPE_CHECKING:
    from .neighbours import Surroundings

NAMES = ("extra_model_paths.yaml", "extra_models_config.yaml", "extra_model_config.yaml")
"""ComfyUI's name for the file, and those of its Desktop edition, present and first."""

MOST = 1 << 18
"""Most bytes of such a file."""

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def folders(path: Path, here: Surroundings) -> list[Path]:
    """The folders a file names, existing or not; empty when the file is damaged or absent."""
    if (data := read_small(path, MOST)) is None:
        return []
    found = list[Path]()
    for group in _groups(data):
        entries = _entries(group)
        base: Path | None = None
        if texts := _texts(entries.pop("base_path", None)):
            base = here.path(texts[0], path.parent)
            found += [base / "models", *([base] if len(base.parts) > 2 else [])]  # never a whole drive
        entries.pop("is_default", None)
        found += [here.path(text, base or path.parent) for node in entries.values() for text in _texts(node)]
    return list(dict.fromkeys(found))


def _groups(data: bytes) -> Iterator[Any]:
    """The YAML node below each top-level name. Nodes, so that a file's repeated references are never expanded."""
    import yaml

    try:
        top = yaml.compose(_decoded(data).expandtabs(4), yaml.SafeLoader)  # the loader refuses tabs between words
    except (yaml.YAMLError, RecursionError, ValueError):
        return
    if isinstance(top, yaml.MappingNode):
        yield from (value for _, value in top.value if isinstance(value, yaml.MappingNode))


def _decoded(data: bytes) -> str:
    """Decode UTF-8 with or without byte order mark, UTF-16 with it, or the system's Windows code page."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode(locale.getpreferredencoding(False), "replace")


def _entries(group: Any) -> dict[str, Any]:
    """The entries of a group, including merged ones (`<<: *other`), which its own override."""
    merged, own = dict[str, Any](), dict[str, Any]()
    for key, value in group.value:
        if key.tag == _MERGE:
            for other in value.value if value.id == "sequence" else [value]:
                if other.id == "mapping":
                    merged |= {k.value: v for k, v in other.value if isinstance(k.value, str)}
        elif isinstance(key.value, str):
            own[key.value] = value
    return merged | own


def _texts(node: Any) -> list[str]:
    """The paths of an entry: one, or one on each line, or a list of them."""
    if node is None or node.id == "mapping":
        return []
    scalars = [node] if node.id == "scalar" else [item for item in node.value if item.id == "scalar"]
    lines = (line.strip() for scalar in scalars if scalar.tag == _TEXT for line in scalar.value.splitlines())
    return [line for line in lines if line and "\0" not in line]
