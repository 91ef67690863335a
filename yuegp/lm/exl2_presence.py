"""Is ExLlamaV2 here, compiled, and of the version that is known to compute right? Asked without loading it, or torch:
so that a plan can ask before it chooses the exl2 engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

VERSION = "0.3.2"
BUILD = "YUEGP_EXL2_BUILD"
"""Set to 1 to let ExLlamaV2 compile its extension when no ready-built one is installed."""

UNCOMPILED = "ExLlamaV2 is installed without its compiled part."


def missing() -> str:
    """Why the exl2 engine cannot start in this Python, a sentence; empty where nothing speaks against it."""
    if importlib.util.find_spec("exllamav2") is None:
        return "The ExLlamaV2 engine is not installed."
    if importlib.util.find_spec("exllamav2_ext") is None and os.environ.get(BUILD) != "1":
        return UNCOMPILED
    try:
        return other_version(importlib.metadata.version("exllamav2"))
    except importlib.metadata.PackageNotFoundError:  # a folder of source on the path; asked again once it is loaded
        return ""


def other_version(version: str) -> str:
    """What is to be said of another version than ours; nothing of ours. A build names its torch behind a plus sign."""
    if version.partition("+")[0] == VERSION:
        return ""
    return f"ExLlamaV2 {version} is installed; only {VERSION} is known to compute right."
