"""Chooses which of YuE's published models suit a machine, and in which format they run there.

`models get` and the page fetch what is chosen here, `plan`, the Set-up page and the doctor tell of it, the README's
table is what it answers, and a song takes what lies on the disk in the same order. That order is `offload/plan.py`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from offload.device import Card
from offload.plan import MemoryPlan, MemoryRequest
from offload.planner import NO_LIMITS, within
from offload.sizes import WeightFormat
from offload.units import memory_size
from yuegp.checkpoints import locate, registry, sets
from yuegp.checkpoints.registry import Checkpoint
from yuegp.errors import ModelError, RequestError
from yuegp.lm import ways as offload_ways

from .memory import machine
from .released import RELEASED_SOUND, RELEASED_STAGE1, RELEASED_STAGE2

SECTIONS, SECTION_IDS = 6, 3000
"""The usual song: six sections of half a minute, and the whole context."""

SLOWER = 1.1
"""Ratio of estimated times from which the reason says that another copy would be faster."""

Copies = Mapping[WeightFormat, Checkpoint]
"""Checkpoint for each format in which a model could run."""


@dataclass(frozen=True)
class Choice:
    """Three checkpoints that make a set, and the reason for them."""

    name: str
    """Name of the set."""
    checkpoints: tuple[Checkpoint, ...]
    reason: str
    plan: MemoryPlan | None = None
    """Plan of the usual song with them; None if even the smallest do not fit."""


def usual(ways1: Iterable[WeightFormat], ways2: Iterable[WeightFormat]) -> MemoryRequest:
    """Memory request of the usual song with YuE's released models in one of these formats."""
    return MemoryRequest(
        RELEASED_STAGE1, RELEASED_STAGE2, RELEASED_SOUND, tuple(ways1), tuple(ways2), SECTIONS, SECTION_IDS,
        RELEASED_STAGE1.config.context,
    )  # fmt: skip


def ways(checkpoint: Checkpoint, card: Card | None) -> tuple[WeightFormat, ...]:
    """Formats in which a checkpoint could run, from its registry entry: the files need not exist here."""
    stage, shapes = (1, RELEASED_STAGE1) if checkpoint.role == "stage1" else (2, RELEASED_STAGE2)
    return offload_ways.held(checkpoint.stored, Fraction(checkpoint.bits).limit_denominator(100), stage, card, shapes)


def lacking(card: Card | None) -> str:
    """What the fast engine still needs. Empty for a planned card: installing the program there includes the engine."""
    return "" if card is not None and card.imagined else offload_ways.lacking(card)


def choose(
    language: str, mode: str, card: Card | None = None, exl2: bool | None = None, ram: int | None = None,
    elsewhere: bool = False,
) -> Choice:  # fmt: skip
    """The best checkpoints for lyrics in `language` (en, zh, jp-kr) and `mode` (cot, icl) on `card` (None: this
    machine's) with `ram` bytes of free RAM. `exl2` says whether the fast engine is installed. Prefers an equally good
    copy on this computer to a download; `elsewhere` searches other programs' folders too. Raises RequestError when
    there is no such set."""
    name = f"yue-{language}-{mode}"
    if name not in sets.RELEASED:
        raise RequestError(
            f"There is no YuE model for language {language!r} and mode {mode!r}.",
            f"Languages: {', '.join(registry.LANGUAGES)}. Modes: {', '.join(registry.MODES)}.",
        )
    here = machine() if card is None or ram is None else None
    card = here.card if card is None and here else card
    ram = here.ram_free if ram is None and here else ram or 0
    without = lacking(card)
    fast = card is not None and (not without if exl2 is None else exl2)
    found = _published(fast, ("stage1", language, mode)), _published(fast, ("stage2", "any", "any"))
    firsts, seconds = (_copies(some, card, set()) for some in found)
    codec = registry.sound_model()
    where = f"{card.name} ({memory_size(card.free)} free)" if card else "the processor"
    best = _plan(firsts, seconds, card, ram)
    if best is None:
        smallest = (min(some.values(), key=lambda c: c.about) for some in (firsts, seconds))
        return Choice(name, (*smallest, codec), f"the smallest there are; even they are too large for {where} as it is")
    wanted = (firsts[best.stage1_format], seconds[best.stage2_format])
    held = best
    if there := _on_disk([*found[0], *found[1]], elsewhere and any(not locate.locate(c) for c in wanted)):
        here1, here2 = (_copies([c for c in some if c.id in there], card, there) for some in found)
        firsts, seconds = (_copies(some, card, there) for some in found)
        for some1, some2 in ((here1, here2), (here1, seconds), (firsts, here2)):
            other = _plan(some1, some2, card, ram)
            if other and other.music >= best.music:
                held = other
                break
    chosen = (firsts[held.stage1_format], seconds[held.stage2_format])
    return Choice(name, (*chosen, codec), _reason(where, held, best, wanted, chosen, without if card else ""), held)


