"""Folders of songs, models and settings."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The program's home: `YUEGP_HOME`, or the current folder."""
    return Path(os.environ.get("YUEGP_HOME") or Path.cwd()).expanduser()


def songs_dir(out: Path | str | None = None) -> Path:
    """The folder that holds the song folders: `out`, or `songs` in the program's home."""
    return Path(out).expanduser() if out else home() / "songs"


def models_dir() -> Path:
    """The folder of downloaded checkpoints: `YUEGP_MODELS`, or `models` in the program's home."""
    return Path(os.environ.get("YUEGP_MODELS") or home() / "models").expanduser()
