"""What several commands ask of their arguments: which song, which take, which folder; and how JSON is printed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yuegp.generation.options import ModelOptions
    from yuegp.library.store import Song, Take


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def read_text(path: str) -> str:
    """A lyrics file, or standard input for `-`."""
    from yuegp.song import lyrics

    return lyrics.decode(sys.stdin.buffer.read(), "The text") if path == "-" else lyrics.read(path)


def songs_root(arguments: argparse.Namespace) -> Path:
    """The folder of song folders."""
    from yuegp import paths

    return paths.songs_dir(arguments.out).absolute()


def the_song(arguments: argparse.Namespace) -> Song:
    """The song that the arguments name."""
    return named_song(arguments, arguments.song)


def named_song(arguments: argparse.Namespace, name: str) -> Song:
    """The song that `name` means."""
    from yuegp.library import catalog

    return catalog.get(songs_root(arguments), name)


def song_and_take(arguments: argparse.Namespace) -> tuple[Song, Take]:
    """A song and one take of it: the one asked for, else the picked or the newest."""
    song = the_song(arguments)
    return song, song.chosen() if arguments.take is None else song.take(arguments.take)


def wishes_of(arguments: argparse.Namespace, model: str) -> ModelOptions:
    """How the models are to be held. RequestError or DeviceError when `model` cannot be held so on this machine."""
    from yuegp.generation.options import ANY, ModelOptions

    wishes = ModelOptions(arguments.engine, arguments.weights, arguments.kv)
    if wishes != ANY:
        from yuegp.generation.memory import allow, machine

        allow(model, wishes, machine(), arguments.device)
    return wishes
