"""The NVIDIA driver's own tool, `nvidia-smi`: where it lies, what it answers, and which of its cards CUDA shows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence


def folders(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Where the driver's tool lies besides the PATH: in WSL, in Windows as newer and as older drivers install it.
    `installer/probe.py` keeps the same list."""
    found = ["/usr/lib/wsl/lib"]
    if root := environment.get("SystemRoot"):
        found.append(root + r"\System32")
    return found + [
        environment[name] + r"\NVIDIA Corporation\NVSMI"
        for name in ("ProgramW6432", "ProgramFiles")
        if environment.get(name)
    ]


def program() -> str | None:
    """The driver's own tool, which knows the cards without torch."""
    return shutil.which("nvidia-smi") or next(
        (found for folder in folders() if (found := shutil.which("nvidia-smi", path=folder))), None
    )


def ask(query: str, seconds: float = 10) -> str:
    """What the tool answers to a query as lines of values; nothing where it is absent, fails or hangs."""
    tool = program()
    if tool is None:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [tool, query, "--format=csv,noheader,nounits"]
        answer = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, timeout=seconds,
            check=True,
        )  # fmt: skip
        return answer.stdout
    return ""


def seen(indices: Sequence[int], chosen: str | None, uuids: Mapping[int, str] | None = None) -> list[int]:
    """Places in the driver's list of cards, `indices` being their numbers there, in the order in which CUDA counts
    them when it follows the bus (CUDA_DEVICE_ORDER=PCI_BUS_ID).

    CUDA_VISIBLE_DEVICES names them by number or by the beginning of their UUID, up to the first name that means none,
    or more than one; naming a card twice hides all. Parts of a card (MIG), and UUIDs where `uuids` knows none, cannot
    be told from here: then all are seen. Source: CUDA C++ programming guide, environment variables; torch.cuda."""
    everything, places = list(range(len(indices))), list[int]()
    for name in [] if chosen is None else [part.strip() for part in chosen.split(",")]:
        if name.startswith("MIG-") or (name.startswith("GPU-") and not uuids):
            return everything
        number = re.match(r"\+?\d+", name)
        if number:
            found = [place for place in everything if indices[place] == int(number[0])]
        else:
            named = [index for index, uuid in (uuids or {}).items() if uuid.lower().startswith(name.lower())]
            found = [place for place in everything if name.startswith("GPU-") and indices[place] in named]
        if len(found) != 1:
            break
        if found[0] in places:
            return []
        places += found
    return everything if chosen is None else places
