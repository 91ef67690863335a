"""Training of the demo set's two language models: their tasks and losses.

Both are plain Llamas of the released architecture (`network.py`). Stage 1 reads the prompts that
`yuegp.tokens.prompts` builds and learns the codes that follow; four helps, all gone from the exported model, make it
listen to its lyrics within minutes instead of days:

- *guided attention*: one head of one layer is asked to look, just before each sung syllable, at that syllable's piece
  in the section's text;
- *auxiliary heads* predict, at every code, the syllable to come, the sixteenth of the bar, and the bars left; one
  predicts, from the input of the guided layer, the bar and eighth in which a code sounds or a piece of text is sung;
- *mistakes*: later, some codes and syllables are replaced by wrong ones, so that it learns to continue in time;
- *weights*: the first frames of a section (which genre?) and of a syllable (which vowel?) count more than the rest,
  which is easy, and so does the end.

Lessons grow longer during training (`lessons.py`); `trainer.py` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yuegp.checkpoints.config import LlamaConfig
from yuegp.tokens.vocab import VocabLayout

from . import songs
from .lessons import BARS, LEFT, NAMES, Curriculum, Lesson, Song, Teacher
from .network import Llama, Watched
from .trainer import Plan, Say, Trainer

# Stage 1


def collate(arrays: Sequence[np.ndarray], fill: int, device: str) -> Tensor:
    """Rows of a batch, padded on the right, (rows, n)."""
    n = max(map(len, arrays))
    return torch.from_numpy(np.stack([np.pad(a, (0, n - len(a)), constant_values=fill) for a in arrays])).to(device)


class Stage1(nn.Module):
    """The model with the auxiliary heads that are dropped after training."""

    def __init__(self, config: LlamaConfig, guided_layer: int = -2) -> None:
        super().__init__()
        self.llama = Llama(config)
        self.namer = nn.Linear(config.hidden, NAMES + 1)
        self.clock = nn.Linear(config.hidden, 16)
        self.left = nn.Linear(config.hidden, LEFT + 1)
        self.where = nn.Linear(config.hidden, BARS + songs.SLOTS)
        self.guided_layer = guided_layer % config.layers

    def losses(self, lessons: Sequence[Lesson], read: Sequence[np.ndarray], device: str) -> dict[str, Tensor]:
        """`codes` (weighted mean) and `HELPS` of lessons whose ids are read as `read`."""
        ids = collate([lesson.ids for lesson in lessons], 0, device)
        weights = collate([lesson.weights for lesson in lessons], 0, device)[:, 1:]
        names = collate([lesson.names for lesson in lessons], -1, device)[:, :-1]
        clock = collate([lesson.clock for lesson in lessons], -1, device)[:, :-1]
        left = collate([lesson.left for lesson in lessons], -1, device)[:, :-1]
        grid = collate([lesson.grid for lesson in lessons], -1, device)[:, :-1]
        asked, named, timed, counted = weights > 0, names >= 0, clock >= 0, left >= 0
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            places = collate([lesson.places for lesson in lessons], 0, device)[:, :-1]
            hidden, watched = self.llama(collate(read, 0, device)[:, :-1], self.guided_layer, places)
            entering = F.rms_norm(watched.entering, watched.entering.shape[-1:])
            logits = hidden[asked] @ self.llama.head.T
            guesses, times, counts = self.namer(hidden[named]), self.clock(hidden[timed]), self.left(hidden[counted])
        nll = F.cross_entropy(logits.float(), ids[:, 1:][asked], reduction="none")
        zero = nll.new_zeros(())
        return {
            "codes": (nll * weights[asked]).sum() / weights.sum(),
            "look": self._look(watched, [lesson.looks for lesson in lessons]),
            "name": F.cross_entropy(guesses.float(), names[named]) if named.any() else zero,
            "clock": F.cross_entropy(times.float(), clock[timed]),
            "left": F.cross_entropy(counts.float(), left[counted]) if counted.any() else zero,
            "where": sum((self._where(entering, grid, which) for which in (timed, ~timed)), zero),
        }

    def _where(self, entering: Tensor, grid: Tensor, which: Tensor) -> Tensor:
        """Loss in nats for bar and eighth, over the entries of `grid` (rows, n) that are not -1."""
        asked = which & (grid >= 0)
        if not asked.any():
            return entering.new_zeros((), dtype=torch.float32)
        bars, eighths = self.where(entering[asked].float()).split([BARS, songs.SLOTS], -1)
        wanted = grid[asked]
        return F.cross_entropy(bars, wanted // songs.SLOTS) + F.cross_entropy(eighths, wanted % songs.SLOTS)

    def _look(self, watched: Watched, looks: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
        """Mean negative log attention of the guided head to its target syllables, by row."""
        _, queries, keys = watched
        total = queries.new_zeros((), dtype=torch.float32)
        for row in (row for row, asked in enumerate(looks) if asked):
            at, to = torch.tensor(looks[row], device=queries.device).T
            scores = (queries[row, at] @ keys[row].T).float() / math.sqrt(queries.shape[-1])
            future = torch.arange(keys.shape[1], device=queries.device) > at[:, None]
            total = total + F.cross_entropy(scores.masked_fill(future, -torch.inf), to, reduction="sum")
        return total / max(1, sum(map(len, looks)))


HELPS = ("look", "name", "clock", "left", "where")
"""Losses beside the codes', and the plan's weights for them."""


def train_stage1(
    config: LlamaConfig,
    curriculum: Curriculum,
    plan: Plan,
    file: Path,
    device: str,
    say: Say,
    heldout: Sequence[Song] = (),
    begin: Mapping[str, Tensor] | None = None,
) -> tuple[Stage1, Trainer]:
    """Train Stage 1, from the weights `begin` or from random ones, or resume the run in `file`. `heldout` songs are
    only evaluated."""
    torch.manual_seed(plan.seed)
    model = Stage1(config)
    if begin:
        model.load_state_dict(begin)
    trainer = Trainer(model, plan, file, device, say)

    def batches(rng: np.random.Generator, progress: float) -> Iterator[tuple[Tensor, int, dict[str, float]]]:
        noise = curriculum.noise(progress)
        drawn = curriculum.batches(rng, progress, plan.batch, trainer.crew)
        read = [[lesson.disturbed(rng, noise) for lesson in lessons] for lessons in drawn]
        for lessons, ids in trainer.share(list(zip(drawn, read, strict=True))):
            losses = model.losses(lessons, ids, device)
            loss = losses["codes"] + sum(getattr(plan, name) * losses[name] for name in HELPS)
            yield loss, sum(len(lesson.ids) for lesson in lessons), {k: v.item() for k, v in losses.items()}

    trainer.run(batches, lambda: heed(model, curriculum.teacher, heldout, device) if heldout else {})
    return model, trainer


def mean(files: Sequence[Path], shares: Sequence[float]) -> dict[str, Tensor]:
    """Weighted mean of the weights of successive finished runs."""
    runs = [torch.load(file, weights_only=True)["model"] for file in files]
    return {
        name: torch.stack([share * run[name] for share, run in zip(shares, runs, strict=True)]).sum(0)
        for name in runs[0]
    }


@torch.no_grad()
def heed(model: Stage1, teacher: Teacher, heldout: Sequence[Song], device: str = "cpu") -> dict[str, float]:
    """How well Stage 1 predicts the first section of unseen songs, and how much it follows the prompt.

    `vocal`, `instrumental`, `end`: nats per id. `lyrics`: nats per syllable that its first four vocal codes lose when
    the section's words are shuffled; `tags`: nats per frame that the first ten lose under the tags of another genre.
    0 means that the prompt has no effect."""
    rng = np.random.default_rng(0)
    sums: dict[str, list[float]] = {}
    for index, song in enumerate(heldout):
        section, other = song.sections[0], heldout[(index + 1) % len(heldout)]
        words = rng.permutation(section.words.split())
        shuffled = replace(song, sections=(replace(section, words=" ".join(words)),), sung=())
        right = _foretold(model, teacher.lesson(song, 0, 1), device)
        deaf = _foretold(model, teacher.lesson(shuffled, 0, 1), device)
        sums.setdefault("vocal", []).append(right[:-1:2].mean())
        sums.setdefault("instrumental", []).append(right[1::2].mean())
        sums.setdefault("end", []).append(right[-1])
        onsets = [2 * (s.frame + k) for s in song.sung if s.section == 0 for k in range(4)]
        if onsets:
            sums.setdefault("lyrics", []).append(4 * (deaf[onsets] - right[onsets]).mean())
        if other.alike[0] != song.alike[0]:
            wrong = _foretold(model, teacher.lesson(song, 0, 1, tags=other.tags), device)
            sums.setdefault("tags", []).append((wrong[1:20:2] - right[1:20:2]).mean())
    return {name: float(np.mean(values)) for name, values in sums.items()}


def _foretold(model: Stage1, lesson: Lesson, device: str) -> np.ndarray:
    """Negative log probability of each audio id and of the end."""
    ids = torch.from_numpy(lesson.ids).to(device)
    asked = torch.from_numpy(lesson.weights[1:] > 0).to(device)
    hidden, _ = model.llama(ids[None, :-1])
    logits = hidden[0, asked] @ model.llama.head.T
    return F.cross_entropy(logits.float(), ids[1:][asked], reduction="none").cpu().numpy()


# Stage 2


def stage2_batch(
    layout: VocabLayout, codes: np.ndarray, rng: np.random.Generator, noise: float, history: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (rows, 9 n + 3) of windows of all codebooks (rows, 8, n), and the codes to predict (rows, n, 7). A share
    `noise` of the given codes is replaced by others of the window. The residual codes of whole frames are replaced,
    too: a share `history` in half of the rows, less in the others. A model that trusts its earlier output compounds its
    mistakes, and the given codes of a quarter of a second determine nearly everything."""
    rows, books, n = codes.shape
    read = codes.copy()
    wrong = rng.random((rows, n)) < noise
    read[:, 0] = np.where(wrong, rng.permuted(codes[:, 0], axis=1), codes[:, 0])
    if history:
        wrong = rng.random((rows, n)) < history * np.minimum(1, 2 * rng.random((rows, 1)))
        others = np.take_along_axis(codes[:, 1:], rng.integers(n, size=(rows, 1, n)), axis=2)
        read[:, 1:] = np.where(wrong[:, None], others, codes[:, 1:])
    frames = read + layout.codebook_size * np.arange(books)[:, None] + layout.code_start
    one = np.ones((rows, 1), np.int64)
    ids = np.concatenate(
        [
            one * layout.soa,
            one * layout.stage_1,
            frames[:, 0],
            one * layout.stage_2,
            frames.transpose(0, 2, 1).reshape(rows, -1),
        ],
        axis=1,
    )
    return ids, codes[:, 1:].transpose(0, 2, 1).astype(np.int64)


