"""The Song page: play, compare, edit and export the takes of one song. One element, drawn by `assets/song.js`, which
calls `song_render` for its parts as HTML and `song_action` for clicks."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.context import AppContext
from ui.pages.wording import note_in_words
from ui.shell import Shell, goto, sendable
from ui.texts import Texts
from yuegp.errors import LibraryError, YueGPError

from . import actions, html
from .view import load, rival, sound

WORDS = {
    "play": "song.play",
    "pause": "song.pause",
    "busy": "song.busy",
    "undo": "song.undo",
    "close": "song.close",
    "take": "song.take",
    "ready": "song.ready-now",
    "slot": "song.ab.slot",
    "slotEmpty": "song.ab.empty",
    "download": "song.export.download",
    "cannotLoad": "song.cannot-load",
    "unreachable": "song.unreachable",
}
"""Texts that the script fills in itself, by the names it uses."""

LOCAL = ("127.0.0.1", "::1")


def build(context: AppContext, shell: Shell, t: Texts) -> None:
    """Build the page into the present tab."""

    def song_render(asked: Any, request: gr.Request) -> dict[str, Any]:
        return sendable(render(context, asked, is_local(request), t))

    def song_action(asked: Any, request: gr.Request) -> dict[str, Any]:
        return sendable(handle_action(context, asked, is_local(request), t))

    page = gr.HTML(
        value="",
        elem_id="song-page",
        html_template="<div></div>",
        js_on_load="window.yuegp.song(element, props, server, trigger, watch); /* triggers 'opened' and 'copied' */",
        apply_default_css=False,
        server_functions=[song_render, song_action],
        frame=html.frame(t),
        words={name: t.sentences[key] for name, key in WORDS.items()},
    )
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    shell.open_song.change(None, shell.open_song, page, js="(name) => name", **quiet)
    page.opened(_opened, None, shell.open_song, **quiet)
    page.copied(_copied, None, [shell.copy_from, shell.tabs], **quiet)


def _opened(event: gr.EventData) -> str:
    return str(event._data.get("name") or "")


def _copied(event: gr.EventData) -> tuple[str, gr.Tabs]:
    return f"{event._data.get('name')}/{event._data.get('take')}", goto("create")


def is_local(request: gr.Request) -> bool:
    """Whether the browser runs on the program's machine, as far as can be seen: a proxy in between names its client in
    `X-Forwarded-For`."""
    client = request.client
    return client is not None and client.host in LOCAL and "x-forwarded-for" not in request.headers


def render(context: AppContext, asked: Any, local: bool, t: Texts) -> dict[str, Any]:
    """What the script shows of the song it asks for: `state`, the parts as HTML, and what the player needs."""
    asked = asked if isinstance(asked, dict) else {}
    nothing: dict[str, Any] = {"take": None, "section": 0, "rival": None, "sound": [], "live": False}
    name = str(asked.get("song") or "")
    if not name:
        return {"state": "empty", "parts": {"empty": html.empty(t)}, **nothing}
    try:
        view = load(context, name, _number(asked.get("take")), _number(asked.get("section")) or 0)
    except YueGPError as exc:
        return {"state": "broken", "parts": {"empty": html.broken(f"{exc.what} {exc.hint}".strip(), t)}, **nothing}
    return {
        "state": "open",
        "parts": html.parts(view, local, t),
        "take": view.shown.number if view.shown else None,
        "section": view.section,
        "rival": rival(view),
        "sound": sound(view),
        "live": bool(view.live),
    }


def handle_action(context: AppContext, asked: Any, local: bool, t: Texts) -> dict[str, Any]:
    """Do one of `actions.ACTIONS`. Returns what the script shows: `said`, or `error`."""
    asked = asked if isinstance(asked, dict) else {}
    name, what, values = str(asked.get("song") or ""), str(asked.get("do") or ""), asked.get("values")
    try:
        if what == "open-folder" and not local:
            raise LibraryError("The song's folder is on another machine.", "Export the song to get its files.")
        result = actions.act(context, name, what, values if isinstance(values, dict) else {})
    except YueGPError as exc:
        return {"error": f"{exc.what} {exc.hint}".strip()}
    return {
        "said": " ".join(
            [t(f"song.{result.say}", **result.values), *(note_in_words(note, t) for note in result.notes)]
        ),
        "files": list(result.files),
        "front": result.front,
        "name": str(result.values.get("name", name)),
    }


def _number(value: Any) -> int | None:
    return value if type(value) is int else None
