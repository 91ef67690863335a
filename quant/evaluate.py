"""Judges pressed weights against the ones they were pressed from: what they foretell of held-out songs, how much room
they take and how fast they answer.

Both read the same ids, one after the other, as in generation (teacher forcing), through the engines' own seam, so that
every engine and format is measured alike. The original is loaded first and given back before the pressed one comes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yuegp.generation.stage2 import CHUNK, Chunk, chunk_ids, refine
from yuegp.lm import EngineConfig, LMEngine, open_engine
from yuegp.progress import Progress, quiet
from yuegp.tokens.vocab import VocabLayout


@dataclass(frozen=True)
class Predictions:
    """What a model foretold: log probabilities of the ids that can be drawn, (positions, ids) float32, the ids that
    came, (positions,), and the greedy Stage-2 codes of the windows, where it is Stage 2."""

    logs: np.ndarray
    came: np.ndarray
    codes: np.ndarray | None
    weight_bytes: int
    ids_per_second: float


@dataclass(frozen=True)
class Figures:
    """A model against its original. `nats` per id; `divergence` is KL(original ‖ pressed) in nats per id; `agreement`
    the share of ids both think likeliest; `flips` the share of Stage-2 codes that come out differently."""

    nats: float
    rise: float
    divergence: float
    agreement: float
    flips: float | None
    weight_bytes: int
    ids_per_second: float


def compare(original: Predictions, pressed: Predictions) -> Figures:
    """The pressed model's figures."""
    p, q = original.logs.astype(np.float64), pressed.logs.astype(np.float64)
    row = np.arange(len(p))
    nats, before = -q[row, pressed.came].mean(), -p[row, original.came].mean()
    flips = None
    if original.codes is not None and pressed.codes is not None:
        flips = float((original.codes[:, 1:] != pressed.codes[:, 1:]).mean())
    return Figures(
        nats=float(nats),
        rise=float(nats - before),
        divergence=float((np.exp(p) * (p - q)).sum(1).mean()),
        agreement=float((p.argmax(1) == q.argmax(1)).mean()),
        flips=flips,
        weight_bytes=pressed.weight_bytes,
        ids_per_second=pressed.ids_per_second,
    )


def predict(
    folder: Path,
    setup: EngineConfig,
    layout: VocabLayout,
    stage: int,
    held: np.ndarray,
    progress: Progress = quiet,
) -> Predictions:
    """Load a model, let it read the held-out rows of its stage, and give it back."""
    engine = open_engine(folder, setup, progress)
    try:
        return (read_rows if stage == 1 else read_windows)(engine, layout, held, progress)
    finally:
        engine.unload()


@torch.inference_mode()
def read_rows(engine: LMEngine, layout: VocabLayout, rows: np.ndarray, progress: Progress) -> Predictions:
    """Stage 1 reads rows (rows, length): asked wherever an audio id, or the end of audio, comes next."""
    keep = layout.stage1_ids
    place = np.full(engine.vocab_size, -1)
    place[list(keep)] = np.arange(len(keep))
    ids = torch.from_numpy(rows).to(engine.device)
    logs, came = [], []
    began = time.monotonic()
    with engine.open([rows.shape[1]] * len(rows), keep) as session:
        for t in range(rows.shape[1] - 1):
            logits = session.step(ids[:, t])
            comes = place[rows[:, t + 1]]
            asked = np.flatnonzero(comes >= 0)
            if len(asked):
                chosen = logits[torch.from_numpy(asked).to(logits.device)].float()
                logs.append(chosen.log_softmax(-1).cpu().numpy())
                came.append(comes[asked])
            progress("reading", t + 1, rows.shape[1] - 1)
    seconds = time.monotonic() - began
    return Predictions(
        np.concatenate(logs), np.concatenate(came), None, engine.weight_bytes, rows.size / max(seconds, 1e-9)
    )


@torch.inference_mode()
def read_windows(engine: LMEngine, layout: VocabLayout, windows: np.ndarray, progress: Progress) -> Predictions:
    """Stage 2 reads windows (windows, 8, frames), asked for every residual code over its own codebook; then it refines
    them itself."""
    count, books, frames = windows.shape
    size, start = layout.codebook_size, layout.stage2_ids.start
    codes = torch.from_numpy(windows.astype(np.int64)).to(engine.device)
    given = codes[:, 0] + layout.code_start
    one = given.new_ones(count, 1)
    logs, came = [], []
    began = time.monotonic()
    with engine.open([chunk_ids(frames)] * count, layout.stage2_ids) as session:
        head = torch.cat([one * layout.soa, one * layout.stage_1, given, one * layout.stage_2, given[:, :1]], 1)
        for t in range(frames):
            for book in range(1, books):
                select = slice(size * (book - 1), size * book)
                if book > 1:
                    fed = codes[:, book - 1, t] + start + size * (book - 2)
                else:
                    last = codes[:, -1, t - 1] + start + size * (books - 2)
                    fed = head if t == 0 else torch.stack([last, given[:, t]], 1)
                logs.append(session.step(fed, select).float().log_softmax(-1).cpu().numpy())
                came.append(windows[:, book, t].astype(np.int64))
            progress("reading", t + 1, frames)
    seconds = time.monotonic() - began
    total = count * (books - 1) * frames
    return Predictions(
        np.concatenate(logs),
        np.concatenate(came),
        _refined(engine, layout, windows, progress),
        engine.weight_bytes,
        total / max(seconds, 1e-9),
    )


def _refined(engine: LMEngine, layout: VocabLayout, windows: np.ndarray, progress: Progress) -> np.ndarray:
    """The windows as the engine refines them from codebook 0, (windows, 8, frames)."""
    count, _, frames = windows.shape
    if frames > CHUNK:
        raise ValueError(f"windows have {frames} frames, Stage 2 works on {CHUNK}")
    line = np.stack([windows[:, 0].reshape(-1)] * 2)
    plan = [Chunk(0, frames * n, frames) for n in range(count)]
    (done,) = refine(engine, layout, line, plan, count, progress)
    return np.stack([chunk.codes for chunk in done])


def table(rows: dict[str, Figures]) -> str:
    """The figures of several models, the original first, as a table."""
    lines = ["| weights | MB | ids/s | nats/id | rise | divergence | same first choice | Stage-2 codes that flip |"]
    lines.append("| --- |" + " ---: |" * 7)
    for name, f in rows.items():
        flips = "" if f.flips is None else f"{100 * f.flips:.2f} %"
        lines.append(
            f"| {name} | {f.weight_bytes / 1e6:,.1f} | {f.ids_per_second:,.0f} | {f.nats:.4f} | {f.rise:+.4f} "
            f"| {f.divergence:.5f} | {100 * f.agreement:.2f} % | {flips} |"
        )
    return "\n".join(lines)
