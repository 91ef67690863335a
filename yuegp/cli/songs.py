"""The commands for songs that exist: list, show, name, rate, throw away, export, import; and the queue."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yuegp.errors import RequestError
from yuegp.song.schema import Stage, to_dict

from .arguments import (
    Commands,
    add_command,
    add_model_options,
    add_out_option,
    add_song_options,
    chosen_take,
    model_options,
    named_song,
    print_json,
    song_and_take,
    songs_root,
)
from .wording import edit_in_words, note_in_words

if TYPE_CHECKING:
    from yuegp.generation.plan import Event
    from yuegp.jobs.queue import Job, JobProgress
    from yuegp.jobs.worker import Feed
    from yuegp.library.store import Song

STAGES = {Stage.NEW: "begun", Stage.STAGE1: "written", Stage.STAGE2: "refined", Stage.RENDERED: "ready"}


def add_commands(commands: Commands) -> None:
    """Add the commands for songs that exist, and the queue."""

    def song_command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, takes: bool = False
    ) -> argparse.ArgumentParser:
        p = add_command(commands, name, run, text)
        add_song_options(p, takes)
        return p

    p = add_command(commands, "songs", songs, "list and search songs")
    p.add_argument("words", nargs="*", help="words in title, tags or lyrics")
    p.add_argument("--rating", type=int, metavar="N", help="at least N stars")
    p.add_argument("--tag", help="with this tag")
    p.add_argument("--language", choices=("en", "zh", "ja", "ko"), help="language of the lyrics")
    p.add_argument("--sort", choices=("newest", "title", "rating", "length"), default="newest", help="order")
    p.add_argument("--trash", action="store_true", help="what lies in the trash")
    add_out_option(p)

    song_command("show", show, "show a song: its takes and their sections")

    p = song_command("pick", pick, "choose the take that is played and exported")
    p.add_argument("take", type=int, help="which take")

    p = song_command("rename", rename, "give a song another title")
    p.add_argument("title", help="the new title")

    p = song_command("rate", rate, "give a song 1 to 5 stars")
    p.add_argument("stars", type=int, help="1 to 5, or 0 for none")

    song_command("trash", trash, "put a song in the trash")
    song_command("restore", restore, "take a song out of the trash")

    p = song_command("export", export, "write a song as WAV, FLAC or MP3, with its settings", takes=True)
    p.add_argument("--kind", choices=("wav16", "wav24", "flac", "mp3"), default="wav24", help="format (default wav24)")
    p.add_argument("--to", metavar="PLACE", help="a folder, or a file name (default: here)")
    p.add_argument("--stems", action="store_true", help="vocal and instrumental too")
    p.add_argument("--artist", default="", help="name to write into the files")

    p = add_command(commands, "import", import_settings, "begin a song with the settings of an exported file")
    p.add_argument("file", help="a WAV, FLAC or MP3 that yuegp exported, or a song's folder")
    add_out_option(p)

    p = add_command(commands, "queue", queue, "line songs up and make them one after the other")
    p.add_argument(
        "action",
        choices=("list", "add", "move", "pause", "resume", "cancel", "clear", "run"),
        help="list: what there is. add SONG. move JOB PLACE. pause, resume JOB or all. cancel JOB. "
        "clear: forget what is over. run: make what waits, here and now",
    )
    p.add_argument("words", nargs="*", help="the song, or the job's number and its new place")
    p.add_argument("--take", type=int, metavar="N", help="which take to add (default: the picked or the newest one)")
    add_out_option(p)
    add_model_options(p)
    p.add_argument("--quiet", action="store_true", help="no progress")


def songs(arguments: argparse.Namespace) -> None:
    from yuegp.library import catalog

    root = songs_root(arguments)
    found = catalog.search(
        catalog.trashed(root) if arguments.trash else catalog.entries(root),
        " ".join(arguments.words),
        arguments.rating,
        arguments.tag,
        arguments.language,
        arguments.sort,
    )
    if arguments.json:
        print_json([{**vars(entry), "folder": str(entry.folder), "language": entry.language} for entry in found])
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
        if entry.damaged:
            print(f"{'':<12}{entry.damaged}")


def show(arguments: argparse.Namespace) -> None:
    from yuegp.library import catalog

    song = named_song(arguments)
    takes, faults = song.takes()
    chosen = song.chosen([]).info.number if takes else None
    if arguments.json:
        listed = [{**to_dict(t.info), "folder": str(t.folder), "chosen": t.info.number == chosen} for t in takes]
        damaged = [fault.what for fault in faults]
        print_json({"folder": str(song.folder), "song": to_dict(song.info), "takes": listed, "damaged": damaged})
        return
    print(f"{catalog.SongSummary(song.folder, song.info.title).name}   {'★' * (song.info.rating or 0)}".rstrip())
    print(f"Folder   {song.folder}")
    print(f"Tags     {song.request.tags}")
    print(f"Model    {song.request.model}")
    for fault in faults:
        print(f"  {fault.what}")
    for take in takes:
        info = take.info
        origin = f", from take {info.parent}: {edit_in_words(info.edit)}" if info.parent else ""
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
    from yuegp.library import catalog

    song = named_song(arguments)
    catalog.pick(song, arguments.take)
    _done(arguments, song, f"Take {arguments.take} is the one that is played and exported.")


def rename(arguments: argparse.Namespace) -> None:
    from yuegp.library import catalog

    song = named_song(arguments)
    catalog.rename(song, arguments.title)
    _done(arguments, song, f"The song is now called {song.info.title}.")


def rate(arguments: argparse.Namespace) -> None:
    from yuegp.library import catalog

    song = named_song(arguments)
    catalog.rate(song, arguments.stars or None)
    _done(arguments, song, f"Rated {'★' * arguments.stars or 'no more'}.")


def trash(arguments: argparse.Namespace) -> None:
    from yuegp.library import catalog

    root = songs_root(arguments)
    moved = catalog.trash(catalog.find(root, arguments.song), root)
    said = f'In the trash: {moved}\nTake it out again with: python launch.py restore "{moved.name}"'
    _say(arguments, {"trashed": str(moved)}, said)


def restore(arguments: argparse.Namespace) -> None:
    from yuegp.library import catalog

    moved = catalog.restore(arguments.song, songs_root(arguments))
    _say(arguments, {"restored": str(moved)}, f"Back: {moved}")


def export(arguments: argparse.Namespace) -> None:
    from yuegp.library import export as exporting

    song, take = song_and_take(arguments)
    from yuegp.generation.plan import Event, Phase

    from .progress import ProgressBar

    parts = exporting.PARTS if arguments.stems else ("mix",)
    with ProgressBar(quiet=arguments.json) as screen:

        def progress(what: str, done: int, total: int) -> None:
            screen.show(Event(Phase.EXPORT, what, done, total, "frames", done))

        target = arguments.to or Path.cwd()
        files = exporting.export(song, take, target, arguments.kind, parts, arguments.artist, progress)
    _say(arguments, {"files": [str(path) for path in files]}, "\n".join(map(str, files)))


def import_settings(arguments: argparse.Namespace) -> None:
    from yuegp.library import export as exporting
    from yuegp.library import store
    from yuegp.song import lyrics

    request, notes = exporting.import_file(arguments.file)
    song = store.create(request, songs_root(arguments), lyrics.write(request.sections))
    warnings = [note_in_words(note) for note in notes]
    said = "".join(f"Note     {warning}\n" for warning in warnings)
    said += f'A song with the same settings: {song.folder}\nMake it with: python launch.py resume "{song.folder}"'
    _say(arguments, {"song": str(song.folder), "warnings": warnings}, said)


# The queue


def queue(arguments: argparse.Namespace) -> None:
    from yuegp.jobs.queue import Queue

    waiting, action, words, as_json = Queue(), arguments.action, arguments.words, arguments.json
    if action == "add":
        song = named_song(arguments, *_exactly(words, "a song", 1))
        take = chosen_take(arguments, song)
        options = model_options(arguments, take.info.request.model)
        show_jobs([waiting.add(song.folder, take.info.number, arguments.device, options)], as_json)
    elif action == "move":
        job, place = _exactly(words, "a job and its new place", 2)
        show_jobs([waiting.move(_number(job), _number(place))], as_json)
    elif action in ("pause", "resume") and words == ["all"]:
        show_jobs(waiting.pause_all() if action == "pause" else waiting.resume_all(), as_json)
    elif action in ("cancel", "pause", "resume"):
        (job,) = _exactly(words, "a job", 1)
        change = {"cancel": waiting.cancel, "pause": waiting.pause, "resume": waiting.resume}[action]
        show_jobs([change(_number(job))], as_json)
    elif action == "clear":
        show_jobs(waiting.clear(), as_json)
    elif action == "run":
        from yuegp.jobs.worker import Worker

        from .progress import ProgressBar

        worker = Worker(waiting)
        with ProgressBar(as_json or arguments.quiet, _LatestProgress(worker.subscribe())) as screen:
            worker.run(screen.show)
        show_jobs(waiting.jobs(), as_json)
    else:
        show_jobs(waiting.jobs(), as_json)


class _LatestProgress:
    """The worker's last report on its job, for the progress line."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.last: JobProgress | None = None

    def update(self, event: Event) -> None:
        while news := self.feed.get(0):
            self.last = news

    def progress(self) -> JobProgress | None:
        return self.last


