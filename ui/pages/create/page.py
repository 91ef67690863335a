"""The Create page: its layout, and which change updates which part. The parts themselves are in the other modules of
this package; the running view is `pages/progress`.

Events take their inputs as a set and find them by name in `Parts.fields`, so their order never matters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from ui import machine
from ui.context import AppContext
from ui.pages import progress as song_progress
from ui.shell import Shell, plain, sendable
from ui.texts import Texts
from yuegp.checked import Fault, parse
from yuegp.errors import RequestError, YueGPError
from yuegp.files import check_writable
from yuegp.generation import memory, pipeline
from yuegp.library import store
from yuegp.song import lyrics
from yuegp.song.schema import SongRequest, TakeInfo, request_from_dict

from . import fields as create_fields
from . import model as create_model
from . import plan as create_plan
from . import reference
from . import tags as create_tags
from . import words as create_words

ROLES = ("vocal", "instrumental", "mix")
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Options of the page's events: not in the programming interface, and nothing is dimmed while they run."""


Fields = dict[str, Any]
"""Components by the name of their field. Gradio gives them their events at run time, so their types have none."""


@dataclass(frozen=True)
class Parts:
    """The components that events read and write, by the names that `plan.asked` takes."""

    fields: Fields
    files: dict[str, gr.File]
    wave: gr.HTML
    lent: gr.State
    """A `reference.Lent`: files copied from a song, and the window that it used."""

    @property
    def inputs(self) -> set[Any]:
        return {*self.fields.values(), *self.files.values(), self.wave}

    def read(self, given: Mapping[Any, Any]) -> dict[str, Any]:
        """Values by name from an event's inputs. RequestError when half of a pair of files is missing."""
        files = {role: given[file] for role, file in self.files.items()}
        window = (given[self.wave] or {}).get("window")
        chosen = reference.reference(files, window if isinstance(window, dict) else None)
        return {**{name: given[part] for name, part in self.fields.items()}, "reference": chosen}


def build(context: AppContext, shell: Shell, t: Texts) -> None:
    """Build the page into the present tab."""
    fields: Fields = {}
    with gr.Row(elem_id="create", elem_classes="y-page"):
        with gr.Column(scale=7, min_width=320, elem_classes="y-stack"):
            gr.Markdown(t("create.lead"), elem_classes="y-lead")
            starts = _starts(t)
            with gr.Column(elem_classes="y-panel"):
                gr.Markdown(f"## {t('create.words.title')}")
                fields["words"] = _editor(t)
                fields["instrumental"] = create_fields.component("instrumental", t)
            with gr.Column(elem_classes="y-panel"):
                gr.Markdown(f"## {t('create.tags.title')}")
                fields["tags"] = _picker(t)
            with gr.Accordion(t("create.reference.title"), open=False, elem_id="reference", elem_classes="y-panel"):
                files, wave = _recording(t)
        with gr.Column(scale=5, min_width=320, elem_classes=["y-stack", "y-side"]):
            with gr.Column(elem_classes="y-panel"):
                gr.Markdown(f"## {t('create.plan.title')}")
                fields["title"] = create_fields.component("title", t)
                modes = [(t(f"create.mode.{mode}"), mode) for mode in ("simple", "advanced")]
                mode = gr.Radio(modes, value="simple", label=t("create.mode.label"), elem_id="create-mode")
                advanced = _advanced(fields, t)
                outlook = gr.HTML(
                    create_plan.describe(_blank(), context.root, t),
                    html_template="<div class='y-plan'></div>",
                    js_on_load="window.yuegp.plan(element, props, server, trigger, watch);",
                    apply_default_css=False,
                    elem_id="create-plan",
                    say=t.part("create.plan."),
                )
                make = gr.Button(t("create.make"), variant="primary", elem_id="create-make")
            with gr.Column(elem_classes="y-panel"):
                gr.Markdown(f"## {t('create.running.title')}")
                progress = _progress(context, t)
    parts = Parts(fields, files, wave, gr.State(reference.Lent()))
    mode.change(lambda wanted: gr.Column(visible=wanted == "advanced"), mode, advanced, **PRIVATE)
    _connect_plan(parts, outlook, context, t)
    _connect_starts(starts, parts)
    _connect_models(parts, shell, t)
    _connect_make(make, parts, progress, context, shell, t)
    _connect_copy(parts, context, shell)
    _keep(parts, mode, progress, shell)


# Layout


def _starts(t: Texts) -> dict[gr.Button, tuple[str, str, str, bool]]:
    """Buttons that fill in an example: button → title, words, tags, and whether it is instrumental."""
    with gr.Row(elem_classes="y-starts", elem_id="create-starts"):
        gr.Markdown(t("create.start.title"))
        found = {}
        for song in create_words.examples():
            button = gr.Button(t(f"create.example.{song.name}"), size="sm", elem_id=f"example-{song.name}")
            found[button] = (song.title, song.lyrics, song.tags, song.instrumental)
        for name in create_words.SHAPES:
            button = gr.Button(t(f"create.shape.{name}"), size="sm", elem_id=f"shape-{name}")
            found[button] = ("", create_words.shape(name), "", False)
    return found


