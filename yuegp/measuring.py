"""`bench`: what this machine can do, told as a table and as one JSON line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench.lm import Job
    from .bench.song import Job as SongJob


def bench(arguments: argparse.Namespace) -> None:
    quiet = arguments.json
    say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
    if arguments.what == "lm":
        from .bench import lm

        print(lm.run(_job(arguments), say))
        return
    if arguments.what == "song":
        from .bench import song

        print(song.run(_song(arguments), say))
        return
    from .bench import reference

    if arguments.what == "loops":
        print(reference.loops(arguments.ids, arguments.rounds, say=say))
    else:
        stage, device = _stage(arguments), _device(arguments)
        print(reference.versus(stage, device, arguments.layers, arguments.ids, arguments.rounds, say=say))


def _song(arguments: argparse.Namespace) -> SongJob:
    from .bench.song import Job

    folder = Path(arguments.folder) if arguments.folder else None
    preset = "released" if arguments.preset == "released" else "demo"
    return Job(preset, _device(arguments), arguments.vram, folder, arguments.sections or 6, arguments.section_seconds)


def _stage(arguments: argparse.Namespace) -> str:
    from .errors import RequestError

    if arguments.preset == "demo":
        raise RequestError(
            "The built-in set has no released loop to be compared with.", "Use --preset stage1 or stage2."
        )
    return arguments.preset


def _job(arguments: argparse.Namespace) -> Job:
    from .bench import lm
    from .lm import Setup, stored_as

    device, folder = _device(arguments), Path(arguments.folder) if arguments.folder else None
    usual = "float32" if device == "cpu" else {"stage2": "float16"}.get(arguments.preset, "bfloat16")
    if folder is not None and stored_as(folder) in ("int8", "nf4", "bnb8", "exl2"):
        usual = stored_as(folder)
    setup = Setup(arguments.engine, device, arguments.weights or usual, arguments.kv, arguments.resident)
    return lm.job(arguments.preset, setup, arguments.layers, arguments.contexts, arguments.rows, folder)


def _device(arguments: argparse.Namespace) -> str:
    from offload.device import place

    return place(0, arguments.device).device
