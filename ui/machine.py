"""What the pages say of this machine before a song is made: card, memory, free disk, and how long songs take here.
Loads no torch. Answers that take tens of milliseconds are cached for `FRESH_SECONDS`."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock

from offload.device import Machine
from yuegp.files import free_bytes
from yuegp.generation.memory import machine as ask
from yuegp.generation.plan import SongPlan
from yuegp.jobs import eta
from yuegp.song.schema import TakeInfo

FRESH_SECONDS = 15.0
"""Seconds that an answer about the card, or about the costs of earlier takes, is reused."""

_guard = Lock()
_machine: tuple[float, Machine] | None = None
_costs: dict[tuple[Path, str, str], tuple[float, eta.Costs]] = {}


def describe_machine() -> Machine:
    """The machine as it was at most `FRESH_SECONDS` ago."""
    global _machine
    with _guard:
        now = time.monotonic()
        if _machine is None or now - _machine[0] > FRESH_SECONDS:
            _machine = (now, ask())
        return _machine[1]


def kind(device: str) -> str:
    """`cuda` or `cpu`: where this machine makes a song that was asked for with `device`."""
    if device != "auto":
        return device.split(":")[0]
    return "cuda" if describe_machine().card else "cpu"


def seconds_needed(plan: SongPlan, root: Path, device: str) -> float | None:
    """Estimated seconds that making a song takes, from the costs of earlier songs; None before the first one."""
    on = kind(device)
    info = TakeInfo(number=1, request=plan.request)
    return eta.estimate(_learned(root, plan.models.id, on), eta.facts_of(info, plan.budget, on), eta.Observed())


def _learned(root: Path, model: str, on: str) -> eta.Costs:
    key, now = (root, model, on), time.monotonic()
    with _guard:
        if key not in _costs or now - _costs[key][0] > FRESH_SECONDS:
            _costs[key] = (now, eta.learn(eta.earlier_takes(root, model, on), on))
        return _costs[key][1]


def disk_free(root: Path) -> int:
    """Bytes free where songs are kept, or will be."""
    return free_bytes(root) or 0
