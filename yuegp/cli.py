"""The command line. Reads arguments, prints, draws a progress line; everything else is done in the rooms below.

Exit codes: 0 done, 2 request, 3 model, 4 device, 5 library, 1 our own fault, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import Cancelled, LibraryError, RequestError, YueGPError
from .song import PRESETS, Reference, Sampling, Section, SongRequest, TakeInfo, to_dict

if TYPE_CHECKING:
    from .library import Song, Take
    from .pipeline import Event, SongPlan

STOPPED = 130
"""What a shell reports for a program ended by Ctrl-C."""

INSTRUMENTAL_SECTIONS = tuple(Section(label) for label in ("verse", "chorus", "verse", "chorus", "outro"))
"""What `--instrumental` plays when no lyrics file gives the sections."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Every failure is two sentences on standard error."""
    # libgomp reads this once, when torch is first imported: without it two threads on a busy machine wait on each
    # other for longer than they compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        welcome(parser)
        return 0
    try:
        arguments.run(arguments)
        return 0
    except YueGPError as exc:
        if getattr(arguments, "json", False):
            print(json.dumps({"error": exc.what, "hint": exc.hint, "exit": exc.exit_code}))
        print(f"{exc.what}\n{exc.hint}".strip(), file=sys.stderr)
        return exc.exit_code
    except (Cancelled, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away; nothing is left to say to it
        return 0


def welcome(parser: argparse.ArgumentParser) -> None:
    """What a first call without arguments shows."""
    print(
        f"yuegp {__version__}: lyrics and tags in, a song out.\n\n"
        "The web page is not built yet. From the command line, try:\n\n"
        "  python launch.py make --lyrics examples/paper-lanterns.txt "
        '--tags "inspiring female uplifting pop airy vocal"\n\n'
        "That uses the small model that comes with the program; its sound is noise until it is trained.\n"
        "All commands: python launch.py --help"
    )


# Commands


def show_lyrics(arguments: argparse.Namespace) -> None:
    from . import lyrics

    text = _read_text(arguments.file)
    parsed = lyrics.parse(text)
    notes = sorted((*parsed.notes, *lyrics.advise(parsed, arguments.section_seconds)), key=lambda note: note.line)
    rows = [
        {
            "label": section.label,
            "model_label": lyrics.trained_label(section.label),
            "line": section.line,
            "words": lyrics.word_count(section.words),
            "seconds": round(lyrics.seconds_estimate(section.words), 1),
            "text": section.words,
        }
        for section in parsed.sections
    ]
    if arguments.json:
        warnings = [{"line": note.line, "text": note.text} for note in notes]
        language = lyrics.language(parsed.sections)
        print(json.dumps({"language": language, "sections": rows, "warnings": warnings}, ensure_ascii=False))
        return
    print(f"{'':>2}  {'section':<16} {'line':>4} {'words':>5} {'sung in':>8}")
    for number, row in enumerate(rows, 1):
        label = row["label"] if row["label"] == row["model_label"] else f"{row['label']} → {row['model_label']}"
        print(f"{number:>2}  {label:<16} {row['line']:>4} {row['words']:>5} {row['seconds']:>6.0f} s")
    for note in notes:
        print(f"Note: {note}")


def make(arguments: argparse.Namespace) -> None:
    from . import library, pipeline

    request, text, notes = _request(arguments)
    plan = pipeline.plan(request)
    plan = replace(plan, notes=(*notes, *plan.notes))
    root = library.songs_dir(arguments.out).absolute()
    library.check_writable(root, plan.disk_bytes)
    song = library.create(plan.request, root, text)
    plan = replace(plan, request=song.request)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    _describe(plan, song, arguments)
    _run(plan, song, take, arguments)


def resume(arguments: argparse.Namespace) -> None:
    from . import library, pipeline

    song = library.open_song(arguments.song)
    numbers = song.take_numbers()
    if not numbers:
        raise LibraryError(f"{song.folder} has no take to go on with.", "Make the song again.")
    take = song.take(arguments.take or numbers[-1])
    plan = pipeline.plan_for(take)
    _describe(plan, song, arguments)
    _run(plan, song, take, arguments)


def bench(arguments: argparse.Namespace) -> None:
    from . import bench as measurements

    quiet = arguments.json
    say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
    print(measurements.loops(arguments.ids, arguments.rounds, say=say))


def _run(plan: SongPlan, song: Song, take: Take, arguments: argparse.Namespace) -> None:
    from . import pipeline

    screen = Screen(quiet=arguments.json or arguments.quiet)
    try:
        with screen:
            pipeline.run(plan, take, screen.show, arguments.device)
    except (Cancelled, KeyboardInterrupt):
        sections = len(take.info.spans)
        kept = f"{sections} finished section{'' if sections == 1 else 's'}" if sections else "the song's folder"
        print(f"Kept {kept} in {take.folder}", file=sys.stderr)
        print(f'Go on with: python launch.py resume "{song.folder}"', file=sys.stderr)
        raise
    if arguments.json:
        print(json.dumps(_report(plan, song, take), ensure_ascii=False))
        return
    print(f"Done: {take.frames / 50:.1f} s of music, seed {take.info.request.seed}.")
    for name, path in (("mix", take.mix), ("vocal", take.vocal), ("instrumental", take.instrumental)):
        print(f"  {name:<13} {path}")


def _report(plan: SongPlan, song: Song, take: Take) -> dict[str, Any]:
    return {
        "song": str(song.folder),
        "take": take.info.number,
        "seed": take.info.request.seed,
        "model": plan.models.id,
        "seconds": take.frames / 50,
        "spans": [to_dict(span) for span in take.info.spans],
        "mix": str(take.mix),
        "vocal": str(take.vocal),
        "instrumental": str(take.instrumental),
        "wall_seconds": take.info.seconds,
        "warnings": list(plan.notes),
    }


def _describe(plan: SongPlan, song: Song, arguments: argparse.Namespace) -> None:
    """What is going to happen, before the first long wait."""
    if arguments.json or arguments.quiet:
        return
    print(f"Model    {plan.models.title}")
    if plan.models.note:
        print(f"         {plan.models.note}")
    length = f"{plan.count} of {len(plan.sections)} sections, up to {plan.seconds:.0f} s"
    print(f"Song     {length}, seed {plan.request.seed}")
    print(f"Tags     {plan.tags}")
    print(f"Folder   {song.folder}")
    for note in plan.notes:
        print(f"Note     {note}")
    sys.stdout.flush()


# Requests from arguments


def _request(arguments: argparse.Namespace) -> tuple[SongRequest, str | None, tuple[str, ...]]:
    """The request, the lyrics as they were typed, and what there is to say about them."""
    from . import lyrics

    text: str | None = None
    notes: tuple[str, ...] = ()
    if arguments.lyrics is not None:
        text = _read_text(arguments.lyrics)
        parsed = lyrics.parse(text)
        sections, notes = parsed.sections, tuple(map(str, parsed.notes))
    elif arguments.instrumental:
        sections = INSTRUMENTAL_SECTIONS
    else:
        raise RequestError("There are no lyrics.", "Add --lyrics FILE, or --instrumental for a song without words.")
    title = arguments.title
    if title is None:
        title = Path(arguments.lyrics).stem if arguments.lyrics not in (None, "-") else ""
    request = SongRequest(
        sections=sections,
        tags=arguments.tags,
        title=title,
        seed=secrets.randbelow(2**32) if arguments.seed is None else arguments.seed,
        model=arguments.model,
        instrumental=arguments.instrumental,
        reference=_reference(arguments),
        sampling=_sampling(arguments),
        section_seconds=arguments.section_seconds,
        first_sections=arguments.sections,
        crossover=arguments.crossover,
    )
    return request, text, notes


def _read_text(path: str) -> str:
    from . import lyrics

    return lyrics.decode(sys.stdin.buffer.read(), "The text") if path == "-" else lyrics.read(path)


def _reference(arguments: argparse.Namespace) -> Reference | None:
    mix, vocal, instrumental = arguments.reference, arguments.reference_vocal, arguments.reference_instrumental
    if not (mix or vocal or instrumental):
        if arguments.reference_start is not None or arguments.reference_end is not None:
            raise RequestError(
                "A start or end of a reference was given, but no reference.", "Add --reference FILE, or drop them."
            )
        return None
    start = arguments.reference_start or 0.0
    end = start + 30.0 if arguments.reference_end is None else arguments.reference_end
    return Reference(mix, vocal, instrumental, start, end)


def _sampling(arguments: argparse.Namespace) -> Sampling:
    from . import models

    base = PRESETS[arguments.preset] if arguments.preset else models.find(arguments.model).sampling
    chosen = {
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "repetition_penalty": arguments.repetition_penalty,
        "guidance": arguments.guidance,
        "guidance_later": arguments.guidance_later,
    }
    changes: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if arguments.exact:
        changes["exact"] = True
    if arguments.spare_end:
        changes["penalize_end"] = False
    return replace(base, **changes)


# The screen


class Screen:
    """One progress line on a terminal; a line per part elsewhere. Turns Ctrl-C into `Cancelled` at the next event."""

    WIDTH = 24

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty()
        self._part = ("", "")
        self._began = 0.0
        self._stage_began = 0.0
        self._last = 0.0
        self._stop = False

    def __enter__(self) -> Screen:
        self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._previous)
        self._clear()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stop:  # a second time: the next event may be long in coming
            raise KeyboardInterrupt
        self._stop = True

    def show(self, event: Event) -> None:
        if self._stop:
            raise Cancelled
        if self.quiet:
            return
        now = time.monotonic()
        part = (event.stage, event.what)
        if part != self._part:
            if event.stage != self._part[0]:
                self._stage_began, self._made_before = now, event.made
            self._part = part
            if not self.live:
                print(f"{event.stage}: {event.what}", file=sys.stderr, flush=True)
        elif now - self._last < 0.1:
            return
        self._last = now
        if self.live:
            sys.stderr.write("\r\x1b[K" + self.line(event, now))
            sys.stderr.flush()

    def line(self, event: Event, now: float) -> str:
        """One line: stage, part, bar, percent, rate, and the longest this stage can still take."""
        done = event.done / max(1, event.total)
        bar = "█" * round(self.WIDTH * done) + "·" * (self.WIDTH - round(self.WIDTH * done))
        text = f"{event.stage:<9} {event.what:<18} {bar} {done:>4.0%}"
        spent, made = now - self._stage_began, event.made - self._made_before
        if spent > 0.5 and made:
            rate = made / spent
            left = (event.total - event.done) / rate
            text += f"  {rate:,.0f} {event.unit}/s  at most {left // 60:.0f}:{left % 60:02.0f} left"
        return text

    def _clear(self) -> None:
        if self.live and not self.quiet:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# Arguments


