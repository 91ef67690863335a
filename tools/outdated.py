#!/usr/bin/env python3
"""Show what is older in `requirements/lock/` than it could be: `python tools/outdated.py`. Changes nothing.

Prints two tables: what `tools/lock.py --upgrade` would change within the present requirement files, and which
requirements hold something back or pin it on purpose. Needs uv, pip and the network; asks only for packages that the
requirement files name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from lock import resolve  # noqa: E402

from installer.record import named  # noqa: E402


def locked(text: str) -> dict[str, list[str]]:
    """Package → its versions in the text of a lock; several where machines differ."""
    out: dict[str, list[str]] = {}
    for name, version in re.findall(r"(?m)^([A-Za-z][\w.-]*)==([^\s;]+)", text):
        out.setdefault(name.lower(), []).append(version)
    return out


def newest(name: str) -> str:
    """The newest release of a package, as pip sees the index it is set to; empty when pip cannot say."""
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", name]
    answer = subprocess.run(command, capture_output=True, encoding="utf-8")
    found = re.match(r"[\w.-]+ \(([^)]+)\)", answer.stdout)
    return found[1].partition("+")[0] if found else ""


def changes(have: dict[str, list[str]], could: dict[str, list[str]]) -> list[str]:
    """Lines of what differs between two sets of versions."""
    names = sorted(set(have) | set(could))
    return [
        f"  {name:28} {', '.join(have.get(name, ['-'])):22} {', '.join(could.get(name, ['-']))}"
        for name in names
        if have.get(name) != could.get(name)
    ]


def main() -> int:
    locks = {
        path.stem: locked(path.read_text("utf-8")) for path in sorted((ROOT / "requirements" / "lock").glob("*.txt"))
    }
    have = {**locks["packages"], **locks["torch-cpu"]}
    could = locked("".join(resolve(["requirements.txt", "requirements/cpu.txt"]).values()))
    print("Within the requirement files (python tools/lock.py --upgrade):")
    print("\n".join(changes(have, could)) or "  nothing newer")
    print("\nBeyond them:")
    held = []
    for path in sorted(ROOT.glob("requirements*.txt")):
        for name, exact in named(path).items():
            if path.name == "requirements/fast.txt":
                continue
            now = exact or ", ".join(next((lock[name] for lock in locks.values() if name in lock), ["-"]))
            last = newest(name)
            if last and last not in now.split(", "):
                held.append(f"  {name:28} {now:22} {last:22} {path.name}")
    print("\n".join(held) or "  nothing")
    print("\nexllamav2 and flash-attn are addresses in requirements/fast.txt: look at their projects' releases.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
