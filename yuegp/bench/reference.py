"""This program's decoding loops against transformers' own `generate`, on the same random weights and in the same run,
because both sides then share the machine's mood.

On a processor models are small and figures are CPU milliseconds of one thread; on a card they have the released sizes
and figures are wall time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from yuegp.checkpoints.config import LlamaConfig, parse_config
from yuegp.generation import stage2
from yuegp.generation.stage1 import Stage1Input, write_sections
from yuegp.lm.llama.build import Plain, build
from yuegp.lm.llama.engine import TorchLM
from yuegp.song.schema import Sampling
from yuegp.tokens.prompts import Prompts
from yuegp.tokens.vocab import YUE_V1, VocabLayout

from .lm import SHAPES

SMALL = VocabLayout(name="small", soa=1, eoa=2, codec=3, stage_1=4, stage_2=5, code_start=16, text_size=1, codebooks=1)
"""One codebook and a handful of markers, in a vocabulary of 1,100 ids."""

PROMPT = 100
"""Ids before the music: a head of ordinary length."""


@dataclass(frozen=True)
class Size:
    """Of one model, and what it runs on."""

    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    device: str = "cpu"
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.hidden}, {self.dtype}, on {self.device}"

    @property
    def unit(self) -> str:
        """What `milliseconds` counts there."""
        return "CPU ms per unit" if self.device == "cpu" else "ms per unit"

    def facts(self) -> dict[str, Any]:
        """For the JSON line."""
        name = "cpu" if self.device == "cpu" else torch.cuda.get_device_name(self.device)
        return {"layers": self.layers, "hidden": self.hidden, "dtype": self.dtype, "device": name}

    def theirs(self) -> Any:
        """The configuration of transformers' model."""
        from transformers import LlamaConfig as TheirConfig

        return TheirConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=False,
            dtype=getattr(torch, self.dtype),
        )


@dataclass(frozen=True)
class Figure:
    """One comparison: milliseconds per `unit` of ours and of the other side."""

    name: str
    unit: str
    ours: float
    theirs: float
    note: str

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def loops(ids: int = 300, rounds: int = 3, frames: int = stage2.CHUNK, say: Callable[[str], None] = print) -> str:
    """All comparisons on one thread of the processor, with small models; returns the JSON line. `ids` per Stage-1 run,
    `frames` per Stage-2 chunk."""
    torch.set_num_threads(1)
    figures = []
    for key, layout, vocab in (("stage1_vocab84k", YUE_V1, 83968), ("stage1_vocab1100", SMALL, 1100)):
        say(f"timing {key} …")
        figures.append(_stage1(key, layout, Size(vocab, 256, 704, 6, 4, 2, 4096), ids, rounds))
    say("timing stage2 …")
    figures.append(_stage2(Size(83840, 256, 704, 6, 4, 4, 8192), frames))
    return report("loops", "CPU ms per unit, 1 thread", figures, {"threads": 1}, say)


def versus(
    stage: str,
    device: str,
    layers: int | None = None,
    ids: int = 300,
    rounds: int = 3,
    frames: int = stage2.CHUNK,
    say: Callable[[str], None] = print,
) -> str:
    """One stage on a card, at the released size unless `layers` is fewer; on a processor an eighth as wide and four
    layers deep. Both sides hold their own copy of the weights."""
    size = size_of(stage, device, layers)
    say(f"timing {stage}: {size} …")
    figure = _stage1(stage, YUE_V1, size, ids, rounds) if stage == "stage1" else _stage2(size, frames)
    return report("vs-reference", size.unit, [figure], size.facts(), say)


