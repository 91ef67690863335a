"""Tests whether flash-attn works here, in another process: a build for another torch ends the process that imports it.

The probe attends over two pages with two rows of different lengths, on the card, and compares the result with torch's
own attention: a package that loads and answers may still be wrong for a card.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

TIME_LIMIT = 90.0
"""Seconds. Loading torch and the library from a cold disk takes most of it."""

WORKS = "flash-attn works:"

PROGRAM = """
from flash_attn import __version__, flash_attn_with_kvcache
import torch
if not torch.cuda.is_available():
    raise SystemExit("torch finds no CUDA card")
card = torch.device("cuda", int(__import__("sys").argv[1]))
torch.manual_seed(0)
q, k, v = (torch.randn(2, 1, heads, 128, device=card, dtype=torch.float16) for heads in (8, 2, 2))
pool_k, pool_v = (torch.randn(3, 256, 2, 128, device=card, dtype=torch.float16) for _ in range(2))
lengths = torch.tensor([300, 7], device=card, dtype=torch.int32)
table = torch.tensor([[0, 1], [2, 2]], device=card, dtype=torch.int32)
wanted = []
for row, (pages, length) in enumerate((([0, 1], 300), ([2], 7))):
    keys, values = (torch.cat([pool[pages].flatten(0, 1)[:length], new[row]]).transpose(0, 1).float()
                    for pool, new in ((pool_k, k), (pool_v, v)))
    keys, values = keys.repeat_interleave(4, 0), values.repeat_interleave(4, 0)
    wanted.append(torch.nn.functional.scaled_dot_product_attention(q[row].transpose(0, 1).float(), keys, values))
got = flash_attn_with_kvcache(q=q, k_cache=pool_k, v_cache=pool_v, k=k, v=v, cache_seqlens=lengths,
                              block_table=table, causal=True, softmax_scale=128 ** -0.5)
error = float((got.float().transpose(1, 2) - torch.stack(wanted)).abs().max())
if not error < 0.01:
    raise SystemExit(f"its result is off by {error:.3g}")
print("flash-attn works:", __version__)
"""


@dataclass(frozen=True)
class Probe:
    """Whether flash-attn works on this machine, and the reason in a few words."""

    works: bool
    why: str


def probe(card: int = 0, time_limit: float = TIME_LIMIT) -> Probe:
    """Try flash-attn on a card, in a process of its own. Cached per Python, card and settings while this process
    runs."""
    settings = tuple((name, os.environ.get(name)) for name in ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "PYTHONPATH"))
    return _probe(sys.executable, card, time_limit, settings)


@functools.cache
def _probe(python: str, card: int, time_limit: float, settings: tuple[tuple[str, str | None], ...]) -> Probe:
    try:
        ended = subprocess.run(
            [python, "-c", PROGRAM, str(card)],
            capture_output=True, encoding="utf-8", errors="replace", timeout=time_limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Probe(False, f"flash-attn gave no answer within {time_limit:g} seconds")
    except OSError as exc:
        return Probe(False, f"the test could not be started: {exc}")
    if ended.returncode == 0 and ended.stdout.startswith(WORKS):
        return Probe(True, f"flash-attn {ended.stdout.removeprefix(WORKS).strip()} gives the right numbers")
    said = ended.stderr.strip().splitlines() or [f"the test ended with {ended.returncode}"]
    if "No module named 'flash_attn'" in said[-1]:
        return Probe(False, "flash-attn is not installed")
    return Probe(False, f"flash-attn does not work here: {said[-1]}")
