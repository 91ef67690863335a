"""The plan beside the form: what making the song will take, in words, or what prevents it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.plan import MemoryPlan
from offload.units import memory_size
from ui import machine
from ui.pages.wording import note_in_words
from ui.texts import Texts
from yuegp.errors import RequestError, YueGPError
from yuegp.generation import memory, pipeline
from yuegp.generation.options import AUTO, ModelOptions
from yuegp.generation.plan import SongPlan
from yuegp.song import lyrics, tags
from yuegp.song.notes import Note
from yuegp.song.schema import Reference, Section, SongRequest
from yuegp.units import file_size

from . import fields, model
from .words import SECTION_SECONDS

LONGEST_TITLE = 60
"""Most characters of the first line that become the title of an untitled song."""


@dataclass(frozen=True)
class Asked:
    """The page's values as a request, with the chosen model and the notes of the lyrics parser."""

    request: SongRequest
    choice: model.Choice
    notes: tuple[Note, ...]
    text: str
    takes: int
    device: str
    wishes: ModelOptions


def asked(values: Mapping[str, Any], t: Texts) -> Asked:
    """Make a request of the page's values by field name: those of `fields.FIELDS`, `words` and `tags` (text), and
    `reference` (a Reference or None). YueGPError says what cannot be used."""
    text, notes = values["words"] or "", tuple[Note, ...]()
    sections: tuple[Section, ...]
    if text.strip():
        parsed = lyrics.parse(text)
        sections, notes = parsed.sections, parsed.notes
    elif values["instrumental"]:
        sections = lyrics.INSTRUMENTAL_SECTIONS
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
    """The title of an untitled song: the beginning of its first line."""
    line = next((line.strip() for section in sections for line in section.words.splitlines() if line.strip()), "")
    if len(line) > LONGEST_TITLE:
        line = line[:LONGEST_TITLE].rsplit(" ", 1)[0] + "…"
    return line or t("create.untitled")


def describe(values: Mapping[str, Any], root: Path, t: Texts) -> dict[str, Any]:
    """`rows`: name and text of each fact; `warnings`: sentences; `details`: how the memory is used and why; `error`:
    what prevents the song, or empty. Notes on lyrics and tags stand beside their editors. Loads no model."""
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
        "warnings": [note_in_words(note, t) for note in plan.notes if not _shown_elsewhere(note, wanted)],
        "details": list(held.reasons),
        "error": "",
        "empty": "",
    }


def _shown_elsewhere(note: Note, wanted: Asked) -> bool:
    """Notes on words and tags stand beside the words and the tags already."""
    sections, line = wanted.request.sections, wanted.request.tags
    words = lyrics.advise(lyrics.Lyrics(sections), SECTION_SECONDS)
    style = tags.advise(line, lyrics.language(sections), wanted.request.instrumental)
    return note in (*words, *style)


def _length(plan: SongPlan, takes: int, t: Texts) -> str:
    key = "create.plan.up_to" if takes == 1 else "create.plan.versions"
    key = f"{key}_one" if plan.count == 1 else key
    return t(key, takes=takes, sections=plan.count, seconds=span(plan.seconds, t))


def _time(plan: SongPlan, root: Path, wanted: Asked, t: Texts) -> str:
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
    key = "create.plan.disk_text" if free > needed else "create.plan.disk_full"
    return t(key, needed=file_size(needed), free=file_size(free))


def span(seconds: float, t: Texts) -> str:
    """A duration in words."""
    if seconds < 90:
        return t("create.seconds", n=round(seconds))
    if seconds < 5400:
        return t("create.minutes", n=round(seconds / 60))
    return t("create.hours", n=f"{seconds / 3600:.1f}")
