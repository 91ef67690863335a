"""Stage 1 against transformers' own generation, and its promises: every section, the head, the seed, resuming."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llamas import save_llama

from yuegp.errors import Cancelled, GenerationError, RequestError
from yuegp.generation import stage1
from yuegp.generation.stage1 import SectionCodes, Stage1Input, write_candidates, write_sections
from yuegp.lm.llama.engine import TorchLM
from yuegp.song.schema import Sampling, Section
from yuegp.tokens.prompts import Prompts, budget_ids, build, prompt_limit
from yuegp.tokens.tokenizer import ByteTokenizer
from yuegp.tokens.vocab import VocabLayout, interleave

LAYOUT = VocabLayout(
    name="test", soa=256, eoa=257, codec=258, stage_1=259, stage_2=260, code_start=270, text_size=256, codebook_size=30
)
SECTIONS = tuple(Section(label, "la " * n) for label, n in (("verse", 5), ("chorus", 3), ("outro", 1)))
EAGER = Sampling(minimum=4, top_k=0, top_p=1.0)
"""Ends sections early: many lengths, few steps."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TorchLM]:
    folder = tmp_path_factory.mktemp("llama")
    return save_llama(folder, 2), TorchLM.load(folder)


@pytest.fixture(scope="module")
def engine(pair: tuple[Any, TorchLM]) -> TorchLM:
    return pair[1]


@pytest.fixture
def prompts() -> Prompts:
    return build(ByteTokenizer(), LAYOUT, "pop", SECTIONS)


def song(engine: TorchLM, prompts: Prompts, **changes: Any) -> list[SectionCodes]:
    score = {name: changes.pop(name) for name in ("sampling", "budget", "drawable", "muted") if name in changes}
    options: dict[str, Any] = {"seed": 3, "sections": range(3)}
    played = Stage1Input(prompts, **{"sampling": EAGER, "budget": 60, **score})
    return list(write_sections(engine, played, **options | changes))


def as_lists(sections: list[SectionCodes]) -> list[Any]:
    return [(s.section, s.codes.tolist(), s.ended, s.left_out) for s in sections]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_greedy_equals_transformers_generate_id_for_id(
    pair: tuple[Any, TorchLM], prompts: Prompts, penalty: float, guidance: float
) -> None:
    """Guidance and penalty by transformers' own processors, over three sections with everything before in view."""
    from transformers import LogitsProcessor, LogitsProcessorList

    model, engine = pair
    allowed = torch.full((model.config.vocab_size,), -torch.inf)
    allowed[list(LAYOUT.stage1_ids)] = 0

    class Allowed(LogitsProcessor):  # type: ignore[misc]
        """Drawable ids only; the end between frames only."""

        def __init__(self, prompt: int) -> None:
            self.prompt = prompt

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores + allowed
            if (input_ids.shape[1] - self.prompt) % 2:
                scores[:, LAYOUT.eoa] = -torch.inf
            return scores

    sampling = Sampling(
        temperature=0, exact=True, minimum=10, repetition_penalty=penalty, guidance=guidance, guidance_later=guidance
    )
    ours = song(engine, prompts, sampling=sampling, budget=40)
    audio: list[list[int]] = []
    for k, section in enumerate(ours):
        prompt = torch.tensor([prompts.context(k, audio, range(k))])
        with torch.inference_mode():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=40,
                min_new_tokens=10,
                do_sample=False,
                repetition_penalty=penalty,
                guidance_scale=guidance,
                negative_prompt_ids=prompt[:, -1:],
                eos_token_id=LAYOUT.eoa,
                pad_token_id=LAYOUT.eoa,
                logits_processor=LogitsProcessorList([Allowed(prompt.shape[1])]),
            )
        theirs = out[0, prompt.shape[1] :].tolist()
        if theirs[-1] == LAYOUT.eoa:
            theirs.pop()
        assert interleave(LAYOUT, section.codes) == theirs
        audio.append(theirs)
    assert len({i for ids in audio for i in ids}) > 3, "the model repeats itself; the test shows little"


def test_trimmed_normaliser_changes_nothing_without_a_penalty(engine: TorchLM, prompts: Prompts) -> None:
    plain = Sampling(minimum=4, repetition_penalty=1.0)
    exact = Sampling(minimum=4, repetition_penalty=1.0, exact=True)
    assert as_lists(song(engine, prompts, sampling=plain)) == as_lists(song(engine, prompts, sampling=exact))


