"""Rows of ids from finished songs: what weights are calibrated and judged on.

Stage 1 reads a song as the program feeds it, prompts and section borders included; Stage 2 reads windows of six
seconds. Rows are rectangles of ids, as the converters want them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from yuegp.errors import RequestError
from yuegp.files import write_atomic
from yuegp.generation.plan import plan_for
from yuegp.generation.stage2 import CHUNK
from yuegp.library.store import Take
from yuegp.tokens.prompts import build
from yuegp.tokens.tokenizer import open_tokenizer
from yuegp.tokens.vocab import VocabLayout, interleave

LENGTH = 2048
"""Ids of a row: what ExLlamaV2's converter uses by default."""


@dataclass(frozen=True)
class Sequences:
    """What a take gives: the ids of the song as Stage 1 reads it, and refined windows (8, 300) of both tracks."""

    song: list[int]
    windows: list[np.ndarray]


def of_take(take: Take) -> Sequences:
    """The sequences of a finished take. A reference is left out: its codes are not kept."""
    plan = plan_for(take)
    tokenizer = open_tokenizer(plan.models.tokenizer_kind, plan.models.tokenizer_path, plan.models.layout)
    layout, codes = plan.models.layout, take.load_stage1()[:, 0]
    prompts = build(tokenizer, layout, plan.tags, plan.sections)
    audio = [interleave(layout, codes[:, span.start : span.stop]) for span in take.info.spans]
    last = len(audio) - 1
    song = [*prompts.context(last, audio, range(last)), *audio[last], layout.eoa] if audio else []
    refined, mask = take.load_stage2()
    windows = [
        refined[track, :, start : start + CHUNK]
        for track in (0, 1)
        for start in range(0, refined.shape[2] - CHUNK + 1, CHUNK)
        if mask[track, start : start + CHUNK].all()
    ]
    return Sequences(song, windows)


def window_ids(layout: VocabLayout, codes: np.ndarray) -> list[int]:
    """Codes of all codebooks (8, frames) as Stage 2 reads them."""
    frames = codes.astype(np.int64) + layout.code_start + layout.codebook_size * np.arange(len(codes))[:, None]
    return [layout.soa, layout.stage_1, *frames[0].tolist(), layout.stage_2, *frames.T.reshape(-1).tolist()]


def cut(sequences: Iterable[Sequence[int]], length: int, rng: np.random.Generator, most: int) -> np.ndarray:
    """At most `most` rows (rows, length) of sequences laid end to end, in random order. The first cut falls anywhere
    in the first row, so that borders between sequences stand everywhere in the rows."""
    ids = np.array([id_ for sequence in sequences for id_ in sequence], np.int64)
    count = len(ids) // length
    if not count:
        raise RequestError(
            f"The songs give {len(ids):,} ids, fewer than one row of {length:,}.", "Make more songs to calibrate with."
        )
    start = int(rng.integers(len(ids) - count * length + 1))
    rows = ids[start : start + count * length].reshape(count, length)
    return rows[rng.permutation(count)[:most]]


def save(path: Path, values: np.ndarray, **about: str) -> None:
    """Rows (rows, length), or windows (windows, 8, frames), with a note of what they were made of. Written over is only
    what this function wrote: RequestError for another file of that name."""
    if os.path.lexists(path) and "layout" not in _about(path):
        raise RequestError(f"{path} is there and holds no rows of ids.", "Choose another folder with --rows.")
    write_atomic(path, safetensors.numpy.save({"input_ids": np.ascontiguousarray(values)}, metadata=about))


def load(path: Path, layout: VocabLayout) -> np.ndarray:
    """What `save` wrote. RequestError when the file is absent, damaged or of another vocabulary."""
    again = "Run `yuegp quant calibrate` first."
    if not path.is_file():
        raise RequestError(f"There are no rows to read: {path} does not exist.", again)
    try:
        with safe_open(path, "np") as file:
            about, values = file.metadata() or {}, file.get_tensor("input_ids")
    except (SafetensorError, OSError, TypeError, ValueError) as exc:
        raise RequestError(f"{path} does not hold rows of ids: {exc}.", again) from exc
    if about.get("layout") != layout.name:
        raise RequestError(
            f"{path} was made for the vocabulary {about.get('layout')!r}, the model has {layout.name!r}.", again
        )
    highest = layout.codebook_size if values.ndim == 3 else max(layout.smallest_vocabulary.values())
    if values.dtype.kind not in "iu" or values.ndim not in (2, 3) or not values.size:
        raise RequestError(f"{path} holds {values.dtype} of shape {values.shape}, not rows of ids.", again)
    if not 0 <= values.min() <= values.max() < highest:
        raise RequestError(f"{path} holds the ids {values.min()} to {values.max()}; they end at {highest - 1}.", again)
    return values


def _about(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {}) if "input_ids" in file.keys() else {}  # noqa: SIM118
    except (SafetensorError, OSError):
        return {}
