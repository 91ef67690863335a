"""Stage 2: codebooks 1 to 7 from codebook 0, in chunks of six seconds.

    soa stage_1 c_0 … c_(n-1) stage_2        then per frame: c_t is given, r_1 … r_7 are the best of their codebook

Chunks are independent of each other, so chunks of both tracks and of the whole song go through the weights together:
the number of passes depends on the length of a chunk, not of the song. Each frame takes seven passes: the last code
of a frame and the given first code of the next one are fed together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from yuegp.lm import LMEngine, LMSession
from yuegp.progress import Progress, quiet
from yuegp.tokens.vocab import STAGE2_CHUNK, VocabLayout

CHUNK = STAGE2_CHUNK


@dataclass(frozen=True)
class Chunk:
    """A chunk: `frames` frames of one track from `start` on."""

    track: int
    start: int
    frames: int


@dataclass(frozen=True)
class ChunkCodes:
    """A finished chunk: all codebooks, (8, frames) int16."""

    chunk: Chunk
    codes: np.ndarray


def chunks(refined: np.ndarray) -> list[Chunk]:
    """The chunks that cover the frames not marked in `refined` (2, frames) bool, sorted by length, longest first. For a
    song without refined frames these are the released program's chunks: full ones, then the tails."""
    plan = []
    for track, mask in enumerate(refined):
        edges = np.flatnonzero(np.diff(np.concatenate([[True], mask, [True]]).astype(int)))
        for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            plan += [Chunk(track, start, min(CHUNK, stop - start)) for start in range(first, stop, CHUNK)]
    return sorted(plan, key=lambda chunk: -chunk.frames)


def chunk_ids(frames: int) -> int:
    """Positions of one chunk in the KV cache: prefix, then all but the last residual."""
    return frames + 3 + 8 * frames - 1


def batches(plan: Sequence[Chunk], rows: int) -> Iterator[list[Chunk]]:
    """Groups of at most `rows` chunks of equal length, in order."""
    batch: list[Chunk] = []
    for chunk in plan:
        if batch and (len(batch) == rows or batch[0].frames != chunk.frames):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def refine(
    engine: LMEngine,
    layout: VocabLayout,
    codes: np.ndarray,
    plan: Sequence[Chunk],
    rows: int,
    progress: Progress = quiet,
) -> Iterator[list[ChunkCodes]]:
    """Generate all codebooks of the chunks in `plan` from codebook-0 `codes` (2, frames), `rows` chunks at a time.

    Yields each finished batch at once, for the caller to save. To resume, pass the missing chunks."""
    total = sum(chunk.frames for chunk in plan)
    done = 0
    capacities: list[int] = []
    with contextlib.ExitStack() as opened:
        for batch in batches(plan, rows):
            given = np.stack([codes[c.track, c.start : c.start + c.frames] for c in batch])
            wanted = [chunk_ids(batch[0].frames)] * len(batch)
            if wanted != capacities:
                opened.close()  # free the old caches before allocating new ones
                lm, capacities = opened.enter_context(engine.open(wanted, layout.stage2_ids)), wanted
            else:  # the same caches again: a card keeps the steps it has recorded for them
                for row in range(len(batch)):
                    lm.truncate(row, 0)

            def report(frame: int, before: int = done, width: int = len(batch)) -> None:
                progress("refining", before + frame * width, total)

            refined = _refine_batch(engine, lm, layout, given, report)
            done += given.size
            yield [ChunkCodes(chunk, row) for chunk, row in zip(batch, refined, strict=True)]


@torch.inference_mode()
def _refine_batch(
    engine: LMEngine, lm: LMSession, layout: VocabLayout, given: np.ndarray, report: Callable[[int], None]
) -> np.ndarray:
    """Refine one batch: codebook-0 codes (rows, frames) to all codes (rows, 8, frames) int16."""
    rows, frames = given.shape
    size, residuals = layout.codebook_size, layout.codebooks - 1
    drawable = [slice(size * k, size * (k + 1)) for k in range(residuals)]
    start = layout.stage2_ids.start
    firsts = torch.from_numpy(given.astype(np.int64)) + layout.code_start
    firsts = firsts.to(engine.device)
    one = firsts.new_ones(rows, 1)
    prefix = torch.cat([one * layout.soa, one * layout.stage_1, firsts, one * layout.stage_2, firsts[:, :1]], 1)
    out = firsts.new_empty(frames, residuals, rows)
    logits = lm.step(prefix, drawable[0])
    for t in range(frames):
        for k in range(residuals):
            best = logits.argmax(-1)
            out[t, k] = best
            ids = best + (start + size * k)
            if k + 1 < residuals:
                logits = lm.step(ids, drawable[k + 1])
            elif t + 1 < frames:
                logits = lm.step(torch.stack([ids, firsts[:, t + 1]], 1), drawable[0])
        report(t + 1)
    refined = out.permute(2, 1, 0).cpu().numpy().astype(np.int16)
    return np.concatenate([given[:, None].astype(np.int16), refined], axis=1)
