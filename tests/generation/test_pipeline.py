"""A whole song through the real pipeline on a tiny random set: plans, files, stopping, resuming, references."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from repository import ROOT

from yuegp import files
from yuegp.checkpoints import sets
from yuegp.cli.wording import sentence
from yuegp.codec import xcodec
from yuegp.errors import Cancelled, DeviceError, LibraryError, ModelError, RequestError
from yuegp.generation import pipeline, render, session
from yuegp.generation.plan import Event, SongPlan, prompts_of
from yuegp.library import store
from yuegp.lm.llama.engine import TorchSession
from yuegp.song.schema import Reference, Sampling, Section, SongRequest, Stage, TakeInfo

SECTIONS = (Section("verse", "one two three"), Section("Chorus x2", "four five"), Section("outro", "six"))


@pytest.fixture
def request_(tiny_set: Path) -> SongRequest:
    """Three sections of at most a second and a half, from a model without a sense of ending."""
    return SongRequest(
        SECTIONS, "pop piano happy female airy vocal", title="A test", seed=5, model=str(tiny_set), section_seconds=1.5
    )


def make(request: SongRequest, root: Path, **options: Any) -> tuple[SongPlan, store.Song, store.Take]:
    plan = pipeline.plan(request)
    song = store.create(plan.request, root)
    plan = replace(plan, request=song.request)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    pipeline.run(plan, take, **options)
    return plan, song, take


def test_a_song_becomes_two_stems_and_a_mix(request_: SongRequest, tmp_path: Path) -> None:
    _, song, take = make(request_, tmp_path / "my songs")
    assert [span.section for span in take.info.spans] == [0, 1, 2], "the last section is made"
    assert take.info.stage is Stage.RENDERED
    waves = {path.stem: soundfile.read(path)[0] for path in (take.vocal, take.instrumental, take.mix)}
    for wave in waves.values():
        assert len(wave) == 882 * take.frames
        assert 0.001 < np.abs(wave).max() <= 1
    assert np.abs(waves["vocal"] + waves["instrumental"] - waves["mix"]).max() < 2**-22, "stems sum to the mix"
    assert np.abs(waves["vocal"] - waves["instrumental"]).max() > 0.001
    again = store.open_song(song.folder).take(1)
    assert again.info == take.info
    assert set(again.info.seconds) == {"stage1", "stage2", "sound"}


def test_the_same_seed_makes_the_same_song_and_overwrites_nothing(request_: SongRequest, tmp_path: Path) -> None:
    """Inherited faults: a seed without effect; outputs overwritten by the next run."""
    one, two, other = (make(replace(request_, seed=seed), tmp_path)[1:] for seed in (5, 5, 6))
    assert len({song.folder for song, _ in (one, two, other)}) == 3
    codes = [take.load_stage2()[0].tolist() for _, take in (one, two, other)]
    assert codes[0] == codes[1] != codes[2]
    assert one[1].mix.read_bytes() == two[1].mix.read_bytes()


@pytest.mark.parametrize("stage", ["writing", "refining", "sound"])
def test_a_stopped_song_keeps_what_is_finished_and_resumes_to_the_same_codes(
    request_: SongRequest, tmp_path: Path, stage: str
) -> None:
    """Inherited faults: finished takes thrown away on Stop; a resumed Stage 2 returns nothing."""
    _, _, whole = make(request_, tmp_path)

    def stop(event: Event) -> None:
        if event.stage == stage and event.done > event.total / 2:
            raise Cancelled

    plan = pipeline.plan(request_)
    song = store.create(plan.request, tmp_path)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    with pytest.raises(Cancelled):
        pipeline.run(plan, take, watch=stop)
    stopped = store.open_song(song.folder).take(1)
    assert len(stopped.info.spans) == (1 if stage == "writing" else 3)
    assert not stopped.mix.exists()
    pipeline.run(plan, stopped)
    assert stopped.info.spans == whole.info.spans
    assert (stopped.load_stage1() == whole.load_stage1()).all()
    assert (stopped.load_stage2()[0] == whole.load_stage2()[0]).all()
    assert stopped.mix.read_bytes() == whole.mix.read_bytes()


def test_a_take_opened_before_another_process_finished_it_is_not_undone(request_: SongRequest, tmp_path: Path) -> None:
    plan = pipeline.plan(request_)
    song = store.create(plan.request, tmp_path)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    stale = song.take(1)
    (take.folder / ".stage1.npz.01234567.tmp").write_bytes(b"left by a kill")
    pipeline.run(plan, take)

    def stop(event: Event) -> None:
        raise Cancelled

    pipeline.run(plan, stale, watch=stop)
    assert song.take(1).info == take.info and stale.info.stage is Stage.RENDERED
    assert not list(take.folder.glob(".*"))


def test_progress_rises_to_the_end_of_every_stage(request_: SongRequest, tmp_path: Path) -> None:
    events: list[Event] = []
    make(request_, tmp_path, watch=events.append)
    for stage in ("writing", "refining", "sound"):
        done = [event.done for event in events if event.stage == stage]
        assert done and done == sorted(done)
        assert all(0 <= event.done <= event.total for event in events)
    assert {event.what for event in events if event.stage == "writing"} == {f"section {k} of 3" for k in (1, 2, 3)}
    assert [event for event in events if event.stage == "sound"][-1].done == events[-1].total


def test_every_order_makes_the_same_song(request_: SongRequest, tmp_path: Path) -> None:
    """All of Stage 1 first, the first section early, each section at once; loaded together or in turns."""
    request = replace(request_, section_seconds=4)
    takes = [make(request, tmp_path, hear=hear)[2] for hear in ("stages", "first", "sections")]
    apart = plan_apart(request, tmp_path)
    for take in (*takes[1:], apart):
        assert (take.load_stage1() == takes[0].load_stage1()).all() and take.info.spans == takes[0].info.spans
        assert (take.load_stage2()[0] == takes[0].load_stage2()[0]).all()
        assert take.mix.read_bytes() == takes[0].mix.read_bytes()


def plan_apart(request: SongRequest, root: Path) -> store.Take:
    """The same with one model loaded at a time, so that Stage 1 begins anew after each section."""
    plan = pipeline.plan(request)
    song = store.create(plan.request, root)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    with pytest.MonkeyPatch.context() as patch:
        real = session.plan_memory
        apart = {"together": False, "parked": (), "caches": "rebuilt", "hear": "sections"}
        patch.setattr(session, "plan_memory", lambda *arguments: replace(real(*arguments), **apart))
        cast = pipeline.run(plan, take, device="cpu")
    assert cast is not None and cast.swaps >= 2
    return take


def test_sections_are_refined_as_they_are_written(request_: SongRequest, tmp_path: Path) -> None:
    stages: list[str] = []

    def watch(event: Event) -> None:
        if not stages or stages[-1] != event.stage:
            stages.append(event.stage)

    make(replace(request_, section_seconds=4), tmp_path, watch=watch, hear="sections")
    assert stages == ["writing", "refining"] * 2 + ["sound"], "a chunk of six seconds is full in the second section"


SHORT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    OSError("Die Auslagerungsdatei ist zu klein, um diesen Vorgang durchzuführen. (os error 1455)"),
)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_running_out_of_memory_makes_the_song_with_less(
    request_: SongRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Inherited fault: an out-of-memory error loses the song. Nothing finished is made again, the user is
    told, and the song is the one that was asked for."""
    request = replace(request_, section_seconds=4)
    _, _, whole = make(request, tmp_path)
    real, failures, notes, saved = TorchSession.step, [], [], []

    def step(self: Any, ids: Any, select: Any = None) -> Any:
        stage2 = self._network.config.hidden == 8
        late = self.length(0) > (400 if stage2 else 900)
        if stage == 1 + stage2 and late and len(failures) < stage:
            failures.append(len(take.info.spans))
            raise SHORT[len(failures) - 1]
        return real(self, ids, select)

    if stage == 3:
        monkeypatch.setattr(xcodec.XCodec, "decode", _full)
    else:
        monkeypatch.setattr(TorchSession, "step", step)
    plan = pipeline.plan(request)
    song = store.create(plan.request, tmp_path)
    take = song.new_take(TakeInfo(number=0, request=song.request))

    def watch(event: Event) -> None:
        notes.extend([event.note] * bool(event.note))
        saved.append(len(take.info.spans))

    monkeypatch.setattr(session, "plan_memory", _roomy(session.plan_memory))
    if stage == 3:
        with pytest.raises(DeviceError, match="ran out of memory"):
            pipeline.run(plan, take, watch, "cpu")
        monkeypatch.undo()
        pipeline.run(plan, take, watch, "cpu")
    else:
        pipeline.run(plan, take, watch, "cpu")
        assert len(failures) == len(notes) == stage
        assert all(note.startswith(f"Memory ran out in Stage {stage}. Going on ") for note in notes)
    assert saved == sorted(saved)
    assert (take.load_stage2()[0] == whole.load_stage2()[0]).all()
    assert take.mix.read_bytes() == whole.mix.read_bytes()


