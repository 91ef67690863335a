"""The command `plan`: how a song would fit a graphics card. Needs neither the card nor the models."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from yuegp.errors import ModelError, RequestError

from .arguments import Commands, add_command, print_json, read_text

if TYPE_CHECKING:
    from offload.device import Card
    from offload.plan import MemoryPlan, MemoryRequest
    from offload.sizes import WeightFormat
    from yuegp.checkpoints.sets import ModelSet
    from yuegp.song.schema import Section

WORDS_PER_ID = 1.6
"""Ids per word of lyrics, where the released tokenizer is not on disk: twice each word stands in the prompt, and a word
is some 1.6 pieces in English. Rough, and small beside the music's ids."""

HEAD_IDS = 80
"""Instruction, tags and markers."""


def add_commands(commands: Commands) -> None:
    """Add the command `plan`."""
    p = add_command(commands, "plan", show_plan, "show how a song would fit a graphics card, here or any other")
    p.add_argument("--lyrics", metavar="FILE", help="the song's words; without them, a song as long as the model can")
    p.add_argument("--tags", default="pop", help="its tags")
    p.add_argument("--model", default="yue-en-cot", help="a model by name (default yue-en-cot; need not be on disk)")
    p.add_argument("--vram", metavar="SIZE", help="a card of this size, such as 10GB (default: the one here)")
    p.add_argument("--ram", metavar="SIZE", help="free main memory (default: what is free here)")
    p.add_argument("--headless", action="store_true", help="with --vram: no screen hangs on that card")
    p.add_argument("--bits", type=float, metavar="N", help="bits per weight of Stage 1 (default: the most that fit)")
    p.add_argument("--engine", choices=("exl2", "torch"), default="exl2", help="for released models (default exl2)")
    p.add_argument("--sections", type=int, metavar="N", help="only the first N sections")
    p.add_argument("--section-seconds", type=float, metavar="S", help="longest section (default 30)")
    p.add_argument("--takes", type=int, default=1, metavar="N", help="versions of a section in one batch (default 1)")


def show_plan(arguments: argparse.Namespace) -> None:
    """Print the memory plan of a song."""
    from offload.device import imagined
    from yuegp.generation.memory import DoesNotFit, machine, parse_size, plan_memory
    from yuegp.song import lyrics

    _check_sound(arguments.model)
    parsed = lyrics.parse(read_text(arguments.lyrics)) if arguments.lyrics else None
    here = machine()
    card = imagined(parse_size(arguments.vram), not arguments.headless) if arguments.vram else here.card
    ram = parse_size(arguments.ram) if arguments.ram else here.ram_free
    need, source = _need(arguments, parsed.sections if parsed else (), card, ram)
    try:
        plan = plan_memory(need, card, ram, _fewer(need, arguments))
    except DoesNotFit as exc:
        if arguments.json or exc.nearest is None:
            raise
        print(f"{exc.what}\n{exc.hint} That would be:\n", file=sys.stderr)
        plan = replace(exc.nearest[1], reasons=())
        print(plan.table())
        raise
    if arguments.json:
        print_json(_row(plan, card, source))
        return
    where = card.name if card else "the CPU"
    print(f"{source} on {where}, {need.sections} sections, up to {need.rows[0]:,} ids of song\n")
    print(plan.table())


def _check_sound(model: str) -> None:
    """Refuse a sound model that is here and cannot be used; one that is not here yet is no matter for a plan."""
    from yuegp.checkpoints import sets
    from yuegp.codec import check_codec

    try:
        folder = sets.find(model).codec
    except ModelError:
        return
    check_codec(folder)


