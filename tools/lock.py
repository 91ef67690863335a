#!/usr/bin/env python3
"""Write `requirements/lock/`: every package with one version and the hashes of its files, from the requirement files.

    python tools/lock.py             make the locks that no longer belong to their requirement files
    python tools/lock.py --upgrade   all of them, with the newest versions allowed

Needs uv (`pip install uv`) and the network. Only metadata is fetched. One resolution holds for Linux, Windows and macOS
and Python 3.11 to 3.13; what differs carries a marker. torch is kept apart from the rest: which of its builds is right
depends on the machine. Locks name no index, so they serve with a mirror as well."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from installer.record import SOURCES, heading, lock_fits  # noqa: E402

TORCH = re.compile(r"(torch|triton|nvidia-|cuda-)")
"""Names of torch and of what only torch's CUDA builds need."""


def resolve(sources: list[str], *more: str) -> dict[str, str]:
    """Package → its lines in the lock (one block for each version that some machine needs)."""
    options = "--quiet --universal --generate-hashes --no-header --only-binary :all: --python-version 3.11"
    command = [sys.executable, "-m", "uv", "pip", "compile", *options.split(), "--annotation-style", "line"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("UV_")}
    answer = subprocess.run([*command, *more, *sources], cwd=ROOT, env=env, stdout=subprocess.PIPE, encoding="utf-8")
    if answer.returncode:
        raise SystemExit("No versions fit together, or the network is missing; what uv said is above.")
    blocks: dict[str, str] = {}
    for block in re.findall(r"(?m)^[A-Za-z][^\n]*\\\n(?:[ ]+[^\n]*\n)+", answer.stdout):
        if "sys_platform == 'emscripten'" in block.splitlines()[0]:
            continue  # Python inside a browser
        name = block.split("==")[0].lower()
        blocks[name] = blocks.get(name, "") + block
    return blocks


def write(lock: str, blocks: dict[str, str]) -> None:
    path = ROOT / "requirements" / "lock" / f"{lock}.txt"
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(heading(ROOT, lock) + "\n" + "".join(blocks[name] for name in sorted(blocks)), "utf-8")
    part.replace(path)
    print(f"{path.relative_to(ROOT)}: {len(blocks)} packages")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="make all, with the newest versions allowed")
    upgrade = parser.parse_args().upgrade
    if not upgrade and all(lock_fits(ROOT, ROOT / "requirements" / "lock" / f"{lock}.txt") for lock in SOURCES):
        print("All locks belong to the requirement files as they are.")
        return 0
    held = ROOT / "requirements" / "lock" / "packages.txt"
    keep = ["-c", str(held)] if held.exists() and not upgrade else []
    try:
        cpu = resolve(["requirements.txt", "requirements/cpu.txt"], *keep)
    except SystemExit:
        cpu = resolve(["requirements.txt", "requirements/cpu.txt"])
    packages = {name: block for name, block in cpu.items() if not TORCH.match(name)}
    write("packages", packages)
    write("torch-cpu", {name: block for name, block in cpu.items() if TORCH.match(name)})
    cuda = resolve(["requirements/cuda.txt"], "-c", str(held))
    missing = [name for name in cuda if not TORCH.match(name) and name not in packages]
    if missing:
        raise SystemExit(f"torch for CUDA needs {', '.join(missing)}, which requirements.txt does not bring.")
    write("torch-cuda", {name: block for name, block in cuda.items() if TORCH.match(name)})
    tests = resolve(["requirements/test.txt"], "-c", str(held))
    write("test", {name: block for name, block in tests.items() if name not in packages and not TORCH.match(name)})
    write("setup", resolve(["requirements/setup.txt"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
