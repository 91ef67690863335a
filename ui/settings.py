"""What a person has chosen for the page itself, kept in `YUEGP_HOME/settings.json`. Songs and models are not in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from yuegp import disk, library

from .texts import LANGUAGES

FORMAT = 1
"""Format number of settings.json."""


@dataclass(frozen=True)
class Settings:
    """The choices. Every one has a value that means "nothing chosen"."""

    language: str = ""
    """Language of the page; empty: the one the browser asks for."""


def path() -> Path:
    """Where the settings are kept."""
    return library.home() / "settings.json"


def load() -> Settings:
    """The settings as they are on disk. A file that is absent or makes no sense counts as nothing chosen: a page that
    opens in English is better than one that does not open."""
    try:
        data = json.loads(path().read_text(encoding="utf-8"))
        language = data["language"]
        return Settings(language if language in LANGUAGES else "")
    except (OSError, ValueError, KeyError, TypeError):
        return Settings()


def save(settings: Settings) -> None:
    """Keep the settings. LibraryError when they cannot be written."""
    file = path()
    disk.check_writable(file.parent)
    disk.write_atomic(file, json.dumps({"format": FORMAT, **asdict(settings)}, indent=2).encode() + b"\n")
