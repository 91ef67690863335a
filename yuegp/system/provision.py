"""Provides the models a machine needs: finds them on disk or downloads them, and checks them.

The command line and the page both use this module. `generation/choice` decides what suits a machine, `download` gets
the files, `verify` and `codec.check_codec` check them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from yuegp import files, paths
from yuegp.checkpoints import download, locate, registry, sets, strangers
from yuegp.checkpoints.config import read_config
from yuegp.checkpoints.download import Plan
from yuegp.checkpoints.hub import NotOffered
from yuegp.checkpoints.registry import Checkpoint
from yuegp.checkpoints.verify import check_tensors, exl2_bits
from yuegp.codec import check_codec
from yuegp.codec.convert import NotWritten, convert, is_converted
from yuegp.errors import LibraryError, ModelError, RequestError
from yuegp.generation.choice import Choice as Choice
from yuegp.generation.choice import choose as choose
from yuegp.progress import quiet
from yuegp.tokens.vocab import YUE_V1

from . import removal

StepProgress = Callable[[str, str, int, int], None]
"""progress(action, checkpoint or file, done, total) in bytes; raising `Cancelled` stops the work."""

# Getting


@dataclass(frozen=True)
class Instead:
    """A checkpoint that the hub does not have, and its replacement, on the hub or on disk."""

    asked: Checkpoint
    taken: Checkpoint
    why: str
    """The reason, a sentence."""

    def __str__(self) -> str:
        return f"{self.why} {self.taken.id} is taken in the place of {self.asked.id}."


@dataclass(frozen=True)
class DownloadPlan:
    """The steps to provide some checkpoints, before anything is done."""

    here: tuple[tuple[Checkpoint, Path], ...]
    """Checkpoints on this computer, and their folders."""
    plans: tuple[Plan, ...]
    """Downloads."""
    free: int
    """Free bytes where models are kept."""
    instead: tuple[Instead, ...] = ()
    """Replacements for checkpoints that the hub does not have."""
    passed: tuple[locate.Passed, ...] = ()
    """Other programs' folders that seem to hold some of the checkpoints, and why they cannot be used."""

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return sum(plan.missing for plan in self.plans)


def order(checkpoints: Sequence[Checkpoint], newest: bool = False) -> DownloadPlan:
    """Plan how to provide checkpoints: search this computer and other programs' folders, then ask the hub about the
    rest, or about the next best where it does not have one. With `newest`, ask the hub about all, at the newest
    revision.

    Raises ModelError when the hub does not answer, and for damaged folders of the user's. Changes nothing on disk
    except our notes of where other programs keep models."""
    elsewhere: list[locate.Found] | None = None
    passed = list[locate.Passed]()
    here, plans, instead = list[tuple[Checkpoint, Path]](), list[Plan](), list[Instead]()
    for checkpoint in checkpoints:
        some = _alike(checkpoint, chosen=len(checkpoints) > 1)
        found = None if newest else _whole((c, folder) for c in some if (folder := locate.locate(c)))
        if not found and not newest and not locate.unfinished(checkpoint):
            if elsewhere is None:
                elsewhere, passed = locate.survey()
            if found := _whole((c, item.folder) for c in some for item in elsewhere if item.checkpoint == c):
                registry.remember({found[0].id: str(found[1])})
        if not found:
            got, why = _offered(checkpoint, newest)
            plans += [got] if isinstance(got, Plan) else []
            found = None if isinstance(got, Plan) else got
            if why:
                instead.append(Instead(checkpoint, got.checkpoint if isinstance(got, Plan) else got[0], why))
        if found:
            here.append(found)
    if any(c.role == "stage1" for c in checkpoints) and not sets.tokenizer_of(folder for _, folder in here):
        names = {file.name for plan in plans for file in plan.files}
        if not any(name.endswith("tokenizer.model") for name in names):
            got, _ = _offered(registry.TOKENIZER, newest)  # the same file in every repository
            plans += [got] if isinstance(got, Plan) else []
    return DownloadPlan(
        tuple(here), tuple(plans), download.free_bytes(paths.models_dir()), tuple(instead), tuple(passed)
    )


def _offered(checkpoint: Checkpoint, newest: bool) -> tuple[Plan | tuple[Checkpoint, Path], str]:
    """How to get a checkpoint, or its best replacement on the hub or disk and the reason. Raises NotOffered when there
    is none."""
    asked = newest or None
    try:
        return download.plan(checkpoint, asked), ""
    except NotOffered as exc:
        for other in registry.relatives(checkpoint):
            if found := _whole((c, folder) for c in [other] if (folder := locate.locate(c))):
                return found, exc.what
            with contextlib.suppress(NotOffered):
                return download.plan(other, asked), exc.what
        raise


def _alike(checkpoint: Checkpoint, chosen: bool) -> list[Checkpoint]:
    """A checkpoint and others with the same weights: the sound model exists with and without pickles. A user who names
    the copy without them, instead of having it `chosen`, gets that one."""
    others = {"codec": "codec-safetensors"} | ({"codec-safetensors": "codec"} if chosen else {})
    return [checkpoint, *(registry.CHECKPOINTS[other] for own, other in others.items() if own == checkpoint.id)]


def _whole(some: Iterable[tuple[Checkpoint, Path]]) -> tuple[Checkpoint, Path] | None:
    """The first usable one. Raises ModelError for a damaged folder of the user's that the hub does not have."""
    return next(((checkpoint, folder) for checkpoint, folder in some if _is_whole(checkpoint, folder)), None)


