"""Folders where other programs keep the same checkpoints, from their settings and usual locations. Changes nothing of
theirs. Sources are the programs' own code and documentation, named below.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from . import comfy_paths
from .wander import ask, is_folder, read_small

CLONES = ("YuE", "YuEGP", "YuE-exllamav2", "YuE-UI", "YuE-Interface", "YuE-extend")
"""Folders of programs for YuE, as `git clone` names them."""

COMFY_NODE = "custom_nodes/ComfyUI_YuE"
"""A ComfyUI node; it also reads single files in ComfyUI's models/yue. Source: its README."""

PORTABLE = "ComfyUI_windows_portable"
"""Folder that ComfyUI's archive for Windows unpacks to; the Explorer puts it into a folder named like the archive."""

PLACES = ("", "Documents", "Downloads", "Desktop", "AI")
"""Folders on a disk or at home where people put programs."""


@dataclass(frozen=True)
class Surroundings:
    """What this file needs to know about the computer, so that tests can describe another."""

    system: str
    """Result of `platform.system`."""
    home: Path
    environment: Mapping[str, str]
    drives: Mapping[str, Path] = field(default_factory=dict)
    """Roots of other disks; on Windows by their letter, as in `C:`."""
    near: tuple[Path, ...] = ()
    """Further folders that may contain programs."""

    def path(self, text: str, base: Path | None = None) -> Path:
        """Resolve a path from a program's settings, with `~`, `$NAME` and `%NAME%`; relative ones below `base`."""
        text = re.sub(r"\$\{(\w+)\}|\$(\w+)|%(\w+)%", lambda m: self._value(m[0], m[1] or m[2] or m[3]), text.strip())
        if text == "~" or text.startswith(("~/", "~\\")):
            return self.home.joinpath(*re.split(r"[/\\]+", text)[1:])
        if self.system == "Windows":
            pure = PureWindowsPath(text)
            if root := self.drives.get(pure.drive.upper()):
                return root.joinpath(*pure.parts[1:])
            return Path(text) if pure.drive or base is None else base.joinpath(*pure.parts)
        return Path(text) if base is None else base / text

    def _value(self, written: str, name: str) -> str:
        return self.environment.get(name, written)

    @property
    def settings(self) -> list[Path]:
        """Folders of programs' settings: Electron's `userData`, .NET's `ApplicationData`."""
        if self.system == "Windows":
            return [self.path(self.environment.get("APPDATA") or "~/AppData/Roaming")]
        usual = self.path(self.environment.get("XDG_CONFIG_HOME") or "~/.config")
        return [self.home / "Library" / "Application Support", usual] if self.system == "Darwin" else [usual]


def here(near: Iterable[Path] = ()) -> Surroundings:
    """`Surroundings` of this computer."""
    return Surroundings(platform.system(), Path.home(), os.environ, _drives(), tuple(near))


def _drives() -> dict[str, Path]:
    """Disks other than the system's: fixed and removable ones on Windows, mounted ones elsewhere."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        letters = [chr(65 + i) + ":" for i in range(26) if kernel.GetLogicalDrives() >> i & 1]
        return {letter: Path(letter + "\\") for letter in letters if kernel.GetDriveTypeW(letter + "\\") in (2, 3)}
    patterns = ("/Volumes/*",) if sys.platform == "darwin" else ("/mnt/*", "/media/*/*", "/run/media/*/*")
    found = (path for pattern in patterns for path in ask(lambda p: [*Path("/").glob(p[1:])], pattern) or [])
    return {str(path): path for path in found}


def folders(where: Surroundings) -> list[Path]:
    """Existing folders that may hold models, each once."""
    bases = [where.home, *where.near, *where.drives.values()]
    bases = [base / place for base in dict.fromkeys(bases) if is_folder(base) for place in PLACES]
    bases = [base for base in bases if is_folder(base)]
    every = (
        *_pinokio(where, bases), *_comfy(where, bases), *_stability_matrix(where, bases), *_lm_studio(where),
        *_modelscope(where), *(base / name for base in bases for name in CLONES),
    )  # fmt: skip
    return [folder for folder in dict.fromkeys(every) if is_folder(folder)]


def hub_caches(where: Surroundings) -> list[Path]:
    """Hub caches of other programs: Pinokio points HF_HOME into its own home."""
    return [home / "cache" / "HF_HOME" / "hub" for home in _pinokio_homes(where)]


def _pinokio_homes(where: Surroundings) -> list[Path]:
    """Pinokio's home; on Windows at the root of a drive. Source: kernel/store.js and kernel/index.js of pinokiod."""
    told = (_settings(where.home / ".pinokio" / "config.json").get("home"), where.environment.get("PINOKIO_HOME"))
    named = [where.path(text) for text in told if isinstance(text, str) and text.strip()]
    return list(dict.fromkeys([*named, *(base / "pinokio" for base in (where.home, *where.drives.values()))]))


