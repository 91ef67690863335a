"""How long a song still takes: simulated runs at speeds that are known, and what is learned from takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yuegp.generation.plan import Event
from yuegp.jobs import eta
from yuegp.jobs.eta import Costs, LinearCost, Observed, Workload, estimate, facts_of, learn, refining_passes
from yuegp.library import store
from yuegp.song.schema import MadeWith, Section, SongRequest, Span, Stage, TakeInfo


@dataclass(frozen=True)
class Speeds:
    """Seconds per id, per pass and per frame, and seconds each stage takes to load."""

    write: float = 0.02
    refine: float = 0.018
    sound: float = 0.004
    load: float = 0.0

    def costs(self, **changes: LinearCost) -> Costs:
        lines = {
            "writing": LinearCost(self.load, self.write),
            "refining": LinearCost(self.load, self.refine),
            "sound": LinearCost(self.load, self.sound),
        }
        return Costs({**lines, **changes})


def song(
    lengths: Sequence[int], speeds: Speeds, budget: int, device: str = "cuda", growth: float = 0.0
) -> Iterator[tuple[float, Event]]:
    """The events of a song whose sections have `lengths` ids, with their times; the last time is the song's end.
    `growth` is how much slower the last id is written than the first."""
    now, made, ids = speeds.load, 0, sum(lengths)
    for k, length in enumerate(lengths):
        for drawn in range(2, length + 1, 2):
            now += 2 * speeds.write * (1 + growth * made / ids)
            made += 2
            what = f"section {k + 1} of {len(lengths)}"
            yield now, Event("writing", what, k * budget + drawn, len(lengths) * budget, "ids", made)
    now += speeds.load
    frames, rows, done = ids // 2, eta.STAGE2_ROWS, 0
    full, tail = divmod(frames, 300)
    for size, width in [(300, min(rows, 2 * full - i)) for i in range(0, 2 * full, rows)] + [(tail, 2)] * bool(tail):
        for _ in range(size):
            now += 7 * speeds.refine * (1 + eta.ROW_COST[device] * width)
            done += width
            yield now, Event("refining", "both tracks", done, 2 * frames, "frames", done)
    now += speeds.load
    for done in range(0, 4 * frames + 1, 100):
        yield now + done / 4 * speeds.sound, Event("sound", "vocal stem", done, 4 * frames, "frames", done)
    now += frames * speeds.sound
    yield now, Event("sound", "vocal stem", 4 * frames, 4 * frames, "frames", 4 * frames)


def song_by_sections(lengths: Sequence[int], speeds: Speeds, budget: int) -> Iterator[tuple[float, Event]]:
    """The same of a song whose sections are refined as soon as they are written, and loaded for each."""
    now, written, refined, device = 0.0, 0, 0, "cuda"
    for k, length in enumerate(lengths):
        now += speeds.load
        for drawn in range(2, length + 1, 2):
            now += 2 * speeds.write
            what = f"section {k + 1} of {len(lengths)}"
            yield now, Event("writing", what, k * budget + drawn, len(lengths) * budget, "ids", drawn)
        written += length // 2
        ready, made = (written - refined) // 300, 0
        tail = (written - refined) % 300 if k + 1 == len(lengths) else 0
        now += speeds.load
        rows = eta.STAGE2_ROWS
        batches = [(300, min(rows, 2 * ready - i)) for i in range(0, 2 * ready, rows)] + [(tail, 2)] * bool(tail)
        for size, width in batches:
            for _ in range(size):
                now += 7 * speeds.refine * (1 + eta.ROW_COST[device] * width)
                made += width
                yield now, Event("refining", "both tracks", 2 * refined + made, 2 * written, "frames", made)
        refined += made // 2
    for done in range(0, 4 * written + 1, 100):
        yield now + done / 4 * speeds.sound, Event("sound", "vocal stem", done, 4 * written, "frames", done)


def estimates(events: Sequence[tuple[float, Event]], costs: Costs, facts: Workload) -> list[tuple[float, float | None]]:
    """(time, estimate) after each event."""
    seen, out = Observed(), []
    for now, event in events:
        seen = seen.after(event, now)
        out.append((now, estimate(costs, facts, seen)))
    return out


def worst(events: Sequence[tuple[float, Event]], costs: Costs, facts: Workload, start: float = 0.2) -> float:
    """The largest error of the estimated whole, as a share of the song's true seconds, after `start` of it."""
    end = events[-1][0]
    return max(
        abs(now + (left or 0) - end) / end for now, left in estimates(events, costs, facts) if now >= start * end
    )


lengths = st.lists(st.integers(1, 300).map(lambda n: 2 * n), min_size=1, max_size=5)
speed = st.floats(1e-4, 1.0)
speeds = st.builds(Speeds, speed, speed, speed, st.floats(0, 20))


