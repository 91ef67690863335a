"""Every sampling step against transformers' own, and the promises of the sampler as a whole."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from yuegp.generation.sampling import Sampler, State, forbid_end, guide, nucleus, penalize, temper, uniforms
from yuegp.song.schema import PRESETS, Sampling
from yuegp.tokens.vocab import YUE_V1

N = 1025


def logits(rows: int, n: int = N, seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))


def state(guidance: float = 1.5, seen: tuple[int, ...] = (), takes: int = 1, count: int = 200, n: int = N) -> State:
    mask = torch.zeros(takes, n, dtype=torch.bool)
    mask[:, list(seen)] = True
    return State(guidance, mask, count)


def test_each_step_equals_transformers() -> None:
    from transformers.generation import logits_process as theirs

    x = logits(3)
    seen = torch.randint(0, N, (3, 60), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(3, N, dtype=torch.bool).scatter(1, seen, True)
    unused = State(1.0, mask, 200)
    pairs = [
        (penalize(1.3, True)(x, unused), theirs.RepetitionPenaltyLogitsProcessor(1.3)(seen, x.clone())),
        (temper(0.7)(x, unused), theirs.TemperatureLogitsWarper(0.7)(seen, x.clone())),
        (nucleus(50, 1.0, True)(x, unused), theirs.TopKLogitsWarper(50)(seen, x.clone())),
        (nucleus(0, 0.93, True)(x, unused), theirs.TopPLogitsWarper(0.93)(seen, x.clone())),
        (nucleus(0, 0.01, True)(x, unused), theirs.TopPLogitsWarper(0.01)(seen, x.clone())),
        (
            nucleus(50, 0.9, True)(x, unused),
            theirs.TopPLogitsWarper(0.9)(seen, theirs.TopKLogitsWarper(50)(seen, x.clone())),
        ),
    ]
    for ours, wanted in pairs:
        assert torch.equal(ours.isinf(), wanted.isinf())
        assert torch.allclose(ours, wanted)


def test_guidance_is_on_log_probabilities_of_both_rows() -> None:
    x = logits(2)
    c, u = x.log_softmax(-1)
    assert torch.allclose(guide(True)(x, state(1.5))[0], u + 1.5 * (c - u), atol=1e-5)
    assert torch.allclose(guide(False)(x, state(1.5))[0], x[1] + 1.5 * (x[0] - x[1]), atol=1e-5)


def test_without_guidance_the_conditional_logits_pass_unchanged() -> None:
    x = logits(2)
    assert torch.equal(guide(True)(x, state(1.0)), x[:1])
    assert torch.equal(guide(True)(x[:1], state(1.0)), x[:1])


def test_exact_guidance_normalises_over_the_whole_vocabulary() -> None:
    full, keep = logits(2, 3000), list(range(1500, 1500 + N))
    wanted = torch.lerp(*full.log_softmax(-1).flip(0)[:, keep], 1.5)
    assert torch.allclose(guide(True, torch.tensor(keep))(full, state(1.5))[0], wanted, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_separator_and_no_id_outside_codebook_0_can_be_drawn(preset: str) -> None:
    """Inherited faults: separator token left drawable; any id outside codebook 0 drawable."""
    ids = YUE_V1.stage1_ids
    assert YUE_V1.codec not in ids and len(ids) == N
    assert set(ids) == {*range(45334, 46358), 32002}
    assert Sampler(PRESETS[preset]).draw(logits(2), state(), torch.tensor([0.999999])) < N


def test_both_presets_allow_the_same_ids_and_lengths() -> None:
    """Inherited fault: two engines allow different tokens or lengths."""
    assert len({preset.minimum for preset in PRESETS.values()}) == 1
    for preset in PRESETS.values():
        sampler = Sampler(preset)
        for count in (0, 50, 99, 101):
            assert sampler.scores(logits(2), state(count=count))[0, -1] == -torch.inf


def test_the_end_is_only_allowed_after_the_minimum_and_between_frames() -> None:
    step = forbid_end(100)
    allowed = [n for n in range(0, 106) if step(logits(1), state(count=n))[0, -1] > -torch.inf]
    assert allowed == [100, 102, 104]


def test_the_end_can_be_spared_the_penalty() -> None:
    x = logits(1)
    assert penalize(1.5, False)(x, state(seen=(N - 1, 3)))[0, -1] == x[0, -1]
    assert penalize(1.5, True)(x, state(seen=(N - 1, 3)))[0, -1] != x[0, -1]


def test_top_p_with_and_without_the_crossing_code() -> None:
    x = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = lambda p, crossing: (~nucleus(0, p, crossing)(x, state(n=4)).isinf())[0].tolist()  # noqa: E731
    assert kept(0.6, True) == [True, True, False, False]
    assert kept(0.6, False) == [True, False, False, False]
    assert kept(0.2, False) == [True, False, False, False], "the best one always stays"


def test_draws_follow_the_probabilities() -> None:
    x = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(2, 1)
    sampler = Sampler(Sampling(top_k=0, top_p=1.0, repetition_penalty=1.0, guidance=1.0, minimum=0))
    u = uniforms(1, 0, 0, 4000)
    drawn = Counter(int(sampler.draw(x, state(1.0, n=4), u[i, None])) for i in range(len(u)))
    for index, p in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert abs(drawn[index] / len(u) - p) < 0.03


def test_takes_are_drawn_independently_of_each_other() -> None:
    sampler = Sampler(Sampling())
    x = logits(6)
    u = torch.tensor([0.1, 0.5, 0.9])
    together = sampler.draw(x, state(takes=3), u)
    alone = [sampler.draw(x[[i, 3 + i]], state(), u[i, None]) for i in range(3)]
    assert together.tolist() == [int(one) for one in alone]


def test_a_uniform_at_the_very_top_still_draws_a_possible_id() -> None:
    x = logits(2)
    sampler = Sampler(Sampling())
    top = torch.tensor([1.0 - 2**-24])
    index = int(sampler.draw(x, state(), top))
    assert sampler.scores(x, state())[0, index] > -torch.inf


def test_seeds_sections_and_takes_have_their_own_numbers() -> None:
    """Inherited fault: a seed without effect."""
    draws = {(s, k, t): tuple(uniforms(s, k, t, 4).tolist()) for s in (0, 1) for k in (0, 1) for t in (0, 1)}
    assert len(set(draws.values())) == 8
    assert uniforms(5, 2, 0, 8)[:4].tolist() == uniforms(5, 2, 0, 4).tolist()
    assert uniforms(0, 0, 0, 3).tolist() == pytest.approx(uniforms(0, 0, 0, 3).tolist())
    assert all(0 <= u < 1 for us in draws.values() for u in us)


def test_tracks_with_codes_of_their_own_keep_to_them() -> None:
    off = torch.ones(2, 5, dtype=torch.bool)
    off[0, [0, 1]] = off[1, [2, 3]] = off[:, -1] = False
    sampler = Sampler(Sampling(minimum=0, guidance=1.0), off_track=off)
    for count, wanted in ((100, [True, True, False, False, True]), (101, [False, False, True, True, False])):
        possible = ~sampler.scores(torch.zeros(1, 5), state(1.0, n=5, count=count)).isinf()
        assert possible[0].tolist() == wanted