def _pinokio(where: Surroundings, bases: list[Path]) -> Iterator[Path]:
    for home in (*_pinokio_homes(where), *(base / "pinokio" for base in bases)):
        yield from (home / "api", home / "drive" / "drives" / "peers")


def _comfy(where: Surroundings, bases: list[Path]) -> Iterator[Path]:
    for base in bases:
        yield from _comfy_root(base / "ComfyUI", where)
        for portable in ask(lambda name: [*Path(name).glob(f"{PORTABLE}*")], base) or []:
            yield from _comfy_root(portable / "ComfyUI", where)
            yield from _comfy_root(portable / PORTABLE / "ComfyUI", where)
    for settings in where.settings:  # the Desktop edition. Source: src/config/comfyServerConfig.ts of its repository
        folder = settings / "ComfyUI"
        base_path = _settings(folder / "config.json").get("basePath")
        if isinstance(base_path, str) and base_path.strip():
            yield from _comfy_root(where.path(base_path, folder), where)
        for name in comfy_paths.NAMES:
            yield from comfy_paths.folders(folder / name, where)


def _comfy_root(root: Path, where: Surroundings) -> Iterator[Path]:
    yield from (root / "models", root / COMFY_NODE)
    for name in comfy_paths.NAMES:
        yield from comfy_paths.folders(root / name, where)


def _stability_matrix(where: Surroundings, bases: list[Path]) -> Iterator[Path]:
    """Stability Matrix's library: from library.json, or `Data` beside the portable program. Source:
    SettingsManager.cs."""
    libraries = [base / "StabilityMatrix" / "Data" for base in bases]
    libraries += [where.home / ".local" / "share" / "StabilityMatrix"]
    for settings in where.settings:
        folder = settings / "StabilityMatrix"
        libraries.append(folder)
        told = _settings(folder / "library.json").get("LibraryPath")
        if isinstance(told, str) and told.strip():
            libraries.append(where.path(told, folder))
    for library in libraries:
        yield library / "Models"
        other = _settings(library / "settings.json").get("ModelDirectoryOverride")
        if isinstance(other, str) and other.strip():
            yield where.path(other, library)
        for package in ask(lambda name: [*Path(name).glob("Packages/*")], library) or []:
            yield from _comfy_root(package, where)


def _lm_studio(where: Surroundings) -> Iterator[Path]:
    """LM Studio's models: below the home named in a pointer file or one of two, and in `downloadsFolder`."""
    pointer = (read_small(where.home / ".lmstudio-home-pointer", 1 << 12) or b"").decode("utf-8", "replace").split("\n")
    homes = [where.home / ".lmstudio", where.home / ".cache" / "lm-studio"]
    homes += [where.path(pointer[0])] * bool(pointer[0].strip() and "\0" not in pointer[0])
    for home in (*homes, *(settings / "LM Studio" for settings in where.settings)):
        yield home / "models"
        other = _settings(home / "settings.json").get("downloadsFolder")
        if isinstance(other, str) and other.strip():
            yield where.path(other, home)


def _modelscope(where: Surroundings) -> Iterator[Path]:
    """ModelScope's cache, with `hub/models/owner/name` or, earlier, `hub/owner/name`. Source: its file_utils.py."""
    yield where.path(where.environment.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")


def _settings(path: Path) -> dict[str, Any]:
    """A program's JSON settings; empty when absent or invalid."""
    try:
        data = json.loads((read_small(path) or b"{}").decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in data.items() if "\0" not in str(value)} if isinstance(data, dict) else {}
