"""Whether ExLlamaV2 could be used here, judged from package metadata without importing it or torch. Finds the usual
faults of an installation: no package, no compiled part, another version, a build for another torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re

VERSION = "0.3.2"
"""The last release, and the only one known to compute right."""

BUILD = "YUEGP_EXL2_BUILD"
"""Set to 1 to let ExLlamaV2 compile its extension when no compiled one is installed."""

UNCOMPILED = "The ExLlamaV2 engine needs the compiled part of the package exllamav2."

OLDEST_CARD = (6, 0)
"""Lowest compute capability its wheels hold code for. Source: build-wheels-release.yml of its repository."""


def lacking() -> str:
    """What ExLlamaV2 still needs here, worded as the object of "needs"; empty when nothing is missing."""
    if importlib.util.find_spec("exllamav2") is None:
        return "the package exllamav2"
    if importlib.util.find_spec("exllamav2_ext") is None and os.environ.get(BUILD) != "1":
        return "the compiled part of the package exllamav2"
    version, _, build = _version("exllamav2").partition("+")  # 0.3.2+cu128.torch2.9.0
    if version and version != VERSION:
        return f"version {VERSION} of the package exllamav2, and {version} is installed"
    made_for, torch = re.search(r"torch(\d+\.\d+)", build), re.match(r"\d+\.\d+", _version("torch"))
    if made_for and torch and made_for[1] != torch[0]:
        return f"torch {made_for[1]}, for which the package exllamav2 was built, and {torch[0]} is installed"
    return ""


def missing() -> str:
    """Sentence that says why the exl2 engine cannot start in this Python; empty when it can."""
    why = lacking()
    return f"The ExLlamaV2 engine needs {why}." if why else ""


def other_version(version: str) -> str:
    """Sentence about a version other than `VERSION`, else empty. A build names its torch behind a plus sign."""
    if version.partition("+")[0] == VERSION:
        return ""
    return f"ExLlamaV2 {version} is installed; only {VERSION} is known to compute right."


def _version(package: str) -> str:
    """Installed version from the package's metadata; empty when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