def test_candidates_for_which_memory_runs_out_are_written_in_smaller_batches(
    request_: SongRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _, take = make(replace(request_, section_seconds=1), tmp_path)
    wanted, _ = pipeline.candidates(plan, take, 1, [7, 8, 9], lambda event: None, "cpu")
    real, widths = TorchSession.step, []

    def step(self: Any, ids: Any, select: Any = None) -> Any:
        widths.append(len(ids))
        if len(ids) > 2:  # a take is two rows, with guidance
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, ids, select)

    monkeypatch.setattr(TorchSession, "step", step)
    found, _ = pipeline.candidates(plan, take, 1, [7, 8, 9], lambda event: None, "cpu")
    assert widths[0] == 6 and set(widths[1:]) == {2}
    assert [c.codes.tolist() for c in found] == [c.codes.tolist() for c in wanted]


def _full(*arguments: Any) -> Any:
    raise DeviceError("The graphics card ran out of memory in the codec.", "") from torch.OutOfMemoryError()


def _roomy(real: Any) -> Any:
    """Plans with something left to be given up: both models loaded, many chunks at once."""

    def plan(need: Any, card: Any, ram: int) -> Any:
        return replace(real(need, card, ram), together=True, caches="kept", stage2_batch=12)

    return plan


def test_only_the_first_sections_on_request(request_: SongRequest, tmp_path: Path) -> None:
    plan, song, take = make(replace(request_, first_sections=1), tmp_path)
    assert len(take.info.spans) == 1 and len(plan.sections) == 3
    assert json.loads((song.folder / "song.json").read_text())["request"]["sections"][2]["words"] == "six"