def _need(
    arguments: argparse.Namespace, sections: tuple[Section, ...], card: Card | None, ram: int
) -> tuple[MemoryRequest, str]:
    """What the song asks for, and of which models: those on disk, or the released ones that `models get` would fetch
    for that card."""
    from yuegp.checkpoints import sets
    from yuegp.generation import choice, memory, pipeline
    from yuegp.generation.plan import prompts_of
    from yuegp.song.schema import Sampling, SongRequest
    from yuegp.tokens.prompts import budget_ids

    there = None if arguments.vram else _on_disk(arguments)
    if card is not None and arguments.model in sets.RELEASED and not (there and sections):
        seconds = arguments.section_seconds or 30.0
        count = arguments.sections or len(sections) or 6
        budget, sampling = budget_ids(seconds), Sampling()
        words = sum(len(section.words.split()) for section in sections)
        ids = round(2 * WORDS_PER_ID * words) + HEAD_IDS + count * (budget + 20) if sections else 1 << 20
        if there:
            ways = memory.ways(there.stage1, 1, card), memory.ways(there.stage2, 2, card)
        else:
            ways = _chosen(arguments, card, ram)
        need = replace(choice.usual(*ways), sections=count, budget=budget, longest=ids,
                       guided=sampling.guidance != 1, takes=arguments.takes)  # fmt: skip
        return need, there.title if there else f"The released {arguments.model}"
    try:
        found = choice.find(arguments.model)
    except ModelError as exc:
        raise ModelError(exc.what, "Add --vram to plan for a card with the released models.") from exc
    if not sections:
        raise RequestError("There are no lyrics.", "Add --lyrics FILE.")
    request = SongRequest(sections, arguments.tags, model=arguments.model, sampling=found.sampling,
                          section_seconds=arguments.section_seconds, first_sections=arguments.sections)  # fmt: skip
    song = pipeline.plan(request)
    return memory.need(song, prompts_of(song), card, song.count, arguments.takes), found.title


def _on_disk(arguments: argparse.Namespace) -> ModelSet | None:
    """The released set that is here, where it is not asked how another copy would do."""
    from yuegp.generation import choice

    if arguments.bits is not None or arguments.engine == "torch":
        return None
    try:
        return choice.find(arguments.model)
    except ModelError:
        return None


def _chosen(
    arguments: argparse.Namespace, card: Card, ram: int
) -> tuple[tuple[WeightFormat, ...], tuple[WeightFormat, ...]]:
    """The ways to hold both models of the set that is chosen for the card, with the engine and the bits asked for."""
    from offload.sizes import WeightFormat
    from yuegp.checkpoints import sets
    from yuegp.generation import choice, memory

    fast = False if arguments.engine == "torch" else None
    first, second, _ = choice.choose(*sets.RELEASED[arguments.model], card, fast, ram).checkpoints
    ways = choice.ways(first, card)
    if arguments.bits is not None:
        every = ways if arguments.engine == "torch" else memory.LIBRARY
        pressed = WeightFormat("exl2", "exl2", Fraction(arguments.bits).limit_denominator(100))
        ways = tuple(way for way in every if float(way.bits) == arguments.bits) or (pressed,)
    return ways, choice.ways(second, card)


def _fewer(need: MemoryRequest, arguments: argparse.Namespace) -> tuple[Any, ...]:
    from yuegp.checkpoints import sets
    from yuegp.generation import memory

    most = min(float(way.bits) for way in need.ways1)
    if arguments.engine == "torch" or arguments.model not in sets.RELEASED:
        return ()
    return tuple(way for way in memory.LIBRARY if float(way.bits) < most and way.kv == "fp16")


def _row(plan: MemoryPlan, card: Card | None, source: str) -> dict[str, Any]:
    return {
        "models": source,
        "card": card.name if card else None,
        "free": card.free if card else None,
        "budget": plan.budget,
        "peak": plan.peak,
        "ram": plan.ram,
        "stage1": str(plan.stage1_format),
        "stage2": str(plan.stage2_format),
        "stage2_batch": plan.stage2_batch,
        "together": plan.together,
        "order": plan.order,
        "hear": plan.hear,
        "caches": plan.caches,
        "parked": list(plan.parked),
        "resident": plan.resident,
        "steps": [
            {"when": step.when, "bytes": step.bytes, "held": dict(step.held), "aside": dict(step.aside)}
            for step in plan.steps
        ],
        "reasons": list(plan.reasons),
    }