def build_parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(prog="yuegp", description="Whole songs from lyrics and tags, with YuE.")
    parser.add_argument("--version", action="version", version=f"yuegp {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    p = commands.add_parser("lyrics", help="show how a lyrics file is understood")
    p.add_argument("file", help="a text file, or - for standard input")
    p.add_argument("--section-seconds", type=float, default=30.0, metavar="S", help="longest section (default 30)")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.set_defaults(run=show_lyrics)

    p = commands.add_parser("make", help="make a song")
    p.add_argument("--lyrics", metavar="FILE", help="a text file with [verse], [chorus] … labels; - for standard input")
    p.add_argument("--tags", required=True, help='genre, instrument, mood, voice: "pop piano sad female airy vocal"')
    p.add_argument("--title", help="title of the song (default: the name of the lyrics file)")
    p.add_argument("--seed", type=int, help="same seed, same song (default: drawn, and shown)")
    p.add_argument("--sections", type=int, metavar="N", help="make only the first N sections")
    p.add_argument("--section-seconds", type=float, metavar="S", help="longest section (default: what the model likes)")
    p.add_argument("--model", default="demo", help="a model by name, or the folder of a model set (default demo)")
    p.add_argument("--instrumental", action="store_true", help="no singing: words are left out")
    p.add_argument("--out", metavar="DIR", help="where song folders go (default: songs)")
    p.add_argument("--crossover", choices=("smooth", "yue"), default="smooth", help="how lows and highs are joined")
    group = p.add_argument_group("reference recording (in-context learning)")
    group.add_argument("--reference", metavar="MIX", help="one recording to take the style from")
    group.add_argument("--reference-vocal", metavar="FILE", help="its vocal alone; with --reference-instrumental")
    group.add_argument("--reference-instrumental", metavar="FILE", help="its accompaniment alone")
    group.add_argument("--reference-start", type=float, metavar="S", help="start of the window in seconds (default 0)")
    group.add_argument("--reference-end", type=float, metavar="S", help="end of the window (default: start + 30)")
    group = p.add_argument_group("sampling")
    group.add_argument("--preset", choices=tuple(PRESETS), help="as released, or as in ExLlamaV2 ports")
    for name, kind, text in (
        ("temperature", float, "0 takes the likeliest code (default 1)"),
        ("top-k", int, "likeliest codes to choose from; 0 for all (default 50)"),
        ("top-p", float, "total probability to choose from (default 0.93)"),
        ("repetition-penalty", float, "1 is off (default 1.1)"),
        ("guidance", float, "guidance scale of the first section; 1 is off (default 1.5)"),
        ("guidance-later", float, "guidance scale of later sections (default 1.2)"),
    ):
        group.add_argument(f"--{name}", type=kind, metavar="X", help=text)
    group.add_argument("--exact", action="store_true", help="guidance over the whole vocabulary, as released; slower")
    group.add_argument("--spare-end", action="store_true", help="keep the repetition penalty off the end of a section")
    _run_options(p)
    p.set_defaults(run=make)

    p = commands.add_parser("resume", help="go on with a song that was stopped")
    p.add_argument("song", help="the song's folder")
    p.add_argument("--take", type=int, metavar="N", help="which take (default: the newest)")
    _run_options(p)
    p.set_defaults(run=resume)

    p = commands.add_parser("bench", help="measure this machine")
    p.add_argument("what", choices=("loops",), help="loops: our decoding loops against transformers' generate")
    p.add_argument("--ids", type=int, default=300, help="ids per Stage-1 run (default 300)")
    p.add_argument("--rounds", type=int, default=3, help="alternating Stage-1 runs (default 3)")
    p.add_argument("--json", action="store_true", help="print only the JSON line")
    p.set_defaults(run=bench)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="no progress; print the result as JSON")