def test_a_song_of_one_second_works(request_: SongRequest, tmp_path: Path) -> None:
    """Inherited faults: one-section song fails; audio under six seconds crashes Stage 2."""
    _, _, take = make(replace(request_, sections=SECTIONS[:1], section_seconds=1), tmp_path)
    assert take.frames == 50 and take.mix.exists()


def test_the_released_crossover_can_be_chosen(request_: SongRequest, tmp_path: Path) -> None:
    smooth, yue = (make(replace(request_, crossover=name), tmp_path)[2] for name in ("smooth", "yue"))
    assert soundfile.read(smooth.mix)[0].tolist() != soundfile.read(yue.mix)[0].tolist()
    assert (smooth.load_stage1() == yue.load_stage1()).all()


def test_labels_are_shown_to_the_model_as_it_knows_them(request_: SongRequest) -> None:
    plan = pipeline.plan(request_)
    assert [s.label for s in plan.sections] == ["verse", "chorus", "outro"]
    assert plan.request.sections[1].label == "Chorus x2"


def test_a_set_recommends_how_it_is_used(tiny_set: Path, tmp_path: Path, request_: SongRequest) -> None:
    import shutil

    folder = tmp_path / "set"
    shutil.copytree(tiny_set, folder)
    data = json.loads((folder / "set.json").read_text())
    data |= {"defaults": {"section_seconds": 4, "sampling": {"temperature": 0.8}}, "drawable": [[1, 2], [3, 4]]}
    (folder / "set.json").write_text(json.dumps(data))
    found = sets.find(str(folder))
    assert found.sampling == Sampling(temperature=0.8)
    assert pipeline.plan(replace(request_, model=str(folder), section_seconds=None)).budget == 400
    _, _, take = make(replace(request_, model=str(folder), first_sections=1), tmp_path)
    assert [set(track.ravel().tolist()) for track in take.load_stage1()] == [{1, 2}, {3, 4}]


