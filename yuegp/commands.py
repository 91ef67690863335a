"""What each command of the command line does: read arguments, call the rooms below, print.

Results go to standard output, as text or, with --json, as one JSON line; what is said on the way goes to standard
error. Sections are counted from 1 here and from 0 below.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Cancelled, LibraryError, RequestError
from .song import PRESETS, Reference, Sampling, Section, SongRequest, Stage, TakeInfo, to_dict

if TYPE_CHECKING:
    from .jobs import Job
    from .library import Song, Take
    from .pipeline import SongPlan

INSTRUMENTAL_SECTIONS = tuple(Section(label) for label in ("verse", "chorus", "verse", "chorus", "outro"))
"""What `--instrumental` plays when no lyrics file gives the sections."""

STAGES = {Stage.NEW: "begun", Stage.STAGE1: "written", Stage.STAGE2: "refined", Stage.RENDERED: "ready"}


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, default=str))


# Lyrics


def show_lyrics(arguments: argparse.Namespace) -> None:
    from . import lyrics

    parsed = lyrics.parse(_read_text(arguments.file))
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
        _json({"language": lyrics.language(parsed.sections), "sections": rows, "warnings": warnings})
        return
    print(f"{'':>2}  {'section':<16} {'line':>4} {'words':>5} {'sung in':>8}")
    for number, row in enumerate(rows, 1):
        label = row["label"] if row["label"] == row["model_label"] else f"{row['label']} → {row['model_label']}"
        print(f"{number:>2}  {label:<16} {row['line']:>4} {row['words']:>5} {row['seconds']:>6.0f} s")
    for note in notes:
        print(f"Note: {note}")


def _read_text(path: str) -> str:
    from . import lyrics

    return lyrics.decode(sys.stdin.buffer.read(), "The text") if path == "-" else lyrics.read(path)


# Making


def make(arguments: argparse.Namespace) -> None:
    from . import library, pipeline

    request, text, notes = _request(arguments)
    plan = pipeline.plan(request)
    plan = replace(plan, notes=(*notes, *plan.notes))
    root = library.songs_dir(arguments.out).absolute()
    library.check_writable(root, plan.disk_bytes)
    song = library.create(plan.request, root, text)
    plan = replace(plan, request=song.request)
    _run(song, [song.new_take(TakeInfo(number=0, request=song.request))], arguments, plan)


def resume(arguments: argparse.Namespace) -> None:
    song = _song(arguments)
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


def proceed(arguments: argparse.Namespace) -> None:
    from . import edit, lyrics

    song, take = _song_and_take(arguments)
    sections: tuple[Section, ...] = ()
    if arguments.lyrics is not None:
        sections = lyrics.parse(_read_text(arguments.lyrics)).sections
    _run(song, [edit.proceed(song, take, sections, arguments.sections)], arguments)


def redo(arguments: argparse.Namespace) -> None:
    from . import edit

    song, take = _song_and_take(arguments)
    _run(song, [edit.redo(song, take, arguments.section - 1, _seed(arguments), arguments.later)], arguments)


def takes(arguments: argparse.Namespace) -> None:
    from . import edit, jobs
    from .screen import Screen

    song, take = _song_and_take(arguments)
    first = _seed(arguments)
    seeds = [first + i for i in range(arguments.number)]
    with jobs.Queue().work(), Screen(quiet=arguments.json or arguments.quiet) as screen:
        begun = edit.choices(
            song, take, arguments.section - 1, seeds, arguments.later, screen.show, arguments.device
        )
    _run(song, begun, arguments)
    if not arguments.json:
        print(f'Listen, then choose with: python launch.py pick "{song.folder}" TAKE')


def rewind(arguments: argparse.Namespace) -> None:
    from . import edit

    song, take = _song_and_take(arguments)
    section = None if arguments.section is None else arguments.section - 1
    _run(song, [edit.rewind(song, take, _seed(arguments), section, arguments.second)], arguments)


def trim(arguments: argparse.Namespace) -> None:
    from . import edit

    song, take = _song_and_take(arguments)
    _run(song, [edit.trim(song, take, arguments.section - 1, arguments.seconds)], arguments)


def mute(arguments: argparse.Namespace) -> None:
    from . import edit

    song, take = _song_and_take(arguments)
    _run(song, [edit.mute(song, take, [section - 1 for section in arguments.sections])], arguments)


def _seed(arguments: argparse.Namespace) -> int:
    return secrets.randbelow(2**32) if arguments.seed is None else arguments.seed


def _run(song: Song, begun: Sequence[Take], arguments: argparse.Namespace, plan: SongPlan | None = None) -> None:
    """Make what is missing of some takes, with a progress line, and say what came of it; or put them in the queue."""
    from . import jobs, pipeline
    from .screen import Screen

    if arguments.queue:
        waiting = jobs.Queue()
        _show_jobs([waiting.add(song.folder, take.info.number, arguments.device) for take in begun], arguments)
        return
    quiet = arguments.json or arguments.quiet
    plans = [plan or pipeline.plan_for(take) for take in begun]
    if not quiet:
        _describe(plans[0], song, begun)
    for take, its_plan in zip(begun, plans, strict=True):
        try:
            with jobs.Queue().work(), Screen(quiet) as screen:
                pipeline.run(its_plan, take, screen.show, arguments.device)
        except (Cancelled, KeyboardInterrupt):
            sections = len(take.info.spans)
            kept = f"{sections} finished section{'' if sections == 1 else 's'}" if sections else "the song's folder"
            print(f"Kept {kept} in {take.folder}", file=sys.stderr)
            print(f'Go on with: python launch.py resume "{song.folder}"', file=sys.stderr)
            raise
    reports = [_report(its_plan, song, take) for take, its_plan in zip(begun, plans, strict=True)]
    if arguments.json:
        _json(reports[0] if len(reports) == 1 else {"song": str(song.folder), "takes": reports})
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
    length = f"{plan.count} of {len(plan.sections)} sections, up to {plan.seconds:.0f} s"
    print(f"Song     {length}, seed {plan.request.seed}")
    print(f"Tags     {plan.tags}")
    numbers = ", ".join(str(take.info.number) for take in begun)
    print(f"Take     {numbers}" + (f": take {info.parent}, {info.how}" if info.parent else ""))
    print(f"Folder   {song.folder}")
    for note in plan.notes:
        print(f"Note     {note}")
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
        "warnings": list(plan.notes),
    }


# The library


def songs(arguments: argparse.Namespace) -> None:
    from . import shelf

    root = _root(arguments)
    found = shelf.search(
        shelf.trashed(root) if arguments.trash else shelf.entries(root),
        " ".join(arguments.words),
        arguments.rating,
        arguments.tag,
        arguments.language,
        arguments.sort,
    )
    if arguments.json:
        _json([{**vars(entry), "folder": str(entry.folder), "language": entry.language} for entry in found])
        return
    if not found:
        empty = "The trash is empty." if arguments.trash else f"No songs in {root}."
        asked = arguments.words or arguments.rating or arguments.tag or arguments.language
        print("No song has all of that." if asked else empty)
    for entry in found:
        stars = "★" * (entry.rating or 0)
        state = "damaged" if entry.broken else STAGES[entry.stage] if entry.stage else "empty"
        length = f"{int(entry.seconds) // 60}:{int(entry.seconds) % 60:02}"
        takes_made = f"{entry.takes} take{'' if entry.takes == 1 else 's'}"
        print(f"{entry.created[:10]:<10}  {length:>5}  {state:<8} {takes_made:<9} {stars:<5}  {entry.name}")
        print(f"{'':<12}{entry.broken or entry.folder}")


def show(arguments: argparse.Namespace) -> None:
    from . import shelf

    song = _song(arguments)
    chosen = song.chosen().info.number if song.take_numbers() else None
    takes = [song.take(number) for number in song.take_numbers()]
    if arguments.json:
        listed = [{**to_dict(t.info), "folder": str(t.folder), "chosen": t.info.number == chosen} for t in takes]
        _json({"folder": str(song.folder), "song": to_dict(song.info), "takes": listed})
        return
    print(f"{shelf.Entry(song.folder, song.info.title).name}   {'★' * (song.info.rating or 0)}".rstrip())
    print(f"Folder   {song.folder}")
    print(f"Tags     {song.request.tags}")
    print(f"Model    {song.request.model}")
    for take in takes:
        info = take.info
        origin = f", from take {info.parent}: {info.how}" if info.parent else ""
        mark = "*" if info.number == chosen else " "
        print(f"{mark} take {info.number}, {STAGES[info.stage]}, seed {info.request.seed}{origin}")
        for span in info.spans:
            label, extra = info.request.sections[span.section].label, []
            if span.take != info.number:
                extra.append(f"kept from take {span.take}")
            if span.open:
                extra.append("to be gone on with")
            if span.section in info.muted:
                extra.append("muted")
            times = f"{_clock(span.start)} - {_clock(span.stop)}"
            print(f"    {span.section + 1:>2}  {label:<16} {times}  {', '.join(extra)}".rstrip())


def _clock(frame: int) -> str:
    seconds = frame / 50
    return f"{int(seconds) // 60}:{seconds % 60:04.1f}"


def pick(arguments: argparse.Namespace) -> None:
    from . import shelf

    song = _song(arguments)
    shelf.pick(song, arguments.take)
    _done(arguments, song, f"Take {arguments.take} is the one that is played and exported.")


def rename(arguments: argparse.Namespace) -> None:
    from . import shelf

    song = _song(arguments)
    shelf.rename(song, arguments.title)
    _done(arguments, song, f"The song is now called {song.info.title}.")


def rate(arguments: argparse.Namespace) -> None:
    from . import shelf

    song = _song(arguments)
    shelf.rate(song, arguments.stars or None)
    _done(arguments, song, f"Rated {'★' * arguments.stars or 'no more'}.")


def trash(arguments: argparse.Namespace) -> None:
    from . import shelf

    root = _root(arguments)
    moved = shelf.trash(shelf.find(root, arguments.song), root)
    said = f'In the trash: {moved}\nTake it out again with: python launch.py restore "{moved.name}"'
    _say(arguments, {"trashed": str(moved)}, said)


def restore(arguments: argparse.Namespace) -> None:
    from . import shelf

    moved = shelf.restore(arguments.song, _root(arguments))
    _say(arguments, {"restored": str(moved)}, f"Back: {moved}")


def export(arguments: argparse.Namespace) -> None:
    from . import export as exporting

    song, take = _song_and_take(arguments)
    from .pipeline import Event
    from .screen import Screen

    parts = exporting.PARTS if arguments.stems else ("mix",)
    with Screen(quiet=arguments.json) as screen:

        def progress(what: str, done: int, total: int) -> None:
            screen.show(Event("export", what, done, total, "frames", done))

        target = arguments.to or Path.cwd()
        files = exporting.export(song, take, target, arguments.kind, parts, arguments.artist, progress)
    _say(arguments, {"files": [str(path) for path in files]}, "\n".join(map(str, files)))


def import_settings(arguments: argparse.Namespace) -> None:
    from . import export as exporting
    from . import library, lyrics

    request, notes = exporting.import_file(arguments.file)
    root = library.songs_dir(arguments.out).absolute()
    song = library.create(request, root, lyrics.write(request.sections))
    said = "".join(f"Note     {note}\n" for note in notes)
    said += f'A song with the same settings: {song.folder}\nMake it with: python launch.py resume "{song.folder}"'
    _say(arguments, {"song": str(song.folder), "warnings": list(notes)}, said)


# The queue


def queue(arguments: argparse.Namespace) -> None:
    from . import jobs

    waiting, action, words = jobs.Queue(), arguments.action, arguments.words
    if action == "add":
        song = _named(arguments, *_exactly(words, "a song", 1))
        take = song.chosen() if arguments.take is None else song.take(arguments.take)
        _show_jobs([waiting.add(song.folder, take.info.number, arguments.device)], arguments)
    elif action == "move":
        job, place = _exactly(words, "a job and its new place", 2)
        _show_jobs([waiting.move(_number(job), _number(place))], arguments)
    elif action in ("pause", "resume") and words == ["all"]:
        _show_jobs(waiting.pause_all() if action == "pause" else waiting.resume_all(), arguments)
    elif action in ("cancel", "pause", "resume"):
        (job,) = _exactly(words, "a job", 1)
        change = {"cancel": waiting.cancel, "pause": waiting.pause, "resume": waiting.resume}[action]
        _show_jobs([change(_number(job))], arguments)
    elif action == "clear":
        _show_jobs(waiting.clear(), arguments)
    elif action == "run":
        from .screen import Screen
        from .worker import Worker

        with Screen(quiet=arguments.json or arguments.quiet) as screen:
            Worker(waiting).run(screen.show)
        _show_jobs(waiting.jobs(), arguments)
    else:
        _show_jobs(waiting.jobs(), arguments)


def _exactly(words: Sequence[str], what: str, count: int) -> Sequence[str]:
    if len(words) != count:
        raise RequestError(f"This takes {what}; {len(words)} words were given.", "See `python launch.py queue --help`.")
    return words


def _number(word: str) -> int:
    if not word.isdecimal():
        raise RequestError(f"{word!r} is not a number.", "`python launch.py queue list` shows the jobs' numbers.")
    return int(word)


def _show_jobs(listed: Sequence[Job], arguments: argparse.Namespace) -> None:
    from . import jobs

    if arguments.json:
        _json([jobs.to_row(job) for job in listed])
        return
    if not listed:
        print("The queue is empty.")
    for job in listed:
        line = f"{job.number:>3}  {job.state:<11}  {Path(job.song).name}, take {job.take}"
        if job.state is jobs.State.RUNNING and (p := job.last):
            line += f"  {p.stage}, {p.what}, {p.done / max(1, p.total):.0%}"
            line += "" if p.eta is None else f", {_clock(round(p.eta * 50))} left"
        print(line)
        for text in (job.what, job.hint):
            if text:
                print(f"{'':>5}{text}")


def bench(arguments: argparse.Namespace) -> None:
    from . import bench as measurements

    quiet = arguments.json
    say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
    print(measurements.loops(arguments.ids, arguments.rounds, say=say))


def _root(arguments: argparse.Namespace) -> Path:
    from . import library

    return library.songs_dir(arguments.out).absolute()


def _song(arguments: argparse.Namespace) -> Song:
    return _named(arguments, arguments.song)


def _named(arguments: argparse.Namespace, name: str) -> Song:
    from . import shelf

    return shelf.get(_root(arguments), name)


def _song_and_take(arguments: argparse.Namespace) -> tuple[Song, Take]:
    song = _song(arguments)
    return song, song.chosen() if arguments.take is None else song.take(arguments.take)


def _done(arguments: argparse.Namespace, song: Song, said: str) -> None:
    _say(arguments, {"song": str(song.folder), **to_dict(song.info)}, said)


def _say(arguments: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    if arguments.json:
        _json(data)
    else:
        print(text)


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
