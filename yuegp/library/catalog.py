"""The catalog of all songs: list, search, rename, rate, pick, trash and restore.

Reads JSON files only, and all of them each time: without an index, none can be wrong (a thousand songs take a fifth of
a second). Damaged songs are listed with the reason and left alone. `store.py` reads and writes a single song.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yuegp import files
from yuegp.errors import LibraryError, RequestError
from yuegp.locks import song_lock
from yuegp.song import lyrics, tags
from yuegp.song.schema import Section, Stage
from yuegp.tokens.vocab import FRAMES_PER_SECOND

from .store import Song, open_song

TRASH = ".trash"

LONGEST_TITLE = 300
"""Most characters of a title, which is shown on one line."""

SHOWN = 5
"""Most songs named in a message; it then says how many more there are."""


@dataclass(frozen=True)
class SongSummary:
    """A song's entry in the list."""

    folder: Path
    title: str = ""
    tags: str = ""
    words: str = ""
    """The lyrics of the first request, without labels."""
    created: str = ""
    """ISO 8601, UTC; for an unreadable song, the date in its folder's name."""
    rating: int | None = None
    seconds: float = 0.0
    """Length of the take that is played: the picked one, else the newest finished one."""
    stage: Stage | None = None
    """Stage of that take; None without takes."""
    takes: int = 0
    broken: str | None = None
    """Sentence that says why the song cannot be used."""
    damaged: str = ""
    """Sentence that says why an unreadable take was skipped."""

    @property
    def name(self) -> str:
        """Name to show: the title on one line, without control and direction characters; the folder's name when nothing
        is left."""
        return _shown(self.title) or _shown(self.folder.name)

    @property
    def language(self) -> str:
        """`en`, `zh`, `ja` or `ko`, guessed from the words."""
        return "en" if self.words.isascii() else lyrics.language([Section("verse", self.words)])


