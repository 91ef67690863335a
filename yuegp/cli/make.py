"""What the commands that make music do: read arguments, call the rooms below, print.

Results go to standard output, as text or, with --json, as one JSON line; what is said on the way goes to standard
error. Sections are counted from 1 here and from 0 below. Commands for songs that exist are in `keeping.py`.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yuegp.errors import Cancelled, LibraryError, RequestError
from yuegp.song.schema import PRESETS, Reference, Sampling, Section, SongRequest, Stage, TakeInfo, to_dict

from .arguments import print_json, read_text, song_and_take, the_song, wishes_of
from .songs import show_jobs
from .wording import edit_in_words, note_in_words, sentence

if TYPE_CHECKING:
    from yuegp.generation.plan import SongPlan
    from yuegp.library.store import Song, Take
    from yuegp.song.notes import Note

INSTRUMENTAL_SECTIONS = tuple(Section(label) for label in ("verse", "chorus", "verse", "chorus", "outro"))
"""What `--instrumental` plays when no lyrics file gives the sections."""


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


def make(arguments: argparse.Namespace) -> None:
    from yuegp import files, paths
    from yuegp.generation import pipeline
    from yuegp.library import store

    request, text, notes = _request(arguments)
    plan = pipeline.plan(request)
    wishes_of(arguments, request.model)
    plan = replace(plan, notes=(*notes, *plan.notes))
    root = paths.songs_dir(arguments.out).absolute()
    files.check_writable(root, plan.disk_bytes)
    song = store.create(plan.request, root, text)
    plan = replace(plan, request=song.request)
    _run(song, [song.new_take(TakeInfo(number=0, request=song.request))], arguments, plan)


def resume(arguments: argparse.Namespace) -> None:
    song = the_song(arguments)
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
    _run(song, [take], arguments)


def _begin(arguments: argparse.Namespace) -> tuple[Song, Take]:
    """The song and the take to go on from. What cannot be computed as wished is refused before anything is begun."""
    song, take = song_and_take(arguments)
    wishes_of(arguments, take.info.request.model)
    return song, take


def proceed(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit
    from yuegp.song import lyrics

    song, take = _begin(arguments)
    sections: tuple[Section, ...] = ()
    if arguments.lyrics is not None:
        sections = lyrics.parse(read_text(arguments.lyrics)).sections
    _run(song, [edit.proceed(song, take, sections, arguments.sections)], arguments)


def redo(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit

    song, take = _begin(arguments)
    _run(
        song,
        [edit.redo(song, take, arguments.section - 1, _seed(arguments), edit.later_sections(arguments.later))],
        arguments,
    )


def takes(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit
    from yuegp.jobs import queue

    from .progress import ProgressBar

    song, take = _begin(arguments)
    first = _seed(arguments)
    seeds = [first + i for i in range(arguments.number)]
    wishes = wishes_of(arguments, take.info.request.model)
    with queue.Queue().work(), ProgressBar(quiet=arguments.json or arguments.quiet) as screen:
        begun = edit.choices(
            song,
            take,
            arguments.section - 1,
            seeds,
            edit.later_sections(arguments.later),
            screen.show,
            arguments.device,
            wishes,
        )
    _run(song, begun, arguments)
    if not arguments.json:
        print(f'Listen, then choose with: python launch.py pick "{song.folder}" TAKE')


def rewind(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit

    song, take = _begin(arguments)
    section = None if arguments.section is None else arguments.section - 1
    _run(song, [edit.rewind(song, take, _seed(arguments), section, arguments.second)], arguments)


def trim(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit

    song, take = _begin(arguments)
    _run(song, [edit.trim(song, take, arguments.section - 1, arguments.seconds)], arguments)


def mute(arguments: argparse.Namespace) -> None:
    from yuegp.generation import edit

    song, take = _begin(arguments)
    _run(song, [edit.mute(song, take, [section - 1 for section in arguments.sections])], arguments)


def _seed(arguments: argparse.Namespace) -> int:
    return secrets.randbelow(2**32) if arguments.seed is None else arguments.seed


def _run(song: Song, begun: Sequence[Take], arguments: argparse.Namespace, plan: SongPlan | None = None) -> None:
    """Make what is missing of some takes, with a progress line, and say what came of it; or put them in the queue."""
    from yuegp.generation import pipeline
    from yuegp.generation import plan as planning
    from yuegp.jobs import queue
    from yuegp.jobs.worker import ProgressTracker

    from .progress import ProgressBar

    wishes = wishes_of(arguments, begun[0].info.request.model)
    if arguments.queue:
        waiting = queue.Queue()
        show_jobs([waiting.add(song.folder, take.info.number, arguments.device, wishes) for take in begun], arguments)
        return
    quiet = arguments.json or arguments.quiet
    plans = [plan or planning.plan_for(take) for take in begun]
    if not quiet:
        _describe(plans[0], song, begun)
    for take, its_plan in zip(begun, plans, strict=True):
        try:
            gauge = ProgressTracker.of(queue.Job(0, str(song.folder), take.info.number, arguments.device))
            with queue.Queue().work(), ProgressBar(quiet, gauge) as screen:
                pipeline.run(its_plan, take, screen.show, arguments.device, wishes=wishes)
        except (Cancelled, KeyboardInterrupt):
            sections = len(take.info.spans)
            kept = f"{sections} finished section{'' if sections == 1 else 's'}" if sections else "the song's folder"
            print(f"Kept {kept} in {take.folder}", file=sys.stderr)
            print(f'Go on with: python launch.py resume "{song.folder}"', file=sys.stderr)
            raise
    reports = [_report(its_plan, song, take) for take, its_plan in zip(begun, plans, strict=True)]
    if arguments.json:
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


# Requests from arguments


def _request(arguments: argparse.Namespace) -> tuple[SongRequest, str | None, tuple[Note, ...]]:
    """The request, the lyrics as they were typed, and what there is to say about them."""
    from yuegp.song import lyrics

    text: str | None = None
    notes: tuple[Note, ...] = ()
    if arguments.lyrics is not None:
        text = read_text(arguments.lyrics)
        parsed = lyrics.parse(text)
        sections, notes = parsed.sections, parsed.notes
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
        seed=_seed(arguments),
        model=arguments.model,
        instrumental=arguments.instrumental,
        reference=_reference(arguments),
        sampling=_sampling(arguments),
        section_seconds=arguments.section_seconds,
        first_sections=arguments.sections,
        crossover=arguments.crossover,
    )
    return request, text, notes


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
    from yuegp.checkpoints import sets

    base = PRESETS[arguments.preset] if arguments.preset else sets.find(arguments.model).sampling
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
