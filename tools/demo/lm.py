"""Training of the demo set's two language models, and their export as released Hugging Face folders.

Both are plain Llamas of the released architecture. Stage 1 reads the prompts `yuegp.prompts` builds and learns the
codes that follow; four helps, all gone from the exported model, make it listen to its lyrics within minutes instead
of days:

- *guided attention*: one head of one layer is asked to look, just before each sung syllable, at that syllable's piece
  in the section's text;
- *auxiliary heads* name, at every code, the syllable to come, the sixteenth of the bar, and how many bars are left;
- *mistakes*: later on some codes are read, and some syllables sung, wrongly, so that it learns to go on in time;
- *weights*: the first frames of a section (which genre?) and of a syllable (which vowel?) count more than the rest,
  which is easy, and so does the end.

Lessons grow longer as training goes on. Everything is drawn from one seeded generator and the schedule counts tokens,
not seconds, so a run can be stopped, resumed and repeated.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yuegp.checkpoint import LlamaConfig
from yuegp.vocab import VocabLayout

from .lessons import LEFT, NAMES, Curriculum, Lesson, Song, Teacher

Say = Callable[[str], None]

SAVE_SECONDS = 60.0
"""Between two savings of a training's state."""


# The network


class Llama(nn.Module):
    """The released architecture for training; parameters carry the released names."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.model.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.model.norm = nn.RMSNorm(config.hidden, config.eps)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.5 / math.sqrt(config.hidden))
        if not config.tied:
            # As loud as what the layers add: else rare pieces of text drown in it, and lyrics are never heard.
            nn.init.normal_(self.model.embed_tokens.weight, std=2.0)

    @property
    def head(self) -> Tensor:
        """(vocabulary, hidden)."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def forward(self, ids: Tensor, watch: int | None = None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Hidden states (rows, n, hidden) after the final norm, and the first head's queries and keys
        (rows, n, head_dim) in layer `watch`."""
        c = self.config
        frequencies = c.rope_theta ** -(torch.arange(0, c.head_dim, 2, device=ids.device) / c.head_dim)
        angles = torch.outer(torch.arange(ids.shape[1], device=ids.device), frequencies)
        rotation = angles.cos(), angles.sin()
        x, watched = self.model.embed_tokens(ids), None
        for index, layer in enumerate(self.model.layers):
            x, seen = layer(x, rotation)
            if index == watch:
                watched = seen
        return self.model.norm(x), watched


class _Layer(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.shape = c
        width, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.input_layernorm = nn.RMSNorm(c.hidden, c.eps)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden, c.eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(c.hidden, width, bias=False),
                "k_proj": nn.Linear(c.hidden, narrow, bias=False),
                "v_proj": nn.Linear(c.hidden, narrow, bias=False),
                "o_proj": nn.Linear(width, c.hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(c.hidden, c.ffn, bias=False),
                "up_proj": nn.Linear(c.hidden, c.ffn, bias=False),
                "down_proj": nn.Linear(c.ffn, c.hidden, bias=False),
            }
        )

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        c, (rows, n, _) = self.shape, x.shape
        h, attn = self.input_layernorm(x), self.self_attn
        q = _rotate(attn["q_proj"](h).view(rows, n, c.heads, c.head_dim).transpose(1, 2), rotation)
        k = _rotate(attn["k_proj"](h).view(rows, n, c.kv_heads, c.head_dim).transpose(1, 2), rotation)
        v = attn["v_proj"](h).view(rows, n, c.kv_heads, c.head_dim).transpose(1, 2)
        mixed = _attend(q, k, v)
        x = x + attn["o_proj"](mixed.transpose(1, 2).reshape(rows, n, -1))
        h = self.post_attention_layernorm(x)
        gated = F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h)
        return x + self.mlp["down_proj"](gated), (q[:, 0], k[:, 0])


BLOCK = 256
"""Queries per block on a CPU, where attention by plain products is up to twice as fast as torch's own (measured:
bfloat16, 400 to 1,000 positions, forward and backward)."""


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (rows, heads, n, head_dim) over (rows, kv_heads, n, head_dim)."""
    if q.is_cuda or q.shape[2] > 8 * BLOCK:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    (rows, heads, length, width), kv_heads = q.shape, k.shape[1]
    blocks = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        grouped = q[:, :, start:stop].reshape(rows, kv_heads, -1, width) * width**-0.5
        scores = (grouped @ k[:, :, :stop].transpose(-1, -2)).view(rows, heads, stop - start, stop)
        future = torch.ones(stop - start, stop, dtype=torch.bool, device=q.device).triu_(1 + start)
        shares = scores.masked_fill(future, -1e4).softmax(-1).to(v.dtype).view(rows, kv_heads, -1, stop)
        blocks.append((shares @ v[:, :, :stop]).view(rows, heads, stop - start, width))
    return torch.cat(blocks, 2)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    (cos, sin), (a, b) = rotation, x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def export(model: Llama, folder: Path, context: int, dtype: torch.dtype = torch.float16) -> None:
    """Write a Hugging Face folder: `config.json` and `model.safetensors`. Biases, helpers and padding do not exist."""
    from safetensors.torch import save_file

    c = model.config
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": context,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": c.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# Training