def stage2_logits(model: Llama, layout: VocabLayout, ids: Tensor, n: int) -> Tensor:
    """Logits of the residual codes, each over its own codebook: (7, rows * n, 1024)."""
    hidden, _ = model(ids[:, :-1])
    rows, residuals = len(ids), layout.codebooks - 1
    frames = F.pad(hidden[:, n + 3 :], (0, 0, 0, 1)).view(rows * n, layout.codebooks, -1)[:, :residuals]
    books = model.head[layout.stage2_ids.start : layout.stage2_ids.stop].view(residuals, layout.codebook_size, -1)
    return torch.einsum("fkd,kcd->kfc", frames, books.to(frames.dtype))


def train_stage2(
    config: LlamaConfig,
    layout: VocabLayout,
    tracks: Sequence[np.ndarray],
    plan: Plan,
    file: Path,
    device: str,
    say: Say,
    window: int = 64,
    noise: float = 0.04,
    history: float = 1.0,
) -> tuple[Llama, Trainer]:
    """Train Stage 2 on tracks of all codebooks (8, frames): windows of `window` frames, and in every third batch 300,
    as in the program. `noise` and `history` as in `stage2_batch`."""
    torch.manual_seed(plan.seed)
    model = Llama(config)
    trainer = Trainer(model, plan, file, device, say)
    lengths = np.array([track.shape[1] for track in tracks])

    def batches(rng: np.random.Generator, progress: float) -> Iterator[tuple[Tensor, int, dict[str, float]]]:
        for index in range(9):
            n = min(300 if index % 3 == 2 else window, int(lengths.max()))
            fitting = np.flatnonzero(lengths >= n)
            rows = max(1, plan.batch // (9 * n + 3))
            picked = []
            for t in rng.choice(fitting, rows, p=lengths[fitting] / lengths[fitting].sum()):
                start = int(rng.integers(lengths[t] - n + 1))
                picked.append(tracks[t][:, start : start + n])
            ids, targets = stage2_batch(layout, np.stack(picked).astype(np.int64), rng, noise, history)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                logits = stage2_logits(model, layout, torch.from_numpy(ids).to(device), n)
            wanted = torch.from_numpy(targets).to(device).reshape(-1, layout.codebooks - 1).T
            loss = F.cross_entropy(logits.float().flatten(0, 1), wanted.reshape(-1))
            right = (logits.argmax(-1) == wanted).float().mean()
            yield loss, ids.size, {"codes": loss.item(), "right": right.item()}

    trainer.run(batches)
    return model, trainer


@torch.no_grad()
def stage2_accuracy(
    model: Llama, layout: VocabLayout, tracks: Sequence[np.ndarray], device: str = "cpu", window: int = 150
) -> dict[str, float]:
    """Share of right codes and nats per code over unseen tracks, all earlier codes given."""
    right, nats = [], []
    for track in tracks:
        codes = track[None, :, :window].astype(np.int64)
        ids, targets = stage2_batch(layout, codes, np.random.default_rng(0), 0.0)
        logits = stage2_logits(model, layout, torch.from_numpy(ids).to(device), codes.shape[2]).float()
        wanted = torch.from_numpy(targets).to(device).reshape(-1, layout.codebooks - 1).T
        right.append((logits.argmax(-1) == wanted).float().mean().item())
        nats.append(F.cross_entropy(logits.flatten(0, 1), wanted.reshape(-1)).item())
    return {"right": round(float(np.mean(right)), 4), "nats": round(float(np.mean(nats)), 4)}