def _editor(t: Texts) -> gr.HTML:
    def read_words(data: dict[str, Any]) -> dict[str, Any]:
        return create_words.read(_text(data, "text"), t)

    return gr.HTML(
        "",
        html_template="<div class='y-words'></div>",
        js_on_load="window.yuegp.words(element, props, server, trigger, watch);",
        apply_default_css=False,
        server_functions=[read_words],
        elem_id="create-words",
        say=t.part("create.words."),
        labels=list(lyrics.TRAINED_LABELS),
    )


def _picker(t: Texts) -> gr.HTML:
    def read_tags(data: dict[str, Any]) -> dict[str, Any]:
        return create_tags.read(_text(data, "line"), _text(data, "language"), bool(data.get("instrumental")), t)

    return gr.HTML(
        "",
        html_template="<div class='y-tags'></div>",
        js_on_load="window.yuegp.tags(element, props, server, trigger, watch);",
        apply_default_css=False,
        server_functions=[read_tags],
        elem_id="create-tags",
        say=t.part("create.tags."),
        vocabulary=create_tags.vocabulary(),
    )


def _recording(t: Texts) -> tuple[dict[str, gr.File], gr.HTML]:
    gr.Markdown(t("create.reference.intro"), elem_classes="y-faint")
    files = {}
    for row in (ROLES[:2], ROLES[2:]):
        with gr.Row():
            for role in row:
                label = t(f"create.reference.{role}")
                files[role] = gr.File(label=label, height=135, min_width=140, elem_id=f"reference-{role}")
    wave = gr.HTML(
        reference.render({}, t),
        html_template="<div class='y-reference'></div>",
        js_on_load="window.yuegp.reference(element, props, server, trigger, watch);",
        apply_default_css=False,
        elem_id="reference-wave",
        say=t.part("create.reference."),
    )
    return files, wave


def _advanced(fields: Fields, t: Texts) -> gr.Column:
    with gr.Column(visible=False, elem_id="create-advanced", elem_classes="y-advanced") as group:
        fields["model"] = create_fields.component("model", t, choices=_models(t))
        names = [field.name for field in create_fields.FIELDS if field.group == "advanced"]
        for at in range(0, len(names), 2):
            with gr.Row():
                for name in names[at : at + 2]:
                    fields[name] = create_fields.component(name, t, min_width=140)
    return group


def _models(t: Texts) -> list[tuple[str, str]]:
    return [(t("create.model.automatic"), ""), *create_model.usable()]


def _progress(context: AppContext, t: Texts) -> gr.HTML:
    def running_render(data: dict[str, Any]) -> dict[str, Any]:
        seen: dict[str, Any] = sendable(song_progress.render(context, _text(data, "name"), t))
        return seen

    def stop_song(data: dict[str, Any]) -> None:
        song_progress.stop(context, _text(data, "name"))

    def go_on_song(data: dict[str, Any]) -> None:
        song_progress.go_on(context, _text(data, "name"))

    return gr.HTML(
        "",
        html_template="<div class='y-running'></div>",
        js_on_load="window.yuegp.running(element, props, server, trigger, watch); /* triggers 'open' */",
        apply_default_css=False,
        server_functions=[running_render, stop_song, go_on_song],
        elem_id="create-running",
        say=t.part("create.running."),
    )


# Events


def _connect_plan(parts: Parts, outlook: gr.HTML, context: AppContext, t: Texts) -> None:
    def render_plan(given: dict[Any, Any]) -> dict[str, Any]:
        try:
            return create_plan.describe(parts.read(given), context.root, t)
        except YueGPError as exc:
            return {"error": f"{exc.what} {exc.hint}".strip()}

    triggers = [part.change for part in (*parts.fields.values(), *parts.files.values(), parts.wave)]
    gr.on(triggers, render_plan, parts.inputs, outlook, trigger_mode="always_last", queue=False, **PRIVATE)

    def render_reference(given: dict[Any, Any]) -> dict[str, Any]:
        files = {role: given[file] for role, file in parts.files.items()}
        seen, lent = reference.render(files, t), given[parts.lent]
        return {**seen, "window": lent.window} if lent.window and lent.files == files else seen

    heard = {*parts.files.values(), parts.lent}
    gr.on([file.change for file in parts.files.values()], render_reference, heard, parts.wave, **PRIVATE)
    switch = parts.fields["instrumental"]
    switch.change(lambda on: gr.HTML(instrumental=on), switch, parts.fields["tags"], queue=False, **PRIVATE)


def _connect_starts(starts: Mapping[gr.Button, tuple[str, str, str, bool]], parts: Parts) -> None:
    names = ("title", "words", "tags", "instrumental")

    def begin(values: tuple[str, str, str, bool]) -> Callable[[], list[Any]]:
        title, words, tags, instrumental = values
        return lambda: [title or gr.skip(), words, tags or gr.skip(), instrumental]

    for button, values in starts.items():
        button.click(begin(values), None, [parts.fields[name] for name in names], queue=False, **PRIVATE)


