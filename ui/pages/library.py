"""The Library page: search, play, rename, rate, trash and restore songs, and start a new song from an exported file.

One element, drawn by `assets/library.js`, which calls `library_render` for its rows and `library_action` for clicks.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr

from ui.context import AppContext
from ui.shell import Shell, goto, plain, sendable
from ui.texts import Texts
from yuegp.checkpoints import sets
from yuegp.errors import LibraryError, RequestError, YueGPError
from yuegp.library import catalog, export
from yuegp.library.catalog import SongSummary
from yuegp.song import tags
from yuegp.song.schema import Stage, to_dict

from .wording import note_in_words

MOST = 400
"""Most rows sent at once; a search finds the others."""

TAGS = 40
"""How many tags the filter offers: the most frequent ones."""

IMPORTED = (".wav", ".flac", ".mp3")

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class Listing:
    """The songs of a folder, cached in memory. Only songs whose files have changed are read again: checking their times
    costs a tenth of reading them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = Lock()
        self._known: dict[str, tuple[tuple[int, ...], SongSummary | None]] = {}

    def entries(self) -> list[SongSummary]:
        """As `catalog.entries`, in no order. LibraryError when the folder cannot be read."""
        with self._guard:
            try:
                with os.scandir(self.root) as inside:
                    folders = [item.path for item in inside if not item.name.startswith(".") and item.is_dir()]
            except FileNotFoundError:
                folders = []
            except OSError:
                return catalog.entries(self.root)  # raises LibraryError that says why
            known, self._known = self._known, {}
            for folder in folders:
                times = _times(folder)
                old = known.get(folder)
                self._known[folder] = old if old and old[0] == times else (times, catalog.read_entry(Path(folder)))
            return [entry for _, entry in self._known.values() if entry]


def _times(folder: str) -> tuple[int, ...]:
    times = []
    for name in ("song.json", "takes"):
        try:
            times.append(os.stat(os.path.join(folder, name)).st_mtime_ns)
        except OSError:
            times.append(0)
    try:
        pages = [os.path.join(folder, "takes", name, "take.json") for name in os.listdir(os.path.join(folder, "takes"))]
        times += sorted(os.stat(page).st_mtime_ns for page in pages)
    except OSError:
        times.append(0)
    return tuple(times)


def build(context: AppContext, shell: Shell, t: Texts) -> None:
    """Build the page into the present tab."""
    here, trash = Listing(context.root), Listing(context.root / catalog.TRASH)

    def library_render(asked: Any) -> dict[str, Any]:
        return sendable(render(context, here, trash, asked, t))

    def library_action(asked: Any) -> dict[str, Any]:
        return sendable(handle_action(context, asked, t))

    with gr.Column(elem_classes="y-stack"):
        page = gr.HTML(
            "",
            elem_id="library",
            html_template="<div class='y-library'></div>",
            js_on_load="window.yuegp.library(element, props, server, trigger, watch); /* triggers 'opened' */",
            apply_default_css=False,
            server_functions=[library_render, library_action],
            say=t.part("library."),
        )
        with gr.Column(elem_classes="y-panel"):
            gr.Markdown(f"## {t('library.import.title')}\n\n{t('library.import.text')}")
            file = gr.File(
                label=t("library.import.label"), file_types=list(IMPORTED), height=150, elem_id="library-import"
            )
    page.opened(_opened, None, [shell.open_song, shell.tabs], **QUIET)

    def imported(path: str | None) -> tuple[Any, Any, None]:
        if not path:
            return gr.skip(), gr.skip(), None
        try:
            text, notes = settings_of(path, t)
        except YueGPError as exc:
            raise plain(_without(exc, path)) from exc
        for note in notes:
            gr.Info(note, duration=12, title="")
        return text, goto("create"), None

    file.upload(imported, file, [shell.copy_from, shell.tabs, file], **QUIET)


def _opened(event: gr.EventData) -> tuple[str, gr.Tabs]:
    return str(event._data.get("name") or ""), goto("song")


# Rows


def render(context: AppContext, here: Listing, trash: Listing, asked: Any, t: Texts) -> dict[str, Any]:
    """The songs that match `asked` (`text`, `rating`, `tag`, `language`, `sort`, `trash`) as rows, their number, and
    the tags to filter by."""
    asked = asked if isinstance(asked, dict) else {}
    in_trash = bool(asked.get("trash"))
    try:
        every = (trash if in_trash else here).entries()
        found = catalog.search(
            every,
            str(asked.get("text") or "")[:200],
            _stars(asked.get("rating")),
            str(asked.get("tag") or "") or None,
            str(asked.get("language") or "") or None,
            str(asked.get("sort") or "newest"),
        )
    except YueGPError as exc:
        return {"rows": [], "found": 0, "all": 0, "tags": [], "trash": in_trash, "error": f"{exc.what} {exc.hint}"}
    busy = {context.name_of(job): str(job.state) for job in context.known_jobs() if job.state in ("waiting", "running")}
    return {
        "rows": [row(entry, busy.get(entry.folder.name, ""), t) for entry in found[:MOST]],
        "found": len(found),
        "all": len(every),
        "tags": common(every),
        "trash": in_trash,
        "error": "",
    }