def test_an_instrumental_song_keeps_its_words_to_itself(request_: SongRequest, tmp_path: Path) -> None:
    plan, song, _ = make(replace(request_, instrumental=True, first_sections=1), tmp_path)
    assert [s.words for s in plan.sections] == ["", "", ""]
    assert "female" not in plan.tags and "vocal" not in plan.tags and "piano" in plan.tags
    assert song.request.sections[0].words == "one two three"
    assert any("not sung" in sentence(note) for note in plan.notes)


# References


def sound(path: Path, seconds: float, rate: int = 16000, channels: int = 1, seed: int = 0) -> str:
    noise = np.random.default_rng(seed).normal(0, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return str(path)


def heads(request: SongRequest, root: Path) -> tuple[int, ...]:
    """The head's ids, reference included, as the pipeline builds it."""
    plan, song, _ = make(replace(request, first_sections=1), root)
    assert song.request.reference is not None
    codes = render.reference_codes(plan, song.request.reference, lambda event: None, "cpu")
    return prompts_of(plan, codes).head


def test_a_mix_as_reference_stands_in_the_head(request_: SongRequest, tmp_path: Path) -> None:
    reference = Reference(mix=sound(tmp_path / "a mix.wav", 4, 44100, 2), start=1, end=3)
    head = heads(replace(request_, reference=reference), tmp_path)
    layout = sets.find(request_.model).layout
    start = head.index(layout.codec) + 1
    codes = head[start : head.index(layout.eoa)]
    assert len(codes) == 100 and all(id_ in layout.codes_of(0) for id_ in codes)
    assert len(set(codes)) > 5


def test_a_pair_as_reference_is_interleaved_vocal_first(request_: SongRequest, tmp_path: Path) -> None:
    """Inherited fault: a reference start such as 0.25 s swaps vocal and instrumental."""
    a, b = sound(tmp_path / "v.wav", 3, seed=1), sound(tmp_path / "i.wav", 2.5, seed=2)
    layout = sets.find(request_.model).layout

    def codes(reference: Reference) -> tuple[int, ...]:
        head = heads(replace(request_, reference=reference), tmp_path)
        return head[head.index(layout.codec) + 1 : head.index(layout.eoa)]

    both = codes(Reference(vocal=a, instrumental=b, start=0.25, end=2))
    assert len(both) == 2 * (100 - 12)
    assert both[0::2] == codes(Reference(mix=a, start=0.25, end=2))
    assert both[1::2] == codes(Reference(mix=b, start=0.25, end=2))
    assert len(codes(Reference(vocal=a, instrumental=b, start=0, end=30))) == 2 * 125, "the shorter track rules"


def test_a_long_reference_is_only_heard_around_its_window(
    request_: SongRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sound(tmp_path / "long.wav", 12)
    near = replace(request_, reference=Reference(mix=path, start=5, end=6.5))
    whole = heads(near, tmp_path)
    monkeypatch.setattr(render, "REFERENCE_MARGIN", 2)
    margin = heads(near, tmp_path)
    assert len(margin) == len(whole)
    same = sum(a == b for a, b in zip(margin, whole, strict=True)) / len(whole)
    assert same > 0.8


def test_a_model_without_training_for_references_refuses_one(request_: SongRequest, tmp_path: Path) -> None:
    from tools.make_set import make_set

    folder = make_set(tmp_path / "cot", "tiny")
    data = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps({**data, "mode": "cot"}))
    asked = replace(request_, model=str(folder), reference=Reference(mix=sound(tmp_path / "r.wav", 2)))
    with pytest.raises(RequestError, match="not trained to follow a reference"):
        pipeline.plan(asked)


# Refusals, all before a model loads


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first_sections": 4}, "number of sections to make is 4; it can be 1 to 3"),
        ({"first_sections": 0}, "is 0; it can be 1 to 3"),
        ({"section_seconds": 0.5}, "seconds is 0.5"),
        ({"section_seconds": float("nan")}, "seconds is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"crossover": "steep"}, "no crossover called 'steep'"),
        ({"tags": "  "}, "tags"),
        ({"tags": "pop " * 300}, "1,?199"),
        ({"sampling": Sampling(top_p=0)}, "top-p is 0"),
        ({"sampling": Sampling(temperature=-1)}, "temperature is -1"),
        ({"sampling": Sampling(repetition_penalty=0)}, "repetition penalty is 0"),
        ({"sampling": Sampling(guidance=float("inf"))}, "guidance is inf"),
        ({"sections": (Section("verse", "la " * 350),) * 12}, "room for"),
        ({"reference": Reference(mix="nowhere.wav")}, "nowhere.wav"),
    ],
)
def test_what_cannot_be_sung_is_refused_with_its_values(
    request_: SongRequest, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        pipeline.plan(replace(request_, **change))
    assert caught.value.hint


def test_an_unknown_model_names_the_known_ones(request_: SongRequest) -> None:
    with pytest.raises(ModelError, match="demo"):
        pipeline.plan(replace(request_, model="suno"))


def test_a_disk_that_fills_up_loses_no_finished_section(
    request_: SongRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = pipeline.plan(request_)
    take = store.create(plan.request, tmp_path).new_take(TakeInfo(number=0, request=plan.request))
    write, calls = files.write_atomic, []

    def full_from_the_third_section_on(path: Path, data: bytes) -> None:
        calls.append(path.name)
        if calls.count("stage1.npz") > 2:
            raise LibraryError(f"{path} could not be written: the disk is full.", "Free some space.")
        write(path, data)

    monkeypatch.setattr(files, "write_atomic", full_from_the_third_section_on)
    with pytest.raises(LibraryError, match="disk is full"):
        pipeline.run(plan, take)
    monkeypatch.setattr(files, "write_atomic", write)
    kept = store.Take(take.folder, store.open_song(take.folder.parent.parent).take(1).info)
    assert len(kept.info.spans) == 2 and kept.load_stage1().shape[2] == kept.frames
    pipeline.run(plan, kept)
    assert kept.info.stage is Stage.RENDERED


def test_save_files_speak_of_songs_not_of_widgets(request_: SongRequest, tmp_path: Path) -> None:
    """Inherited fault: a save file tied to widget names."""
    song = store.create(pipeline.plan(request_).request, tmp_path)
    stored = json.loads((song.folder / "song.json").read_text())["request"]
    assert set(stored) == set(SongRequest.__dataclass_fields__)
    assert set(stored["sampling"]) == set(Sampling.__dataclass_fields__)


def test_the_embedded_demo_is_a_set_like_any_other() -> None:
    """Nothing in the program asks whether it runs the demo; only the registry names it."""
    lines = [line for p in (ROOT / "yuegp").rglob("*.py") for line in p.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if '== "demo"' in line and "preset" not in line], "a measurement's preset may be"
