"""The command line: every command and option, and how failures are told. The commands are `making.py`, `keeping.py`,
`examining.py`, `measuring.py`, `pressing.py` and `weights.py`.

Exit codes: 0 done, 2 request, 3 model, 4 device, 5 library, 1 our own fault, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from quant import command as pressing
from yuegp import __version__
from yuegp.errors import Cancelled, YueGPError
from yuegp.generation.options import AUTO, CACHES, ENGINES, WEIGHTS
from yuegp.shortage import named
from yuegp.song.schema import PRESETS

from . import bench, doctor, make, models, plan, songs

STOPPED = 130
"""What a shell reports for a program ended by Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Every failure is two sentences on standard error."""
    # libgomp reads this once, when torch is first imported: without it two threads on a busy machine wait on each
    # other for longer than they compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA counts cards as nvidia-smi does; read at its start
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    arguments = build_parser().parse_args(argv)
    if not hasattr(arguments, "run"):
        arguments = build_parser().parse_args(["ui"])
    try:
        return arguments.run(arguments) or 0
    except (Cancelled, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away; nothing is left to say to it
        return 0
    except Exception as problem:
        exc = named(problem)
        if not isinstance(exc, YueGPError):
            raise
        if getattr(arguments, "json", False):
            print(json.dumps({"error": exc.what, "hint": exc.hint, "exit": exc.exit_code}, ensure_ascii=False))
        print(f"{exc.what}\n{exc.hint}".strip(), file=sys.stderr)
        return exc.exit_code


def show_page(arguments: argparse.Namespace) -> None:
    """Show the web page. Its rooms are loaded now: the other commands need none of them."""
    from ui import settings
    from ui.server.serve import serve

    names = settings.hosts(arguments.allow_host, arguments.forget_host)
    if arguments.hosts:
        print("\n".join(names))
    else:
        serve(arguments)


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

    p = group.add_parser("ui", help="show the web page", description="Show the web page, until Ctrl-C.")
    p.add_argument("--port", type=int, metavar="N", help="where, or the next free one (default 7860)")
    p.add_argument("--listen", action="store_true", help="let other computers on the network in; needs a password")
    p.add_argument("--password", metavar="WORD", help="what the page asks for (or set YUEGP_PASSWORD)")
    p.add_argument("--no-browser", action="store_true", help="do not open a browser")
    p.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which a tunnel or proxy shows the page; is kept; again for more",
    )
    p.add_argument("--forget-host", action="append", default=[], metavar="NAME", help="do not answer under it any more")
    p.add_argument("--hosts", action="store_true", help="list the names that are allowed, and do nothing else")
    _root_option(p)
    p.set_defaults(run=show_page)

    p = command("lyrics", make.show_lyrics, "show how a lyrics file is understood")
    p.add_argument("file", help="a text file, or - for standard input")
    p.add_argument("--section-seconds", type=float, default=30.0, metavar="S", help="longest section (default 30)")

    _make_options(command("make", make.make, "make a song"))

    p = _song_options(command("resume", make.resume, "go on with a song that was stopped"), computes=True)

    p = _song_options(command("continue", make.proceed, "add sections to a finished song"), computes=True)
    p.add_argument("--lyrics", metavar="FILE", help="the sections to add; without it, those that are not made yet")
    p.add_argument("--sections", type=int, metavar="N", help="stop when the song has N sections")

    p = _song_options(command("redo", make.redo, "make one section again, as a new take"), computes=True)
    p.add_argument("section", type=int, help="which section, from 1")
    _redo_options(p)

    p = _song_options(command("takes", make.takes, "make several versions of a section, to pick from"), computes=True)
    p.add_argument("section", type=int, help="which section, from 1")
    p.add_argument("-n", "--number", type=int, default=3, metavar="N", help="how many, all in one batch (default 3)")
    _redo_options(p)

    p = _song_options(command("rewind", make.rewind, "go back and make the rest of a song again"), computes=True)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--section", type=int, metavar="N", help="to the beginning of section N")
    where.add_argument("--second", type=float, metavar="S", help="to this second; the section goes on from there")
    p.add_argument("--seed", type=int, help="seed of what is made anew (default: drawn)")

    p = _song_options(command("trim", make.trim, "cut the end off a section"), computes=True)
    p.add_argument("section", type=int, help="which section, from 1")
    p.add_argument("seconds", type=float, help="how much to cut off")

    p = _song_options(command("mute", make.mute, "keep sections from setting the style of later ones"), computes=True)
    p.add_argument("sections", type=int, nargs="*", help="which sections, from 1; none to unmute all")

    p = command("songs", songs.songs, "list and search songs")
    p.add_argument("words", nargs="*", help="words in title, tags or lyrics")
    p.add_argument("--rating", type=int, metavar="N", help="at least N stars")
    p.add_argument("--tag", help="with this tag")
    p.add_argument("--language", choices=("en", "zh", "ja", "ko"), help="language of the lyrics")
    p.add_argument("--sort", choices=("newest", "title", "rating", "length"), default="newest", help="order")
    p.add_argument("--trash", action="store_true", help="what lies in the trash")
    _root_option(p)

    _song_options(command("show", songs.show, "show a song: its takes and their sections"), takes=False)

    p = _song_options(command("pick", songs.pick, "choose the take that is played and exported"), takes=False)
    p.add_argument("take", type=int, help="which take")

    p = _song_options(command("rename", songs.rename, "give a song another title"), takes=False)
    p.add_argument("title", help="the new title")

    p = _song_options(command("rate", songs.rate, "give a song 1 to 5 stars"), takes=False)
    p.add_argument("stars", type=int, help="1 to 5, or 0 for none")

    _song_options(command("trash", songs.trash, "put a song in the trash"), takes=False)
    _song_options(command("restore", songs.restore, "take a song out of the trash"), takes=False)

    p = _song_options(command("export", songs.export, "write a song as WAV, FLAC or MP3, with its settings"))
    p.add_argument("--kind", choices=("wav16", "wav24", "flac", "mp3"), default="wav24", help="format (default wav24)")
    p.add_argument("--to", metavar="PLACE", help="a folder, or a file name (default: here)")
    p.add_argument("--stems", action="store_true", help="vocal and instrumental too")
    p.add_argument("--artist", default="", help="name to write into the files")

    p = command("import", songs.import_settings, "begin a song with the settings of an exported file")
    p.add_argument("file", help="a WAV, FLAC or MP3 that yuegp exported, or a song's folder")
    _root_option(p)

    p = command("queue", songs.queue, "line songs up and make them one after the other")
    p.add_argument(
        "action",
        choices=("list", "add", "move", "pause", "resume", "cancel", "clear", "run"),
        help="list: what there is. add SONG. move JOB PLACE. pause, resume JOB or all. cancel JOB. "
        "clear: forget what is over. run: make what waits, here and now",
    )
    p.add_argument("words", nargs="*", help="the song, or the job's number and its new place")
    p.add_argument("--take", type=int, metavar="N", help="which take to add (default: the picked or the newest one)")
    _root_option(p)
    _held_options(p)
    p.add_argument("--quiet", action="store_true", help="no progress")

    _quant_commands(group.add_parser("quant", help="press models into fewer bits, and judge the result"))

    p = command("doctor", doctor.doctor, "look at this machine and say what is missing")
    p.add_argument("--port", type=int, metavar="N", help="where the page should be")

    _models_options(command("models", models.models, "list, download, check, add and remove models"))

    _plan_options(command("plan", plan.show_plan, "show how a song would fit a graphics card, here or any other"))

    p = command("bench", bench.bench, "measure this machine")
    p.add_argument(
        "what",
        choices=("lm", "song", "vs-reference", "loops"),
        help="song: six sections through the whole program, with random weights, also as on a smaller card. "
        "lm: speed and memory of one language model of the released size, with random weights. vs-reference: our "
        "loop against transformers' generate, on the same weights. loops: the same for small models on one thread",
    )
    p.add_argument("--preset", choices=("stage1", "stage2", "demo", "released"), default="stage1",
                   help="which (default stage1; song: released, or else small)")  # fmt: skip
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
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
    return parser


def _plan_options(p: argparse.ArgumentParser) -> None:
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


def _quant_commands(parser: argparse.ArgumentParser) -> None:
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        p = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        p.set_defaults(run=run)
        p.add_argument("--model", default="demo", help="a model by name, or the folder of a model set (default demo)")
        p.add_argument("--rows", metavar="DIR", help="where the rows lie (default: calibration/MODEL in YUEGP_HOME)")
        p.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
        p.add_argument("--quiet", action="store_true", help="no progress")
        return p

    p = command("calibrate", pressing.calibrate, "collect rows of audio tokens to press and to judge with")
    p.add_argument("--songs", type=int, default=40, metavar="N", help="songs to sample by recipe (default 40)")
    p.add_argument("--own-songs", action="store_true", help="read your own finished songs instead")
    p.add_argument("--seed", type=int, default=5000, help="seed of the recipe (default 5000)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")

    p = command("convert", pressing.convert, "press a model into fewer bits")
    p.add_argument("--stage", type=int, choices=(1, 2), required=True, help="which of the set's two language models")
    p.add_argument("--to", choices=("int8", "nf4", "exl2"), required=True, help="exl2 needs an NVIDIA card")
    p.add_argument("--bits", type=float, default=8.0, metavar="B", help="bits per weight, exl2 only (default 8)")
    p.add_argument("--folder", metavar="DIR", help="where to write it (default: beside the other models)")

    p = command("measure", pressing.measure, "judge pressed models against their original")
    p.add_argument("--stage", type=int, choices=(1, 2), required=True, help="which of the set's two language models")
    p.add_argument("against", nargs="+", help="folders of pressed models; int8 or nf4 press the original on the way")
    p.add_argument("--count", type=int, default=16, metavar="N", help="held-out rows to read (default 16)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


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


def _models_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "action",
        nargs="?",
        choices=tuple(models.ACTIONS),
        default="list",
        help="list: what there is, and where. get NAME: download and check. check [NAME]: read all that is here. "
        "add FOLDER, or OWNER/NAME with @BRANCH and :FOLDER where it has several. "
        "remove NAME: delete what was downloaded",
    )
    p.add_argument("words", nargs="*", help="a set (yue-en-cot), a checkpoint (s2-nf4), a repository or a folder")
    p.add_argument("--language", choices=("en", "zh", "jp-kr", "ja", "ko"), help="get: for lyrics in this language")
    p.add_argument("--mode", choices=("cot", "icl"), help="get: cot needs no reference (default), icl follows one")
    p.add_argument("--for-card", metavar="SIZE", help="get: choose for a card of this size, such as 12GB")
    p.add_argument("--newest", action="store_true", help="get: the newest revision, not the one yuegp is made for")
    p.add_argument("--name", help="add: call it so")
    p.add_argument("--all", action="store_true", help="list: smaller copies too")
    p.add_argument("--yes", action="store_true", help="do not ask")
    p.add_argument("--quiet", action="store_true", help="no progress")


def _song_options(p: argparse.ArgumentParser, takes: bool = True, computes: bool = False) -> argparse.ArgumentParser:
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
    _held_options(p)
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.add_argument("--queue", action="store_true", help="do not make it now: put it in the queue")


def _held_options(p: argparse.ArgumentParser) -> None:
    """Where to compute, and how the models are to be held there."""
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    group = p.add_argument_group("how the large model is held (default: auto, what suits this machine best)")
    group.add_argument("--engine", choices=ENGINES, default=AUTO, help="exl2 for EXL2 models, torch for others")
    text = "float: not quantized; int8, nf4: 8 and 4 bits; exl2: as stored"
    group.add_argument("--weights", choices=WEIGHTS, default=AUTO, help=text)
    group.add_argument("--kv", choices=CACHES, default=AUTO, help="KV cache; fp16: not quantized; others: exl2 only")


def _root_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", metavar="DIR", help="the folder of song folders (default: songs)")
