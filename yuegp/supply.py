"""What this machine needs to sing, and getting it: chosen for the card, found on disk or downloaded, and judged.

For the command line and the web page alike; neither knows more than this module tells. Bytes come through `download`,
memory is judged by `offload.plan`, files by `verify` and `codec.check_codec`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from offload.device import Card, machine
from offload.plan import DoesNotFit, Need
from offload.plan import plan as plan_memory
from offload.sizes import RELEASED_SOUND, RELEASED_STAGE1, RELEASED_STAGE2, Way

from . import download, models, places, registry, removal, transfer
from .checkpoint import read_config
from .codec import check_codec
from .codec.convert import convert
from .download import Plan
from .errors import ModelError, RequestError
from .registry import Checkpoint
from .verify import check_tensors, exl2_bits
from .vocab import YUE_V1

Progress = Callable[[str, str, int, int], None]
"""progress(what is done, checkpoint or file, done, total) in bytes; raising `Cancelled` stops it."""

SECTIONS, SECTION_IDS = 8, 3000
"""A song to choose for: eight sections of half a minute, and the whole context."""


# Choosing


@dataclass(frozen=True)
class Choice:
    """Three checkpoints that make a set, and why these."""

    name: str
    """The set they are for."""
    checkpoints: tuple[Checkpoint, ...]
    reason: str


def choose(language: str, mode: str, card: Card | None = None, exl2: bool | None = None) -> Choice:
    """The best checkpoints for lyrics in `language` (en, zh, jp-kr) and `mode` (cot, icl) on `card`, or on this
    machine's. `exl2` says whether the fast engine is there. RequestError when there is no such set."""
    name = f"yue-{language}-{mode}"
    if name not in models.RELEASED:
        raise RequestError(
            f"There is no YuE model for language {language!r} and mode {mode!r}.",
            f"Languages: {', '.join(registry.LANGUAGES)}. Modes: {', '.join(registry.MODES)}.",
        )
    here = machine()
    card = card or here.card
    exl2 = bool(card) and (importlib.util.find_spec("exllamav2") is not None if exl2 is None else exl2)
    firsts, seconds = _ways("stage1", exl2, language, mode), _ways("stage2", exl2)
    codec = registry.CHECKPOINTS["codec"]
    where = f"{card.name} ({card.free / 2**30:.1f} GB free)" if card else "the processor"
    for only in ("bfloat16", ""):  # an original that fits as it is: nothing was lost in it, and it can still be pressed
        ways1, ways2 = (tuple(w for w in some if only in w.weights) for some in (firsts, seconds))
        context = RELEASED_STAGE1.config.context
        need = Need(
            RELEASED_STAGE1, RELEASED_STAGE2, RELEASED_SOUND, ways1, ways2, SECTIONS, SECTION_IDS, context
        )  # fmt: skip
        with contextlib.suppress(DoesNotFit):
            best = plan_memory(need, card, here.ram_free)
            if only and best.resident is not None:
                continue
            reason = f"the best that fits {where} with a whole song in memory"
            if best.resident is not None:
                reason += ", layers waiting in RAM"
            return Choice(name, (firsts[best.way1], seconds[best.way2], codec), reason)
    smallest = (min(some.values(), key=lambda c: c.about) for some in (firsts, seconds))
    return Choice(name, (*smallest, codec), f"the smallest there are; even they are too large for {where} as it is")


def _ways(role: str, exl2: bool, language: str = "any", mode: str = "any") -> dict[Way, Checkpoint]:
    """The ways in which the published checkpoints of a role would be held; of those held alike one that is here, or
    the first."""
    found: dict[Way, Checkpoint] = {}
    for entry in registry.CHECKPOINTS.values():
        if (entry.role, entry.language, entry.mode) != (role, language, mode) or (entry.stored == "exl2" and not exl2):
            continue
        engine = "exl2" if entry.stored == "exl2" else "torch"
        way = Way(engine, entry.stored, Fraction(entry.bits).limit_denominator(100))
        if way not in found or (places.locate(entry) and not places.locate(found[way])):
            found[way] = entry
    return found


