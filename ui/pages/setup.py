"""The Set-up page: what this machine is, which models are here and which are not, what the doctor says, and the few
choices that belong to the program and not to a song. One element, drawn by `assets/setup.js`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ui import machine, settings
from ui.context import AppContext
from ui.shell import Shell
from ui.texts import LANGUAGES, Texts
from yuegp import __version__, paths
from yuegp.checkpoints import locate, registry, sets
from yuegp.errors import ModelError, YueGPError
from yuegp.generation import choice
from yuegp.system import doctor

from .create import plan


def build(desk: AppContext, shell: Shell, t: Texts) -> None:
    """Put the page into the tab that is being built."""

    def setup_look(asked: Any) -> dict[str, Any]:
        return render(desk, t)

    def setup_check(asked: Any) -> dict[str, Any]:
        return {"findings": findings(t)}

    def setup_language(asked: Any) -> dict[str, Any]:
        return choose(asked, t)

    def setup_getting(asked: Any) -> dict[str, Any]:
        return getting(desk, t)

    def setup_get(asked: Any) -> dict[str, Any]:
        return get(desk, asked, t)

    gr.HTML(
        "",
        elem_id="setup",
        html_template="<div class='y-setup'></div>",
        js_on_load="window.yuegp.setup(element, props, server, trigger, watch);",
        apply_default_css=False,
        server_functions=[setup_look, setup_check, setup_language, setup_getting, setup_get],
        say=t.part("setup."),
        languages=[["", t("setup.language.browser")], *map(list, LANGUAGES.items())],
    )


def render(desk: AppContext, t: Texts) -> dict[str, Any]:
    """What the script shows, but for the doctor's findings, which take some seconds."""
    return {
        "machine": [{"name": name, "text": text} for name, text in machine_rows(t)],
        "profile": profile(t),
        "models": model_rows(t),
        "getting": getting(desk, t),
        "folders": [
            {"name": t("setup.songs"), "text": str(desk.root)},
            {"name": t("setup.models_folder"), "text": str(paths.models_dir().absolute())},
            {"name": t("setup.home"), "text": str(paths.home().absolute())},
            {"name": t("setup.free"), "text": size(machine.disk_free(desk.root))},
        ],
        "language": settings.load().language,
        "version": t("setup.version", version=__version__),
    }


# The machine


def machine_rows(t: Texts) -> list[tuple[str, str]]:
    """Card and memory, by name."""
    try:
        here = machine.describe_machine()
    except YueGPError as exc:
        return [(t("setup.card"), f"{exc.what} {exc.hint}".strip())]
    rows = [
        (t("setup.card"), t("setup.card.text", name=card.name, total=size(card.total), free=size(card.free)))
        for card in here.cards
    ] or [(t("setup.card"), t("setup.card.none"))]
    rows.append((t("setup.memory"), t("setup.memory.text", total=size(here.ram_total), free=size(here.ram_free))))
    rows.append((t("setup.where"), t("setup.where.card" if here.card else "setup.where.cpu")))
    return rows


def profile(t: Texts) -> dict[str, Any] | None:
    """How YuE's English models would be held on this machine's card for a usual song, and why; None without a card.
    What is told is what getting them fetches: they need not be here."""
    try:
        here = machine.describe_machine()
        if here.card is None:
            return None
        found = choice.choose("en", "cot", here.card, ram=here.ram_free)
    except YueGPError as exc:
        return {"text": exc.what, "reasons": [exc.hint]}
    why = f"{found.reason[0].upper()}{found.reason[1:]}."
    held = found.plan
    if held is None:
        return {"text": why, "reasons": []}
    facts = {
        "stage1": held.stage1_format,
        "stage2": held.stage2_format,
        "peak": size(held.peak),
        "budget": size(held.budget),
    }
    return {"text": t("setup.profile.text", **facts), "reasons": [why, *held.reasons]}


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


# Models


def model_rows(t: Texts) -> list[dict[str, Any]]:
    """Every model set that has a name: what it is for, whether it is here, how much it takes, and how to get it."""
    return [_model_row(name, t) for name in sets.names()]