def _connect_models(parts: Parts, shell: Shell, t: Texts) -> None:
    """The list of models is read again whenever a tab is selected: the Set-up page downloads models."""

    def render_models(wished: str | None) -> gr.Dropdown:
        found = _models(t)
        return gr.Dropdown(choices=found, value=wished if wished in dict(found).values() else "")

    model = parts.fields["model"]
    shell.tabs.select(render_models, model, model, queue=False, **PRIVATE)


def _connect_make(
    make: gr.Button, parts: Parts, progress: gr.HTML, context: AppContext, shell: Shell, t: Texts
) -> None:
    def handle_action(given: dict[Any, Any]) -> dict[Any, Any]:
        try:
            name = begin(context, create_plan.asked(parts.read(given), t))
        except YueGPError as exc:
            raise plain(exc) from exc
        return {progress: name, shell.open_song: name}

    make.click(
        handle_action, parts.inputs, [progress, shell.open_song], trigger_mode="once", concurrency_limit=4, **PRIVATE
    )

    def show(event: gr.EventData) -> tuple[gr.Tabs, str]:
        return gr.Tabs(selected="song"), str(event.name)

    progress.open(show, None, [shell.tabs, shell.open_song], **PRIVATE)


def begin(context: AppContext, wanted: create_plan.Asked) -> str:
    """Create the song's folder with its takes and queue them; returns the folder's name. YueGPError before anything is
    written when the song cannot be made."""
    plan = pipeline.plan(wanted.request)
    memory.allow(wanted.request.model, wanted.wishes, machine.describe_machine(), wanted.device)
    check_writable(context.root, plan.disk_bytes * wanted.takes)
    song = store.create(plan.request, context.root, wanted.text or None)
    for number in range(wanted.takes):
        request = replace(song.request, seed=song.request.seed + number)
        context.make(song, song.new_take(TakeInfo(number=0, request=request)), wanted.device, wanted.wishes)
    return song.folder.name


def _connect_copy(parts: Parts, context: AppContext, shell: Shell) -> None:
    """Another page asks to copy a song's settings into the fields, with its reference. The files come from the song's
    own folder; paths in an exported file are ignored."""

    def copy(wish: str) -> dict[Any, Any]:
        if not wish:
            return {shell.copy_from: gr.skip()}
        song, _, take = wish.rpartition("/")
        try:
            if wish.startswith("{"):  # the settings of an exported file, from the Library
                asked, lent = request_from_dict(parse(wish)), reference.Lent()
            else:
                asked = context.take(song, int(take)).info.request
                lent = reference.lend(asked.reference)
            shown = _shown(asked)
        except Fault as exc:
            raise plain(RequestError(f"These settings cannot be used: {exc}.", "Import the file again.")) from exc
        except YueGPError as exc:
            raise plain(exc) from exc
        fields = {parts.fields[name]: value for name, value in shown.items() if name in parts.fields}
        files = {file: lent.files[role] for role, file in parts.files.items()}
        return {**fields, **files, parts.lent: lent, shell.copy_from: ""}

    targets = [*parts.fields.values(), *parts.files.values(), parts.lent, shell.copy_from]
    shell.copy_from.change(copy, shell.copy_from, targets, **PRIVATE)


def _shown(asked: SongRequest) -> dict[str, Any]:
    """Values of the fields for a request."""
    from yuegp.checkpoints import sets

    values = create_fields.values(asked, sets.find(asked.model).sampling if asked.model else asked.sampling)
    return {**values, "words": lyrics.write(asked.sections), "tags": asked.tags}


def _keep(parts: Parts, mode: gr.Radio, progress: gr.HTML, shell: Shell) -> None:
    """The browser keeps the fields and the song being made over a reload, except files."""
    kept = {**parts.fields, "mode": mode}
    components = list(kept.values())
    usual = json.dumps({name: getattr(part, "value", None) for name, part in kept.items()})
    table = f"Object.fromEntries({json.dumps(list(kept))}.map((name, i) => [name, values[i]]))"
    save, load = f"(...values) => window.yuegp.draft.save({table})", f"() => window.yuegp.draft.restore({usual})"
    gr.on([part.change for part in components], None, components, None, js=save, api_visibility="private")
    shell.page.load(None, None, components, js=load, api_visibility="private")
    remember = "(name) => window.yuegp.memory.save('making', name)"
    progress.change(None, progress, None, js=remember, api_visibility="private")
    shell.page.load(None, None, progress, js="() => window.yuegp.memory.load('making')", api_visibility="private")


def _blank() -> dict[str, Any]:
    return {"words": "", "instrumental": False}


def _text(data: Any, key: str) -> str:
    """A text from a browser's message; empty when it is missing or no text."""
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, str) else ""