# Getting


@dataclass(frozen=True)
class Order:
    """What getting some checkpoints means, before anything is done."""

    here: tuple[tuple[Checkpoint, Path], ...]
    """Already on this computer, and where."""
    plans: tuple[Plan, ...]
    """To be downloaded."""
    free: int
    """Free bytes where models are kept."""

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return sum(plan.missing for plan in self.plans)


def order(checkpoints: Sequence[Checkpoint]) -> Order:
    """Look for checkpoints here and in other programs' folders, and ask the hub about the rest. ModelError when it
    does not answer, and for those that are here but not as they should be. Changes nothing on disk but our notes of
    where other programs keep what was found."""
    elsewhere: dict[str, Path] | None = None
    here, plans = list[tuple[Checkpoint, Path]](), list[Plan]()
    for checkpoint in checkpoints:
        some = _alike(checkpoint)
        found = _whole((c, folder) for c in some if (folder := places.locate(c)))
        if not found and not places.unfinished(checkpoint):
            if elsewhere is None:
                elsewhere = {item.checkpoint.id: item.folder for item in places.search() if item.checkpoint}
            if found := _whole((c, elsewhere[c.id]) for c in some if c.id in elsewhere):
                registry.remember({found[0].id: str(found[1])})
        if found:
            here.append(found)
        else:
            plans.append(download.plan(checkpoint))
    if any(c.role == "stage1" for c in checkpoints) and not models.tokenizer_of(folder for _, folder in here):
        names = {file.name for plan in plans for file in plan.files}
        if not any(name.endswith("tokenizer.model") for name in names):
            plans.append(download.plan(registry.TOKENIZER))
    return Order(tuple(here), tuple(plans), download.free_bytes(registry.models_dir()))


def _alike(checkpoint: Checkpoint) -> list[Checkpoint]:
    """A checkpoint, and others that hold the same numbers: the sound model's copy without pickles."""
    return [checkpoint, *([registry.CHECKPOINTS["codec-safetensors"]] if checkpoint.id == "codec" else [])]


def _whole(some: Iterable[tuple[Checkpoint, Path]]) -> tuple[Checkpoint, Path] | None:
    """The first that may be used. ModelError for a damaged folder of the user's that cannot be got from the hub."""
    return next(((checkpoint, folder) for checkpoint, folder in some if _is_whole(checkpoint, folder)), None)


def _is_whole(checkpoint: Checkpoint, folder: Path) -> bool:
    """Whether a folder may be used; a damaged one of ours is mended by downloading, another program's is not ours to
    mend."""
    try:
        examine(checkpoint, folder)
    except ModelError:
        if checkpoint.repo:
            return False
        raise
    return True


def carry_out(order: Order, progress: Progress | None = None) -> list[Path]:
    """Download what is missing, convert what has to be, and judge the result. The folders, those that were here
    included. May be called again after any failure."""
    if order.plans:
        download.check_space(list(order.plans))
    folders = [folder for _, folder in order.here]
    for plan in order.plans:
        report = (lambda what, done, total: progress("download", what, done, total)) if progress else None
        folder = download.fetch(plan, report)
        registry.remember({plan.checkpoint.id: None})  # a folder of another program's that was noted before
        if plan.checkpoint.role == "codec":
            _convert(folder, progress)
        examine(plan.checkpoint, folder)
        folders.append(folder)
    return folders


def _convert(folder: Path, progress: Progress | None) -> None:
    convert(folder, (lambda what, done, total: progress("convert", what, done, total)) if progress else None)


def settle(choice: Choice) -> None:
    """Note that a set's name stands for these checkpoints from now on."""
    registry.remember(sets={choice.name: [checkpoint.id for checkpoint in choice.checkpoints]})


# Judging


