"""Collects rows of real audio-token sequences: from the user's own songs, or from songs sampled by recipe.

FOLDER/stage1.safetensors        rows (n, 2048) for converting Stage 1
FOLDER/stage2.safetensors        the same for Stage 2
FOLDER/held-stage1.safetensors   rows for judging Stage 1
FOLDER/held-stage2.safetensors   windows of codes (n, 8, 300) for judging Stage 2
FOLDER/songs/                    songs made by recipe: kept, so that a broken-off run goes on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yuegp import paths
from yuegp.checkpoints.sets import ModelSet
from yuegp.errors import RequestError, YueGPError
from yuegp.generation import pipeline
from yuegp.generation.plan import ProgressCallback, plan_for
from yuegp.library import catalog, store
from yuegp.library.store import Take
from yuegp.song.schema import Stage, TakeInfo

from . import calibration_songs, rows

ROWS = {1: 100, 2: 100}
"""Rows for converting, by stage."""

HELD_ROWS = 16
"""Rows for judging."""


@dataclass(frozen=True)
class Collected:
    """How many songs and rows a folder of calibration rows holds, and songs that could not be used, with reasons."""

    songs: int
    rows: dict[str, int]
    skipped: tuple[str, ...]


def folder_of(model: ModelSet) -> Path:
    """Where a set's calibration rows lie unless another folder is named."""
    return paths.home() / "calibration" / Path(model.id).name


def sample(
    model: ModelSet,
    folder: Path,
    songs: int,
    seed: int,
    device: str = "auto",
    watch: ProgressCallback = lambda event: None,
) -> Iterator[Take]:
    """The first `songs` songs of the recipe, made where they are not made yet. Each is yielded when it is done."""
    root = folder / "songs"
    root.mkdir(parents=True, exist_ok=True)
    made = {entry.title: entry.folder for entry in catalog.entries(root) if not entry.broken}
    for number in range(songs):
        plan = pipeline.plan(calibration_songs.request(model, number, seed))
        known = made.get(calibration_songs.title(number, seed))
        song = store.open_song(known) if known else store.create(plan.request, root)
        numbers = song.take_numbers()
        take = song.take(numbers[-1]) if numbers else song.new_take(TakeInfo(number=0, request=song.request))
        if take.info.stage is not Stage.RENDERED:
            pipeline.run(plan_for(take), take, watch, device)
        yield take


def own_songs(root: Path) -> Iterator[Take]:
    """The finished takes of the user's songs: of each the one that is played."""
    for entry in catalog.entries(root):
        if not entry.broken and entry.stage in (Stage.STAGE2, Stage.RENDERED):
            yield store.open_song(entry.folder).chosen()


def collect(
    model: ModelSet, takes: Iterable[Take], folder: Path, source: str, seed: int = calibration_songs.SEED
) -> Collected:
    """Write the rows of `takes` that speak the model's vocabulary. Every fifth song is kept back for judging."""
    from yuegp.checkpoints.sets import find

    known, skipped = [], []
    for take in takes:
        name = take.folder.parent.parent.name
        try:
            if find(take.info.request.model).layout != model.layout:
                skipped.append(f"{name}: made with {take.info.request.model}, another vocabulary")
                continue
            known.append(rows.of_take(take))
        except YueGPError as exc:
            skipped.append(f"{name}: {exc.what}")
    if len(known) < 2:
        raise RequestError(
            f"Calibration needs two finished songs of the vocabulary {model.layout.name}; here are {len(known)}.",
            "Make songs with this model first, or leave --own-songs away to have some sampled.",
        )
    kept_back = set(range(calibration_songs.HELD_OUT - 1, len(known), calibration_songs.HELD_OUT)) or {len(known) - 1}
    held = [s for index, s in enumerate(known) if index in kept_back]
    used = [s for index, s in enumerate(known) if index not in kept_back]
    rng = np.random.default_rng(seed)
    about = {"layout": model.layout.name, "model": model.id, "source": source, "seed": str(seed)}
    windows = [window for s in held for window in s.windows][:HELD_ROWS]
    stage2_used = [rows.window_ids(model.layout, window) for s in used for window in s.windows]
    if not windows or not stage2_used:
        raise RequestError(
            "The songs hold no refined window of six seconds, so there is nothing for Stage 2 to read.",
            "Use longer songs.",
        )
    parts = {
        "stage1": rows.cut([s.song for s in used], rows.LENGTH, rng, ROWS[1]),
        "stage2": rows.cut(stage2_used, rows.LENGTH, rng, ROWS[2]),
        "held-stage1": rows.cut([s.song for s in held], rows.LENGTH, rng, HELD_ROWS),
        "held-stage2": np.stack(windows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in parts.items():
        rows.save(folder / f"{name}.safetensors", values, **about)
    return Collected(len(known), {name: len(values) for name, values in parts.items()}, tuple(skipped))
