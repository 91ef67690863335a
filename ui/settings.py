"""The user's choices for the page itself, kept in `YUEGP_HOME/settings.json`: its language, and names it answers to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from yuegp import files, paths
from yuegp.checked import Fault, Newer, build, version
from yuegp.errors import LibraryError, RequestError

from .server import hosts as naming
from .texts import LANGUAGES

FORMAT = 1
"""Format number of settings.json."""


@dataclass(frozen=True)
class Settings:
    """The choices. Each default means that nothing was chosen."""

    language: str = ""
    """Language of the page; empty for the one the browser asks for."""
    hosts: tuple[str, ...] = ()
    """Host names that the page answers to besides its own, each with or without a port."""


def path() -> Path:
    """The settings file."""
    return paths.home() / "settings.json"


def load() -> Settings:
    """The settings on disk, or the defaults where the file is absent or invalid: a page that opens in English is better
    than one that does not open."""
    try:
        return _read()
    except (OSError, ValueError):
        return Settings()


def _read() -> Settings:
    data = files.read_json(path())
    version(data, FORMAT)
    found = build(Settings, {name: value for name, value in data.items() if name != "format"})
    if found.language not in ("", *LANGUAGES):
        raise Fault(f"its language is {found.language!r}")
    return replace(found, hosts=tuple(str(host) for host in map(naming.read, found.hosts) if host))


def save(settings: Settings) -> None:
    """Write the settings. LibraryError when they cannot be written, or when the present file is not valid: it may
    belong to another program or to a newer yuegp, so it is kept."""
    file = path()
    files.check_writable(file.parent)
    try:
        _read()
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise files.cannot_write(file, exc) from exc
    except (Fault, Newer) as exc:
        raise LibraryError(
            f"{file} does not hold the settings of this yuegp and was left as it is: {exc}.", "Move that file away."
        ) from exc
    files.write_atomic(file, json.dumps({"format": FORMAT, **asdict(settings)}, indent=2).encode() + b"\n")


def hosts(more: Sequence[str] = (), less: Sequence[str] = ()) -> tuple[str, ...]:
    """Allow the host names `more`, forget `less`, and return all allowed names: those in the settings and those in
    `YUEGP_ALLOW_HOST`. RequestError for an invalid name, and for one in `less` that was not allowed."""
    more, less, now = naming.checked(more), naming.checked(less), load()
    for name in less:
        if name not in now.hosts:
            kept = ", ".join(now.hosts) or "none"
            raise RequestError(f"{name} is not among the names that are allowed: {kept}.", "See `yuegp ui --hosts`.")
    names = tuple(dict.fromkeys(name for name in (*now.hosts, *more) if name not in less))
    if names != now.hosts:
        save(replace(now, hosts=names))
    return tuple(dict.fromkeys((*names, *naming.from_environment())))
