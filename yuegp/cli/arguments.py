"""What several commands share: options for songs, takes and computing, and the values they become; JSON output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from yuegp.generation.options import ANY, AUTO, CACHES, ENGINES, WEIGHTS, ModelOptions

if TYPE_CHECKING:
    from yuegp.library.store import Song, Take

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command is added to."""

DEVICES = ("auto", "cpu", "cuda")


# Options


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    """A command that calls `run`; `text` describes it, in lower case and without a full stop."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
    parser.set_defaults(run=run)
    return parser


def add_song_options(parser: argparse.ArgumentParser, takes: bool = True) -> None:
    """A song as the first argument, and which of its takes."""
    parser.add_argument("song", help="its folder, its title, or the beginning of one of these")
    add_out_option(parser)
    if takes:
        parser.add_argument("--take", type=int, metavar="N", help="which take (default: the picked or the newest one)")


def add_out_option(parser: argparse.ArgumentParser) -> None:
    """The folder of song folders: see `songs_root`."""
    parser.add_argument("--out", metavar="DIR", help="the folder of song folders (default: songs)")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Where to compute, and how the models are to be held there: see `model_options`."""
    add_device_option(parser)
    group = parser.add_argument_group("how the large model is held (default: auto, what suits this machine best)")
    group.add_argument("--engine", choices=ENGINES, default=AUTO, help="exl2 for EXL2 models, torch for others")
    text = "float: not quantized; int8, nf4: 8 and 4 bits; exl2: as stored"
    group.add_argument("--weights", choices=WEIGHTS, default=AUTO, help=text)
    group.add_argument("--kv", choices=CACHES, default=AUTO, help="KV cache; fp16: not quantized; others: exl2 only")


# Values


def songs_root(arguments: argparse.Namespace) -> Path:
    """The folder of song folders."""
    from yuegp import paths

    return paths.songs_dir(arguments.out).absolute()


def named_song(arguments: argparse.Namespace, name: str | None = None) -> Song:
    """The song that `name` means; without it, the one that the arguments name."""
    from yuegp.library import catalog

    return catalog.get(songs_root(arguments), arguments.song if name is None else name)


def song_and_take(arguments: argparse.Namespace) -> tuple[Song, Take]:
    """A song and one take of it: the one asked for, else the picked or the newest."""
    song = named_song(arguments)
    return song, chosen_take(arguments, song)


def chosen_take(arguments: argparse.Namespace, song: Song) -> Take:
    """The take asked for, else the picked or the newest."""
    return song.chosen() if arguments.take is None else song.take(arguments.take)


def model_options(arguments: argparse.Namespace, model: str) -> ModelOptions:
    """How the models are to be held. RequestError or DeviceError when `model` cannot be held so on this machine."""
    from yuegp.generation.options import ModelOptions

    options = ModelOptions(arguments.engine, arguments.weights, arguments.kv)
    if options != ANY:
        from yuegp.generation.memory import allow, machine

        allow(model, options, machine(), arguments.device)
    return options


def read_text(path: str) -> str:
    """A lyrics file, or standard input for `-`."""
    from yuegp.song import lyrics

    return lyrics.decode(sys.stdin.buffer.read(), "The text") if path == "-" else lyrics.read(path)


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))
