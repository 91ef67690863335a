"""Tests whether bitsandbytes computes nf4 right on this card. If not, plain torch decodes.

The test runs in another process, once per process of ours: the compiled part may be missing or made for another CUDA or
newer cards; it then raises, returns zeros, or ends its process (`exit(1)` in its C++ where a launch fails). It compares
a few small products with our own arithmetic. The page asks too, so only the other process loads torch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TIME_LIMIT = 90.0
"""Seconds. Loading torch and the library from a cold disk takes most of it."""

TOLERANCE = 0.02
"""Allowed error relative to the result's norm. bfloat16 products are off by 0.003, an nf4 weight from its original by
0.1."""

ROWS = (1, 2, 8, 40)
"""Rows of the tested products: the library has kernels for one row and for a few, and decodes the weight for more."""

ABSENT = "bitsandbytes is not installed"

PROGRAM = "import sys; from yuegp.lm.weights.nf4_kernels import compare; sys.exit(compare(*sys.argv[1:]))"

Broken = (ImportError, OSError, RuntimeError, AttributeError, NameError, TypeError, ValueError, LookupError)
"""Exceptions seen from libraries built for another environment."""


@dataclass(frozen=True)
class Trial:
    """Whether the library works, and the reason in a few words."""

    works: bool
    why: str


def kernels(device: torch.device, dtype: torch.dtype, block: int) -> Any:
    """The module bitsandbytes if it multiplies right in `dtype` on this card, else None; None on processors."""
    return _taken(device.index or 0, str(dtype), block)[0] if device.type == "cuda" else None


def missing(device: torch.device, dtype: torch.dtype, block: int) -> str:
    """Why bitsandbytes is not used on this card, in a few words; empty where it is."""
    return _taken(device.index or 0, str(dtype), block)[1] if device.type == "cuda" else ""


@functools.cache
def _taken(card: int, dtype: str, block: int) -> tuple[Any, str]:
    found = trial(f"cuda:{card}", dtype.removeprefix("torch."), block)
    if found.works:
        try:
            return importlib.import_module("bitsandbytes"), ""
        except Broken as exc:  # may fail here although the test passed: other libraries are loaded already
            return None, f"bitsandbytes does not work here: {_line(exc)}"
    return None, found.why


@functools.cache
def trial(device: str, dtype: str, block: int = 64, time_limit: float = TIME_LIMIT) -> Trial:
    """Try the library in a process of its own. Cached while this process runs."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path or os.getcwd() for path in sys.path))
    command = [sys.executable, "-c", PROGRAM, device, dtype, str(block)]
    try:
        ended = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL,
            timeout=time_limit, check=False, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Trial(False, f"bitsandbytes gave no answer within {time_limit:g} seconds")
    except OSError as exc:
        return Trial(False, f"the test of bitsandbytes could not be started: {exc}")
    if ended.returncode == 0:
        return Trial(True, "bitsandbytes gives the right numbers")
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    said = lines[-1] if ended.returncode == 1 and lines else f"the test ended with {ended.returncode}"
    return Trial(False, said if said == ABSENT else f"bitsandbytes does not work here: {said}")


def compare(device: str, dtype: str, block: str) -> str | None:
    """Compare the library's products of one weight with ours. Returns what is wrong, or None. Runs in the other
    process."""
    import torch

    from .nf4 import Nf4, multiply

    if importlib.util.find_spec("bitsandbytes") is None:
        return ABSENT
    torch.manual_seed(0)
    weight = Nf4.quantize(torch.randn(192, 256), int(block)).map(lambda tensor: tensor.to(device))
    try:
        library = importlib.import_module("bitsandbytes")
        for rows in ROWS:
            x = torch.randn(rows, 256).to(device, getattr(torch, dtype))
            wanted = x.float() @ weight.floats(torch.float32).t()
            error = float((multiply(library, x, weight).float() - wanted).norm() / wanted.norm())
            if not error < TOLERANCE:
                return f"its product of {rows} rows is off by {error:.0%}"
    except Broken as exc:
        return _line(exc)
    return None


def _line(exc: BaseException) -> str:
    """First line of an error; the library's run over many."""
    said = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {said[0]}" if said else type(exc).__name__