@settings(max_examples=15, deadline=None)
@given(lengths, speeds, speeds, st.booleans(), st.sampled_from(["cpu", "cuda"]))
def test_an_estimate_is_never_negative(
    lengths: list[int], real: Speeds, believed: Speeds, first: bool, device: str
) -> None:
    facts = Workload(600, len(lengths), device=device)
    for _, left in estimates(list(song(lengths, real, 600, device)), Costs() if first else believed.costs(), facts):
        assert left is None or left >= 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 300).map(lambda n: 2 * n), speeds)
def test_an_estimate_is_exact_and_falls_when_speeds_are_those_learned(count: int, length: int, speeds: Speeds) -> None:
    events = list(song([length] * count, speeds, length))
    end, before = events[-1][0], float("inf")
    for now, left in estimates(events, speeds.costs(), Workload(length, count, device="cuda")):
        assert left == pytest.approx(end - now, rel=1e-6, abs=1e-6 * end)
        assert left <= before + 1e-9 * end
        before = left


def test_in_a_first_song_the_estimate_of_a_stage_falls_at_constant_speed() -> None:
    events = list(song([600] * 4, Speeds(), 600))
    by_stage: dict[str, list[float]] = {}
    for (_, event), (_, left) in zip(events, estimates(events, Costs(), Workload(600, 4, device="cuda")), strict=True):
        if left is not None:
            by_stage.setdefault(event.stage, []).append(left)
    for _guess, *values in by_stage.values():
        assert all(b <= a + 1e-6 for a, b in pairwise(values))


def test_a_song_on_a_large_card_is_foreseen_within_a_quarter_after_a_fifth() -> None:
    """Six uneven sections, models that load for a while, and writing that slows down as the context grows: the
    learned figures come from a shorter and a longer song."""
    real = Speeds(write=0.0175, refine=0.0148, sound=0.002, load=6.0)
    sizes = {"short": [1800] * 2, "long": [2000, 2600, 2400, 2800, 2200, 2400, 2000, 2600]}
    costs = learn([take(lengths, real, growth=0.4) for lengths in sizes.values()], "cuda")
    events = list(song([1500, 2600, 2400, 2700, 1900, 2300], real, 3000, growth=0.4))
    assert worst(events, costs, Workload(3000, 6, device="cuda")) < 0.15


def test_a_song_on_a_busy_machine_is_still_foreseen() -> None:
    """Everything takes a third longer than learned."""
    slow = Speeds(write=0.026, refine=0.0234, sound=0.0052)
    events = list(song([600] * 6, slow, 600))
    assert worst(events, Speeds().costs(), Workload(600, 6, device="cuda")) < 0.25


def test_sections_that_end_early_shorten_the_rest() -> None:
    events = [(now, event) for now, event in song([200] * 6, Speeds(), 1000) if event.stage == "writing"]
    facts = Workload(1000, 6, device="cuda")
    first, second = (
        next(
            left
            for (_, left), (_, e) in zip(estimates(events, Speeds().costs(), facts), events, strict=True)
            if e.what == f"section {k} of 6"
        )
        for k in (1, 2)
    )
    assert first is not None and second is not None
    assert second < first / 3


def test_a_song_refined_section_by_section_is_foreseen_too() -> None:
    """What was learned from songs made this way holds for them; in a first song the stages to come are guessed."""
    lengths = [1800, 2600, 2400, 2700, 1900, 2300]
    events = list(song_by_sections(lengths, Speeds(load=3.0), 3000))
    facts = Workload(3000, 6, device="cuda")
    ends = [0.0, 0.0, 0.0]
    for (before, _), (now, event) in zip([(0.0, None), *events], events, strict=False):
        ends[("writing", "refining", "sound").index(event.stage)] += now - before
    stages = dict(zip(("stage1", "stage2", "sound"), ends, strict=True))
    costs = learn([take(lengths, Speeds(), seconds=stages)], "cuda")
    assert worst(events, costs, facts) < 0.15
    first_song = [(now, left) for now, left in estimates(events, Costs(), facts) if left is not None]
    end = events[-1][0]
    assert max(abs(now + left - end) / end for now, left in first_song if now > 0.4 * end) < 0.5
    assert all(left >= 0 for _, left in first_song)


def test_nothing_is_said_before_anything_is_known() -> None:
    assert estimate(Costs(), Workload(600, 2), Observed()) is None
    assert estimate(Speeds(load=1).costs(), Workload(600, 2), Observed()) == pytest.approx(
        3 + 1200 * 0.02 + refining_passes(600, 16, "cpu") * 0.018 + 600 * 0.004
    )
    assert estimate(Speeds().costs(), Workload(600, 0, (600,), 0, 300), Observed()) == pytest.approx(300 * 0.004)


def test_passes_depend_on_batches_and_not_on_the_length_of_a_song() -> None:
    one, eight, nine = (refining_passes(300 * n, 16, "cuda") for n in (1, 8, 9))
    assert eight < 1.3 * one
    assert nine > 1.7 * eight
    assert refining_passes(0, 16, "cpu") == 0
    assert refining_passes(450, 4, "cpu", 900) == refining_passes(450, 4, "cpu")
    assert refining_passes(450, 4, "cpu", 300) == pytest.approx(7 * 150 * 1.5)