def row(entry: SongSummary, busy: str, t: Texts) -> dict[str, Any]:
    """A song as the script draws it. `busy` is the state of its job, or empty."""
    if entry.broken or entry.damaged:
        state = t("library.state.broken")
    elif busy:
        state = t(f"library.state.{busy}")
    else:
        state = "" if entry.stage is Stage.RENDERED else t("library.state.unfinished")
    return {
        "name": entry.folder.name,
        "title": entry.name,
        "tags": entry.tags,
        "date": entry.created[:10],
        "rating": entry.rating or 0,
        "seconds": round(entry.seconds),
        "takes": entry.takes,
        "state": state,
        "broken": entry.broken or "",
        "damaged": entry.damaged,
        "heard": entry.stage is Stage.RENDERED and not entry.broken,
    }


def common(entries: list[SongSummary]) -> list[str]:
    """The `TAGS` most frequent tags of these songs, in alphabetical order."""
    count = Counter(tag for entry in entries for tag in _known_tags(entry.tags))
    return sorted(tag for tag, _ in count.most_common(TAGS))


_tags_of: dict[str, tuple[str, ...]] = {}


def _known_tags(line: str) -> tuple[str, ...]:
    if line not in _tags_of:
        if len(_tags_of) > 5000:
            _tags_of.clear()
        _tags_of[line] = tuple({tags.fold(tag) for group in tags.find(line).values() for tag in group})
    return _tags_of[line]


def _stars(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value <= 5 else None


# Actions


def handle_action(context: AppContext, asked: Any, t: Texts) -> dict[str, Any]:
    """Do what the user clicked: `do` is rename, rate, trash, restore or hear, `name` the song's folder, `value` the
    title or the stars. Returns the sentence to show, and for `hear` the take to play."""
    asked = asked if isinstance(asked, dict) else {}
    name, value = str(asked.get("name") or ""), asked.get("value")
    try:
        match asked.get("do"):
            case "rename":
                song = context.song(name)
                catalog.rename(song, str(value or ""))
                return _said(t("library.renamed", title=song.info.title))
            case "rate":
                song = context.song(name)
                catalog.rate(song, _stars(value))
                return _said("")
            case "trash":
                refuse_working(context, name, t)
                catalog.trash(context.folder(name), context.root)
                return _said(t("library.trashed"))
            case "restore":
                return _said("", name=catalog.restore(_in_trash(context, name), context.root).name)
            case "hear":
                return _said("", take=context.song(name).chosen([]).info.number)
            case _:
                return {"error": t("library.unknown")}
    except YueGPError as exc:
        return {"error": f"{exc.what} {exc.hint}".strip()}


def _said(text: str, **values: Any) -> dict[str, Any]:
    return {"error": "", "said": text, **values}


def refuse_working(context: AppContext, name: str, t: Texts) -> None:
    """LibraryError when the song has a running or waiting job."""
    if any(context.name_of(job) == name and job.state in ("running", "waiting") for job in context.known_jobs()):
        raise LibraryError(t("library.working"), t("library.working_hint"))


def _in_trash(context: AppContext, name: str) -> str:
    """`name`, if it is a song in the trash; else LibraryError, as `AppContext.folder` raises."""
    if not any(entry.folder.name == name for entry in catalog.trashed(context.root)):
        raise LibraryError(f"There is no song {name[:80]!r} in the trash.", "Choose one from the list.")
    return name


# Import


def settings_of(path: str, t: Texts) -> tuple[str, list[str]]:
    """The settings in an exported file as JSON for `Shell.copy_from`, and notes about them. YueGPError when the file
    has none."""
    if Path(path).suffix.lower() not in IMPORTED:
        raise RequestError(t("library.import.wrong"), t("library.import.wrong_hint"))
    request, notes = export.import_file(path)
    said = [note_in_words(note, t) for note in notes]
    if request.model not in sets.names():
        said.append(t("library.import.model", model=request.model))
        request = type(request)(**{**vars(request), "model": ""})
    return json.dumps(to_dict(request)), said


def _without(exc: YueGPError, path: str) -> YueGPError:
    """The error with the upload's path on the server shortened to its file name."""
    return type(exc)(exc.what.replace(path, Path(path).name), exc.hint)