def test_the_last_section_is_made(engine: TorchLM, prompts: Prompts) -> None:
    """Inherited fault: last section never made."""
    assert [s.section for s in song(engine, prompts)] == [0, 1, 2]


def test_a_one_section_song_works(engine: TorchLM) -> None:
    """Inherited fault: one-section song fails."""
    only = build(ByteTokenizer(), LAYOUT, "pop", SECTIONS[:1])
    (section,) = song(engine, only, sections=[0])
    assert section.codes.shape[0] == 2 and section.codes.shape[1] >= 2


def test_codes_are_codebook_0_of_two_equal_tracks(engine: TorchLM, prompts: Prompts) -> None:
    for seed in range(5):
        for section in song(engine, prompts, seed=seed):
            assert section.codes.dtype == np.int16 and section.codes.shape[0] == 2
            assert 2 <= section.codes.shape[1] <= 30
            assert section.codes.min() >= 0 and section.codes.max() < LAYOUT.codebook_size


def test_a_section_at_its_limit_is_ended_for_it_and_the_next_one_follows(engine: TorchLM, prompts: Prompts) -> None:
    sections = song(engine, prompts, sampling=Sampling(minimum=1000), budget=20)
    assert [(s.codes.shape, s.ended) for s in sections] == [((2, 10), False)] * 3


