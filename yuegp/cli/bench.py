"""The command `bench`: what this machine can do, told as a table and as one JSON line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Commands, add_command, add_device_option

if TYPE_CHECKING:
    from yuegp.bench.lm import LMBenchmark
    from yuegp.bench.song import SongBenchmark as SongJob

LOOP, STREAMED = 300, 16
"""Ids per run unless others are asked for: of a loop, and of one that sends gigabytes to the card for each."""


def add_commands(commands: Commands) -> None:
    """Add the command `bench`."""
    p = add_command(commands, "bench", bench, "measure this machine")
    p.add_argument(
        "what",
        choices=("lm", "song", "vs-reference", "loops"),
        help="song: six sections through the whole program, with random weights, also as on a smaller card. "
        "lm: speed and memory of one language model of the released size, with random weights. vs-reference: our "
        "loop against transformers' generate, on the same weights. loops: the same for small models on one thread",
    )
    p.add_argument("--preset", choices=("stage1", "stage2", "demo", "released"), default="stage1",
                   help="which (default stage1; song: released, or else small)")  # fmt: skip
    add_device_option(p)
    p.add_argument("--engine", choices=("torch", "exl2"), default="torch",
                   help="lm, song: which engine; exl2 makes random weights in its layout (default torch)")  # fmt: skip
    p.add_argument("--bits", type=float, metavar="B", help="lm, song: bits per random weight, exl2 only (default 8)")
    p.add_argument(
        "--weights",
        choices=("float32", "float16", "bfloat16", "int8", "nf4", "bnb8", "exl2"),
        help="lm: what weights are held as (default: as in a song)",
    )
    p.add_argument("--kv", choices=("same", "fp16", "q8", "q6", "q4"), default="same", help="lm: caches, exl2 only")
    p.add_argument("--resident", type=int, metavar="N",
                   help="lm: keep only N layers on the card and stream the others. vs-reference: do, and compare with "
                   "accelerate's hooks instead")  # fmt: skip
    p.add_argument("--layers", type=int, metavar="N", help="real sizes, but only N layers (default: all; cpu: small)")
    p.add_argument("--contexts", type=int, nargs="+", metavar="IDS", help="lm: lengths to measure at")
    p.add_argument("--rows", type=int, metavar="N", help="lm: rows at once (default 2, stage2 8)")
    p.add_argument("--folder", metavar="DIR", help="lm: this model instead of random weights")
    p.add_argument("--vram", metavar="SIZE", help="song: as on a card of this size, such as 10GB")
    p.add_argument("--sections", type=int, metavar="N", help="song: how many (default 6)")
    p.add_argument("--section-seconds", type=float, metavar="S", help="song: how long (default 30, demo 6)")
    p.add_argument("--ids", type=int, metavar="N",
                   help="loops, vs-reference: ids per Stage-1 run (default 300; with --resident 16)")  # fmt: skip
    p.add_argument("--rounds", type=int, default=3, metavar="N",
                   help="loops, vs-reference: alternating Stage-1 runs (default 3)")  # fmt: skip


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
