"""Directs the caches of pip and uv into our folder, so that nothing outside of it changes and removing it removes all.

An existing cache of either on this computer is shared: it may hold several GB of the packages. The user's own settings
stay."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Mapping

FETCHED = ("cache", "tmp")
"""Folders in `.launch` needed until everything is installed, from which an interrupted set-up resumes."""
KEPT = ("python", "uv")
"""Folders in `.launch` with a downloaded Python and uv, for machines without one."""


def usual(env: Mapping[str, str], system: str = sys.platform) -> dict[str, Path]:
    """Default cache folders of uv and pip. Source: their documentation."""
    home = Path(env.get("HOME") or os.path.expanduser("~"))
    if system == "win32":
        local = Path(env.get("LOCALAPPDATA") or Path(env.get("USERPROFILE") or home) / "AppData" / "Local")
        return {"UV_CACHE_DIR": local / "uv" / "cache", "PIP_CACHE_DIR": local / "pip" / "Cache"}
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    pip = home / "Library" / "Caches" / "pip" if system == "darwin" else cache / "pip"
    return {"UV_CACHE_DIR": cache / "uv", "PIP_CACHE_DIR": pip}


def own_folders(root: Path, env: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Additions to the environment of pip and uv. `settings`: pip's, as `steps.pip_settings` reads them."""
    ours, theirs = root / ".launch", usual(env)
    out = {
        "UV_PYTHON_INSTALL_DIR": str(ours / "python"),
        "UV_PYTHON_INSTALL_REGISTRY": "0",
        "UV_PYTHON_INSTALL_BIN": "0",
    }
    for key, folder in (("UV_CACHE_DIR", "uv"), ("PIP_CACHE_DIR", "pip")):
        if not theirs[key].is_dir():
            out[key] = str(ours / "cache" / folder)
    if "cache-dir" in settings:
        out.pop("PIP_CACHE_DIR", None)
    out = {key: env.get(key) or value for key, value in out.items()}
    if out.get("UV_CACHE_DIR") == str(ours / "cache" / "uv"):
        out["UV_LINK_MODE"] = env.get("UV_LINK_MODE") or "hardlink"  # the cache is removed afterwards: no second copy
    # Free space was checked on this disk; /tmp may be a small one in memory, where torch does not fit.
    (ours / "tmp").mkdir(parents=True, exist_ok=True)
    return {**out, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(ours / "tmp"))}


def clear_fetched(root: Path, everything: bool = False) -> None:
    """Remove downloads that are no longer needed; with `everything`, also the downloaded Python and uv, but not the
    Python that runs this: where files in use cannot be removed, half of it would stay."""
    for name in FETCHED + (KEPT if everything else ()):
        folder = root / ".launch" / name
        if folder not in Path(sys.base_prefix).parents:
            shutil.rmtree(folder, ignore_errors=True)
