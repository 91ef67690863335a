"""Where songs, models and settings lie."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Where songs and models lie unless told otherwise: `YUEGP_HOME`, or the current folder."""
    return Path(os.environ.get("YUEGP_HOME") or Path.cwd()).expanduser()


def songs_dir(out: Path | str | None = None) -> Path:
    """The folder that holds the song folders: `out`, or `songs` in the program's home."""
    return Path(out).expanduser() if out else home() / "songs"


def models_dir() -> Path:
    """Where downloaded checkpoints lie: `YUEGP_MODELS`, or `models` in the program's home."""
    return Path(os.environ.get("YUEGP_MODELS") or home() / "models").expanduser()
