"""The Set-up page: this machine, the models on disk and those to download, the doctor's findings, and the language of
the page. One element, drawn by `assets/setup.js`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from offload.units import memory_size
from ui import machine, settings
from ui.context import AppContext
from ui.shell import Shell
from ui.texts import LANGUAGES, Texts
from yuegp import __version__, paths
from yuegp.checkpoints import locate, registry, sets
from yuegp.errors import ModelError, YueGPError
from yuegp.generation import choice
from yuegp.system import doctor
from yuegp.units import file_size

from .create import plan


def build(context: AppContext, shell: Shell, t: Texts) -> None:
    """Build the page into the present tab."""

    def setup_render(asked: Any) -> dict[str, Any]:
        return render(context, t)

    def setup_check(asked: Any) -> dict[str, Any]:
        return {"findings": findings(t)}

    def setup_download(asked: Any) -> dict[str, Any]:
        return download(context, t)

    def setup_action(asked: Any) -> dict[str, Any]:
        return handle_action(context, asked, t)

    gr.HTML(
        "",
        elem_id="setup",
        html_template="<div class='y-setup'></div>",
        js_on_load="window.yuegp.setup(element, props, server, trigger, watch);",
        apply_default_css=False,
        server_functions=[setup_render, setup_check, setup_download, setup_action],
        say=t.part("setup."),
        languages=[["", t("setup.language.browser")], *map(list, LANGUAGES.items())],
    )


def render(context: AppContext, t: Texts) -> dict[str, Any]:
    """What the script shows, except the doctor's findings, which take some seconds."""
    return {
        "machine": [{"name": name, "text": text} for name, text in machine_rows(t)],
        "profile": profile(t),
        "models": model_rows(t),
        "download": download(context, t),
        "folders": [
            {"name": t("setup.songs"), "text": str(context.root)},
            {"name": t("setup.models_folder"), "text": str(paths.models_dir().absolute())},
            {"name": t("setup.home"), "text": str(paths.home().absolute())},
            {"name": t("setup.free"), "text": file_size(machine.disk_free(context.root))},
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
        (
            t("setup.card"),
            t("setup.card.text", name=card.name, total=memory_size(card.total), free=memory_size(card.free)),
        )
        for card in here.cards
    ] or [(t("setup.card"), t("setup.card.none"))]
    rows.append(
        (t("setup.memory"), t("setup.memory.text", total=memory_size(here.ram_total), free=memory_size(here.ram_free)))
    )
    rows.append((t("setup.where"), t("setup.where.card" if here.card else "setup.where.cpu")))
    return rows


def profile(t: Texts) -> dict[str, Any] | None:
    """Which copies of YuE's English models a download would choose for this machine's card, how they share its memory,
    and why; None without a card. The models need not be on disk."""
    try:
        here = machine.describe_machine()
        if here.card is None:
            return None
        found = choice.choose("en", "cot", here.card, ram=here.ram_free)
    except YueGPError as exc:
        return {"text": exc.what, "reasons": [exc.hint]}
    why = t("setup.profile.choice", models=" + ".join(c.id for c in found.checkpoints[:2]), reason=found.reason)
    held = found.plan
    if held is None:
        return {"text": why, "reasons": []}
    facts = {
        "stage1": held.stage1_format,
        "stage2": held.stage2_format,
        "peak": memory_size(held.peak),
        "budget": memory_size(held.budget),
    }
    return {"text": t("setup.profile.text", **facts), "reasons": [why, *held.reasons]}


# Models


def model_rows(t: Texts) -> list[dict[str, Any]]:
    """Every named model set: what it is for, whether it is on disk, its size, and how to download it."""
    return [_model_row(name, t) for name in sets.names()]


def _model_row(name: str, t: Texts) -> dict[str, Any]:
    try:
        found = choice.find(name)
    except ModelError as exc:
        lacking = _missing(name)
        if not lacking:
            return {"name": name, "title": title(name, t), "here": False, "text": exc.what, "get": exc.hint}
        needed = t("setup.model.missing", size=file_size(sum(lacking)))
        row = {"name": name, "title": title(name, t), "here": False, "text": needed, "get": f"models get {name}"}
        return {**row, "can": name in sets.RELEASED}
    taken = sum(_bytes_in(folder) for folder in {found.stage1, found.stage2, found.codec})
    note = t("setup.model.demo") if name in sets.EMBEDDED else ""
    text = t("setup.model.here", size=file_size(taken))
    return {"name": name, "title": title(name, t), "here": True, "text": text, "note": note, "get": ""}


def title(name: str, t: Texts) -> str:
    """What a set is for, in the language of the page; its name for a set that the user added."""
    if name in sets.RELEASED:
        language, mode = sets.RELEASED[name]
        return t("setup.model.title", language=t(f"setup.model.{language}"), mode=t(f"setup.model.{mode}"))
    return t("setup.model.demo_title") if name in sets.EMBEDDED else name


def _missing(name: str) -> list[int]:
    """Approximate bytes of each part of a set that is not on disk and would be downloaded."""
    if name not in sets.RELEASED:
        parts = sets.candidates(name).values()
        return [some[0].about for some in parts if not any(locate.locate(checkpoint) for checkpoint in some)]
    here = machine.describe_machine()
    wanted = choice.choose(*sets.RELEASED[name], here.card, ram=here.ram_free).checkpoints
    sound = any(locate.locate(c) for c in registry.CHECKPOINTS.values() if c.role == "codec")
    return [c.about for c in wanted if not (sound if c.role == "codec" else locate.locate(c))]


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder and its subfolders."""
    return sum(os.stat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def download(context: AppContext, t: Texts) -> dict[str, Any]:
    """The download as the script shows it: `state` as in `downloader.Getting`, `text`, and `share` from 0 to 1."""
    now = context.downloader.look()
    text = now.message
    if now.state in ("asking", "stopped", "done"):
        text = t(f"setup.get.{now.state}")
    elif now.state == "offered":
        parts = ", ".join(now.parts)
        text = t("setup.get.offered", missing=file_size(now.missing), free=file_size(now.free), parts=parts)
        text = " ".join([*now.notes, text])
    elif now.state == "getting":
        known = {"what": now.what, "done": file_size(now.done), "total": file_size(now.total)}
        text = t("setup.get.asking")
        if now.doing and now.rate and now.left is not None:
            text = t(f"setup.get.{now.doing}_pace", rate=file_size(now.rate), left=plan.span(now.left, t), **known)
        elif now.doing:
            text = t(f"setup.get.{now.doing}", **known)
    share = now.done / now.total if now.state == "getting" and now.total else 0.0
    return {"name": now.name, "state": now.state, "text": text, "share": round(share, 3), "error": ""}


# The doctor


def findings(t: Texts) -> list[dict[str, str]]:
    """The doctor's findings, worst first. Takes some seconds, because another process imports torch."""
    try:
        found = doctor.examine()
    except YueGPError as exc:
        return [{"state": doctor.FAIL, "said": t("setup.fail"), "what": exc.what, "hint": exc.hint}]
    order = (doctor.FAIL, doctor.WARN, doctor.OK)
    return [
        {"state": one.state, "said": t(f"setup.{one.state}"), "what": one.what, "hint": one.hint}
        for one in sorted(found, key=lambda one: order.index(one.state))
        if one.name != "page"  # this page holds the port
    ]


# Actions


def handle_action(context: AppContext, asked: Any, t: Texts) -> dict[str, Any]:
    """Do what the user clicked: `do` is `ask` (what downloading the model `name` means), `go` (download it), `stop`, or
    `language` (keep `value` for the next time the page loads). Returns `download` with an `error`, empty if none."""
    asked = asked if isinstance(asked, dict) else {}
    wish, name, language, error = asked.get("do"), asked.get("name"), asked.get("value"), ""
    try:
        if wish == "ask" and isinstance(name, str):
            context.downloader.ask(name)
        elif wish == "go" and isinstance(name, str):
            context.downloader.go(name)
        elif wish == "stop":
            context.downloader.stop()
        elif wish == "language" and language in ("", *LANGUAGES):
            settings.save(replace(settings.load(), language=str(language)))
        else:
            error = t("setup.unknown")
    except YueGPError as exc:
        error = f"{exc.what} {exc.hint}".strip()
    return {**download(context, t), "error": error}
