"""Songs continued, rewound, redone, trimmed, muted: the arithmetic on made-up codes, the music on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from yuegp.errors import Cancelled, LibraryError, RequestError
from yuegp.generation import edit, pipeline, plan
from yuegp.jobs.queue import Queue
from yuegp.jobs.worker import Worker
from yuegp.library import store
from yuegp.library.store import Song, Take
from yuegp.song.schema import LaterSections, Section, SongRequest, Span, Stage, TakeInfo

SECTIONS = tuple(Section(label, words) for label, words in (("verse", "one two"), ("chorus", ""), ("outro", "six")))


@pytest.fixture(autouse=True, scope="module")
def _quick_disk() -> Iterator[None]:
    """Hundreds of songs: what survives a power cut is `test_crash.py`'s question, not this file's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.os, "fsync", lambda handle: None)
        yield


# Arithmetic: takes of made-up codes, in which every frame can be told from every other


def song_of(folder: Path, lengths: list[int], refined: bool = True) -> tuple[Song, Take]:
    """A song with a finished take whose sections last so many frames."""
    sections = tuple(Section("verse", str(k)) for k in range(len(lengths)))
    song = store.create(SongRequest(sections, "pop"), folder)
    stops = np.cumsum([0, *lengths]).tolist()
    spans = tuple(Span(k, stops[k], stops[k + 1], True, 1, 0) for k in range(len(lengths)))
    info = TakeInfo(number=0, request=song.request, stage=Stage.RENDERED, spans=spans)
    full = np.random.default_rng(1).integers(0, 1024, (2, 8, stops[-1])).astype(np.int16)
    mask = np.full((2, stops[-1]), refined)
    return song, song.new_take(info, full[:, :1], (full, mask))


def sing(take: Take, frames: int) -> None:
    """Stands for Stage 1: the next missing section, `frames` long, of code 7."""
    spans = take.info.spans
    opened = spans[-1] if spans and spans[-1].open else None
    before = spans[:-1] if opened else spans
    start = before[-1].stop if before else 0
    section = opened.section if opened else len(before)
    span = Span(section, start, start + frames, True, take.info.number, 99)
    kept = take.load_stage1()
    codes = np.concatenate([kept, np.full((2, 1, start + frames - kept.shape[2]), 7, np.int16)], axis=2)
    take.save_stage1(codes, replace(take.info, spans=(*before, span)))


