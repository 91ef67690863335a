"""Why a plan is as it is, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .device import Card
from .plan import MemoryPlan, quality_rank
from .units import gigabytes


def reasons(p: MemoryPlan, card: Card | None, ram: int) -> Iterator[str]:
    n, place = p.need, "card" if card else "RAM"
    free = card.free if card else ram
    yield f"{gigabytes(free)} of the {place} {'are' if card else 'is'} free; {gigabytes(p.budget)} may be used."
    better = [way for way in n.ways1 if quality_rank(way) > quality_rank(p.stage1_format)]
    if p.resident is not None:
        layers = n.stage1.config.layers
        yield (
            f"Stage 1 does not fit: {layers - p.resident} of its {layers} layers are sent to the card for every id. "
            "That works, slowly."
        )
    elif better:
        least = min(better, key=lambda way: replace(p, stage1_format=way, together=False).steps[0].bytes)
        asked = replace(p, stage1_format=least, together=False).steps[0].bytes
        yield f"Stage 1 as {least} would need {gigabytes(asked)}, so it is held as {p.stage1_format}."
    else:
        asked = p.steps[0].bytes
        yield f"Stage 1 is held as {p.stage1_format}: with caches for {n.rows[0]:,} ids it takes {gigabytes(asked)}."
    if p.together:
        yield "Both language models stay loaded."
    else:
        both = replace(p, together=True, caches="kept").peak
        waits = {(): "are read again when their turn comes", (1,): "Stage 1's wait in RAM, Stage 2's are read again",
                 (2,): "Stage 2's wait in RAM, Stage 1's are read again", (1, 2): "wait in RAM"}  # fmt: skip
        turns = f"Together the language models would need {gigabytes(both)}, so they take turns"
        yield turns + (f"; their weights: {waits[p.parked]}." if p.order == "sections" else ", once each.")
        if p.order == "sections" and n.sections > 1:
            how = {"kept": "stay on the card", "parked": "wait in RAM", "rebuilt": "are rebuilt from the song"}
            yield f"Stage 1's caches {how[p.caches]} while Stage 2 works."
    yield {
        "stages": "All sections are written before the first is refined: anything else would take longer.",
        "first": "The first section is refined at once, so that it can be heard; later ones when a full batch waits.",
        "sections": "Each section is refined when it is written, and can be heard then.",
    }[p.hear]
    yield f"Stage 2 refines {p.stage2_batch} chunk{'s' * (p.stage2_batch > 1)} of six seconds at once."
    if p.sound_device != p.device:
        yield "The sound is made on the CPU: the codec does not fit on the card."
