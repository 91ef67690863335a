"""The embedded set makes music: heard, in tempo, the same for the same seed, and whole however it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tools.demo import songs
from tools.demo.listen import beat_correlation
from yuegp.checkpoints import sets
from yuegp.errors import Cancelled
from yuegp.generation import edit, pipeline
from yuegp.generation.plan import Event, plan_for
from yuegp.library import store
from yuegp.library.store import Take
from yuegp.song.schema import LaterSections, Section, SongRequest, Stage, TakeInfo


def request(genre: str, seed: int = 1) -> SongRequest:
    """Two short sections of words and tags as the set was trained on, from a song that it has never seen."""
    composed = songs.make_song(77_000_000 + seed, genre=genre, size="short")
    sections = tuple(Section(s.label, s.words) for s in composed.sections)[:2]
    return SongRequest(sections, composed.tags, seed=seed, model="demo")


def make(asked: SongRequest, root: Path) -> Take:
    plan = pipeline.plan(asked)
    song = store.create(plan.request, root)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    pipeline.run(plan, take)
    return take


@pytest.fixture(scope="module", params=sorted(songs.SIXTEENTH))
def sung(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Take]]:
    """A song of each genre."""
    yield request.param, make(globals()["request"](request.param), tmp_path_factory.mktemp("songs"))


def test_a_song_is_heard_and_ends_by_itself(sung: tuple[str, Take]) -> None:
    _, take = sung
    for path in (take.vocal, take.instrumental, take.mix):
        wave, rate = soundfile.read(path)
        assert rate == 44100 and len(wave) == 882 * take.frames
        assert np.sqrt(np.mean(wave**2)) > 0.01, f"{path.name} is silent"
    assert all(span.ended for span in take.info.spans), "the model ends its sections itself"


def test_a_song_keeps_a_steady_beat(sung: tuple[str, Take]) -> None:
    """One of the set's own tempi. Which, is measured over many prompts in docs/demo-model.md."""
    wave, rate = soundfile.read(sung[1].instrumental)
    beats = {4 * sixteenth / 50 for sixteenth in songs.SIXTEENTH.values()}
    assert max(beat_correlation(wave.astype(np.float32), rate, beat) for beat in beats) > 0.25


def test_each_track_keeps_to_its_codes(sung: tuple[str, Take]) -> None:
    drawable = sets.find("demo").drawable
    assert drawable is not None
    for track, allowed in zip(sung[1].load_stage1()[:, 0], drawable, strict=True):
        assert set(track.tolist()) <= set(allowed)


def test_the_same_seed_sings_the_same_and_another_differently(tmp_path: Path) -> None:
    one, same, other = (make(replace(request("pop"), seed=seed), tmp_path) for seed in (3, 3, 4))
    assert (one.load_stage2()[0] == same.load_stage2()[0]).all()
    assert one.mix.read_bytes() == same.mix.read_bytes()
    assert one.load_stage1().tolist() != other.load_stage1().tolist()


def test_a_stopped_song_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = make(request("rock"), tmp_path)
    plan = pipeline.plan(request("rock"))
    song = store.create(plan.request, tmp_path)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    for limit in (60, 900):
        count = 0

        def stop(event: Event, limit: int = limit) -> None:
            nonlocal count
            count += 1
            if count > limit:
                raise Cancelled

        with pytest.raises(Cancelled):
            pipeline.run(plan, song.take(1), watch=stop)
    take = song.take(1)
    pipeline.run(plan, take)
    assert take.info.stage is Stage.RENDERED and take.info.spans == whole.info.spans
    assert (take.load_stage2()[0] == whole.load_stage2()[0]).all()


def test_candidates_in_one_batch_are_what_they_are_alone(tmp_path: Path) -> None:
    take = make(request("dance"), tmp_path)
    song = store.open_song(take.folder.parent.parent)
    batch = edit.choices(song, take, 0, [5, 6], "stop", lambda event: None)
    for seed, candidate in zip((5, 6), batch, strict=True):
        alone = edit.redo(song, take, 0, seed, later=LaterSections.STOP)
        pipeline.run(plan_for(alone), alone)
        assert candidate.load_stage1().tolist() == alone.load_stage1().tolist()
