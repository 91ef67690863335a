"""The Gradio page: five tabs and the components they share. Each tab builds itself in `pages/`."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import assets
from .context import AppContext
from .pages import library, queue, setup
from .pages.create import page as create_page
from .pages.song import page as song_page
from .shell import PAGES, Shell
from .texts import Texts

BUILD = {
    "create": create_page.build,
    "song": song_page.build,
    "library": library.build,
    "queue": queue.build,
    "setup": setup.build,
}
"""What fills each of the tabs in `PAGES`."""


def build(context: AppContext, t: Texts) -> gr.Blocks:
    """The page in one language, to be mounted with `page_options()`. Loads no model and no torch."""
    with gr.Blocks(title=t("shell.name"), analytics_enabled=False, delete_cache=(86400, 86400)) as blocks:
        shell = Shell(
            page=blocks,
            tabs=gr.Tabs(elem_id="tabs", selected="create", render=False),
            open_song=gr.Textbox(elem_id="open-song", visible="hidden", show_label=False),
            copy_from=gr.Textbox(elem_id="copy-from", visible="hidden", show_label=False),
            tick=gr.Timer(2.0),
        )
        gr.HTML(f"<h1>{t('shell.name')}</h1><p>{t('shell.motto')}</p>", elem_id="brand", apply_default_css=False)
        shell.tabs.render()
        with shell.tabs:
            for page in PAGES:
                with gr.Tab(t(f"shell.tab.{page}"), id=page, elem_id=f"tab-{page}"):
                    BUILD[page](context, shell, t)
        _remember(blocks, shell)
    return blocks


def _remember(blocks: gr.Blocks, shell: Shell) -> None:
    """The browser tab keeps which song is open, and brings it back after a reload."""
    blocks.load(None, js="() => window.yuegp.memory.load('song')", outputs=shell.open_song, api_visibility="private")
    shell.open_song.change(
        None, shell.open_song, js="(name) => window.yuegp.memory.save('song', name)", api_visibility="private"
    )


def page_options() -> dict[str, Any]:
    """What Gradio takes where the page is launched or mounted: theme, style, scripts."""
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": assets.css(), "head": assets.head()}
