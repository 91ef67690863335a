"""ComfyUI's `extra_model_paths.yaml`: the folders of models that it names. ComfyUI Desktop writes the same form under
another name. Source of the form: `extra_model_paths.yaml.example` and `utils/extra_config.py` of ComfyUI.
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
"""ComfyUI's own, and what its Desktop edition calls it, today and at first."""

MOST = 1 << 18
"""Bytes of such a file at most."""

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def folders(path: Path, here: Surroundings) -> list[Path]:
    """The folders a file names, whether they are there or not; no folders when it is damaged or no such file."""
    if (data := read_small(path, MOST)) is None:
        return []
    found = list[Path]()
    for group in _groups(data):
        entries = _entries(group)
        base: Path | None = None
        if texts := _texts(entries.pop("base_path", None)):
            base = here.path(texts[0], path.parent)
            found += [base / "models", *([base] if len(base.parts) > 2 else [])]  # not a whole drive
        entries.pop("is_default", None)
        found += [here.path(text, base or path.parent) for node in entries.values() for text in _texts(node)]
    return list(dict.fromkeys(found))


def _groups(data: bytes) -> Iterator[Any]:
    """What stands below each name at the top: nodes, so that nothing is built of what a file repeats by reference."""
    import yaml

    try:
        top = yaml.compose(_decoded(data).expandtabs(4), yaml.SafeLoader)  # it knows no tabs between words
    except (yaml.YAMLError, RecursionError, ValueError):
        return
    if isinstance(top, yaml.MappingNode):
        yield from (value for _, value in top.value if isinstance(value, yaml.MappingNode))


def _decoded(data: bytes) -> str:
    """UTF-8 with or without its mark, UTF-16 with it, or what Windows writes in this country."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode(locale.getpreferredencoding(False), "replace")


def _entries(group: Any) -> dict[str, Any]:
    """The entries of a group, those merged into it (`<<: *other`) included; its own win."""
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
