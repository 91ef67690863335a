#!/usr/bin/env python3
"""Write `docs/licences.md`: the licences of the packages that a user's machine installs.

    python launch.py install && .venv/bin/python tools/licences.py

Reads the packages of the Python that runs it, so run it in an environment made by launch.py. Packages that are never
installed there (other systems' packages, CUDA) are listed by hand below, each with the source of its terms."""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
LOCKS = ("packages", "setup", "torch-cpu", "torch-cuda")

BY_HAND = {
    "audioop-lts": "PSF-2.0",
    "colorama": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
    "triton": "MIT",
    "exllamav2": "MIT",
    "flash-attn": "BSD-3-Clause",
}
"""Packages that not every machine has; from their own metadata or repository."""
NVIDIA = "nvidia-*, cuda-*"
CUDA = "NVIDIA's own terms, proprietary for most; published by NVIDIA on the package index for programs like this one"
"""Terms of CUDA's libraries, about thirty packages that torch installs for NVIDIA cards."""

FREE = re.compile(r"Apache|BSD|MIT|ISC|MPL|PSF|Python|Unlicense|LGPL|HPND|0BSD|Zlib|CC0|CNRI", re.IGNORECASE)
GPL = re.compile(r"(?<!L)(?<!Lesser )(AGPL|GPL|(Affero )?General Public)", re.IGNORECASE)
"""Matches the GPL and the AGPL, not the LGPL."""


def names() -> list[str]:
    """Every package of the shipped set, test tools left out."""
    found = set(BY_HAND)
    for lock in LOCKS:
        text = (ROOT / "requirements" / "lock" / f"{lock}.txt").read_text("utf-8")
        found |= {name.lower() for name in re.findall(r"(?m)^([A-Za-z][\w.-]*)==", text)}
    return sorted({NVIDIA if re.match(r"nvidia-|cuda-", name) else name for name in found})


def licence(found: Distribution) -> str:
    """Licence in a package's metadata: the expression, else its classifiers, else the first line of the free text."""
    meta = found.metadata
    if meta.get("License-Expression"):
        return str(meta["License-Expression"])
    classified = [
        text.rpartition(" :: ")[2] for text in meta.get_all("Classifier", []) if text.startswith("License ::")
    ]
    if classified:
        return ", ".join(sorted(set(classified)))
    return (meta.get("License") or "").strip().split("\n")[0]


def terms(name: str) -> str:
    """The terms of one package, installed or not; empty when nothing is known."""
    if name == NVIDIA:
        return CUDA
    if name in BY_HAND:
        return BY_HAND[name]
    try:
        return licence(distribution(name))
    except PackageNotFoundError:
        return ""


def page(rows: dict[str, str]) -> str:
    lines = [
        "# Licences of what is installed",
        "",
        "yuegp itself is Apache-2.0 (LICENSE); the models have their own terms (NOTICE). It ships no other program:",
        "the packages below are installed on your machine from the package index you use. This list is written by",
        "`tools/licences.py` from the packages' own metadata. None is under the GPL; those under the LGPL (soxr, and",
        "libsndfile inside soundfile) are separate libraries that can be exchanged.",
        "",
        "| package | terms |",
        "| --- | --- |",
    ]
    return "\n".join([*lines, *(f"| {name} | {text} |" for name, text in rows.items())]) + "\n"


def main() -> int:
    rows = {name: terms(name) for name in names()}
    unknown = [name for name, text in rows.items() if not text]
    if unknown:
        print(f"Not installed here, so not known: {', '.join(unknown)}.", file=sys.stderr)
        print("Run this in an environment made by launch.py.", file=sys.stderr)
        return 1
    PAGE.write_text(page(rows), "utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
