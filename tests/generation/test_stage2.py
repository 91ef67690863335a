"""Stage 2 against a frame-by-frame generate, and its promises: every length, any batch, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llamas import save_llama

from yuegp.errors import Cancelled
from yuegp.generation import stage2
from yuegp.lm.llama.engine import TorchLM
from yuegp.tokens.vocab import VocabLayout

LAYOUT = VocabLayout(
    name="test", soa=1, eoa=2, codec=3, stage_1=4, stage_2=5, code_start=10, text_size=1, codebook_size=35
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TorchLM]:
    folder = tmp_path_factory.mktemp("llama")
    return save_llama(folder, 4, max_position_embeddings=4096), TorchLM.load(folder)


def given(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, LAYOUT.codebook_size, (2, frames)).astype(np.int16)


def fresh(frames: int) -> list[stage2.Chunk]:
    """The chunks of a song nothing of which is refined."""
    return stage2.chunks(np.zeros((2, frames), bool))


def refine(engine: TorchLM, codes: np.ndarray, plan: list[stage2.Chunk] | None = None, rows: int = 8) -> np.ndarray:
    """All chunks put together; -1 where nothing was refined."""
    out = np.full((2, 8, codes.shape[1]), -1)
    for batch in stage2.refine(engine, LAYOUT, codes, fresh(codes.shape[1]) if plan is None else plan, rows):
        for part in batch:
            chunk = part.chunk
            assert part.codes.shape == (8, chunk.frames) and part.codes.dtype == np.int16
            assert (out[chunk.track, :, chunk.start : chunk.start + chunk.frames] == -1).all()
            out[chunk.track, :, chunk.start : chunk.start + chunk.frames] = part.codes
    return out


def by_generate(model: Any, codes: np.ndarray) -> np.ndarray:
    """One chunk, one `generate` of seven ids per frame, each of the codebook whose turn it is: slow and obvious."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class Turn(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, start: int) -> None:
            self.start = start

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            book = LAYOUT.codes_of(input_ids.shape[1] - self.start + 1)
            mask = torch.full_like(scores, -torch.inf)
            mask[:, book.start : book.stop] = 0
            return scores + mask

    ids = (codes.astype(int) + LAYOUT.code_start).tolist()
    sequence = [LAYOUT.soa, LAYOUT.stage_1, *ids, LAYOUT.stage_2]
    out = []
    for first in ids:
        sequence.append(first)
        prompt = torch.tensor([sequence])
        with torch.inference_mode():
            answer = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=7,
                min_new_tokens=7,
                do_sample=False,
                eos_token_id=LAYOUT.eoa,
                pad_token_id=LAYOUT.eoa,
                logits_processor=LogitsProcessorList([Turn(prompt.shape[1])]),
            )[0, -7:].tolist()
        sequence += answer
        out.append([first, *answer])
    return (np.array(out) - LAYOUT.code_start - LAYOUT.codebook_size * np.arange(8)).T


def test_equals_a_frame_by_frame_generate_code_for_code(pair: tuple[Any, TorchLM]) -> None:
    model, engine = pair
    codes = given(12)
    ours = refine(engine, codes)
    for track in (0, 1):
        assert ours[track].tolist() == by_generate(model, codes[track]).tolist()


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_songs_under_six_seconds_work(pair: tuple[Any, TorchLM], frames: int) -> None:
    """Inherited fault: audio under six seconds crashes Stage 2."""
    codes = given(frames)
    out = refine(pair[1], codes)
    assert (out[:, 0] == codes).all() and out.min() >= 0 and out.max() < LAYOUT.codebook_size


def test_chunks_cover_every_frame_of_both_tracks_once() -> None:
    for frames in (0, 1, 299, 300, 301, 600, 1499):
        covered = np.zeros((2, frames), int)
        for chunk in fresh(frames):
            covered[chunk.track, chunk.start : chunk.start + chunk.frames] += 1
        assert (covered == 1).all()


def test_only_what_is_not_refined_gets_a_chunk() -> None:
    refined = np.zeros((2, 1000), bool)
    refined[0, 100:450] = refined[1, :990] = True
    plan = [(chunk.track, chunk.start, chunk.frames) for chunk in stage2.chunks(refined)]
    assert plan == [(0, 450, 300), (0, 750, 250), (0, 0, 100), (1, 990, 10)]
    assert stage2.chunks(np.ones((2, 1000), bool)) == []


