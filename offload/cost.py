"""How long a plan would take: a model of memory traffic, for comparing plans before anything ran. It is right about
what matters here (bytes per pass, passes, swaps) and makes no promise in seconds, which only songs that were made can
give."""

from __future__ import annotations

import math

from .device import Card
from .plan import MemoryPlan
from .sizes import FLOAT_BITS, Shapes, WeightFormat, kv_per_id, layer_bytes, streamed_bytes, weight_bytes

USUAL = 400e9
"""Bytes per second of a card's memory when nobody knows: an RTX 3060's is 360 GB/s."""

REACHED = 0.6
"""Share of it that decoding reaches. A goal; not measured yet."""

LINK = 12e9
"""Bytes per second from pinned RAM to the card when nobody knows: PCIe 3 x16, or 4 x8."""

RELOAD = 2.5e9
"""Bytes per second of a model read again from the system's file cache. Modelled: 2 to 4 s for 3 to 6 GB."""

PREFILL_IDS = 4000
"""Ids per second that a card reads anew when Stage 1's cache is rebuilt. Modelled, for 7B on 50 TFLOP/s."""

CPU_BYTES = 6e9
"""Bytes of weights per second on a CPU; the value cancels out where plans are compared."""

CPU_ROW = 1.0
"""What one more row adds to a pass on a CPU, as a share of a pass without rows. For short chunks it is 0.28; over whole
songs of the demo set larger batches save nothing: 23 s of processor time when sections are refined one by one, 25 with
the first one early, 28 all at the end (one run each, one thread, a busy machine)."""

EXL2_ROWS = 4
"""Rows that EXL2 takes through the weights at once; five need two passes."""

UNPACKED = 12
"""Bytes of traffic per weight for turning a packed one into a float in every pass: written and read in single and in
half precision. The torch engine has no kernel that multiplies with packed weights."""

CHUNK = 300


def song(plan: MemoryPlan, card: Card | None) -> float:
    """Seconds of both stages and of the swaps between them."""
    need = plan.need
    ids = need.sections * need.budget
    seconds = ids * _pass(need.stage1, plan.stage1_format, need.rows, card)
    if plan.resident is not None:
        seconds += ids * streamed_bytes(need.stage1, plan.stage1_format, plan.resident) / _link(card)
    visits = visits_of(need.sections, need.budget // 2, plan.hear, plan.stage2_batch)
    for rows in visits:
        seconds += sum(7 * CHUNK * _pass(need.stage2, plan.stage2_format, [need.chunk] * n, card) for n in rows)
    if not plan.together and len(visits) > 1:
        seconds += (len(visits) - 1) * _swap(plan, card)
    return seconds


def visits_of(sections: int, frames: int, hear: str, batch: int) -> list[list[int]]:
    """What Stage 2 is given each time it is called: the sizes of its batches. Chunks lie on one grid over the whole
    song, so what is left over of a section waits for the next; the tail of the song comes with the last."""
    groups: list[int] = []
    refined = 0
    for section in range(1, sections + 1):
        ready = section * frames // CHUNK - refined
        due = hear == "sections" or (hear == "first" and (section == 1 or 2 * ready >= batch))
        if section == sections or (due and ready):
            groups.append(2 * ready)
            refined += ready
    visits = [[batch] * (rows // batch) + [rows % batch] * bool(rows % batch) for rows in groups]
    if sections * frames % CHUNK:
        visits[-1].append(2)
    return visits


def _pass(shapes: Shapes, way: WeightFormat, rows: list[int], card: Card | None) -> float:
    """One step of all rows: the weights once (EXL2: once per four rows), and half of what the rows can hold."""
    weights = shapes.config.layers * layer_bytes(shapes, way)
    if way.engine == "exl2":
        weights *= math.ceil(len(rows) / EXL2_ROWS)
    elif way.weights not in FLOAT_BITS:
        weights += shapes.config.layers * shapes.matrices * UNPACKED
    if card is None:
        return weights / CPU_BYTES * (1 + CPU_ROW * len(rows))
    held = sum(rows) / 2
    kv = held * float(kv_per_id(shapes, way.kv))
    if way.kv not in ("fp16", "float32"):  # unpacked every step: written and read again
        kv += held * 4 * shapes.config.kv_values
    return (weights + kv) / (_bandwidth(card) * REACHED)


def _swap(plan: MemoryPlan, card: Card | None) -> float:
    """Stage 1 leaves for Stage 2 and comes back, with its caches."""
    need, link = plan.need, _link(card)
    seconds = 0.0
    for stage, shapes, way in ((1, need.stage1, plan.stage1_format), (2, need.stage2, plan.stage2_format)):
        seconds += weight_bytes(shapes, way) / (link if stage in plan.parked else RELOAD)
    cache = float(kv_per_id(need.stage1, plan.stage1_format.kv)) * sum(need.rows)
    return seconds + {"kept": 0.0, "parked": 2 * cache / link, "rebuilt": sum(need.rows) / 2 / PREFILL_IDS}[plan.caches]


def _bandwidth(card: Card | None) -> float:
    return (card and card.bandwidth_guess) or USUAL


def _link(card: Card | None) -> float:
    return (card and card.link) or LINK
