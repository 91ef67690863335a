#!/usr/bin/env python3
"""Lint and format (ruff) and types (mypy, also as on Windows) over the whole project: `python launch.py check`.

Exit code 0 when all are clean."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["mypy", "--platform", "win32"])


def main() -> int:
    if not all(find_spec(check[0]) for check in CHECKS):
        print("ruff and mypy are not installed in this Python.\nRun: python launch.py check", file=sys.stderr)
        return 1
    worst = 0
    for check in CHECKS:  # always both: one run shows every fault
        print(f"-- {' '.join(check)}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, "-m", *check], cwd=ROOT).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
