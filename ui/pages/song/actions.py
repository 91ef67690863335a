"""The actions of the Song page. Every edit creates a new take and queues it; existing takes do not change.

`values` come from a browser: song names are checked against the library, numbers are parsed, and no text becomes a
path. Invalid values raise RequestError."""

from __future__ import annotations

import math
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ui.context import AppContext
from yuegp.errors import LibraryError, RequestError
from yuegp.generation import edit, pipeline
from yuegp.jobs.queue import TO_COME, State
from yuegp.library import catalog, export, store
from yuegp.library.store import Song, Take
from yuegp.song import lyrics
from yuegp.song.notes import Note
from yuegp.song.schema import Stage

from .export import EXPORTS

LONGEST_ARTIST = 200
"""Most characters of an artist's name, which goes into every exported file."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """Result of an action."""

    say: str
    """Key of the sentence to show, in `song.json`."""
    values: Mapping[str, object]
    """Values for its places."""
    files: tuple[str, ...] = ()
    """Names of exported files."""
    notes: tuple[Note, ...] = ()
    """Notes on the given lyrics."""
    front: int | None = None
    """A new take that needs no generation and can be shown at once."""


def act(context: AppContext, name: str, what: str, values: Values) -> Done:
    """Do one of `ACTIONS` to the song called `name`. YueGPError when it cannot be done."""
    if what not in ACTIONS:
        raise RequestError(f"The song page knows no action {what!r}.", "Reload the page.")
    if what != "restore":
        context.folder(name)
    return ACTIONS[what](context, name, values)


# Edits


def redo(context: AppContext, name: str, values: Values) -> Done:
    song, take = _song_and_take(context, name, values)
    section, count = _integer(values, "section"), _integer(values, "count", 1, edit.MOST_CANDIDATES)
    later, first = edit.later_sections(str(values.get("later"))), secrets.randbelow(2**32)
    made = [edit.redo(song, take, section, first + i, later) for i in range(count)]
    context.again(song, *made)
    numbers = ", ".join(str(new.info.number) for new in made)
    return Done("done.begun" if count == 1 else "done.begun-many", {"take": numbers})


def rewind(context: AppContext, name: str, values: Values) -> Done:
    song, take = _song_and_take(context, name, values)
    seed = secrets.randbelow(2**32)
    if "second" in values:
        return _begun(context, song, edit.rewind(song, take, seed, second=_number(values, "second")))
    return _begun(context, song, edit.rewind(song, take, seed, section=_integer(values, "section")))


def proceed(context: AppContext, name: str, values: Values) -> Done:
    """Continue a take with its unwritten sections, then with the given lyrics. YueGPError when they cannot be sung."""
    song, take = _song_and_take(context, name, values)
    words = str(values.get("words") or "")
    parsed = lyrics.parse(words) if words.strip() else lyrics.Lyrics(())
    whole = (*take.info.request.sections, *parsed.sections)
    count = min(len(whole), len(take.info.spans) + _integer(values, "count", 1)) if values.get("count") else None
    pipeline.plan(replace(take.info.request, sections=whole, first_sections=count))
    done = _begun(context, song, edit.proceed(song, take, parsed.sections, count))
    return replace(done, notes=parsed.notes)


def trim(context: AppContext, name: str, values: Values) -> Done:
    song, take = _song_and_take(context, name, values)
    return _begun(context, song, edit.trim(song, take, _integer(values, "section"), _number(values, "seconds")))


def mute(context: AppContext, name: str, values: Values) -> Done:
    """Mute or unmute the section."""
    song, take = _song_and_take(context, name, values)
    section = _integer(values, "section")
    return _begun(context, song, edit.mute(song, take, sorted({*take.info.muted} ^ {section})))


def _begun(context: AppContext, song: Song, take: Take) -> Done:
    if take.info.stage is Stage.RENDERED:
        return Done("done.ready", {"take": take.info.number}, front=take.info.number)
    context.again(song, take)
    return Done("done.begun", {"take": take.info.number})


# The queue


def resume(context: AppContext, name: str, values: Values) -> Done:
    """Resume a take that was stopped, paused or interrupted, or has failed."""
    song, take = _song_and_take(context, name, values)
    held = [job for job in context.jobs(name) if job.take == take.info.number and job.state is not State.DONE]
    if held:
        context.queue.resume(held[-1].number)
    else:
        context.again(song, take)
    return Done("done.begun", {"take": take.info.number})


def stop(context: AppContext, name: str, values: Values) -> Done:
    """Cancel the jobs of a take. Its finished parts stay."""
    number = _integer(values, "take")
    for job in context.jobs(name):
        if job.take == number and job.state in (State.RUNNING, *TO_COME):
            context.queue.cancel(job.number)
    return Done("done.stopped", {"take": number})


# The cover page


def pick(context: AppContext, name: str, values: Values) -> Done:
    number = _integer(values, "take")
    catalog.pick(context.song(name), number)
    return Done("done.picked", {"take": number})


def rename(context: AppContext, name: str, values: Values) -> Done:
    song = context.song(name)
    catalog.rename(song, str(values.get("title") or ""))
    return Done("done.renamed", {"title": song.info.title})


def rate(context: AppContext, name: str, values: Values) -> Done:
    stars = _integer(values, "stars", 0, 5)
    catalog.rate(context.song(name), stars or None)
    return Done("done.rated" if stars else "done.unrated", {"stars": stars})


def trash(context: AppContext, name: str, values: Values) -> Done:
    """Move the song to the trash. `restore` takes the name that this returns."""
    moved = catalog.trash(context.folder(name), context.root)
    for job in context.jobs(name):
        if job.state in TO_COME:
            context.queue.cancel(job.number)
    return Done("done.trashed", {"name": moved.name})


def restore(context: AppContext, name: str, values: Values) -> Done:
    """Restore the song with exactly this name from the trash."""
    if name not in {entry.folder.name for entry in catalog.trashed(context.root)}:
        raise LibraryError("That song is no longer in the trash.", "Look in the library.")
    return Done("done.restored", {"name": catalog.restore(name, context.root).name})


# Files


def export_take(context: AppContext, name: str, values: Values) -> Done:
    """Write a take's files into the song's `exports` folder."""
    song, take = _song_and_take(context, name, values)
    parts = [part for part in export.PARTS if values.get(part)]
    artist = " ".join(str(values.get("artist") or "").split())[:LONGEST_ARTIST]
    catalog.refuse_links(song.folder)
    files = export.export(song, take, song.folder / EXPORTS, str(values.get("kind")), parts, artist)
    return Done("done.exported", {"count": len(files), "folder": song.folder / EXPORTS}, tuple(p.name for p in files))


def open_folder(context: AppContext, name: str, values: Values) -> Done:
    """Show the song's folder on this machine's screen. The page allows it to local browsers only."""
    folder = str(store.open_song(context.folder(name)).folder.absolute())
    try:
        if sys.platform == "win32":
            os.startfile(folder)
        else:
            opener = "open" if sys.platform == "darwin" else "xdg-open"
            subprocess.Popen([opener, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as exc:
        raise LibraryError(
            f"This system has no program that shows {folder}: {exc.strerror or exc}.", "Open the folder by hand."
        ) from exc
    return Done("done.opened", {"folder": folder})


ACTIONS: Mapping[str, Callable[[AppContext, str, Values], Done]] = {
    "redo": redo,
    "rewind": rewind,
    "continue": proceed,
    "trim": trim,
    "mute": mute,
    "resume": resume,
    "stop": stop,
    "pick": pick,
    "rename": rename,
    "rate": rate,
    "trash": trash,
    "restore": restore,
    "export": export_take,
    "open-folder": open_folder,
}
"""Actions by the name in `data-act` and `song.js`."""


def _song_and_take(context: AppContext, name: str, values: Values) -> tuple[Song, Take]:
    song = context.song(name)
    return song, song.take(_integer(values, "take"))


def _number(values: Values, key: str) -> float:
    try:
        number = float(values.get(key, ""))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{values.get(key)!r} is no number of {key}.", "Type a number, such as 2.5.")
    return number


def _integer(values: Values, key: str, low: int = 0, high: int = 100_000) -> int:
    number = _number(values, key)
    if number != int(number) or not low <= number <= high:
        raise RequestError(f"The {key} is {number:g}; it can be {low} to {high}.", "Type a whole number in that range.")
    return int(number)
