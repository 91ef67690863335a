"""What all pages share on the screen: the tabs, the song that is open, and how to say that something went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from yuegp.errors import YueGPError

PAGES = ("create", "song", "library", "queue", "setup")
"""The tabs, in order. Their elements are called `tab-create` …, the buttons that open them `tab-create-button` …"""


@dataclass(frozen=True)
class Shell:
    """Components that pages listen to and write into. All of them belong to one tab of one browser."""

    page: gr.Blocks
    """For `.load`: what is to happen when the page opens in a browser."""
    tabs: gr.Tabs
    open_song: gr.Textbox
    """Folder name of the song that the Song page and the running view show; empty for none. The browser tab
    remembers it (`assets/shell.js`), so it survives a reload. Set it as an output, listen with `.change`."""
    copy_from: gr.Textbox
    """`folder name/take number` whose settings the Create page is to take over, then empties it."""
    tick: gr.Timer
    """Ticks every two seconds, for what has to look alive. Listening costs one call per tick and browser tab."""


def sendable(value: Any) -> Any:
    """What a page is told, without halves of surrogate pairs: files may hold them, and no answer can."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {sendable(name): sendable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(item) for item in value]
    return value


def goto(page: str) -> gr.Tabs:
    """An update for `Shell.tabs` that shows a page."""
    return gr.Tabs(selected=page)


def plain(exc: YueGPError) -> gr.Error:
    """An error as a notice on the page: what is wrong, and what to do. To be raised `from` the error."""
    return gr.Error(f"{exc.what} {exc.hint}".strip(), duration=12, title="", print_exception=False)
