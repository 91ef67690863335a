"""Measurements that compare two things in one run: a table for people, then one JSON line for programs.

`loops` sets this program's decoding loops against transformers' own `generate` on the same random weights, because
both sides then share the machine's mood. Figures are CPU milliseconds of one thread, not wall time.
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

from . import stage2
from .checkpoint import LlamaConfig, parse_config
from .lm.torch_lm import TorchLM, build
from .prompts import Prompts
from .song import Sampling
from .stage1 import Score, write_sections
from .vocab import YUE_V1, VocabLayout

SMALL = VocabLayout(
    name="small", soa=1, eoa=2, codec=3, stage_1=4, stage_2=5, code_start=16, text_size=1, codebooks=1
)
"""One codebook and a handful of markers, in a vocabulary of 1,100 ids."""

PROMPT = 100
"""Ids before the music: a head of ordinary length."""


@dataclass(frozen=True)
class Figure:
    """One comparison: CPU milliseconds per `unit` of ours and of transformers' loop."""

    name: str
    unit: str
    ours: float
    theirs: float
    note: str

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def loops(ids: int = 300, rounds: int = 3, frames: int = stage2.CHUNK, say: Callable[[str], None] = print) -> str:
    """Run all comparisons; returns the JSON line. `ids` per Stage-1 run, `frames` per Stage-2 chunk."""
    torch.set_num_threads(1)
    figures = []
    for key, layout, vocab in (("stage1_vocab84k", YUE_V1, 83968), ("stage1_vocab1100", SMALL, 1100)):
        say(f"timing {key} …")
        figures.append(_stage1(key, layout, vocab, ids, rounds))
    say("timing stage2 …")
    figures.append(_stage2(frames))
    say("")
    say(f"{'loop':<18} {'unit':<8} {'yuegp':>10} {'generate':>10} {'ratio':>7}   (CPU ms per unit, 1 thread)")
    for f in figures:
        say(f"{f.name:<18} {f.unit:<8} {f.ours:>10.2f} {f.theirs:>10.2f} {f.ratio:>6.1f}x   {f.note}")
    data: dict[str, Any] = {"bench": "loops", "torch": torch.__version__, "threads": 1}
    for f in figures:
        data |= {f"{f.name}_ms": round(f.ours, 3), f"{f.name}_generate_ms": round(f.theirs, 3)}
        data[f"{f.name}_ratio"] = round(f.ratio, 2)
    return json.dumps(data)


def _pair(vocab: int, kv_heads: int, context: int) -> tuple[TorchLM, Any]:
    """The same random weights (d = 256, 6 layers) as our engine and as transformers' model."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    theirs = TheirConfig(
        vocab_size=vocab,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(theirs).eval()
    weights = model.state_dict()
    config: LlamaConfig = parse_config(theirs.to_dict())
    return TorchLM(build(config, lambda name, shape: weights[name]), "random"), model


def _cpu_ms(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return 1000 * (time.thread_time() - start)


def _stage1(key: str, layout: VocabLayout, vocab: int, ids: int, rounds: int) -> Figure:
    """Guided sampling of `ids` audio ids after a prompt, both sides with the released settings."""
    from transformers import LogitsProcessor, LogitsProcessorList

    engine, model = _pair(vocab, kv_heads=2, context=4096)
    head, opening = tuple(range(PROMPT // 2)), (*range(PROMPT // 2 - 2), layout.soa, layout.codec)
    prompts = Prompts(layout, head, (opening,), ())
    prompt = torch.tensor([prompts.context(0, [], ())])
    allowed = torch.full((vocab,), -torch.inf)
    allowed[list(layout.stage1_ids)] = 0

    class Allowed(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + allowed

    def ours(seed: int) -> None:
        (section,) = write_sections(engine, Score(prompts, Sampling(minimum=ids), ids), seed, [0])
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

    times = [(_cpu_ms(partial(ours, seed)), _cpu_ms(partial(theirs, seed))) for seed in range(rounds)]
    mine, other = (statistics.median(column) / ids for column in zip(*times, strict=True))
    return Figure(key, "id", mine, other, f"{ids} ids with guidance, median of {rounds} alternating runs")


def _stage2(frames: int) -> Figure:
    """Both tracks of five chunks each (30 s at full length): all in one batch, against one `generate` per frame.

    The other side starts every frame with the whole sequence, in batches of four chunks of one track, as the
    released program does. Its frames grow dearer evenly with their position, so five of them are timed per batch
    size and the rest interpolated; our side is timed whole."""
    engine, model = _pair(83840, kv_heads=4, context=8192)
    layout = YUE_V1
    codes = np.random.default_rng(0).integers(0, layout.codebook_size, (2, 5 * frames))
    plan = [stage2.Chunk(track, frames * i, frames) for track in (0, 1) for i in range(5)]
    mine = _cpu_ms(lambda: list(stage2.refine(engine, layout, codes, plan, len(plan))))

    from transformers import LogitsProcessor, LogitsProcessorList

    drawable = torch.full((83840,), -torch.inf)
    drawable[list(layout.stage2_ids)] = 0

    class Drawable(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + drawable

    def frame(rows: int, t: int) -> None:
        sequence = torch.randint(layout.code_start, layout.stage2_ids.stop, (rows, frames + 3 + 8 * t + 1))
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
        costs = [_cpu_ms(partial(frame, rows, int(t))) for t in positions]
        theirs += 2 * float(np.interp(np.arange(frames), positions, costs).sum())
    note = f"2 x {5 * frames / 50:.0f} s of audio; generate timed at {len(positions)} of {frames} frames per batch size"
    return Figure("stage2", "song", mine, theirs, note)