def _published(fast: bool, what: tuple[str, str, str]) -> list[Checkpoint]:
    """Published checkpoints of a role, language and mode that this machine's engines can read."""
    every = registry.CHECKPOINTS.values()
    return [c for c in every if (c.role, c.language, c.mode) == what and (fast or c.stored != "exl2")]


def _copies(some: Iterable[Checkpoint], card: Card | None, there: set[str]) -> Copies:
    """Formats in which the checkpoints could run; for each the checkpoint that is on disk, or else the first."""
    found: dict[WeightFormat, Checkpoint] = {}
    for entry in some:
        for way in ways(entry, card):
            if way not in found or (entry.id in there and found[way].id not in there):
                found[way] = entry
    return found


def _plan(firsts: Copies, seconds: Copies, card: Card | None, ram: int) -> MemoryPlan | None:
    """The best plan for the usual song; None when nothing fits."""
    return _planned(tuple(firsts), tuple(seconds), card, ram) if firsts and seconds else None


@functools.lru_cache(256)
def _planned(
    firsts: tuple[WeightFormat, ...], seconds: tuple[WeightFormat, ...], card: Card | None, ram: int
) -> MemoryPlan | None:
    return within(usual(firsts, seconds), card, ram, NO_LIMITS)


def _on_disk(some: Iterable[Checkpoint], elsewhere: bool) -> set[str]:
    """Ids of the checkpoints on this computer, complete as far as headers tell."""
    found = {c.id for c in some if (folder := locate.locate(c)) and _is_it(c, folder)}
    return found | ({item.checkpoint.id for item in locate.search() if item.checkpoint} if elsewhere else set())


def _is_it(checkpoint: Checkpoint, folder: locate.Path) -> bool:
    try:
        said = locate.identify(folder).said
    except ModelError:
        return False
    return all(said.get(key) == getattr(checkpoint, key) for key in ("role", "stored", "bits"))


def _reason(
    where: str, held: MemoryPlan, best: MemoryPlan, wanted: tuple[Checkpoint, ...], chosen: tuple[Checkpoint, ...],
    without: str,
) -> str:  # fmt: skip
    """Reason for the choice, as a sentence without its full stop."""
    reason = f"the best that fits {where} with a whole song in memory"
    if held.resident is not None:
        reason += ", layers waiting in RAM"
    reason += f": Stage 1 as {held.stage1_format}, Stage 2 as {held.stage2_format}"
    if held is not best and chosen != wanted:
        reason += ". They are here already and as good as what would be downloaded"
        if held.seconds > SLOWER * best.seconds:
            others = [c.id for c in wanted if c not in chosen]
            reason += f"; {' and '.join(others)} would be faster"
    elif held.stage1_format.engine == "exl2" and held.stage1_format.bits >= 8:
        reason += ". From 8 bits on no loss is known, and half of the original's bytes are read for every id"
    elif without and held.stage1_format.engine != "exl2":
        reason += f". The fast engine is left out: it needs {without}"
    return reason


# Copies on disk


def find(model: str) -> sets.ModelSet:
    """`sets.find`; of several copies on disk, prefers those chosen when downloaded, else the best for this machine."""
    parts = sets.candidates(model)
    stages = [[c for c in parts.get(role, ()) if locate.locate(c)] for role in ("stage1", "stage2")]
    if max(map(len, stages)) < 2:
        return sets.find(model)
    here = machine()
    fast = not lacking(here.card)
    usable = [[c for c in some if fast or c.stored != "exl2"] for some in stages]
    settled = registry.notes()["sets"].get(model, [])
    for some in ([[c for c in few if c.id in settled] for few in usable], usable):
        firsts, seconds = (_copies(few, here.card, set()) for few in some)
        if held := _plan(firsts, seconds, here.card, here.ram_free):
            return sets.find(model, (firsts[held.stage1_format].id, seconds[held.stage2_format].id))
    return sets.find(model)
