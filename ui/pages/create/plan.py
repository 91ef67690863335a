"""What is going to happen, in words, before anybody clicks: and what stands in its way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.plan import MemoryPlan
from offload.units import memory_size
from ui import machine
from ui.texts import Texts
from yuegp.cli.make import INSTRUMENTAL_SECTIONS
from yuegp.errors import RequestError, YueGPError
from yuegp.generation import memory, pipeline
from yuegp.generation import plan as planning
from yuegp.generation.options import AUTO, ModelOptions
from yuegp.song import lyrics, tags
from yuegp.song.schema import Reference, Section, SongRequest
from yuegp.units import file_size

from . import fields, model
from .words import SECTION_SECONDS

LONGEST_TITLE = 60
"""Characters of the first line that an untitled song is named by."""


@dataclass(frozen=True)
class Asked:
    """What the page holds, made into a request: with the choice of the model and what reading the words had to say."""

    request: SongRequest
    choice: model.Choice
    notes: tuple[str, ...]
    text: str
    takes: int
    device: str
    wishes: ModelOptions


def asked(values: Mapping[str, Any], t: Texts) -> Asked:
    """The request that the page's values, by field name, add up to. Besides the fields of `form.FIELDS` there are
    `words` and `tags` (text) and `reference` (a Reference or None). YueGPError says what cannot be used."""
    text, notes = values["words"] or "", tuple[str, ...]()
    sections: tuple[Section, ...]
    if text.strip():
        parsed = lyrics.parse(text)
        sections, notes = parsed.sections, tuple(map(str, parsed.notes))
    elif values["instrumental"]:
        sections = INSTRUMENTAL_SECTIONS
    else:
        raise RequestError(t("create.plan.no_words"), t("create.plan.no_words_hint"))
    reference: Reference | None = values["reference"]
    choice = model.choose(values["model"] or "", lyrics.language(sections), reference is not None, t)
    request = fields.request(
        values,
        choice.model.sampling,
        sections=sections,
        tags=values["tags"] or "",
        model=choice.model.id,
        reference=reference,
        title=(values["title"] or "").strip() or _name(sections, t),
    )
    wishes = ModelOptions(*(values[name] or AUTO for name in ("engine", "weights", "kv")))
    return Asked(request, choice, notes, text, int(values["takes"] or 1), values["device"] or "auto", wishes)


def _name(sections: tuple[Section, ...], t: Texts) -> str:
    """A title for a song that was given none: how its first line begins."""
    line = next((line.strip() for section in sections for line in section.words.splitlines() if line.strip()), "")
    if len(line) > LONGEST_TITLE:
        line = line[:LONGEST_TITLE].rsplit(" ", 1)[0] + "…"
    return line or t("create.untitled")


def describe(values: Mapping[str, Any], root: Path, t: Texts) -> dict[str, Any]:
    """`rows`: name and text of each fact; `warnings`: sentences; `details`: how the memory is used and why; `error`:
    what is in the way, or empty. Loads no model. Notes on words and tags stand beside those, not here."""
    if not (values["words"] or "").strip() and not values["instrumental"]:
        return {"rows": [], "warnings": [], "error": "", "empty": t("create.plan.empty")}
    try:
        wanted = asked(values, t)
        plan = pipeline.plan(wanted.request)
        held = memory.foresee(plan, machine.describe_machine(), wanted.device, wanted.wishes)
    except YueGPError as exc:
        return {"rows": [], "warnings": [], "error": f"{exc.what} {exc.hint}".strip(), "empty": ""}
    rows = [
        ("model", wanted.choice.reason),
        ("length", _length(plan, wanted.takes, t)),
        ("time", _time(plan, root, wanted, t)),
        ("memory", _memory(held, t)),
        (
            "held",
            t(
                "create.plan.held_text",
                stage1=held.stage1_format,
                stage2=held.stage2_format,
                engine=held.stage1_format.engine,
            ),
        ),
        ("disk", _disk(plan.disk_bytes * wanted.takes, root, t)),
    ]
    return {
        "rows": [{"name": t(f"create.plan.{name}"), "text": text} for name, text in rows],
        "warnings": [note for note in plan.notes if not _shown_elsewhere(note, wanted)],
        "details": list(held.reasons),
        "error": "",
        "empty": "",
    }


def _shown_elsewhere(note: str, wanted: Asked) -> bool:
    """Notes on words and tags stand beside the words and the tags already."""
    sections, line = wanted.request.sections, wanted.request.tags
    words = map(str, lyrics.advise(lyrics.Lyrics(sections), SECTION_SECONDS))
    style = tags.advise(line, lyrics.language(sections), wanted.request.instrumental)
    return note in {*words, *style}


def _length(plan: planning.SongPlan, takes: int, t: Texts) -> str:
    key = "create.plan.up_to_one" if plan.count == 1 else "create.plan.up_to"
    text = t(key, sections=plan.count, seconds=span(plan.seconds, t))
    return text if takes == 1 else t("create.plan.versions", takes=takes, text=text)


def _time(plan: planning.SongPlan, root: Path, wanted: Asked, t: Texts) -> str:
    seconds = machine.seconds_needed(plan, root, wanted.device)
    if seconds is None:
        return t("create.plan.unknown")
    return t("create.plan.about", time=span(seconds * wanted.takes, t))


def _memory(held: MemoryPlan, t: Texts) -> str:
    found, needs = machine.describe_machine(), memory_size(held.peak)
    if held.device != "cpu" and (card := found.card):
        return t(
            "create.plan.card", card=card.name, total=memory_size(card.total), free=memory_size(card.free), needs=needs
        )
    return t("create.plan.no_card", free=memory_size(found.ram_free), needs=needs)


def _disk(needed: int, root: Path, t: Texts) -> str:
    free = machine.disk_free(root)
    text = t("create.plan.disk_text", needed=file_size(needed), free=file_size(free))
    return text if free > needed else t("create.plan.disk_full", text=text)


def span(seconds: float, t: Texts) -> str:
    """A time in words."""
    if seconds < 90:
        return t("create.seconds", n=round(seconds))
    if seconds < 5400:
        return t("create.minutes", n=round(seconds / 60))
    return t("create.hours", n=f"{seconds / 3600:.1f}")
