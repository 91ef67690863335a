"""What the contract of the engines is asked with, on a card too."""

from __future__ import annotations

from typing import Any

import numpy as np

from yuegp.generation import stage1, stage2
from yuegp.lm import LMEngine
from yuegp.song.schema import Sampling, Section
from yuegp.tokens.prompts import build
from yuegp.tokens.tokenizer import ByteTokenizer
from yuegp.tokens.vocab import VocabLayout

LAYOUT = VocabLayout(
    name="test", soa=256, eoa=257, codec=258, stage_1=259, stage_2=260, code_start=270, text_size=256, codebook_size=30
)


def sections(engine: LMEngine, takes: int = 1, budget: int = 120) -> list[Any]:
    prompts = build(ByteTokenizer(), LAYOUT, "pop", (Section("verse", "la la"), Section("chorus", "o o o")))
    score = stage1.Stage1Input(prompts, Sampling(minimum=20, guidance=1.5, guidance_later=1.2), budget)
    if takes > 1:
        return [part.codes.tolist() for part in stage1.write_candidates(engine, score, range(takes), 0)]
    return [part.codes.tolist() for part in stage1.write_sections(engine, score, 7, range(2))]


def refined(engine: LMEngine) -> list[Any]:
    codes = np.random.default_rng(1).integers(0, LAYOUT.codebook_size, (2, 12)).astype(np.int16)
    plan = stage2.chunks(np.zeros((2, 12), bool))
    return [part.codes.tolist() for batch in stage2.refine(engine, LAYOUT, codes, plan, 2) for part in batch]