lengths = st.lists(st.integers(2, 90), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(lengths, st.data())
def test_a_redone_section_stands_between_kept_ones(tmp_path_factory: Any, frames: list[int], data: Any) -> None:
    k, new = data.draw(st.integers(0, len(frames) - 1)), data.draw(st.integers(2, 90))
    song, parent = song_of(tmp_path_factory.mktemp("s"), frames)
    take = edit.redo(song, parent, k, seed=5)
    assert take.info.parent == 1 and take.info.request.seed == 5 and take.info.number == 2
    sing(take, new)
    if take.info.kept_sections:
        pipeline._join_kept(take)
    spans = song.take(2).info.spans
    assert [s.stop - s.start for s in spans] == [*frames[:k], new, *frames[k + 1 :]]
    assert [s.take for s in spans] == [1] * k + [2] + [1] * (len(frames) - k - 1)
    before, old = spans[k].start, parent.info.spans[k].stop
    for ours, theirs in ((take.load_stage1(), parent.load_stage1()), (take.load_stage2()[0], parent.load_stage2()[0])):
        assert np.array_equal(ours[:, :, :before], theirs[:, :, :before])
        assert np.array_equal(ours[:, :, before + new :], theirs[:, :, old:])
    mask = take.load_stage2()[1]
    assert not mask[:, before : before + new].any() and mask.sum() == 2 * (sum(frames) - frames[k])
    if k + 1 < len(frames) and old >= plan.FADE:
        assert take.info.seams == (before + new,)
        lead = take.load_leads()[0]
        known = min(plan.LEAD, old)
        assert np.array_equal(lead[:, :, -known:], parent.load_stage2()[0][:, :, old - known : old])
    assert parent.info == song.take(1).info, "the parent is as it was"


@settings(max_examples=60, deadline=None)
@given(lengths, st.data())
def test_a_trimmed_section_is_shorter_and_the_rest_moves_up(
    tmp_path_factory: Any, frames: list[int], data: Any
) -> None:
    k = data.draw(st.integers(0, len(frames) - 1))
    cut = data.draw(st.integers(1, frames[k] - 1))
    song, parent = song_of(tmp_path_factory.mktemp("s"), frames)
    take = edit.trim(song, parent, k, cut / 50)
    if take.info.kept_sections:
        pipeline._join_kept(take)
    stop = parent.info.spans[k].stop
    keep = np.r_[0 : stop - cut, stop : sum(frames)]
    assert np.array_equal(take.load_stage1(), parent.load_stage1()[:, :, keep])
    assert np.array_equal(take.load_stage2()[0], parent.load_stage2()[0][:, :, keep]) and take.load_stage2()[1].all()
    assert take.frames == sum(frames) - cut and take.info.spans[-1].stop == take.frames


@settings(max_examples=80, deadline=None)
@given(lengths, st.data())
def test_a_rewound_song_keeps_every_frame_before(tmp_path_factory: Any, frames: list[int], data: Any) -> None:
    song, parent = song_of(tmp_path_factory.mktemp("s"), frames)
    frame = data.draw(st.integers(0, sum(frames) - 1))
    take = edit.rewind(song, parent, seed=3, second=frame / 50)
    assert take.frames == frame and np.array_equal(take.load_stage1(), parent.load_stage1()[:, :, :frame])
    starts = [0, *np.cumsum(frames).tolist()]
    assert any(span.open for span in take.info.spans) == (frame not in starts)
    while len(take.info.spans) < len(frames) or take.info.spans[-1].open:
        sing(take, 95)
    assert [s.section for s in take.info.spans] == list(range(len(frames)))
    assert np.array_equal(take.load_stage1()[:, :, :frame], parent.load_stage1()[:, :, :frame])


@settings(max_examples=40, deadline=None)
@given(lengths, st.lists(st.sampled_from(["redo", "trim", "rewind", "continue", "mute"]), max_size=5), st.data())
def test_any_chain_of_edits_leaves_whole_songs(
    tmp_path_factory: Any, frames: list[int], ops: list[str], data: Any
) -> None:
    song, take = song_of(tmp_path_factory.mktemp("s"), frames)
    for op in ops:
        k = data.draw(st.integers(0, len(take.info.spans) - 1))
        length = take.info.spans[k].stop - take.info.spans[k].start
        if op == "redo":
            new = edit.redo(
                song, take, k, seed=1, later=data.draw(st.sampled_from([LaterSections.KEEP, LaterSections.REMAKE]))
            )
        elif op == "trim":
            if length < 2:
                continue
            new = edit.trim(song, take, k, 1 / 50)
        elif op == "rewind":
            new = edit.rewind(song, take, seed=1, section=k)
        elif op == "continue":
            new = edit.proceed(song, take, [Section("bridge", "x")])
        else:
            new = edit.mute(song, take, {k})
        count = len(new.info.request.sections)
        while len(new.info.spans) < count:
            if new.info.kept_sections and len(new.info.spans) == new.info.kept_sections[0].section:
                pipeline._join_kept(new)
            else:
                sing(new, data.draw(st.integers(2, 60)))
        take = song.take(new.info.number)
        spans = take.info.spans
        assert [s.section for s in spans] == list(range(count))
        assert [s.start for s in spans] == [0, *[s.stop for s in spans[:-1]]] and all(s.stop > s.start for s in spans)
        assert take.load_stage1().shape[2] == take.frames == take.load_stage2()[0].shape[2]
        assert all(0 < seam < take.frames for seam in take.info.seams)
        assert list(take.info.seams) == sorted(set(take.info.seams)) and len(take.load_leads()) == len(take.info.seams)


def test_codes_that_were_never_refined_are_joined_without_a_fade(tmp_path: Path) -> None:
    song, parent = song_of(tmp_path, [40, 50], refined=False)
    take = edit.trim(song, parent, 0, 0.1)
    pipeline._join_kept(take)
    assert take.info.seams == () and not take.load_stage2()[1].any()


# Refusals


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    song, take = song_of(tmp_path, [100, 50])
    for refused, said in (
        (lambda: edit.redo(song, take, 2, 0), "has no section 3; it has 2"),
        (lambda: edit.later_sections("drop"), "'drop'"),
        (lambda: edit.trim(song, take, 0, 2), "lasts 2.00 s; 2 s cannot be cut"),
        (lambda: edit.trim(song, take, 0, 0), "cannot be cut"),
        (lambda: edit.rewind(song, take, 0, second=3), r"lasts 3.0 s; 3 s is not inside"),
        (lambda: edit.rewind(song, take, 0, second=-1), "not inside"),
        (lambda: edit.rewind(song, take, 0, section=5), "no section 6"),
        (lambda: edit.proceed(song, take), "All 2 sections"),
        (lambda: edit.mute(song, take, [7]), "no section 8"),
    ):
        with pytest.raises(RequestError, match=said):
            refused()
    assert song.take_numbers() == [1], "nothing was begun"


def test_an_unfinished_take_is_finished_first(tmp_path: Path) -> None:
    song, take = song_of(tmp_path, [100, 50])
    half = edit.rewind(song, take, 0, second=0.5)
    with pytest.raises(LibraryError, match=r"Take 2 of .* is not finished"):
        edit.redo(song, half, 0, 0)


# Music


@pytest.fixture
def made(tiny_set: Path, tmp_path: Path) -> tuple[Song, Take]:
    """A rendered song of three sections of one second and a half."""
    tags = "pop piano happy female airy vocal"
    request = SongRequest(SECTIONS, tags, seed=5, model=str(tiny_set), section_seconds=1.5)
    song = store.create(pipeline.plan(request).request, tmp_path)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    return song, run(take)


def run(take: Take) -> Take:
    pipeline.run(plan.plan_for(take), take)
    assert take.info.stage is Stage.RENDERED and take.mix.exists()
    return take


def first_codes(take: Take, k: int) -> list[Any]:
    """Stage 1's codes of a section. Those of Stage 2 depend on how the song falls into chunks."""
    span = take.info.spans[k]
    return take.load_stage1()[:, 0, span.start : span.stop].tolist()


def section(take: Take, k: int) -> list[Any]:
    span = take.info.spans[k]
    return take.load_stage2()[0][:, :, span.start : span.stop].tolist()


def test_a_continued_song_keeps_its_codes_and_knows_all_its_words(made: tuple[Song, Take]) -> None:
    song, take = made
    more = run(edit.proceed(song, take, [Section("bridge", "seven eight")]))
    assert [section(more, k) for k in range(3)] == [section(take, k) for k in range(3)]
    assert len(more.info.spans) == 4 and more.info.spans[3].take == 2
    assert [s.words for s in more.info.request.sections][-1] == "seven eight"
    assert song.take(1).info == take.info


def test_sections_can_be_made_one_by_one(made: tuple[Song, Take]) -> None:
    song, take = made
    first = run(edit.redo(song, take, 0, seed=8, later=LaterSections.STOP))
    assert len(first.info.spans) == 1
    second = run(edit.proceed(song, first, count=2))
    assert len(second.info.spans) == 2 and section(second, 0) == section(first, 0)
    third = run(edit.proceed(song, second))
    assert len(third.info.spans) == 3
    whole = run(edit.redo(song, take, 0, seed=8, later=LaterSections.REMAKE))
    assert [first_codes(third, k) for k in range(3)] == [first_codes(whole, k) for k in range(3)]


def test_a_redone_middle_keeps_the_end_and_sounds_whole(made: tuple[Song, Take]) -> None:
    song, take = made
    redone = run(edit.redo(song, take, 1, seed=9))
    assert section(redone, 0) == section(take, 0) and section(redone, 2) == section(take, 2)
    assert section(redone, 1) != section(take, 1)
    assert [span.seed for span in redone.info.spans] == [5, 9, 5]
    waves = [soundfile.read(path)[0] for path in (redone.vocal, redone.instrumental, redone.mix)]
    assert all(len(wave) == 882 * redone.frames for wave in waves)
    assert np.abs(waves[0] + waves[1] - waves[2]).max() < 2**-22
    old, new = (soundfile.read(t.mix)[0] for t in (take, redone))
    tail = 40 * 882  # well behind the seam the kept section sounds as it did, but for the common gain
    ratio = old[-tail:] @ new[-tail:] / np.sqrt((old[-tail:] @ old[-tail:]) * (new[-tail:] @ new[-tail:]))
    assert ratio > 0.99


def test_candidates_are_takes_of_their_own(made: tuple[Song, Take]) -> None:
    song, take = made
    events: list[plan.Event] = []
    some = edit.choices(song, take, 1, [21, 22, 23], LaterSections.KEEP, events.append)
    assert events and {event.stage for event in events} == {"writing"}
    assert all(event.done <= event.total and event.what == "section 2 of 3" for event in events)
    for candidate in some:
        run(candidate)
    assert len({str(section(t, 1)) for t in some}) == 3
    assert all(section(t, 2) == section(take, 2) for t in some)
    alone = run(edit.redo(song, take, 1, seed=22))
    assert first_codes(some[1], 1) == first_codes(alone, 1)
    assert [t.info.request.seed for t in some] == [21, 22, 23]


def test_takes_begun_together_are_written_in_one_batch_as_they_would_be_alone(made: tuple[Song, Take]) -> None:
    song, take = made
    some = [edit.redo(song, take, 1, seed) for seed in (21, 22, 23)]
    alone = run(some[2])

    def stop(event: plan.Event) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        edit.write_together(some, stop)
    assert [song.take(t.info.number).frames for t in some[:2]] == [some[0].frames] * 2, "nothing is saved half"
    edit.write_together(some, lambda event: None)
    written = [song.take(t.info.number) for t in some]
    assert [t.info.spans[-1].seed for t in written[:2]] == [21, 22] and all(t.info.kept_sections for t in written[:2])
    assert written[2].info == alone.info, "what was there is left as it is"
    lonely = [run(edit.redo(song, take, 1, seed)) for seed in (21, 22)]
    for begun, other in zip(written, lonely, strict=False):
        assert (run(begun).load_stage2()[0] == other.load_stage2()[0]).all()
    edit.write_together(some, stop)  # all are there: nothing to be stopped


def test_the_queue_writes_what_was_begun_together_once_for_all(
    made: tuple[Song, Take], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song, take = made
    some = [edit.redo(song, take, 1, seed) for seed in (31, 32)]
    numbers = tuple(t.info.number for t in some)
    queue, batches, real = Queue(tmp_path / "home"), [], edit.candidates

    def candidates(*arguments: Any) -> Any:
        batches.append(list(arguments[3]))
        return real(*arguments)

    monkeypatch.setattr(edit, "candidates", candidates)
    for number in numbers:
        queue.add(song.folder, number, "cpu", batch_takes=numbers)
    Worker(queue).run()
    assert batches == [[31, 32]] and [str(job.state) for job in queue.jobs()] == ["done", "done"]
    assert all(song.take(number).info.stage is Stage.RENDERED for number in numbers)


def test_a_song_rewound_into_a_section_goes_on_from_there(made: tuple[Song, Take]) -> None:
    song, take = made
    second = (take.info.spans[1].start + 20) / 50
    same = run(edit.rewind(song, take, seed=5, second=second))
    assert [first_codes(same, k) for k in range(3)] == [first_codes(take, k) for k in range(3)], "same seed, same song"
    other = run(edit.rewind(song, take, seed=6, second=second))
    frame = take.info.spans[1].start + 20
    assert (other.load_stage1()[:, :, :frame] == take.load_stage1()[:, :, :frame]).all()
    assert section(other, 2) != section(take, 2)


def test_a_muted_section_is_still_heard(made: tuple[Song, Take]) -> None:
    song, take = made
    muted = edit.mute(song, take, [0])
    assert muted.info.muted == (0,) and muted.info.stage is Stage.RENDERED
    assert muted.mix.read_bytes() == take.mix.read_bytes()
    plain, without = (run(edit.redo(song, t, 2, seed=30)) for t in (take, muted))
    assert section(plain, 2) != section(without, 2) and without.info.muted == (0,)
    assert edit.mute(song, muted, []).info.muted == ()


def test_a_section_without_words_and_one_at_its_limit_can_be_redone(made: tuple[Song, Take]) -> None:
    song, take = made
    assert take.info.request.sections[1].words == "" and not take.info.spans[1].ended
    again = run(edit.redo(song, take, 1, seed=2, later=LaterSections.REMAKE))
    assert len(again.info.spans) == 3
