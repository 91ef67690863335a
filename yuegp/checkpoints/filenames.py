"""Checks names from outside (a hub's listing, a subfolder a user wrote) before they become files here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
"""Device names on Windows, with any ending. Source: Microsoft, "Naming Files, Paths, and Namespaces"."""

_NEVER = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
"""Characters that Windows forbids or that separate folders there."""


def fault(name: object) -> str:
    """Why a relative path with `/` cannot be written on some supported system; empty when it can on all. The same
    answer everywhere, so that a model one system can download, all can."""
    if not isinstance(name, str) or not name:
        return "it is not a name"
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts:
        return "it leads out of its folder"
    if _NEVER.search(name):
        return "it holds characters that no file may have on Windows"
    for part in parts:
        if part[-1] in ". " or part[0] == " ":
            return "it begins or ends with a space, or ends with a dot"
        if _DEVICE.match(part):
            return f"{part} is a device on Windows"
        if len(part.encode("utf-8", "surrogatepass")) > 255:
            return "it is too long"
    return ""


def collisions(names: Iterable[str]) -> list[str]:
    """Names that are the same file on systems that ignore case."""
    names = list(names)
    several = {name for name, count in Counter(name.casefold() for name in names).items() if count > 1}
    return [name for name in names if name.casefold() in several]