# What is learned


def request(count: int = 2, seconds: float = 30.0, model: str = "demo") -> SongRequest:
    return SongRequest((Section("verse", "la la"),) * count, "pop", model=model, section_seconds=seconds)


def take(lengths: Sequence[int], speeds: Speeds, growth: float = 0.0, **changes: object) -> TakeInfo:
    """A rendered take of a song with sections of so many ids, and the seconds it would have taken."""
    stops = [sum(lengths[: k + 1]) // 2 for k in range(len(lengths))]
    spans = tuple(Span(k, stop - n // 2, stop, True) for k, (n, stop) in enumerate(zip(lengths, stops, strict=True)))
    events = list(song(lengths, speeds, max(lengths), growth=growth))
    ends = [max(now for now, event in events if event.stage == name) for name in ("writing", "refining", "sound")]
    seconds = dict(
        zip(("stage1", "stage2", "sound"), (b - a for a, b in zip([0.0, *ends], ends, strict=False)), strict=True)
    )
    info = TakeInfo(
        1,
        request(len(lengths)),
        Stage.RENDERED,
        spans,
        created="2026-11-20T10:00:00+00:00",
        made_with=MadeWith("0", "demo", "torch", "cuda", "2"),
        seconds=seconds,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def test_speeds_and_loading_are_learned_from_takes_of_different_lengths() -> None:
    real = Speeds(load=5.0)
    costs = learn([take([n] * 3, real) for n in (400, 1000, 2000)], "cuda")
    for name, each in (("writing", real.write), ("refining", real.refine), ("sound", real.sound)):
        assert costs.lines[name].each == pytest.approx(each, rel=1e-3)
        assert costs.lines[name].begin == pytest.approx(5.0, rel=1e-2)


def test_one_song_made_on_a_busy_machine_bends_nothing() -> None:
    takes = [take([n] * 3, Speeds()) for n in (400, 800, 1200, 1600, 2000)]
    busy = take([1000] * 3, Speeds(0.2, 0.2, 0.2))
    assert learn([*takes, busy], "cuda").lines["writing"].each == pytest.approx(0.02, rel=0.2)


def test_one_take_is_enough_to_learn_from_and_none_is_no_error() -> None:
    costs = learn([take([600] * 2, Speeds())], "cuda")
    assert costs.lines["writing"] == (0.0, pytest.approx(0.02))
    assert costs.fill == pytest.approx(600 / 3000)
    assert learn([], "cpu") == Costs()
    assert learn([take([600], Speeds(), seconds={"stage1": 0.0})], "cpu").lines == {}


def test_kept_sections_cost_nothing_to_write() -> None:
    """A redone section: one span is new, its neighbours come from the parent."""
    info = take([600] * 3, Speeds())
    spans = tuple(replace(span, take=2 if span.section == 1 else 1) for span in info.spans)
    redone = replace(info, number=2, spans=spans, seconds={"stage1": 12.0})
    assert learn([redone], "cuda").lines["writing"].each == pytest.approx(12.0 / 600)


def test_facts_of_takes_that_are_new_half_written_redone_or_refined() -> None:
    info = take([600] * 3, Speeds())
    new = replace(info, spans=(), stage=Stage.NEW)
    assert facts_of(new, 3000, "cpu") == Workload(3000, 3)
    half = replace(info, spans=info.spans[:2], stage=Stage.STAGE1)
    assert facts_of(half, 3000, "cpu") == Workload(3000, 1, (600, 600), 600, 600, 2)
    redone = replace(half, number=2, spans=info.spans[:1], kept_sections=info.spans[2:])
    assert facts_of(redone, 3000, "cpu") == Workload(3000, 1, (600, 600), 0, 600, 1)
    opened = replace(half, spans=(info.spans[0], replace(info.spans[1], stop=400, open=True)))
    assert facts_of(opened, 3000, "cpu").todo == 2
    assert facts_of(replace(info, stage=Stage.STAGE2), 3000, "cpu").fresh == 0


def test_learning_looks_at_the_newest_takes_of_the_same_model_and_device(tmp_path: Path) -> None:
    for day in range(1, 4):
        for model, device in (("demo", "cuda:0"), ("demo", "cpu"), ("other", "cuda")):
            made = store.create(request(model=model), tmp_path)
            info = take([4, 4], Speeds(), created=f"2026-11-0{day}", request=made.request)
            begun = made.new_take(replace(info, spans=(), stage=Stage.NEW))
            begun.save_info(replace(info, made_with=MadeWith("0", model, "torch", device, "2")))
    unfinished = store.create(request(), tmp_path)
    unfinished.new_take(TakeInfo(1, unfinished.request))
    damaged = store.create(request(), tmp_path)
    (damaged.folder / "song.json").write_text(json.dumps({"format": 2}))
    found = eta.earlier_takes(tmp_path, "demo", "cuda")
    assert [info.created for info in found] == ["2026-11-03", "2026-11-02", "2026-11-01"]
    assert eta.earlier_takes(tmp_path / "nowhere", "demo", "cuda") == []
