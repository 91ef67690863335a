"""What all tabs share: their order, the open song, and how they report an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from yuegp.errors import YueGPError

PAGES = ("create", "song", "library", "queue", "setup")
"""The tabs, in order. Their elements are called `tab-create` …, the buttons that open them `tab-create-button` …"""


@dataclass(frozen=True)
class Shell:
    """Components that pages listen to and write into. Their values belong to one tab of one browser."""

    page: gr.Blocks
    """For `.load`: what happens when a browser opens the page."""
    tabs: gr.Tabs
    open_song: gr.Textbox
    """Folder name of the song that the Song page shows; empty for none. `assets/shell.js` keeps it over a reload. Set
    it as an output, listen with `.change`."""
    copy_from: gr.Textbox
    """`folder name/take number`, or settings as JSON: the Create page copies them into its fields, then empties
    this."""
    tick: gr.Timer
    """Ticks every two seconds. Listening costs one call per tick and browser tab."""


def sendable(value: Any) -> Any:
    """`value` without unpaired surrogates, which files can hold and JSON answers cannot."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {sendable(name): sendable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(item) for item in value]
    return value


def goto(page: str) -> gr.Tabs:
    """An update for `Shell.tabs` that selects a page."""
    return gr.Tabs(selected=page)


def plain(exc: YueGPError) -> gr.Error:
    """An error as a notice on the page: what is wrong, and what to do. Raise it `from` the error."""
    return gr.Error(f"{exc.what} {exc.hint}".strip(), duration=12, title="", print_exception=False)
