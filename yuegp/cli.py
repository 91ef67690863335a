"""The command line: every command and option, and how failures are told. The commands are `making.py` and `keeping.py`.

Exit codes: 0 done, 2 request, 3 model, 4 device, 5 library, 1 our own fault, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from . import __version__, examining, keeping, making
from .errors import Cancelled, YueGPError
from .song import PRESETS

STOPPED = 130
"""What a shell reports for a program ended by Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Every failure is two sentences on standard error."""
    # libgomp reads this once, when torch is first imported: without it two threads on a busy machine wait on each
    # other for longer than they compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    arguments = build_parser().parse_args(argv)
    if not hasattr(arguments, "run"):
        welcome()
        return 0
    try:
        return arguments.run(arguments) or 0
    except YueGPError as exc:
        if getattr(arguments, "json", False):
            print(json.dumps({"error": exc.what, "hint": exc.hint, "exit": exc.exit_code}, ensure_ascii=False))
        print(f"{exc.what}\n{exc.hint}".strip(), file=sys.stderr)
        return exc.exit_code
    except (Cancelled, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away; nothing is left to say to it
        return 0


def welcome() -> None:
    """What a first call without arguments shows."""
    print(
        f"yuegp {__version__}: lyrics and tags in, a song out.\n\n"
        "The web page is not built yet. From the command line, try:\n\n"
        "  python launch.py make --lyrics examples/paper-lanterns.txt "
        '--tags "inspiring female uplifting pop airy vocal"\n\n'
        "That uses the tiny model that comes with the program: it hums along with your words, to a small band.\n"
        "All commands: python launch.py --help"
    )


def build_parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(prog="yuegp", description="Whole songs from lyrics and tags, with YuE.")
    parser.add_argument("--version", action="version", version=f"yuegp {__version__}")
    group = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        p = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        p.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
        p.set_defaults(run=run)
        return p

    p = command("lyrics", making.show_lyrics, "show how a lyrics file is understood")
    p.add_argument("file", help="a text file, or - for standard input")
    p.add_argument("--section-seconds", type=float, default=30.0, metavar="S", help="longest section (default 30)")

    _make_options(command("make", making.make, "make a song"))

    p = _song_options(command("resume", making.resume, "go on with a song that was stopped"), computes=True)

    p = _song_options(command("continue", making.proceed, "add sections to a finished song"), computes=True)
    p.add_argument("--lyrics", metavar="FILE", help="the sections to add; without it, those that are not made yet")
    p.add_argument("--sections", type=int, metavar="N", help="stop when the song has N sections")

    p = _song_options(command("redo", making.redo, "make one section again, as a new take"), computes=True)
    p.add_argument("section", type=int, help="which section, from 1")
    _redo_options(p)

    p = _song_options(
        command("takes", making.takes, "make several versions of a section, to pick from"), computes=True
    )
    p.add_argument("section", type=int, help="which section, from 1")
    p.add_argument("-n", "--number", type=int, default=3, metavar="N", help="how many, all in one batch (default 3)")
    _redo_options(p)

    p = _song_options(command("rewind", making.rewind, "go back and make the rest of a song again"), computes=True)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--section", type=int, metavar="N", help="to the beginning of section N")
    where.add_argument("--second", type=float, metavar="S", help="to this second; the section goes on from there")
    p.add_argument("--seed", type=int, help="seed of what is made anew (default: drawn)")

    p = _song_options(command("trim", making.trim, "cut the end off a section"), computes=True)
    p.add_argument("section", type=int, help="which section, from 1")
    p.add_argument("seconds", type=float, help="how much to cut off")

    p = _song_options(
        command("mute", making.mute, "keep sections from setting the style of later ones"), computes=True
    )
    p.add_argument("sections", type=int, nargs="*", help="which sections, from 1; none to unmute all")

    p = command("songs", keeping.songs, "list and search songs")
    p.add_argument("words", nargs="*", help="words in title, tags or lyrics")
    p.add_argument("--rating", type=int, metavar="N", help="at least N stars")
    p.add_argument("--tag", help="with this tag")
    p.add_argument("--language", choices=("en", "zh", "ja", "ko"), help="language of the lyrics")
    p.add_argument("--sort", choices=("newest", "title", "rating", "length"), default="newest", help="order")
    p.add_argument("--trash", action="store_true", help="what lies in the trash")
    _root_option(p)

    _song_options(command("show", keeping.show, "show a song: its takes and their sections"), takes=False)

    p = _song_options(command("pick", keeping.pick, "choose the take that is played and exported"), takes=False)
    p.add_argument("take", type=int, help="which take")

    p = _song_options(command("rename", keeping.rename, "give a song another title"), takes=False)
    p.add_argument("title", help="the new title")

    p = _song_options(command("rate", keeping.rate, "give a song 1 to 5 stars"), takes=False)
    p.add_argument("stars", type=int, help="1 to 5, or 0 for none")

    _song_options(command("trash", keeping.trash, "put a song in the trash"), takes=False)
    _song_options(command("restore", keeping.restore, "take a song out of the trash"), takes=False)

    p = _song_options(command("export", keeping.export, "write a song as WAV, FLAC or MP3, with its settings"))
    p.add_argument("--kind", choices=("wav16", "wav24", "flac", "mp3"), default="wav24", help="format (default wav24)")
    p.add_argument("--to", metavar="PLACE", help="a folder, or a file name (default: here)")
    p.add_argument("--stems", action="store_true", help="vocal and instrumental too")
    p.add_argument("--artist", default="", help="name to write into the files")

    p = command("import", keeping.import_settings, "begin a song with the settings of an exported file")
    p.add_argument("file", help="a WAV, FLAC or MP3 that yuegp exported, or a song's folder")
    _root_option(p)

    p = command("queue", keeping.queue, "line songs up and make them one after the other")
    p.add_argument(
        "action",
        choices=("list", "add", "move", "pause", "resume", "cancel", "clear", "run"),
        help="list: what there is. add SONG. move JOB PLACE. pause, resume JOB or all. cancel JOB. "
        "clear: forget what is over. run: make what waits, here and now",
    )
    p.add_argument("words", nargs="*", help="the song, or the job's number and its new place")
    p.add_argument("--take", type=int, metavar="N", help="which take to add (default: the picked or the newest one)")
    _root_option(p)
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute what is added")
    p.add_argument("--quiet", action="store_true", help="no progress")

    p = command("doctor", examining.doctor, "look at this machine and say what is missing")
    p.add_argument("--port", type=int, metavar="N", help="where the page should be")

    p = command("bench", making.bench, "measure this machine")
    p.add_argument("what", choices=("loops",), help="loops: our decoding loops against transformers' generate")
    p.add_argument("--ids", type=int, default=300, help="ids per Stage-1 run (default 300)")
    p.add_argument("--rounds", type=int, default=3, help="alternating Stage-1 runs (default 3)")
    return parser


def _make_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--lyrics", metavar="FILE", help="a text file with [verse], [chorus] … labels; - for standard input")
    p.add_argument("--tags", required=True, help='genre, instrument, mood, voice: "pop piano sad female airy vocal"')
    p.add_argument("--title", help="title of the song (default: the name of the lyrics file)")
    p.add_argument("--seed", type=int, help="same seed, same song (default: drawn, and shown)")
    p.add_argument("--sections", type=int, metavar="N", help="make only the first N sections")
    p.add_argument("--section-seconds", type=float, metavar="S", help="longest section (default: what the model likes)")
    p.add_argument("--model", default="demo", help="a model by name, or the folder of a model set (default demo)")
    p.add_argument("--instrumental", action="store_true", help="no singing: words are left out")
    p.add_argument("--crossover", choices=("smooth", "yue"), default="smooth", help="how lows and highs are joined")
    _root_option(p)
    group = p.add_argument_group("reference recording (in-context learning)")
    group.add_argument("--reference", metavar="MIX", help="one recording to take the style from")
    group.add_argument("--reference-vocal", metavar="FILE", help="its vocal alone; with --reference-instrumental")
    group.add_argument("--reference-instrumental", metavar="FILE", help="its accompaniment alone")
    group.add_argument("--reference-start", type=float, metavar="S", help="start of the window in seconds (default 0)")
    group.add_argument("--reference-end", type=float, metavar="S", help="end of the window (default: start + 30)")
    group = p.add_argument_group("sampling (default: what the model set recommends)")
    group.add_argument("--preset", choices=tuple(PRESETS), help="as released, or as in ExLlamaV2 ports")
    for name, kind, text in (
        ("temperature", float, "0 takes the likeliest code"),
        ("top-k", int, "likeliest codes to choose from; 0 for all"),
        ("top-p", float, "total probability to choose from"),
        ("repetition-penalty", float, "1 is off"),
        ("guidance", float, "guidance scale of the first section; 1 is off"),
        ("guidance-later", float, "guidance scale of later sections"),
    ):
        group.add_argument(f"--{name}", type=kind, metavar="X", help=text)
    group.add_argument("--exact", action="store_true", help="guidance over the whole vocabulary, as released; slower")
    group.add_argument("--spare-end", action="store_true", help="keep the repetition penalty off the end of a section")
    _compute_options(p)


def _song_options(
    p: argparse.ArgumentParser, takes: bool = True, computes: bool = False
) -> argparse.ArgumentParser:
    """A song as the first argument; which take; and how to compute, for commands that do."""
    p.add_argument("song", help="its folder, its title, or the beginning of one of these")
    _root_option(p)
    if takes:
        p.add_argument("--take", type=int, metavar="N", help="which take (default: the picked or the newest one)")
    if computes:
        _compute_options(p)
    return p


def _redo_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=int, help="seed of the new section (default: drawn)")
    p.add_argument(
        "--later",
        choices=("keep", "remake", "stop"),
        default="keep",
        help="the sections after it: keep as they are, make again, or stop before them (default keep)",
    )


def _compute_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.add_argument("--queue", action="store_true", help="do not make it now: put it in the queue")


def _root_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", metavar="DIR", help="the folder of song folders (default: songs)")
