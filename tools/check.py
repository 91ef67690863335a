#!/usr/bin/env python3
"""Lint (ruff) and types (mypy) over the whole project; exit code 0 when both are clean. `python launch.py check`."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (["ruff", "check", "."], ["mypy"], ["mypy", "--platform", "win32"])


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
