"""The commands that make music, and `lyrics`. The options of `make` that describe a song are in `request.py`.

Results go to standard output, as text or, with --json, as one JSON line; progress and warnings go to standard error.
Sections are counted from 1 here and from 0 below.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from yuegp.errors import Cancelled, LibraryError
from yuegp.song.schema import Section, Stage, TakeInfo, to_dict

from .arguments import (
    Commands,
    add_command,
    add_model_options,
    add_song_options,
    model_options,
    named_song,
    print_json,
    read_text,
    song_and_take,
    songs_root,
)
from .request import add_request_options, seed, song_request
from .songs import show_jobs
from .wording import edit_in_words, note_in_words, sentence

if TYPE_CHECKING:
    from yuegp.generation.options import ModelOptions
    from yuegp.generation.plan import SongPlan
    from yuegp.library.store import Song, Take


def add_commands(commands: Commands) -> None:
    """Add the commands that make music, and `lyrics`."""

    def take_command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        p = add_command(commands, name, run, text)
        add_song_options(p)
        _add_compute_options(p)
        return p

    p = add_command(commands, "lyrics", show_lyrics, "show how a lyrics file is understood")
    p.add_argument("file", help="a text file, or - for standard input")
    p.add_argument("--section-seconds", type=float, default=30.0, metavar="S", help="longest section (default 30)")

    p = add_command(commands, "make", make, "make a song")
    add_request_options(p)
    _add_compute_options(p)

    take_command("resume", resume, "go on with a song that was stopped")

    p = take_command("continue", proceed, "add sections to a finished song")
    p.add_argument("--lyrics", metavar="FILE", help="the sections to add; without it, those that are not made yet")
    p.add_argument("--sections", type=int, metavar="N", help="stop when the song has N sections")

    p = take_command("redo", redo, "make one section again, as a new take")
    p.add_argument("section", type=int, help="which section, from 1")
    _add_redo_options(p)

    p = take_command("takes", takes, "make several versions of a section, to pick from")
    p.add_argument("section", type=int, help="which section, from 1")
    p.add_argument("-n", "--number", type=int, default=3, metavar="N", help="how many, all in one batch (default 3)")
    _add_redo_options(p)

    p = take_command("rewind", rewind, "go back and make the rest of a song again")
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--section", type=int, metavar="N", help="to the beginning of section N")
    where.add_argument("--second", type=float, metavar="S", help="to this second; the section goes on from there")
    p.add_argument("--seed", type=int, help="seed of what is made anew (default: drawn)")

    p = take_command("trim", trim, "cut the end off a section")
    p.add_argument("section", type=int, help="which section, from 1")
    p.add_argument("seconds", type=float, help="how much to cut off")

    p = take_command("mute", mute, "keep sections from setting the style of later ones")
    p.add_argument("sections", type=int, nargs="*", help="which sections, from 1; none to unmute all")


def _add_redo_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=int, help="seed of the new section (default: drawn)")
    p.add_argument(
        "--later",
        choices=("keep", "remake", "stop"),
        default="keep",
        help="the sections after it: keep as they are, make again, or stop before them (default keep)",
    )


def _add_compute_options(p: argparse.ArgumentParser) -> None:
    add_model_options(p)
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.add_argument("--queue", action="store_true", help="do not make it now: put it in the queue")


# Lyrics


def show_lyrics(arguments: argparse.Namespace) -> None:
    from yuegp.song import lyrics

    parsed = lyrics.parse(read_text(arguments.file))
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
        warnings = [{"line": note.line, "code": note.code, "text": sentence(note)} for note in notes]
        print_json({"language": lyrics.language(parsed.sections), "sections": rows, "warnings": warnings})
        return
    print(f"{'':>2}  {'section':<16} {'line':>4} {'words':>5} {'sung in':>8}")
    for number, row in enumerate(rows, 1):
        label = row["label"] if row["label"] == row["model_label"] else f"{row['label']} → {row['model_label']}"
        print(f"{number:>2}  {label:<16} {row['line']:>4} {row['words']:>5} {row['seconds']:>6.0f} s")
    for note in notes:
        print(f"Note: {note_in_words(note)}")


# Making


@dataclass(frozen=True)
class RunOptions:
    """How takes are made: on which device, with which engine and formats, now or by the queue, and what is printed."""

    device: str
    models: ModelOptions
    queued: bool
    json: bool
    quiet: bool


def _run_options(arguments: argparse.Namespace, model: str) -> RunOptions:
    """RequestError or DeviceError when `model` cannot be held as asked for on this machine."""
    models, quiet = model_options(arguments, model), arguments.json or arguments.quiet
    return RunOptions(arguments.device, models, arguments.queue, arguments.json, quiet)


def make(arguments: argparse.Namespace) -> None:
    from yuegp import files
    from yuegp.generation import pipeline
    from yuegp.library import store

    request, text, notes = song_request(arguments)
    plan = pipeline.plan(request)
    options = _run_options(arguments, request.model)
    plan = replace(plan, notes=(*notes, *plan.notes))
    root = songs_root(arguments)
    files.check_writable(root, plan.disk_bytes)
    song = store.create(plan.request, root, text)
    plan = replace(plan, request=song.request)
    _run(song, [song.new_take(TakeInfo(number=0, request=song.request))], options, plan)


def resume(arguments: argparse.Namespace) -> None:
    song = named_song(arguments)
    numbers = song.take_numbers()
    if arguments.take is not None:
        take = song.take(arguments.take)
    elif not numbers:
        take = song.new_take(TakeInfo(number=0, request=song.request))
    else:
        unfinished = [t for t in map(song.take, reversed(numbers)) if t.info.stage is not Stage.RENDERED]
        if not unfinished:
            raise LibraryError(f"Every take of {song.folder.name} is finished.", "To add to the song, use continue.")
        take = unfinished[0]
    _run(song, [take], _run_options(arguments, take.info.request.model))


def _begin(arguments: argparse.Namespace) -> tuple[Song, Take, RunOptions]:
    """The song, the take to go on from, and how to run it. What this machine cannot compute is refused right here."""
    song, take = song_and_take(arguments)
    return song, take, _run_options(arguments, take.info.request.model)


def proceed(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit
    from yuegp.song import lyrics

    song, take, options = _begin(arguments)
    sections: tuple[Section, ...] = ()
    if arguments.lyrics is not None:
        sections = lyrics.parse(read_text(arguments.lyrics)).sections
    _run(song, [edit.proceed(song, take, sections, arguments.sections)], options)


def redo(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit

    song, take, options = _begin(arguments)
    later = edit.later_sections(arguments.later)
    _run(song, [edit.redo(song, take, arguments.section - 1, seed(arguments), later)], options)


def takes(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit
    from yuegp.jobs import queue

    from .progress import ProgressBar

    song, take, options = _begin(arguments)
    first = seed(arguments)
    seeds = [first + i for i in range(arguments.number)]
    with queue.Queue().work(), ProgressBar(options.quiet) as screen:
        begun = edit.choices(
            song,
            take,
            arguments.section - 1,
            seeds,
            edit.later_sections(arguments.later),
            screen.show,
            options.device,
            options.models,
        )
    _run(song, begun, options)
    if not options.json:
        print(f'Listen, then choose with: python launch.py pick "{song.folder}" TAKE')


def rewind(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit

    song, take, options = _begin(arguments)
    section = None if arguments.section is None else arguments.section - 1
    _run(song, [edit.rewind(song, take, seed(arguments), section, arguments.second)], options)


def trim(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit

    song, take, options = _begin(arguments)
    _run(song, [edit.trim(song, take, arguments.section - 1, arguments.seconds)], options)


def mute(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit

    song, take, options = _begin(arguments)
    _run(song, [edit.mute(song, take, [section - 1 for section in arguments.sections])], options)


def _run(song: Song, begun: Sequence[Take], options: RunOptions, plan: SongPlan | None = None) -> None:
    """Make what is missing of some takes, with a progress line, and say what came of it; or put them in the queue."""
    from yuegp.generation import pipeline
    from yuegp.generation.plan import plan_for
    from yuegp.jobs import queue
    from yuegp.jobs.worker import ProgressTracker

    from .progress import ProgressBar

    if options.queued:
        add, folder = queue.Queue().add, song.folder
        jobs = [add(folder, take.info.number, options.device, options.models) for take in begun]
        show_jobs(jobs, options.json)
        return
    plans = [plan or plan_for(take) for take in begun]
    if not options.quiet:
        _describe(plans[0], song, begun)
    for take, its_plan in zip(begun, plans, strict=True):
        try:
            gauge = ProgressTracker.of(queue.Job(0, str(song.folder), take.info.number, options.device))
            with queue.Queue().work(), ProgressBar(options.quiet, gauge) as screen:
                pipeline.run(its_plan, take, screen.show, options.device, wishes=options.models)
        except (Cancelled, KeyboardInterrupt):
            sections = len(take.info.spans)
            kept = f"{sections} finished section{'' if sections == 1 else 's'}" if sections else "the song's folder"
            print(f"Kept {kept} in {take.folder}", file=sys.stderr)
            print(f'Go on with: python launch.py resume "{song.folder}"', file=sys.stderr)
            raise
    reports = [_report(its_plan, song, take) for take, its_plan in zip(begun, plans, strict=True)]
    if options.json:
        print_json(reports[0] if len(reports) == 1 else {"song": str(song.folder), "takes": reports})
        return
    for take in begun:
        info = take.info
        print(f"Done: take {info.number}, {info.frames / 50:.1f} s of music, seed {info.request.seed}.")
        for path in (take.mix, take.vocal, take.instrumental):
            print(f"  {path.stem:<13} {path}")


def _describe(plan: SongPlan, song: Song, begun: Sequence[Take]) -> None:
    """What is going to happen, before the first long wait."""
    info = begun[0].info
    print(f"Model    {plan.models.title}")
    if plan.models.note:
        print(f"         {plan.models.note}")
    sections = "section" if len(plan.sections) == 1 else "sections"
    length = f"{plan.count} of {len(plan.sections)} {sections}, up to {plan.seconds:.0f} s"
    print(f"Song     {length}, seed {plan.request.seed}")
    print(f"Tags     {plan.tags}")
    numbers = ", ".join(str(take.info.number) for take in begun)
    print(f"Take     {numbers}" + (f": take {info.parent}, {edit_in_words(info.edit)}" if info.parent else ""))
    print(f"Folder   {song.folder}")
    for note in plan.notes:
        print(f"Note     {note_in_words(note)}")
    sys.stdout.flush()


def _report(plan: SongPlan, song: Song, take: Take) -> dict[str, Any]:
    return {
        "song": str(song.folder),
        "take": take.info.number,
        "parent": take.info.parent,
        "seed": take.info.request.seed,
        "model": plan.models.id,
        "seconds": take.frames / 50,
        "spans": [to_dict(span) for span in take.info.spans],
        "mix": str(take.mix),
        "vocal": str(take.vocal),
        "instrumental": str(take.instrumental),
        "wall_seconds": take.info.seconds,
        "warnings": [note_in_words(note) for note in plan.notes],
    }
