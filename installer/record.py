"""Records what the environment was built from, and tells whether it is up to date.

`yuegp.json` in the environment is the record, written last: an environment without it is unfinished. `launch.json` is
written first: a folder `.venv` with neither is not ours and must not change."""

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
"""Seconds between tries at a file that another program has open: as in `yuegp/files.py`, which cannot be imported
here."""
LARGEST = 1 << 20
"""Most bytes of a record; one has a few hundred."""


def venv_folder(root: Path) -> Path:
    """Folder of the environment, existing or not: `.venv`, or one beside it when `.venv` is not ours."""
    venv = root / ".venv"
    return venv if is_ours(venv) else root / ".venv-yuegp"


def is_ours(venv: Path) -> bool:
    """Whether the folder may be changed: made by us, or absent."""
    if (venv / "launch.json").exists() or (venv / "yuegp.json").exists():
        return True
    return not venv.exists() or (venv.is_dir() and not any(venv.iterdir()))


def named(requirements: Path) -> dict[str, str]:
    """Exact version by package (empty for a range), from the lines of a requirement file."""
    rows = re.findall(r"(?m)^([A-Za-z][\w.-]*)(?:==([\w.]+)(?![\w.]*,))?", requirements.read_text("utf-8"))
    return {name.lower(): version for name, version in rows}


def digest(*paths: Path) -> str:
    """One hash over files, ignoring line endings, which git may change. Files may be absent."""
    texts = (path.read_bytes().replace(b"\r\n", b"\n") if path.exists() else b"" for path in paths)
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


SOURCES = {
    "setup": ("requirements/setup.txt",),
    "packages": ("requirements.txt", "requirements/cpu.txt"),
    "torch-cpu": ("requirements.txt", "requirements/cpu.txt"),
    "torch-cuda": ("requirements.txt", "requirements/cpu.txt", "requirements/cuda.txt"),
    "test": ("requirements.txt", "requirements/cpu.txt", "requirements/test.txt"),
}
"""Requirement files by lock (`tools/lock.py`)."""


def lock_fits(root: Path, lock: Path) -> bool:
    """Whether a lock was made from the present requirement files, which its first line identifies."""
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
    """Python version of an environment, such as 3.11.7; None when it or the Python below it is incomplete."""
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
    """The record an up-to-date environment would have, to compare with the existing one's."""
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
    """Whether an entry of the record has a valid type: a text, a number, a list of these, or texts by name."""
    if isinstance(value, dict):
        return all(isinstance(text, str) for text in value.values())
    if isinstance(value, list):
        return all(isinstance(item, (str, int)) for item in value)
    return value is None or isinstance(value, (str, int))


def write_record(venv: Path, record: Mapping[str, Any]) -> None:
    part = venv / "yuegp.json.part"
    part.write_text(json.dumps(record, indent=1), "utf-8")
    patiently(lambda: os.replace(part, venv / "yuegp.json"), venv / "yuegp.json")


def patiently(action: Callable[[], None], path: Path) -> None:
    """Retry moving or removing a file or folder, which Windows refuses while another program has it open."""
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
    """What must be installed before a start: `nothing`, `tests`, `packages` or `everything`.

    The chosen stack stays until the user asks for another: not every start searches for cards."""
    venv = venv_folder(root)
    have = read_record(venv)
    if not have:
        return "everything"
    want = make_record(root, venv, have["stack"] if wish == "auto" else wish, tests)
    differs = [key for key, value in want.items() if have.get(key) != value]
    if "format" in differs or "python" in differs or "stack" in differs:
        return "everything"
    return next((key for key in ("packages", "tests") if key in differs), "nothing")