def examine(checkpoint: Checkpoint, folder: Path, progress: Progress | None = None) -> None:
    """Refuse, with a ModelError, a folder that does not hold what it should. With `progress` everything is read:
    checksums against those of the download, and every weight for NaN; without it headers only."""
    checksums = (lambda what, done, total: progress("checksums", what, done, total)) if progress else None
    scan = (lambda what, done, total: progress("weights", what, done, total)) if progress else None
    if progress:
        download.check_pin(checkpoint, folder, checksums)
    if checkpoint.role == "tokenizer":
        return
    if checkpoint.role == "codec":
        check_codec(folder, encode=True)
        models.scan_sound(folder, scan)
        return
    stage = 1 if checkpoint.role == "stage1" else 2
    config = read_config(folder)
    models.check_vocabulary(
        stage, folder, config, YUE_V1, (registry.VOCABULARIES["stage1"], registry.VOCABULARIES["stage2"])
    )
    stored = check_tensors(folder, config, scan)
    if stored != checkpoint.stored and {stored, checkpoint.stored} - {"bfloat16", "float16", "float32"}:
        raise ModelError(
            f"{folder} holds {stored} weights, not {checkpoint.stored} as {checkpoint.id} should.",
            "The folder holds another copy of the model: add it under its own name, or get this one again.",
        )
    if (bits := exl2_bits(folder)) and bits != checkpoint.bits:
        raise ModelError(
            f"{folder} holds the revision with {bits:g} bits, not the one with {checkpoint.bits:g} as {checkpoint.id} "
            "should.",
            f"Switch the clone to the branch {checkpoint.revision or 'main'}, or remove it and get this one again.",
        )


# Removing


def remove(checkpoint: Checkpoint) -> int:
    """Delete what we downloaded of a checkpoint, or made of it, and forget where it lies; the bytes freed. Files that
    our record of the download does not name, or that were changed since, stay; other programs' folders are only
    forgotten. ModelError when another process is at work on it, or the record cannot be read."""
    folder = places.own_folder(checkpoint)
    pin = places.read_pin(checkpoint)
    if pin is None or not places.is_ours(folder) or not folder.is_dir():
        registry.forget(checkpoint.id)
        return 0
    freed = 0
    with download.locked(folder):
        gone = removal.ours(checkpoint, pin)
        for path in gone:
            size = 0 if path.is_symlink() else path.stat().st_size
            with transfer.writing(path):
                path.unlink()
            freed += size
        inside = {parent for path in gone for parent in path.parents if folder in parent.parents}
        for place in sorted(inside, reverse=True):
            with contextlib.suppress(OSError):  # something else is in it
                place.rmdir()
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    registry.forget(checkpoint.id)
    return freed


# Adding


def add_folder(
    folder: Path, name: str | None = None, said: dict[str, str] | None = None
) -> list[tuple[Checkpoint, Path]]:
    """Use the models in `folder`, or in folders below it, from where they are. `said` gives language and mode where
    their names do not; `name` is a new checkpoint's. RequestError when nothing is found or something is not told."""
    alone = (folder / "config.json").is_file() or (folder / "final_ckpt").is_dir()
    found = [places.identify(folder)] if alone else places.search([folder])
    if not found:
        raise RequestError(
            f"No YuE model was found in {folder}, nor in the folders below it.",
            "Name the folder that holds config.json and the .safetensors files, or final_ckpt for the sound model.",
        )
    if name and len(found) > 1:
        raise RequestError(f"{len(found)} models are in {folder}; one name is not enough.", "Add them one by one.")
    added = []
    for item in found:
        checkpoint = item.checkpoint if not (name or said) else None
        checkpoint = checkpoint or registry.own(str(item.folder), name, item.said | (said or {}))
        examine(checkpoint, item.folder)
        if checkpoint.id in registry.CHECKPOINTS:
            registry.remember({checkpoint.id: str(item.folder)})
        else:
            registry.add(checkpoint)
        added.append((checkpoint, item.folder))
    return added
