"""`bench`: what this machine can do, told as a table and as one JSON line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yuegp.bench.lm import LMBenchmark
    from yuegp.bench.song import SongBenchmark as SongJob

LOOP, STREAMED = 300, 16
"""Ids per run unless others are asked for: of a loop, and of one that sends gigabytes to the card for each."""


def bench(arguments: argparse.Namespace) -> None:
    _check(arguments)
    quiet = arguments.json
    say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
    if arguments.what == "lm":
        from yuegp.bench import lm

        print(lm.run(_job(arguments), say))
        return
    if arguments.what == "song":
        from yuegp.bench import song

        print(song.run(_song(arguments), say))
        return
    from yuegp.bench import reference, streaming

    if arguments.what == "loops":
        print(reference.loops(arguments.ids or LOOP, arguments.rounds, say=say))
        return
    stage, device, layers, rounds = _stage(arguments), _device(arguments), arguments.layers, arguments.rounds
    if arguments.resident is None:
        print(reference.versus(stage, device, layers, arguments.ids or LOOP, rounds, say=say))
    else:
        print(streaming.versus(stage, device, arguments.resident, layers, arguments.ids or STREAMED, rounds, say))


def _check(arguments: argparse.Namespace) -> None:
    """RequestError for what the engine asked for has not."""
    from yuegp.errors import RequestError

    what, fast, bits = arguments.what, arguments.engine == "exl2", arguments.bits
    if fast and what in ("vs-reference", "loops"):
        raise RequestError(
            f"bench {what} compares loops of the torch engine; it cannot be made with exl2.",
            "Leave --engine out, or use bench lm or bench song.",
        )
    if fast and arguments.resident is not None:
        raise RequestError("The engine exl2 does not stream layers.", "Leave --resident or --engine exl2 out.")
    loop = what == "loops" or (what == "vs-reference" and arguments.resident is None)
    if loop and arguments.ids is not None and (arguments.ids < 2 or arguments.ids % 2):
        raise RequestError(
            f"--ids {arguments.ids} is no whole number of frames.", "A frame is two ids: choose an even number."
        )
    if arguments.rounds < 1 or (arguments.ids is not None and arguments.ids < 1):
        raise RequestError("A measurement needs at least one round and one id.", "Choose larger numbers.")
    if bits is None:
        return
    if not fast:
        raise RequestError(
            "The torch engine has no --bits: it holds weights as --weights says, or in a song as the memory plan does.",
            "Leave --bits out, or add --engine exl2.",
        )
    if arguments.folder or (what == "lm" and arguments.preset == "demo"):
        raise RequestError(
            f"--bits {bits:g} is for random weights, and {arguments.folder or 'the built-in set'} has its own.",
            "Leave --bits out.",
        )
    if not 2 <= bits <= 8:
        raise RequestError(f"EXL2 has no weights of {bits:g} bits.", "Choose --bits from 2 to 8; it may be a fraction.")


def _song(arguments: argparse.Namespace) -> SongJob:
    from yuegp.bench.exl2_noise import BITS
    from yuegp.bench.song import SongBenchmark

    a, folder = arguments, Path(arguments.folder) if arguments.folder else None
    preset = "released" if a.preset == "released" else "demo"
    sections, bits = a.sections or 6, a.bits or BITS
    return SongBenchmark(preset, _device(a), a.vram, folder, sections, a.section_seconds, a.engine, bits)


def _stage(arguments: argparse.Namespace) -> str:
    from yuegp.errors import RequestError

    if arguments.preset not in ("stage1", "stage2"):
        raise RequestError(
            f"There is no released loop that --preset {arguments.preset} could be compared with.",
            "Use --preset stage1 or stage2.",
        )
    return arguments.preset


def _job(arguments: argparse.Namespace) -> LMBenchmark:
    from yuegp.bench import lm
    from yuegp.bench.exl2_noise import BITS
    from yuegp.errors import RequestError
    from yuegp.lm import EngineConfig, stored_as

    device, folder = _device(arguments), Path(arguments.folder) if arguments.folder else None
    if arguments.preset == "released":
        raise RequestError("bench lm measures one language model.", "Use --preset stage1 or stage2, or bench song.")
    usual = "float32" if device == "cpu" else {"stage2": "float16"}.get(arguments.preset, "bfloat16")
    if folder is not None and stored_as(folder) in ("int8", "nf4", "bnb8", "exl2"):
        usual = stored_as(folder)
    elif folder is None and arguments.engine == "exl2" and arguments.preset != "demo":
        usual = "exl2"
    weights = arguments.weights or usual
    if folder is None and arguments.preset != "demo" and (weights == "exl2") != (arguments.engine == "exl2"):
        raise RequestError(
            f"Random weights are not held as {weights} by the engine {arguments.engine}.",
            "Leave --weights out: the engine exl2 has its own, all others are the torch engine's.",
        )
    setup = EngineConfig(arguments.engine, device, weights, arguments.kv, arguments.resident)
    bits = arguments.bits or BITS
    return lm.job(arguments.preset, setup, arguments.layers, arguments.contexts, arguments.rows, folder, bits)


def _device(arguments: argparse.Namespace) -> str:
    from yuegp.generation.memory import place

    return place(0, arguments.device).device
