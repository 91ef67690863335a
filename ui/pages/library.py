"""The Library page: every song there is, found, heard, named, rated, thrown away and taken back; and the way from an
exported file to a new song with its settings. One element, drawn by `assets/library.js`, that asks `library_look` for
rows and tells `library_act` what was clicked.
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
"""Rows sent at once at most; a person who wants to see more of them searches."""

TAGS = 40
"""Tags offered to filter by: those that most songs have."""

IMPORTED = (".wav", ".flac", ".mp3")

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class Listing:
    """The entries of a songs folder, of which only those are read again that have changed. Looking whether that is so
    costs a tenth of reading, and nothing is kept on disk that could be wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = Lock()
        self._known: dict[str, tuple[tuple[int, ...], SongSummary | None]] = {}

    def entries(self) -> list[SongSummary]:
        """As `shelf.entries`, in no order. LibraryError when the folder cannot be read."""
        with self._guard:
            try:
                with os.scandir(self.root) as inside:
                    folders = [item.path for item in inside if not item.name.startswith(".") and item.is_dir()]
            except FileNotFoundError:
                folders = []
            except OSError:
                return catalog.entries(self.root)  # which says why
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


def build(desk: AppContext, shell: Shell, t: Texts) -> None:
    """Put the page into the tab that is being built."""
    here, trash = Listing(desk.root), Listing(desk.root / catalog.TRASH)

    def library_look(asked: Any) -> dict[str, Any]:
        return sendable(render(desk, here, trash, asked, t))

    def library_act(asked: Any) -> dict[str, Any]:
        return sendable(handle_action(desk, asked, t))

    with gr.Column(elem_classes="y-stack"):
        page = gr.HTML(
            "",
            elem_id="library",
            html_template="<div class='y-library'></div>",
            js_on_load="window.yuegp.library(element, props, server, trigger, watch); /* triggers 'opened' */",
            apply_default_css=False,
            server_functions=[library_look, library_act],
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


def render(desk: AppContext, here: Listing, trash: Listing, asked: Any, t: Texts) -> dict[str, Any]:
    """The rows that fit what is asked for (`text`, `rating`, `tag`, `language`, `sort`, `trash`), how many there are,
    and what could be filtered by."""
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
    busy = {desk.name_of(job): str(job.state) for job in desk.known_jobs() if job.state in ("waiting", "running")}
    return {
        "rows": [row(entry, busy.get(entry.folder.name, ""), t) for entry in found[:MOST]],
        "found": len(found),
        "all": len(every),
        "tags": common(every),
        "trash": in_trash,
        "error": "",
    }


def row(entry: SongSummary, busy: str, t: Texts) -> dict[str, Any]:
    """A song as the script draws it."""
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
    """The tags that most of some songs have, in alphabetical order."""
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


# What is done to them


def handle_action(desk: AppContext, asked: Any, t: Texts) -> dict[str, Any]:
    """Do what was clicked: `do` is rename, rate, trash, restore or hear, `name` the song's folder, `value` the title or
    the stars. Answers what to say of it, and for `hear` the take to be heard."""
    asked = asked if isinstance(asked, dict) else {}
    name, value = str(asked.get("name") or ""), asked.get("value")
    try:
        match asked.get("do"):
            case "rename":
                song = desk.song(name)
                catalog.rename(song, str(value or ""))
                return _said(t("library.renamed", title=song.info.title))
            case "rate":
                song = desk.song(name)
                catalog.rate(song, _stars(value))
                return _said("")
            case "trash":
                refuse_working(desk, name, t)
                catalog.trash(desk.folder(name), desk.root)
                return _said(t("library.trashed"))
            case "restore":
                return _said("", name=catalog.restore(_in_trash(desk, name), desk.root).name)
            case "hear":
                return _said("", take=desk.song(name).chosen([]).info.number)
            case _:
                return {"error": t("library.unknown")}
    except YueGPError as exc:
        return {"error": f"{exc.what} {exc.hint}".strip()}


def _said(text: str, **values: Any) -> dict[str, Any]:
    return {"error": "", "said": text, **values}


def refuse_working(desk: AppContext, name: str, t: Texts) -> None:
    """LibraryError when a song is being made, or is going to be."""
    if any(desk.name_of(job) == name and job.state in ("running", "waiting") for job in desk.known_jobs()):
        raise LibraryError(t("library.working"), t("library.working_hint"))


def _in_trash(desk: AppContext, name: str) -> str:
    """A folder's name in the trash; anything else is refused, as `Desk.folder` does."""
    if not any(entry.folder.name == name for entry in catalog.trashed(desk.root)):
        raise LibraryError(f"There is no song {name[:80]!r} in the trash.", "Choose one from the list.")
    return name


# Files that come back


def settings_of(path: str, t: Texts) -> tuple[str, list[str]]:
    """The settings in an exported file as the Create page takes them over (`Shell.copy_from`), and notes. YueGPError
    when there are none."""
    if Path(path).suffix.lower() not in IMPORTED:
        raise RequestError(t("library.import.wrong"), t("library.import.wrong_hint"))
    request, notes = export.import_file(path)
    said = [note_in_words(note, t) for note in notes]
    if request.model not in sets.names():
        said.append(t("library.import.model", model=request.model))
        request = type(request)(**{**vars(request), "model": ""})
    return json.dumps(to_dict(request)), said


def _without(exc: YueGPError, path: str) -> YueGPError:
    """The error without the place that an upload happens to have on the server."""
    return type(exc)(exc.what.replace(path, Path(path).name), exc.hint)
