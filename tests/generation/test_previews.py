"""Rough sound of a song that is being made: when it is there, what is in it, and that it never harms the song."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from yuegp import codec
from yuegp.audio import files
from yuegp.errors import Cancelled, LibraryError, ModelError
from yuegp.generation import pipeline, previews
from yuegp.generation.plan import Event
from yuegp.generation.previews import Previews
from yuegp.library import store
from yuegp.library.store import Take
from yuegp.song.schema import Section, SongRequest, Span, Stage, TakeInfo

REQUEST = SongRequest((Section("verse", "one"), Section("chorus", "two")), "pop piano", seed=5, section_seconds=7.0)


@pytest.fixture
def take(tmp_path: Path) -> Take:
    song = store.create(REQUEST, tmp_path)
    return song.new_take(TakeInfo(number=0, request=REQUEST))


def codes(books: int, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (2, books, frames)).astype(np.int16)


def test_a_draft_is_both_tracks_of_codebook_0(tiny_set: Path, take: Take) -> None:
    made = codes(1, 80)
    with Previews(take, tiny_set / "codec") as heard:
        heard.draft(Span(0, 0, 80, True), made[:, 0])
        heard.finish()
        wave, rate = soundfile.read(take.folder / "hear" / "draft-00.flac")
    assert rate == 16000 and len(wave) == 320 * 80
    decoder = codec.load_codec(tiny_set / "codec")
    both = decoder.decode(made[0]) + decoder.decode(made[1])
    both *= min(1.0, previews.CEILING / np.abs(both).max())
    assert np.abs(both - wave).max() < 2**-15


def test_a_section_is_heard_when_all_but_its_last_chunk_is_refined(tiny_set: Path, take: Take) -> None:
    """Its refined part sounds as it will; its last seconds are rough, and joined without a gap."""
    full, mask = codes(8, 700), np.zeros((2, 700), bool)
    spans = (Span(0, 0, 500, True), Span(1, 500, 700, True), Span(2, 600, 700, True, take=9))
    with Previews(take, tiny_set / "codec") as heard:
        mask[:, :100] = True
        heard.refined(spans, full, mask)
        heard.finish()
        assert not list((take.folder / "hear").glob("*")), "too little of it"
        mask[:, :300] = True
        heard.refined(spans, full, mask)
        heard.finish()
        assert [path.name for path in (take.folder / "hear").iterdir()] == ["section-00.flac"]
        wave, _ = soundfile.read(take.folder / "hear" / "section-00.flac")
        assert len(wave) == 500 * 320
        mask[:] = True
        heard.refined(spans, full, mask)
        heard.finish()
        names = sorted(path.name for path in (take.folder / "hear").iterdir())
        assert names == ["section-00.flac", "section-01.flac"], "kept sections can be heard in their own take"
    decoder = codec.load_codec(tiny_set / "codec")
    both = sum(decoder.decode(track[:, :300]) for track in full)
    part = slice(0, 280 * 320)
    scale = float(np.dot(wave[part], both[part]) / np.dot(both[part], both[part]))
    assert np.abs(scale * both[part] - wave[part]).max() < 1e-4


def test_a_refined_section_makes_its_waiting_draft_superfluous(tiny_set: Path, take: Take) -> None:
    with Previews(take, tiny_set / "codec") as heard:
        heard._thread = object()  # type: ignore[assignment]  # nobody works yet
        heard.draft(Span(0, 0, 400, True), codes(1, 400)[:, 0])
        heard.refined((Span(0, 0, 400, True),), codes(8, 400), np.ones((2, 400), bool))
        assert list(heard._jobs) == ["section-00.flac"]
        heard._thread = None


def make(tiny_set: Path, root: Path, watch: Any = lambda event: None, **options: Any) -> Take:
    plan = pipeline.plan(replace(REQUEST, model=str(tiny_set)))
    song = store.create(plan.request, root)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    pipeline.run(plan, take, watch, "cpu", **options)
    return take


def test_previews_change_nothing_and_are_gone_when_the_mix_is_there(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = Previews._ask
    monkeypatch.setattr(Previews, "_ask", lambda self, name, *rest: (asked.append(name), ask(self, name, *rest))[1])
    with_them = make(tiny_set, tmp_path, hear="sections")
    without = make(tiny_set, tmp_path, hear="sections", previews=False)
    assert {"draft-00.flac", "section-00.flac", "draft-01.flac"} <= set(asked)
    assert with_them.mix.read_bytes() == without.mix.read_bytes()
    assert not (with_them.folder / "hear").exists() and not (without.folder / "hear").exists()


def test_a_stopped_song_keeps_its_previews_until_it_is_done(tiny_set: Path, tmp_path: Path) -> None:
    plan = pipeline.plan(replace(REQUEST, model=str(tiny_set)))
    song = store.create(plan.request, tmp_path)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    hear = take.folder / "hear"

    def stop_when_it_can_be_heard(event: Event) -> None:
        if event.stage in ("refining", "sound") and list(hear.glob("draft-*.flac")):
            raise Cancelled

    draft = Previews.draft
    with pytest.raises(Cancelled), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Previews, "draft", lambda self, *rest: (draft(self, *rest), self.finish())[0])
        pipeline.run(plan, take, stop_when_it_can_be_heard, "cpu")
    assert list(hear.glob("draft-*.flac"))
    (hear / ".draft-01.flac.99.part").write_bytes(b"left by a kill")
    pipeline.run(plan, take, device="cpu")
    assert take.info.stage is Stage.RENDERED and not hear.exists()
    hear.mkdir()
    (hear / "draft-00.flac").write_bytes(b"left by a kill just before the end")
    pipeline.run(plan, take, device="cpu")
    assert not hear.exists()


@pytest.mark.parametrize("fault", ["disk", "codec"])
def test_a_preview_that_cannot_be_made_stops_nothing(
    tiny_set: Path, take: Take, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(*arguments: Any) -> None:
        if fault == "disk":
            raise LibraryError("The disk is full.", "Free some space.")
        raise ModelError("The codec is damaged.", "Download it again.")

    monkeypatch.setattr(*((files, "write") if fault == "disk" else (codec, "load_codec")), broken)
    with Previews(take, tiny_set / "codec") as heard:
        heard.draft(Span(0, 0, 50, True), codes(1, 50)[:, 0])
        heard.finish()
        heard.draft(Span(1, 50, 100, True), codes(1, 50)[:, 0])
    assert not list(take.folder.glob("hear/*"))


def test_leaving_ends_the_thread_in_the_middle_of_a_long_one(tiny_set: Path, take: Take) -> None:
    with Previews(take, tiny_set / "codec") as heard:
        heard.draft(Span(0, 0, 60_000, True), codes(1, 60_000)[:, 0])
        thread = heard._thread
    assert thread is not None and not thread.is_alive()
