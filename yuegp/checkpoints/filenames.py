"""Which names from elsewhere may become files here: in a hub's listing, in a subfolder that somebody wrote."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
"""Names of devices on Windows, whatever ending they carry. Source: Microsoft, "Naming Files, Paths, and Namespaces"."""

_NEVER = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
"""Characters that are not allowed on Windows, or that separate folders there."""


def fault(name: object) -> str:
    """Why a relative path with `/` must not be written on one of the systems we run on; empty when it may be. The
    same on all of them: a model that one can fetch, all can."""
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
    """Names that are one and the same file where systems do not tell capitals from small letters."""
    names = list(names)
    several = {name for name, count in Counter(name.casefold() for name in names).items() if count > 1}
    return [name for name in names if name.casefold() in several]