@dataclass(frozen=True)
class Plan:
    """A training run. Learning rates are constant up to `hold` of the run, then fall linearly to zero. `decay` shrinks
    the matrices a little with each update (times the learning rate), so that no layer grows louder than the others."""

    tokens: int
    batch: int = 4200
    muon: float = 0.006
    adam: float = 0.003
    decay: float = 0.0
    hold: float = 0.4
    warmup: int = 20
    look: float = 0.3
    name: float = 0.3
    clock: float = 0.1
    left: float = 0.0
    seed: int = 1


class Trainer:
    """A model, its optimizers and the position in its schedule, saved together and resumed from `file`."""

    def __init__(self, model: nn.Module, plan: Plan, file: Path, device: str, say: Say) -> None:
        self.model, self.plan, self.file, self.say = model.to(device), plan, file, say
        self.rng = np.random.default_rng(plan.seed)
        self.tokens = self.steps = 0
        self.seconds = 0.0
        matrices = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=plan.muon, weight_decay=plan.decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=plan.adam, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.log: list[dict[str, float]] = []
        if file.is_file():
            self._load()

    @property
    def progress(self) -> float:
        return self.tokens / self.plan.tokens

    def step(self, loss: Tensor, tokens: int) -> None:
        """One update."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = min(1.0, (self.steps + 1) / self.plan.warmup, max(0.0, 1 - self.progress) / (1 - self.plan.hold))
        for optimizer, rate in zip(self.optimizers, (self.plan.muon, self.plan.adam), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.tokens += tokens
        self.steps += 1

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.bit_generator.state,
            "where": (self.tokens, self.steps, self.seconds),
            "log": self.log,
            "plan": asdict(self.plan),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.file)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.file, weights_only=True)
        if state["plan"] != asdict(self.plan):
            raise SystemExit(f"{self.file} belongs to another plan; delete it to train anew.")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rng.bit_generator.state = state["rng"]
        self.tokens, self.steps, self.seconds = state["where"]
        self.log = state["log"]

    def run(
        self,
        batches: Callable[[np.random.Generator, float], Iterator[tuple[Tensor, int, dict[str, float]]]],
        ask: Callable[[], dict[str, float]] = dict,
        every: float = 40.0,
    ) -> None:
        """Update until the plan's tokens are used up. `batches(rng, progress)` yields (loss, tokens, figures to show);
        the run is saved between pools of batches only, so that a resumed run draws what an unbroken one would."""
        shown = saved = time.monotonic()
        sums: dict[str, list[float]] = {}
        while self.progress < 1:
            began = time.monotonic()
            for loss, tokens, figures in batches(self.rng, self.progress):
                self.step(loss, tokens)
                for name, value in figures.items():
                    sums.setdefault(name, []).append(value)
            now = time.monotonic()
            self.seconds += now - began
            if now - shown > every or self.progress >= 1:
                figures = {name: float(np.mean(values)) for name, values in sums.items()} | ask()
                self.log.append({"tokens": self.tokens, "seconds": round(self.seconds, 1), **figures})
                left = self.seconds * max(0.0, 1 / self.progress - 1)
                line = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
                self.say(f"{self.progress:4.0%}  {line}  {self.tokens / self.seconds:,.0f} tokens/s  {left:.0f} s left")
                sums, shown = {}, now
            if now - saved > SAVE_SECONDS or self.progress >= 1:
                self.save()
                saved = now


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
        self.guided_layer = guided_layer % config.layers

    def losses(self, lessons: Sequence[Lesson], read: Sequence[np.ndarray], device: str) -> dict[str, Tensor]:
        """`codes` (weighted mean), `look`, `name`, `clock` and `left` of lessons whose ids are read as `read`."""
        ids = collate([lesson.ids for lesson in lessons], 0, device)
        weights = collate([lesson.weights for lesson in lessons], 0, device)[:, 1:]
        names = collate([lesson.names for lesson in lessons], -1, device)[:, :-1]
        clock = collate([lesson.clock for lesson in lessons], -1, device)[:, :-1]
        left = collate([lesson.left for lesson in lessons], -1, device)[:, :-1]
        asked, named, timed, counted = weights > 0, names >= 0, clock >= 0, left >= 0
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            hidden, watched = self.llama(collate(read, 0, device)[:, :-1], self.guided_layer)
            logits = hidden[asked] @ self.llama.head.T
            guesses, times, counts = self.namer(hidden[named]), self.clock(hidden[timed]), self.left(hidden[counted])
        nll = F.cross_entropy(logits.float(), ids[:, 1:][asked], reduction="none")
        zero = nll.new_zeros(())
        looks = [(row, at, to) for row, lesson in enumerate(lessons) for at, to in lesson.looks]
        return {
            "codes": (nll * weights[asked]).sum() / weights.sum(),
            "look": self._look(watched, looks) if looks and watched is not None else zero,
            "name": F.cross_entropy(guesses.float(), names[named]) if named.any() else zero,
            "clock": F.cross_entropy(times.float(), clock[timed]),
            "left": F.cross_entropy(counts.float(), left[counted]) if counted.any() else zero,
        }

    def _look(self, watched: tuple[Tensor, Tensor], looks: list[tuple[int, int, int]]) -> Tensor:
        """Mean negative log attention of the guided head at the syllables it should look at."""
        queries, keys = watched
        total = queries.new_zeros((), dtype=torch.float32)
        for row in sorted({row for row, _, _ in looks}):
            at, to = torch.tensor([(at, to) for r, at, to in looks if r == row], device=queries.device).T
            scores = (queries[row, at] @ keys[row].T).float() / math.sqrt(queries.shape[-1])
            future = torch.arange(keys.shape[1], device=queries.device) > at[:, None]
            total = total + F.cross_entropy(scores.masked_fill(future, -torch.inf), to, reduction="sum")
        return total / len(looks)


HELPS = ("look", "name", "clock", "left")
"""Losses beside the codes', and the plan's weights for them."""


def train_stage1(
    config: LlamaConfig,
    curriculum: Curriculum,
    plan: Plan,
    file: Path,
    device: str,
    say: Say,
    heldout: Sequence[Song] = (),
    begin: Path | None = None,
) -> tuple[Stage1, Trainer]:
    """Train Stage 1, from what the finished run in `begin` learned or from nothing, or finish what `file` holds.
    `heldout` songs are only asked about on the way."""
    torch.manual_seed(plan.seed)
    model = Stage1(config)
    if begin:
        model.load_state_dict(torch.load(begin, weights_only=True)["model"])
    trainer = Trainer(model, plan, file, device, say)

    def batches(rng: np.random.Generator, progress: float) -> Iterator[tuple[Tensor, int, dict[str, float]]]:
        for lessons in curriculum.batches(rng, progress, plan.batch):
            read = [lesson.disturbed(rng, curriculum.noise(progress)) for lesson in lessons]
            losses = model.losses(lessons, read, device)
            loss = losses["codes"] + sum(getattr(plan, name) * losses[name] for name in HELPS)
            yield loss, sum(len(lesson.ids) for lesson in lessons), {k: v.item() for k, v in losses.items()}

    trainer.run(batches, lambda: heed(model, curriculum.teacher, heldout, device) if heldout else {})
    return model, trainer


@torch.no_grad()
def heed(model: Stage1, teacher: Teacher, heldout: Sequence[Song], device: str = "cpu") -> dict[str, float]:
    """How well Stage 1 foretells the first section of songs it has not seen, and how much it heeds the prompt.

    `vocal`, `instrumental`, `end`: nats per id. `lyrics`: nats per syllable that its first four vocal codes lose when
    the section's words are shuffled; `tags`: nats per frame that the first ten lose under the tags of another genre.
    0 is deaf."""
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
    layout: VocabLayout, codes: np.ndarray, rng: np.random.Generator, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (rows, 9 n + 3) of windows of all codebooks (rows, 8, n), with a share of the given codes exchanged for
    others, and the codes to predict (rows, n, 7)."""
    rows, books, n = codes.shape
    wrong = rng.random((rows, n)) < noise
    given = np.where(wrong, rng.permuted(codes[:, 0], axis=1), codes[:, 0])
    frames = codes + layout.codebook_size * np.arange(books)[:, None] + layout.code_start
    frames[:, 0] = given + layout.code_start
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
) -> tuple[Llama, Trainer]:
    """Train Stage 2 on tracks of all codebooks (8, frames): windows of `window` frames, every tenth batch of 300."""
    torch.manual_seed(plan.seed)
    model = Llama(config)
    trainer = Trainer(model, plan, file, device, say)
    lengths = np.array([track.shape[1] for track in tracks])

    def batches(rng: np.random.Generator, progress: float) -> Iterator[tuple[Tensor, int, dict[str, float]]]:
        for index in range(10):
            n = min(300 if index == 9 else window, int(lengths.max()))
            fitting = np.flatnonzero(lengths >= n)
            rows = max(1, plan.batch // (9 * n + 3))
            picked = []
            for t in rng.choice(fitting, rows, p=lengths[fitting] / lengths[fitting].sum()):
                start = int(rng.integers(lengths[t] - n + 1))
                picked.append(tracks[t][:, start : start + n])
            ids, targets = stage2_batch(layout, np.stack(picked).astype(np.int64), rng, noise)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                logits = stage2_logits(model, layout, torch.from_numpy(ids).to(device), n)
            wanted = torch.from_numpy(targets).to(device).reshape(-1, layout.codebooks - 1).T
            loss = F.cross_entropy(logits.float().flatten(0, 1), wanted.reshape(-1))
            right = (logits.argmax(-1) == wanted).float().mean()
            yield loss, ids.size, {"codes": loss.item(), "right": right.item()}

    trainer.run(batches)
    return model, trainer


def stage_config(
    layout: VocabLayout, stage: int, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int
) -> LlamaConfig:
    """Sizes of a stage's model: Stage 1 speaks text and codebook 0, Stage 2 all codebooks."""
    return LlamaConfig(vocabulary(layout, stage), hidden, ffn, layers, heads, kv_heads, hidden // heads, 16384)


def vocabulary(layout: VocabLayout, stage: int) -> int:
    """Vocabulary size of a stage's model."""
    return layout.codes_of(0).stop if stage == 1 else layout.stage2_ids.stop


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
