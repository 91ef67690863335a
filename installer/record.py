"""What the environment was built from, and whether that is still what is wanted.

`yuegp.json` in the environment says it, and is written last: an environment without one is not finished. `launch.json`
is written first: a folder `.venv` without either was made by somebody else, and is not ours to change."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from time import sleep
from typing import Any, Callable, Mapping

from .console import SetupError

FORMAT = 2

PAUSES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.4)
"""Seconds between tries at a file that another program has open: as `disk.py`, which cannot be imported here."""
LARGEST = 1 << 20
"""Bytes of a record that are read; one has a few hundred."""


def venv_folder(root: Path) -> Path:
    """Where the environment is or will be: `.venv`, or beside it when that one is somebody else's."""
    venv = root / ".venv"
    return venv if is_ours(venv) else root / ".venv-yuegp"


def is_ours(venv: Path) -> bool:
    """Whether it may be changed: made by us, or nothing yet."""
    if (venv / "launch.json").exists() or (venv / "yuegp.json").exists():
        return True
    return not venv.exists() or (venv.is_dir() and not any(venv.iterdir()))


def named(requirements: Path) -> dict[str, str]:
    """Package → exact version (empty where there is a range), from the lines of a requirement file."""
    rows = re.findall(r"(?m)^([A-Za-z][\w.-]*)(?:==([\w.]+)(?![\w.]*,))?", requirements.read_text("utf-8"))
    return {name.lower(): version for name, version in rows}


def digest(*paths: Path) -> str:
    """One hash over files, the same whatever their line endings: git may change those. A file may be absent."""
    texts = (path.read_bytes().replace(b"\r\n", b"\n") if path.exists() else b"" for path in paths)
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


SOURCES = {
    "setup": ("requirements/setup.txt",),
    "packages": ("requirements.txt", "requirements/cpu.txt"),
    "torch-cpu": ("requirements.txt", "requirements/cpu.txt"),
    "torch-cuda": ("requirements.txt", "requirements/cpu.txt", "requirements/cuda.txt"),
    "test": ("requirements.txt", "requirements/cpu.txt", "requirements/test.txt"),
}
"""Lock → the requirement files it was made from (`tools/lock.py`)."""


def lock_fits(root: Path, lock: Path) -> bool:
    """Whether a lock was made from the requirement files as they are now: its first line says from which."""
    try:
        with open(lock, encoding="utf-8") as lines:
            first = lines.readline()
    except OSError:
        return False
    return first.strip() == heading(root, lock.stem)


def heading(root: Path, lock: str) -> str:
    """The first line of a lock."""
    return f"# {lock}, from {', '.join(SOURCES[lock])} as of {digest(*(root / name for name in SOURCES[lock]))}"


def venv_version(venv: Path) -> str | None:
    """The Python version of an environment, such as 3.11.7; None when it or the Python below it is not whole."""
    try:
        text = (venv / "pyvenv.cfg").read_text("utf-8")
    except (OSError, ValueError):
        return None
    settings = dict(re.findall(r"(?m)^([\w-]+) = (.*?)\s*$", text))
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    base = settings.get("executable")  # written by Python 3.11 and later; uv writes the folder alone
    whole = Path(base).is_file() if base else Path(settings.get("home", "")).is_dir()
    return settings.get("version", settings.get("version_info")) if python.exists() and whole else None


def make_record(root: Path, venv: Path, stack: str, tests: bool) -> dict[str, Any]:
    """What an environment must be built from, to be compared with what the one there was built from."""
    locks = root / "requirements" / "lock"
    record: dict[str, Any] = {
        "format": FORMAT,
        "python": venv_version(venv),
        "stack": stack,
        "packages": digest(
            root / "requirements" / f"{stack}.txt",
            root / "requirements.txt",
            root / "requirements" / "fast.txt",
            locks / f"torch-{stack}.txt",
            locks / "packages.txt",
        ),
    }
    if tests:
        record["tests"] = digest(root / "requirements" / "test.txt", locks / "test.txt")
    return record


def read_record(venv: Path) -> dict[str, Any]:
    """The record of a finished environment; empty when there is none."""
    try:
        with open(venv / "yuegp.json", "rb") as file:
            record = json.loads(file.read(LARGEST).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(record, dict) and record.get("stack") in ("cpu", "cuda")
    return record if whole and all(_is_plain(value) for value in record.values()) else {}


def _is_plain(value: Any) -> bool:
    """Whether an entry of the record is of a kind that is written there: a text, a number, or texts by name."""
    if isinstance(value, dict):
        return all(isinstance(text, str) for text in value.values())
    return value is None or isinstance(value, (str, int))


def write_record(venv: Path, record: Mapping[str, Any]) -> None:
    part = venv / "yuegp.json.part"
    part.write_text(json.dumps(record, indent=1), "utf-8")
    patiently(lambda: os.replace(part, venv / "yuegp.json"), venv / "yuegp.json")


def patiently(action: Callable[[], None], path: Path) -> None:
    """Move or remove a file or folder, which Windows refuses while a virus scanner or another window has it open."""
    for pause in (*PAUSES, None):
        try:
            return action()
        except OSError as exc:
            if getattr(exc, "winerror", None) not in (5, 32, 33):
                raise
            if pause is None:
                raise SetupError(
                    f"{path} cannot be changed: another program has it open.",
                    "Close every other window of yuegp, then start again.",
                ) from exc
        sleep(pause)


def needed(root: Path, wish: str, tests: bool) -> str:
    """What stands between the environment and a start: `nothing`, `tests`, `packages` or `everything`.

    The stack once chosen stays until another is asked for: the card is not looked for at every start."""
    venv = venv_folder(root)
    have = read_record(venv)
    if not have:
        return "everything"
    want = make_record(root, venv, have["stack"] if wish == "auto" else wish, tests)
    differs = [key for key, value in want.items() if have.get(key) != value]
    if "format" in differs or "python" in differs or "stack" in differs:
        return "everything"
    return next((key for key in ("packages", "tests") if key in differs), "nothing")