def _is_whole(checkpoint: Checkpoint, folder: Path) -> bool:
    """Whether a folder passes `examine`. Raises its ModelError if the checkpoint has no repository to download from."""
    try:
        examine(checkpoint, folder)
    except ModelError:
        if checkpoint.repo:
            return False
        raise
    return True


def execute(order: DownloadPlan, progress: StepProgress | None = None) -> list[Path]:
    """Download what is missing, convert the sound model, and check the result. Returns all folders, including those
    that existed. May be called again after any failure."""
    if order.plans:
        download.check_space(list(order.plans))
    folders = [folder for _, folder in order.here]
    for checkpoint, folder in order.here:
        if checkpoint.role == "codec":
            _convert(folder, progress)
    for plan in order.plans:
        report = (lambda what, done, total: progress("download", what, done, total)) if progress else None
        folder = download.fetch(plan, report)
        registry.remember({plan.checkpoint.id: None})  # forget another program's folder that was noted before
        if plan.checkpoint.role == "codec":
            _convert(folder, progress, again=True)
        examine(plan.checkpoint, folder)
        folders.append(folder)
    return folders


def _convert(folder: Path, progress: StepProgress | None, again: bool = False) -> None:
    """Write missing safetensors of the sound model beside its pickles, if the folder is ours; with `again`, those that
    no longer fit too. Ignores a full disk: the pickles remain readable."""
    if locate.is_ours(folder) and (again or not is_converted(folder)):
        with download.locked(folder), contextlib.suppress(NotWritten):
            convert(folder, (lambda what, done, total: progress("convert", what, done, total)) if progress else None)


def remember_choice(choice: Choice, order: DownloadPlan) -> None:
    """Save that a set's name now stands for these checkpoints or their replacements."""
    taken = {one.asked.id: one.taken.id for one in order.instead}
    registry.remember(sets={choice.name: [taken.get(c.id, c.id) for c in choice.checkpoints]})


# Judging


def examine(checkpoint: Checkpoint, folder: Path, progress: StepProgress | None = None) -> None:
    """Raise ModelError unless a folder holds its checkpoint. With `progress`, reads everything: checksums against the
    pin's, and every weight for NaN. Without it, reads headers, and the weights of the sound model (0.9 GB) because that
    loads last: a song must not fail there."""
    checksums = (lambda what, done, total: progress("checksums", what, done, total)) if progress else None
    scan = (lambda what, done, total: progress("weights", what, done, total)) if progress else None
    if progress:
        download.check_pin(checkpoint, folder, checksums)
    if checkpoint.role == "tokenizer":
        return
    if checkpoint.role == "codec":
        check_codec(folder, encode=True, scan=scan or quiet)
        sets.scan_sound(folder, scan or quiet)
        return
    stage = 1 if checkpoint.role == "stage1" else 2
    config = read_config(folder)
    sets.check_vocabulary(
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
    """Delete our downloaded and converted files of a checkpoint, and forget its folder. Returns the bytes freed.

    Keeps files that the pin does not name or that were changed since; other programs' folders are only forgotten.
    Raises ModelError when another process holds the folder, or the pin cannot be read."""
    folder = locate.own_folder(checkpoint)
    pin = locate.read_pin(checkpoint)
    if pin is None or not locate.is_ours(folder) or not folder.is_dir():
        registry.forget(checkpoint.id)
        return 0
    freed = 0
    with download.locked(folder):
        gone = removal.ours(checkpoint, pin)
        for path in gone:
            size = 0 if path.is_symlink() else path.stat().st_size
            files.remove(path)
            freed += size
        inside = {parent for path in gone for parent in path.parents if folder in parent.parents}
        for place in sorted(inside, reverse=True):
            with contextlib.suppress(OSError, LibraryError):  # the folder has other contents
                files.patiently(place.rmdir, place, "removed")
    with contextlib.suppress(OSError, LibraryError):  # another process waiting for the lock keeps the empty folder
        files.patiently(folder.rmdir, folder, "removed")
    registry.forget(checkpoint.id)
    return freed


# Adding


def add_folder(
    folder: Path, name: str | None = None, said: dict[str, str] | None = None
) -> list[tuple[Checkpoint, Path]]:
    """Register the models in `folder` or below it, where they are. `said` gives language and mode that their names
    lack; `name` names a new checkpoint. Raises RequestError when nothing is found or something is missing."""
    strangers.refuse_unwritable(folder)
    alone = (folder / "config.json").is_file() or (folder / "final_ckpt").is_dir()
    found, passed = ([locate.identify(folder)], []) if alone else locate.survey([folder])
    if not found:
        raise RequestError(
            " ".join([f"No YuE model was found in {folder}, nor in the folders below it.", *(p.why for p in passed)]),
            "Name the folder that holds config.json and the .safetensors files, or final_ckpt for the sound model.",
        )
    if name and len(found) > 1:
        raise RequestError(f"{len(found)} models are in {folder}; one name is not enough.", "Add them one by one.")
    added = []
    for item in found:
        checkpoint = item.checkpoint if not (name or said) else None
        checkpoint = checkpoint or registry.own(str(item.folder), name, item.said | (said or {}))
        examine(checkpoint, item.folder)
        if checkpoint.role == "codec":
            _convert(item.folder, None)
        if checkpoint.id in registry.CHECKPOINTS:
            registry.remember({checkpoint.id: str(item.folder)})
        else:
            registry.add(checkpoint)
        added.append((checkpoint, item.folder))
    return added
