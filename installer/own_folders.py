"""Where pip and uv keep what they fetch: in our folder, so that nothing outside of it is touched and all goes with it.

Where one of them keeps a cache on this computer already, that one is shared: it may hold several GB of what is needed.
What the user has set for either stays as it is."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Mapping

FETCHED = ("cache", "tmp")
"""In `.launch`: needed until everything is installed. A set-up that was broken off goes on from there."""
KEPT = ("python", "uv")
"""In `.launch`: the Python and the uv that were fetched because none was here."""


def usual(env: Mapping[str, str], system: str = sys.platform) -> dict[str, Path]:
    """Where uv and pip keep their caches when nobody tells them (their documentation)."""
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
        out["UV_LINK_MODE"] = env.get("UV_LINK_MODE") or "hardlink"  # that cache goes afterwards: no second copy
    # Room was looked for on this disk; /tmp may be a small one in memory, where torch does not fit.
    (ours / "tmp").mkdir(parents=True, exist_ok=True)
    return {**out, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(ours / "tmp"))}


def clear_fetched(root: Path, everything: bool = False) -> None:
    """Remove what is not needed any more; with `everything`, also the Python and the uv that were fetched, but not the
    Python that runs this: half of it would stay where files in use cannot go."""
    for name in FETCHED + (KEPT if everything else ()):
        folder = root / ".launch" / name
        if folder not in Path(sys.base_prefix).parents:
            shutil.rmtree(folder, ignore_errors=True)