def _exactly(words: Sequence[str], what: str, count: int) -> Sequence[str]:
    if len(words) != count:
        raise RequestError(f"This takes {what}; {len(words)} words were given.", "See `python launch.py queue --help`.")
    return words


def _number(word: str) -> int:
    if not word.isdecimal():
        raise RequestError(f"{word!r} is not a number.", "`python launch.py queue list` shows the jobs' numbers.")
    return int(word)


def show_jobs(listed: Sequence[Job], as_json: bool) -> None:
    """Print jobs, a line each or as JSON."""
    from yuegp.jobs.queue import State, to_row

    if as_json:
        print_json([to_row(job) for job in listed])
        return
    if not listed:
        print("The queue is empty.")
    for job in listed:
        line = f"{job.number:>3}  {job.state:<11}  {Path(job.song).name}, take {job.take}"
        if job.state is State.RUNNING and (p := job.last):
            line += f"  {p.stage}, {p.what}, {p.done / max(1, p.total):.0%}"
            line += "" if p.eta is None else f", {_clock(round(p.eta * 50))} left"
        print(line)
        for text in (job.what, job.hint):
            if text:
                print(f"{'':>5}{text}")


def _done(arguments: argparse.Namespace, song: Song, said: str) -> None:
    _say(arguments, {"song": str(song.folder), **to_dict(song.info)}, said)


def _say(arguments: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    if arguments.json:
        print_json(data)
    else:
        print(text)