def _model_row(name: str, t: Texts) -> dict[str, Any]:
    try:
        found = choice.find(name)
    except ModelError as exc:
        lacking = _missing(name)
        if not lacking:
            return {"name": name, "title": title(name, t), "here": False, "text": exc.what, "get": exc.hint}
        needed = t("setup.model.missing", size=size(sum(lacking)))
        row = {"name": name, "title": title(name, t), "here": False, "text": needed, "get": f"models get {name}"}
        return {**row, "can": name in sets.RELEASED}
    taken = sum(_bytes_in(folder) for folder in {found.stage1, found.stage2, found.codec})
    note = t("setup.model.demo") if name in sets.EMBEDDED else ""
    text = t("setup.model.here", size=size(taken))
    return {"name": name, "title": title(name, t), "here": True, "text": text, "note": note, "get": ""}


def title(name: str, t: Texts) -> str:
    """What a set is for, in the page's language where we know it."""
    if name in sets.RELEASED:
        language, mode = sets.RELEASED[name]
        return t("setup.model.title", language=t(f"setup.model.{language}"), mode=t(f"setup.model.{mode}"))
    return t("setup.model.demo_title") if name in sets.EMBEDDED else name


def _missing(name: str) -> list[int]:
    """Bytes of each part of a set that getting it would download, about; of a user's own model, of what it lacks."""
    if name not in sets.RELEASED:
        parts = sets.candidates(name).values()
        return [some[0].about for some in parts if not any(locate.locate(checkpoint) for checkpoint in some)]
    here = machine.describe_machine()
    wanted = choice.choose(*sets.RELEASED[name], here.card, ram=here.ram_free).checkpoints
    sound = any(locate.locate(c) for c in registry.CHECKPOINTS.values() if c.role == "codec")
    return [c.about for c in wanted if not (sound if c.role == "codec" else locate.locate(c))]


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder and below."""
    return sum(os.stat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def getting(desk: AppContext, t: Texts) -> dict[str, Any]:
    """How far getting a model is, in words: `state` as in `getter.Getting`, `text`, and `share` from 0 to 1."""
    now = desk.getter.look()
    text = now.message
    if now.state in ("asking", "stopped", "done"):
        text = t(f"setup.get.{now.state}")
    elif now.state == "offered":
        parts = ", ".join(now.parts)
        text = t("setup.get.offered", missing=size(now.missing), free=size(now.free), parts=parts)
        text = " ".join([*now.notes, text])
    elif now.state == "getting":
        known = {"what": now.what, "done": size(now.done), "total": size(now.total)}
        text = t(f"setup.get.{now.doing}", **known) if now.doing else t("setup.get.asking")
        if now.rate and now.left is not None:
            text = t("setup.get.pace", text=text, rate=size(now.rate), left=plan.span(now.left, t))
    share = now.done / now.total if now.state == "getting" and now.total else 0.0
    return {"name": now.name, "state": now.state, "text": text, "share": round(share, 3), "error": ""}


def get(desk: AppContext, asked: Any, t: Texts) -> dict[str, Any]:
    """What was clicked: `do` is `ask` (what getting the model `name` means), `go` (get it) or `stop`. Answers how far
    it is then."""
    asked = asked if isinstance(asked, dict) else {}
    wish, name, error = asked.get("do"), asked.get("name"), ""
    try:
        if wish == "ask" and isinstance(name, str):
            desk.getter.ask(name)
        elif wish == "go" and isinstance(name, str):
            desk.getter.go(name)
        elif wish == "stop":
            desk.getter.stop()
        else:
            error = t("setup.unknown")
    except YueGPError as exc:
        error = f"{exc.what} {exc.hint}".strip()
    return {**getting(desk, t), "error": error}


# The doctor


def findings(t: Texts) -> list[dict[str, str]]:
    """What the doctor says, worst first. Takes some seconds: another process imports torch."""
    try:
        found = doctor.examine()
    except YueGPError as exc:
        return [{"state": doctor.FAIL, "said": t("setup.fail"), "what": exc.what, "hint": exc.hint}]
    order = (doctor.FAIL, doctor.WARN, doctor.OK)
    return [
        {"state": one.state, "said": t(f"setup.{one.state}"), "what": one.what, "hint": one.hint}
        for one in sorted(found, key=lambda one: order.index(one.state))
        if one.name != "page"  # the port is taken: by us
    ]


# Choices


def choose(asked: Any, t: Texts) -> dict[str, str]:
    """Keep the language of the page. It holds from the next time the page is loaded."""
    language = asked.get("language") if isinstance(asked, dict) else None
    if language not in ("", *LANGUAGES):
        return {"error": t("setup.unknown")}
    try:
        settings.save(replace(settings.load(), language=str(language)))
    except YueGPError as exc:
        return {"error": f"{exc.what} {exc.hint}".strip()}
    return {"error": ""}