def test_another_chunk_length_needs_one_change_only(pair: tuple[Any, TorchLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Inherited fault: a chunk length stated twice."""
    monkeypatch.setattr(stage2, "CHUNK", 5)
    codes = given(23)
    out = refine(pair[1], codes, rows=3)
    assert (out[:, 0] == codes).all() and out.min() >= 0
    for track in (0, 1):
        for start in range(0, 23, 5):
            part = by_generate(pair[0], codes[track, start : start + 5])
            assert out[track, :, start : start + 5].tolist() == part.tolist()


def test_the_batch_size_changes_nothing(pair: tuple[Any, TorchLM], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2, "CHUNK", 6)
    codes = given(20)
    whole = refine(pair[1], codes, rows=8)
    for rows in (1, 2, 3):
        assert (refine(pair[1], codes, rows=rows) == whole).all()


def test_a_resumed_song_returns_its_missing_chunks(pair: tuple[Any, TorchLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Inherited fault: a resumed Stage 2 returns nothing."""
    monkeypatch.setattr(stage2, "CHUNK", 6)
    codes = given(20)
    whole = refine(pair[1], codes)
    plan = fresh(20)
    rest = refine(pair[1], codes, plan[3:])
    for i, chunk in enumerate(plan):
        part = rest[chunk.track, :, chunk.start : chunk.start + chunk.frames]
        wanted = whole[chunk.track, :, chunk.start : chunk.start + chunk.frames]
        assert (part == (wanted if i >= 3 else -1)).all()


def test_progress_counts_frames_and_can_stop(pair: tuple[Any, TorchLM], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2, "CHUNK", 4)
    seen: list[tuple[int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 12:
            raise Cancelled

    finished = []
    with pytest.raises(Cancelled):
        for batch in stage2.refine(pair[1], LAYOUT, given(10), fresh(10), 2, progress):
            finished.append(batch)
    assert seen == [(2, 20), (4, 20), (6, 20), (8, 20), (10, 20), (12, 20)]
    assert len(finished) == 1, "the batch that was finished before is kept"


def test_a_chunk_takes_the_positions_the_plan_says(pair: tuple[Any, TorchLM]) -> None:
    assert stage2.chunk_ids(300) == 2702  # the last code is not fed back
    engine = pair[1]
    codes = given(3)
    with pytest.raises(ValueError, match="do not fit"), engine.open([stage2.chunk_ids(3) - 1]) as lm:
        lm.prefill(0, [1] * (3 + 3 + 1))
        for _ in range(3 * 8 - 2):
            lm.step(torch.tensor([1]))
    assert refine(engine, codes).shape == (2, 8, 3)


def test_released_batches_are_grouped_by_length(tmp_path: Path) -> None:
    plan = fresh(750)
    groups = [[c.frames for c in batch] for batch in stage2.batches(plan, 3)]
    assert groups == [[300, 300, 300], [300], [150, 150]]


def test_batches_of_the_same_shape_share_their_caches(
    pair: tuple[Any, TorchLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card records its steps once per session: four equal batches must not record four times."""
    monkeypatch.setattr(stage2, "CHUNK", 4)
    _, engine = pair
    opened: list[list[int]] = []
    open_session = engine.open

    def counted(capacities: list[int], keep: Any) -> Any:
        opened.append(capacities)
        return open_session(capacities, keep)

    monkeypatch.setattr(engine, "open", counted)
    codes = np.random.default_rng(1).integers(0, LAYOUT.codebook_size, (2, 18))
    plan = stage2.chunks(np.zeros((2, 18), bool))
    together = list(stage2.refine(engine, LAYOUT, codes, plan, 2))
    assert [len(batch) for batch in together] == [2] * 5 and len(opened) == 2
    alone = [stage2.refine(engine, LAYOUT, codes, [chunk], 1) for chunk in plan]
    for ours, wanted in zip((done for batch in together for done in batch), alone, strict=True):
        assert np.array_equal(ours.codes, next(wanted)[0].codes)