def test_the_seed_decides_the_song(engine: TorchLM, prompts: Prompts) -> None:
    """Inherited fault: a seed without effect."""
    one, same, other = (as_lists(song(engine, prompts, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_a_set_can_give_each_track_its_own_codes(engine: TorchLM, prompts: Prompts) -> None:
    for section in song(engine, prompts, drawable=(range(10), range(10, 30))):
        assert section.codes[0].max() < 10 <= section.codes[1].min()


def test_a_song_continued_from_saved_sections_equals_an_uninterrupted_one(engine: TorchLM, prompts: Prompts) -> None:
    whole = song(engine, prompts)
    for stop in (1, 2):
        past = [s.codes for s in whole[:stop]]
        rest = song(engine, prompts, sections=range(stop, 3), past=past)
        assert as_lists(rest) == as_lists(whole[stop:])


def test_kept_caches_equal_a_fresh_prefill_of_every_section(engine: TorchLM, prompts: Prompts) -> None:
    whole, past = song(engine, prompts), []
    for k in range(3):
        (alone,) = song(engine, prompts, sections=[k], past=past)
        assert alone.codes.tolist() == whole[k].codes.tolist()
        past.append(alone.codes)


def test_a_section_gone_on_with_from_anywhere_ends_the_same(engine: TorchLM, prompts: Prompts) -> None:
    """A rewound section: the guidance row starts at the codec marker and hears all of the open section."""
    whole = song(engine, prompts, sampling=Sampling(minimum=30, top_k=0, top_p=1.0))
    for cut in (1, 5, whole[1].codes.shape[1]):
        rest = song(
            engine,
            prompts,
            sampling=Sampling(minimum=30, top_k=0, top_p=1.0),
            sections=[1, 2],
            past=[whole[0].codes],
            opened=whole[1].codes[:, :cut],
        )
        assert as_lists(rest) == as_lists(whole[1:])


def test_candidates_in_one_batch_equal_one_at_a_time(engine: TorchLM, prompts: Prompts) -> None:
    past = [song(engine, prompts)[0].codes]
    seeds = [4, 5, 6, 7]
    score = Stage1Input(prompts, EAGER, 60)
    batch = write_candidates(engine, score, seeds, 1, past)
    alone = [next(write_sections(engine, score, seed, [1], past)) for seed in seeds]
    assert as_lists(batch) == as_lists(alone)
    assert len({codes.codes.shape for codes in batch}) > 1, "they end at different times"
    assert as_lists([next(write_sections(engine, Stage1Input(prompts, EAGER, 60), 4, [0]))]) == as_lists(
        write_candidates(engine, score, [4], 0)
    )


def test_a_muted_section_is_not_in_the_context(engine: TorchLM, prompts: Prompts) -> None:
    past = [s.codes for s in song(engine, prompts)[:2]]
    other = [past[0][:, ::-1], past[1]]
    heard, changed = (song(engine, prompts, sections=[2], past=p)[0].codes.tolist() for p in (past, other))
    assert heard != changed
    muted = [song(engine, prompts, sections=[2], past=p, muted={0})[0] for p in (past, other)]
    assert muted[0].codes.tolist() == muted[1].codes.tolist() != heard
    assert muted[0].left_out == 0


def test_two_songs_at_once_share_nothing(engine: TorchLM, prompts: Prompts) -> None:
    """Inherited fault: two tabs share one request."""
    alone = [as_lists(song(engine, prompts, seed=seed)) for seed in (1, 2)]
    first, second = (write_sections(engine, Stage1Input(prompts, EAGER, 60), seed, range(3)) for seed in (1, 2))
    turns = list(itertools.chain.from_iterable(zip(first, second, strict=True)))
    assert [as_lists(turns[0::2]), as_lists(turns[1::2])] == alone


def test_context_overflow_leaves_out_whole_old_sections_and_keeps_the_head(tmp_path: Path) -> None:
    """Inherited fault: context overflow cuts the head."""
    save_llama(tmp_path, 2, max_position_embeddings=520)
    small = TorchLM.load(tmp_path)
    many = tuple(Section(label, "la la") for label in "abcdef")
    prompts = build(ByteTokenizer(), LAYOUT, "pop", many)
    forced = Sampling(minimum=1000)
    sections = song(small, prompts, sections=range(6), sampling=forced, budget=60)
    assert [s.codes.shape[1] for s in sections] == [30] * 6
    left_out = [s.left_out for s in sections]
    assert left_out[0] == 0 and left_out == sorted(left_out) and left_out[-1] > 1
    audio = [interleave(LAYOUT, s.codes) for s in sections]
    kept = prompts.window(5, audio, prompt_limit(520, 60))
    assert kept == tuple(range(left_out[-1], 5))
    # What was dropped must be gone from the cache too: a fresh session with only the window agrees.
    (again,) = song(small, prompts, sections=[5], sampling=forced, budget=60, past=[s.codes for s in sections[:5]])
    assert again.codes.tolist() == sections[5].codes.tolist()


def test_a_head_that_leaves_no_room_is_refused_with_numbers(prompts: Prompts) -> None:
    with pytest.raises(RequestError, match=r"take \d+ tokens, but the model has room for 50"):
        prompts.window(0, [], 50)


def test_stopping_ends_at_the_next_frame_and_keeps_finished_sections(engine: TorchLM, prompts: Prompts) -> None:
    """Inherited fault: finished takes thrown away on Stop."""
    whole = song(engine, prompts)
    events: list[tuple[str, int]] = []

    def stop_in_section_2(what: str, done: int, total: int) -> None:
        events.append((what, done))
        if what == "section 2":
            raise Cancelled

    kept = []
    with pytest.raises(Cancelled):
        for section in write_sections(engine, Stage1Input(prompts, EAGER, 60), 3, range(3), progress=stop_in_section_2):
            kept.append(section)
    assert as_lists(kept) == as_lists(whole[:1])
    assert events[-1] == ("section 2", 2)


def test_stop_is_heard_while_a_long_song_is_read(
    engine: TorchLM, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on with a long song on a small card reads for seconds before the first new frame."""
    whole = song(engine, prompts)
    past = [section.codes for section in whole[:2]]
    monkeypatch.setattr(stage1, "PIECE", 16)
    events: list[tuple[str, int, int]] = []
    rest = song(engine, prompts, past=past, sections=[2], progress=lambda *event: events.append(event))
    assert as_lists(rest) == as_lists(whole[2:])
    length = len(prompts.context(2, [interleave(LAYOUT, codes) for codes in past], range(2)))
    assert events.count(("section 3", 0, 60)) == -(-length // 16) - 1 > 2

    def stop(what: str, done: int, total: int) -> None:
        assert done == 0, "it went on to write"
        raise Cancelled

    with pytest.raises(Cancelled):
        song(engine, prompts, past=past, sections=[2], progress=stop)


def test_logits_that_are_not_finite_are_an_error_and_not_noise(tmp_path: Path) -> None:
    save_llama(tmp_path, 2)
    engine = TorchLM.load(tmp_path)
    assert engine._network is not None
    engine._network.norm.mul_(float("inf"))
    prompts = build(ByteTokenizer(), LAYOUT, "pop", SECTIONS)
    with pytest.raises(GenerationError, match="not finite in section 1"):
        song(engine, prompts)


def test_budgets_are_whole_frames() -> None:
    assert budget_ids(30) == 3000
    assert all(budget_ids(n / 100) % 2 == 0 for n in range(100, 400))