def size_of(stage: str, device: str, layers: int | None = None) -> Size:
    """What a stage is compared at on this device."""
    shape = SHAPES[stage]
    layers, part = layers or (4 if device == "cpu" else shape.layers), 8 if device == "cpu" else 1
    dtype = "float32" if device == "cpu" else {"stage1": "bfloat16", "stage2": "float16"}[stage]
    return Size(
        shape.vocab_size, shape.hidden // part, shape.ffn // part, layers, shape.heads // part,
        max(1, shape.kv_heads // part), shape.context, device, dtype,
    )  # fmt: skip


def report(
    bench: str, unit: str, figures: list[Figure], facts: dict[str, Any], say: Callable[[str], None],
    against: str = "generate",
) -> str:  # fmt: skip
    """The table, and the JSON line, of figures `against` something."""
    say("")
    say(f"{'loop':<18} {'unit':<8} {'yuegp':>10} {against:>10} {'ratio':>7}   ({unit})")
    for f in figures:
        say(f"{f.name:<18} {f.unit:<8} {f.ours:>10.2f} {f.theirs:>10.2f} {f.ratio:>6.1f}x   {f.note}")
    data: dict[str, Any] = {"bench": bench, "torch": torch.__version__, **facts}
    for f in figures:
        data |= {f"{f.name}_ms": round(f.ours, 3), f"{f.name}_{against}_ms": round(f.theirs, 3)}
        data[f"{f.name}_ratio"] = round(f.ratio, 2)
    return json.dumps(data)


def _pair(size: Size) -> tuple[TorchLM, Any]:
    """The same random weights as our engine and as transformers' model."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    theirs = size.theirs()
    with torch.device(size.device):
        model = LlamaForCausalLM(theirs).eval().to(getattr(torch, size.dtype))
    weights = model.state_dict()
    config: LlamaConfig = parse_config(theirs.to_dict())
    with torch.no_grad():
        network = build(config, Plain(lambda name, shape: weights[name]), size.dtype)
    return TorchLM(network, "random"), model


def milliseconds(device: str, run: Callable[[], object]) -> float:
    """Milliseconds: of this thread's processor time, or on a card of wall time until it is done."""
    if device == "cpu":
        start = time.thread_time()
        run()
        return 1000 * (time.thread_time() - start)
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def _stage1(key: str, layout: VocabLayout, size: Size, ids: int, rounds: int) -> Figure:
    """Guided sampling of `ids` audio ids after a prompt, both sides with the released settings."""
    from transformers import LogitsProcessor, LogitsProcessorList

    engine, model = _pair(size)
    head, opening = tuple(range(PROMPT // 2)), (*range(PROMPT // 2 - 2), layout.soa, layout.codec)
    prompts = Prompts(layout, head, (opening,), ())
    prompt = torch.tensor([prompts.context(0, [], ())], device=size.device)
    allowed = torch.full((size.vocab,), -torch.inf, device=size.device)
    allowed[list(layout.stage1_ids)] = 0

    class Allowed(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + allowed

    def ours(seed: int) -> None:
        (section,) = write_sections(engine, Stage1Input(prompts, Sampling(minimum=ids), ids), seed, [0])
        assert section.codes.size == ids

    def theirs(seed: int) -> None:
        torch.manual_seed(seed)
        out = model.generate(
            prompt,
            max_new_tokens=ids,
            min_new_tokens=ids,
            do_sample=True,
            top_k=50,
            top_p=0.93,
            repetition_penalty=1.1,
            guidance_scale=1.5,
            negative_prompt_ids=prompt[:, -1:],
            eos_token_id=layout.eoa,
            pad_token_id=layout.eoa,
            logits_processor=LogitsProcessorList([Allowed()]),
        )
        assert out.shape[1] == prompt.shape[1] + ids

    if size.device != "cpu":
        ours(0)  # libraries of the card set themselves up at first use
        theirs(0)
    times = [(milliseconds(size.device, partial(f, seed)) for f in (ours, theirs)) for seed in range(rounds)]
    mine, other = (statistics.median(column) / ids for column in zip(*times, strict=True))
    return Figure(key, "id", mine, other, f"{ids} ids with guidance, median of {rounds} alternating runs")


def _stage2(size: Size, frames: int) -> Figure:
    """Both tracks of five chunks each (30 s at full length): all in one batch, against one `generate` per frame.

    The other side starts every frame with the whole sequence, in batches of four chunks of one track, as the
    released program does. Its frames grow dearer evenly with their position, so five of them are timed per batch
    size and the rest interpolated; our side is timed whole."""
    engine, model = _pair(size)
    layout = YUE_V1
    codes = np.random.default_rng(0).integers(0, layout.codebook_size, (2, 5 * frames))
    plan = [stage2.Chunk(track, frames * i, frames) for track in (0, 1) for i in range(5)]
    if size.device != "cpu":
        list(stage2.refine(engine, layout, codes, plan[:1], 1))
    mine = milliseconds(size.device, lambda: list(stage2.refine(engine, layout, codes, plan, len(plan))))

    from transformers import LogitsProcessor, LogitsProcessorList

    drawable = torch.full((size.vocab,), -torch.inf, device=size.device)
    drawable[list(layout.stage2_ids)] = 0

    class Drawable(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + drawable

    def frame(rows: int, t: int) -> None:
        sequence = torch.randint(layout.code_start, layout.stage2_ids.stop, (rows, frames + 4 + 8 * t))
        sequence = sequence.to(size.device)
        model.generate(
            sequence,
            max_new_tokens=7,
            min_new_tokens=7,
            do_sample=False,
            eos_token_id=layout.eoa,
            pad_token_id=layout.eoa,
            logits_processor=LogitsProcessorList([Drawable()]),
        )

    positions = np.linspace(0, frames - 1, 5).astype(int)
    frame(1, 0)
    theirs = 0.0
    for rows in (4, 1):
        costs = [milliseconds(size.device, partial(frame, rows, int(t))) for t in positions]
        theirs += 2 * float(np.interp(np.arange(frames), positions, costs).sum())
    note = f"2 x {5 * frames / 50:.0f} s of audio; generate timed at {len(positions)} of {frames} frames per batch size"
    return Figure("stage2", "song", mine, theirs, note)