def _shown(text: str) -> str:
    joiners = "\u200c\u200d"  # join emoji and the letters of some scripts
    kept = (c for c in " ".join(text.split()) if c in joiners or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return "".join(kept).strip()


# Listing


def entries(root: Path) -> list[SongSummary]:
    """Every song in a songs folder, newest first; empty when there is no such folder. Raises LibraryError when it
    cannot be read."""
    found = (read_entry(folder) for folder in _folders(root))
    return arranged((entry for entry in found if entry), "newest")


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as inside:
            return [Path(item.path) for item in inside if not item.name.startswith(".") and item.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise LibraryError(
            f"The songs folder {root} cannot be read: {exc.strerror or exc}.", "Check the folder, or choose another."
        ) from exc


def read_entry(folder: Path) -> SongSummary | None:
    """Summary of a song folder; None when it is no song, for example after an interrupted creation."""
    entry = SongSummary(folder, created=_date(folder))
    try:
        names = os.listdir(folder)
        if "song.json" not in names:
            return replace(entry, broken=f"{folder} has takes, but no song.json.") if "takes" in names else None
        refuse_links(folder)
        song = open_song(folder)
        info = song.info
        entry = replace(
            entry,
            title=info.title,
            tags=song.request.tags,
            words="\n".join(section.words for section in song.request.sections),
            created=info.created or entry.created,
            rating=info.rating,
            takes=len(song.take_numbers()),
        )
        if not entry.takes and info.picked is None:
            return entry
        faults: list[LibraryError] = []
        take = song.chosen(faults)
        damaged = " ".join(fault.what for fault in faults)
        return replace(entry, seconds=take.frames / FRAMES_PER_SECOND, stage=take.info.stage, damaged=damaged)
    except FileNotFoundError:
        return None  # moved away meanwhile
    except LibraryError as exc:
        return replace(entry, broken=exc.what)
    except OSError as exc:  # one bad song must not end the list
        return replace(entry, broken=f"{folder} cannot be read: {exc.strerror or exc}.")


def faults(folder: Path) -> list[str]:
    """Sentences on the unreadable files of a song: `song.json`, or `take.json` and codes of its takes."""
    found: list[str] = []
    try:
        song = open_song(folder)
        numbers = song.take_numbers()
    except LibraryError as exc:
        return [exc.what]
    for number in numbers:
        try:
            song.take(number).check_codes()
        except LibraryError as exc:
            found.append(exc.what)
    return found


def _date(folder: Path) -> str:
    match = re.match(r"\d{4}-\d\d-\d\d", folder.name)
    return match[0] if match else ""


def refuse_links(folder: Path) -> None:
    """Raise LibraryError when a link in a song folder leads out of it: such a song must not be written to."""

    def look(place: str | Path, depth: int) -> None:
        with os.scandir(place) as items:
            for item in items:
                junction: Callable[[], bool] = getattr(item, "is_junction", bool)  # Windows, from Python 3.12 on
                if item.is_symlink() or junction():
                    target = os.path.realpath(item.path)
                    if not target.startswith(os.path.join(os.path.realpath(folder), "")):
                        raise LibraryError(
                            f"{item.path} is a link to {target}, outside the song folder, and was not followed.",
                            "Replace the link by a copy of what it leads to.",
                        )
                elif depth and item.is_dir():
                    look(item.path, depth - 1)

    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # opening the song reports it
        try:
            look(folder, 2)
        except PermissionError as exc:
            raise LibraryError(f"{exc.filename} cannot be read: {exc.strerror}.", "Change its permissions.") from exc


# Searching


def search(
    found: Iterable[SongSummary],
    text: str = "",
    rating: int | None = None,
    tag: str | None = None,
    language: str | None = None,
    sort: str = "newest",
) -> list[SongSummary]:
    """Filter summaries: every word of `text` in title, tags, lyrics or folder name, at least `rating`, the tag, and the
    language. Sorted by `sort`, one of `SORTS`; raises RequestError for another."""
    words = _folded(text).split()
    kept = [
        entry
        for entry in found
        if (rating is None or (entry.rating or 0) >= rating)
        and (tag is None or _has_tag(entry.tags, tag))
        and (language is None or (not entry.broken and entry.language == language.lower()))
        and all(word in _text(entry) for word in words)
    ]
    return arranged(kept, sort)


def _text(entry: SongSummary) -> str:
    return _folded("\n".join((entry.title, entry.tags, entry.words, entry.folder.name)))


def _folded(text: str) -> str:
    """`text` without differences of case, character width, composition and spacing."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _has_tag(line: str, tag: str) -> bool:
    """Whether a line of tags has the known tag, or all of its words as whole words."""
    wanted = tags.fold(tag)
    if any(tags.fold(known) == wanted for group in tags.find(line).values() for known in group):
        return True
    words = re.findall(r"[\w&'-]+", tag.casefold())
    return bool(words) and set(words) <= set(re.findall(r"[\w&'-]+", line.casefold()))


SORTS: dict[str, tuple[Callable[[SongSummary], Any], bool]] = {
    "newest": (lambda entry: (entry.created, entry.folder.name), True),
    "title": (lambda entry: _folded(entry.name), False),
    "rating": (lambda entry: entry.rating or 0, True),
    "length": (lambda entry: entry.seconds, True),
}
"""Sort orders: key, and whether to reverse. Equal entries stand newest first. Times are compared as written, so a clock
that went backwards only misplaces a song."""


def arranged(found: Iterable[SongSummary], by: str) -> list[SongSummary]:
    """Summaries sorted by one of `SORTS`. Raises RequestError for another."""
    if by not in SORTS:
        raise RequestError(f"Songs cannot be sorted by {by!r}.", f"Choose one of {', '.join(SORTS)}.")
    key, reverse = SORTS["newest"]
    newest = sorted(found, key=key, reverse=reverse)
    key, reverse = SORTS[by]
    return sorted(newest, key=key, reverse=reverse)


# Finding one


def find(root: Path, name: str) -> Path:
    """Folder of the song called `name`: a path, a folder name, the six characters at its end, a title, or an
    unambiguous beginning of one of these. Raises LibraryError for none or several.

    The song may be damaged; `get` also opens it."""
    path = Path(os.path.expanduser(name))
    for place in (path, root / path):
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have may still be a title
            if name.strip() and (place / "song.json").is_file():
                return place.absolute()
    return _match(entries(root), name, root).folder


def get(root: Path, name: str) -> Song:
    """Open the song called `name` (see `find`). Raises LibraryError also when it is damaged or a link leads out of
    it."""
    folder = find(root, name)
    refuse_links(folder)
    return open_song(folder)


def _match(found: list[SongSummary], name: str, root: Path) -> SongSummary:
    wanted = _folded(name)
    if not wanted:
        raise LibraryError("No song was named.", "Name a folder or a title; `python launch.py songs` lists them.")
    names = {entry: (_folded(entry.folder.name), _folded(entry.title), _folded(entry.name)) for entry in found}

    def begins(texts: tuple[str, str, str]) -> bool:
        without_date = re.sub(r"^\d{4}-\d\d-\d\d-", "", texts[0])
        return any(text.startswith(wanted) for text in (*texts, without_date))

    exact = [entry for entry, texts in names.items() if wanted in texts or texts[0].endswith(f"-{wanted}")]
    hits = exact or [entry for entry, texts in names.items() if begins(texts)]
    shown = repr(name if len(name) <= 60 else name[:59] + "…")
    if len(hits) > 1:
        some = ", ".join(f"{entry.folder.name} ({entry.name})" for entry in hits[:SHOWN])
        more = f" and {len(hits) - SHOWN} more" if len(hits) > SHOWN else ""
        raise LibraryError(f"{shown} can mean {len(hits)} songs: {some}{more}.", "Give more of the folder's name.")
    if not hits:
        what, hint = f"There is no song {shown} in {root}.", "`python launch.py songs` lists the songs there are."
        close = difflib.get_close_matches(wanted, [text for texts in names.values() for text in texts], 1, 0.75)
        if close:
            near = next(entry for entry, texts in names.items() if close[0] in texts)
            hint = f"Did you mean {near.name}? Its folder is {near.folder.name}."
        raise LibraryError(what, hint)
    return hits[0]


# Changing


def rename(song: Song, title: str) -> None:
    """Change a song's title; its folder keeps its name, so that references to it stay valid."""
    title = " ".join(title.split())
    if bad := next((c for c in title if unicodedata.category(c) in ("Cc", "Cs")), None):
        raise RequestError(f"The new title holds the control character U+{ord(bad):04X}.", "Remove it.")
    if not _shown(title):
        raise RequestError("The new title is empty.", "Give at least one letter.")
    if len(title) > LONGEST_TITLE:
        raise RequestError(
            f"The new title has {len(title)} characters; the limit is {LONGEST_TITLE}.", "Give a shorter one."
        )
    _change(song, title=title)


def rate(song: Song, rating: int | None) -> None:
    """Rate a song from 1 to 5; None removes the rating."""
    if rating is not None and (type(rating) is not int or not 1 <= rating <= 5):
        raise RequestError(f"The rating is {rating!r}.", "Rate with 1, 2, 3, 4 or 5.")
    _change(song, rating=rating)


def pick(song: Song, take: int | None) -> None:
    """Pick the take that is played; None for the newest finished one. Raises LibraryError when there is no such
    take."""
    if take is not None:
        song.take(take)
    _change(song, picked=take)


def _change(song: Song, **changes: Any) -> None:
    """Apply changes to `song.json` as it is now: another window may have changed it since `song` was opened."""
    song.save_info(replace(open_song(song.folder).info, **changes))


# The trash


def trash(folder: Path, root: Path) -> Path:
    """Move a song to the trash of its songs folder. Returns its new path. It may be damaged, but not in use."""
    if folder.is_symlink():
        raise LibraryError(f"{folder} is a link to a song elsewhere.", "Delete the link; the song stays where it is.")
    if folder.resolve().parent != root.resolve():
        raise LibraryError(f"{folder} does not lie in the songs folder {root}.", "Delete it by hand, or name --out.")
    place = root / TRASH
    with song_lock(folder):
        if os.name != "nt":
            return _move(folder, place)
    return _move(folder, place)  # Windows moves no folder in which a file is open: ours, or that of a job just begun


def trashed(root: Path) -> list[SongSummary]:
    """The songs in the trash, newest first."""
    return entries(root / TRASH)


def restore(name: str, root: Path) -> Path:
    """Move a song out of the trash, under an unused name. Returns its new path. `name` is as in `find`."""
    place = root / TRASH
    return _move(_match(trashed(root), name, place).folder, root)


def _move(folder: Path, place: Path) -> Path:
    """Move a folder into `place`, with a number added to its name when that is taken. Returns its new path."""
    try:
        place.mkdir(exist_ok=True)
        for number in itertools.count(1):
            target = place / (folder.name if number == 1 else f"{folder.name}-{number}")
            with contextlib.suppress(FileExistsError):
                if os.name != "nt":
                    target.mkdir()  # claims the name; the rename then replaces the empty folder
                try:
                    files.patiently(lambda target=target: os.rename(folder, target), folder, "moved")  # type: ignore[misc]
                except (OSError, LibraryError):
                    with contextlib.suppress(OSError):
                        target.rmdir()
                    raise
                return target
    except OSError as exc:
        raise LibraryError(
            f"{folder} cannot be moved to {place}: {exc.strerror or exc}.",
            "Close what uses the song, and check that both folders may be written.",
        ) from exc
    raise AssertionError("counting does not end")
