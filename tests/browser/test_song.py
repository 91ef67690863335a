"""The Song page: its arithmetic and its actions without a browser, then heard, worked on and thrown away in one."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import PageServer
from hypothesis import given
from hypothesis import strategies as st

from ui.context import AppContext
from ui.pages import wording
from ui.pages.song import actions, export, timeline
from ui.pages.song import html as song_html
from ui.pages.song import page as song_page
from ui.pages.song import view as song_view
from ui.texts import LANGUAGES, Texts
from yuegp.errors import LibraryError, RequestError, YueGPError
from yuegp.generation import edit, pipeline
from yuegp.generation.options import ANY, ModelOptions
from yuegp.jobs.queue import Job, JobProgress, Queue, State
from yuegp.library import store
from yuegp.library.store import Song
from yuegp.song.notes import NoteCode
from yuegp.song.schema import Edit, EditKind, Section, SongInfo, SongRequest, Span, Stage, TakeInfo

T = Texts()


def finished(*lengths: int, words: str = "one\ntwo", **changes: Any) -> TakeInfo:
    """A rendered take whose sections last so many frames."""
    stops = np.cumsum([0, *lengths]).tolist()
    spans = tuple(Span(k, stops[k], stops[k + 1], True, 1, 5) for k in range(len(lengths)))
    request = SongRequest(tuple(Section("verse", words) for _ in lengths), "pop", title="Sea song")
    return replace(TakeInfo(1, request, Stage.RENDERED, spans), **changes)


@pytest.fixture
def context(tmp_path: Path) -> AppContext:
    return AppContext(tmp_path / "songs", Queue(tmp_path))


@pytest.fixture
def song(context: AppContext) -> Song:
    """A song with one finished take of made-up codes: sections of 2, 3 and 1 s, and a second of sound."""
    info = finished(100, 150, 50)
    made = store.create(info.request, context.root)
    full = np.random.default_rng(1).integers(0, 1024, (2, 8, 300)).astype(np.int16)
    take = made.new_take(info, full[:, :1], (full, np.ones((2, 300), bool)))
    for path in (take.vocal, take.instrumental, take.mix):
        soundfile.write(path, np.zeros(44100), 44100, format="FLAC", subtype="PCM_24")
    return made


def act(context: AppContext, song: Song, what: str, **values: object) -> actions.Done:
    return actions.act(context, song.folder.name, what, {"take": "1", **values})


# Where things stand


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8))
def test_blocks_are_drawn_to_scale_and_leave_no_gap(lengths: list[int]) -> None:
    drawn = timeline.blocks(finished(*lengths))
    assert drawn[0].start == 0 and drawn[-1].stop == pytest.approx(sum(lengths) / 50)
    assert [round(block.seconds * 50) for block in drawn] == lengths
    assert all(a.stop == b.start for a, b in pairwise(drawn))
    assert {block.state for block in drawn} == {"made"}
    widths = [float(timeline.share(block.seconds, drawn[-1].stop).rstrip("%")) for block in drawn]
    assert sum(widths) == pytest.approx(100, abs=0.01)


def test_an_unfinished_take_shows_what_is_to_come_and_what_follows() -> None:
    whole = finished(100, 150, 50, 200)
    redone = replace(whole, stage=Stage.NEW, spans=whole.spans[:1], kept_sections=whole.spans[2:])
    drawn = timeline.blocks(redone)
    assert [(block.section, block.state) for block in drawn] == [(0, "made"), (1, "planned"), (2, "kept"), (3, "kept")]
    assert drawn[2].start == drawn[1].stop and drawn[3].seconds == 4.0
    assert timeline.unwritten(redone) == ()
    stopped = replace(whole, spans=whole.spans[:2], request=replace(whole.request, first_sections=2))
    assert len(timeline.blocks(stopped)) == 2 and timeline.unwritten(stopped) == (2, 3)
    opened = replace(whole, stage=Stage.NEW, spans=(replace(whole.spans[0], ended=False, open=True),))
    assert [block.state for block in timeline.blocks(opened)] == ["open", "planned", "planned", "planned"]


def test_lines_are_spread_evenly_over_their_section() -> None:
    found = timeline.lines("one\n\n  two \nthree\nfour", 10, 12)
    assert [line.text for line in found] == ["one", "two", "three", "four"]
    assert [line.start for line in found] == [10, 10.5, 11, 11.5] and found[-1].stop == 12
    assert timeline.lines(" \n", 0, 1) == ()


@given(st.floats(0.1, 2000))
def test_marks_of_time_are_few_and_inside(whole: float) -> None:
    marks = song_html.ticks(whole)
    assert marks[0] == 0 and len(marks) <= song_html.MOST_TICKS and marks[-1] < max(whole, 0.1)


# What is shown


def test_a_damaged_take_is_named_and_hides_no_other(context: AppContext, song: Song) -> None:
    act(context, song, "trim", section=0, seconds=1)
    (song.folder / "takes" / "002" / "take.json").write_text("{", encoding="utf-8")
    view = song_view.load(context, song.folder.name, 2)
    assert [(row.number, row.state) for row in view.rows] == [(2, "damaged"), (1, "ready")]
    assert view.chosen == 1 and "damaged" in view.rows[0].broken
    shown = song_page.render(context, {"song": song.folder.name, "take": 2, "section": 0}, True, T)
    assert shown["state"] == "open" and "is damaged and was left as it is" in shown["parts"]["takes"]


def test_a_damaged_song_is_a_sentence(context: AppContext, song: Song) -> None:
    (song.folder / "song.json").write_text("[]", encoding="utf-8")
    shown = song_page.render(context, {"song": song.folder.name}, True, T)
    assert shown["state"] == "broken" and "is damaged and was left as it is" in shown["parts"]["empty"]
    assert "Traceback" not in shown["parts"]["empty"]


def test_versions_of_a_section_are_where_it_was_written(context: AppContext, song: Song) -> None:
    act(context, song, "redo", section="1", later="keep", count="2")
    act(context, song, "trim", section=1, seconds=1)
    view = song_view.load(context, song.folder.name, None, 1)
    found = [(version.row.number, version.block is not None) for version in song_view.versions(view)]
    assert found == [(3, False), (2, False), (1, True)], "the trimmed one was written in take 1"
    assert view.shown and view.shown.number == 1 and song_view.rival(view) is None


def test_nothing_from_a_song_becomes_html(context: AppContext) -> None:
    evil = '"><script>alert(1)</script>'
    info = finished(100, words=evil)
    info = replace(info, request=replace(info.request, title=evil, tags=evil, sections=(Section(evil, evil),)))
    made = store.create(info.request, context.root)
    made.new_take(replace(info, edit=Edit(EditKind.OTHER, text=evil), parent=1), np.zeros((2, 1, 100), np.int16))
    shown = song_page.render(context, {"song": made.folder.name}, True, T)
    assert shown["state"] == "open"
    for part, text in shown["parts"].items():
        assert "<script" not in text and '"">' not in text, part


def test_no_name_or_message_becomes_html() -> None:
    """Folders and messages can be called what files may be called: more than `store` would call them."""
    evil = "\"'><img src=x onerror=alert(1)>"
    info = finished(100)
    failed = Job(1, evil, 2, state=State.FAILED, what=evil, hint=evil)
    rows = (song_view.Row(3, None, evil), song_view.Row(2, replace(info, stage=Stage.NEW), job=failed))
    view = song_view.SongView(evil, evil, SongInfo(evil), evil, rows, 2, rows[1])
    for text in (*song_html.parts(view, True, T).values(), song_html.broken(evil, T)):
        assert "<img" not in text and "'>" not in text and text.count('"') % 2 == 0
    assert evil in html.unescape(song_html.broken(evil, T))


def test_what_was_done_to_a_take_is_said_in_the_language_of_the_page(context: AppContext, song: Song) -> None:
    take = song.take(1)
    done = [
        edit.redo(song, take, 1, 5),
        edit.rewind(song, take, 5, section=1),
        edit.rewind(song, take, 5, second=2.5),
        edit.trim(song, take, 1, 0.5),
        edit.mute(song, take, [0, 2]),
        edit.mute(song, take, []),
        edit.proceed(song, take, [Section("outro", "x")]),
    ]
    assert [wording.edit_in_words(new.info.edit, T) for new in done] == [
        "section 2 made again",
        "rewound to section 2",
        "rewound to 2.5 s",
        "section 2 trimmed by 0.5 s",
        "muted sections: 1, 3",
        "nothing muted",
        "continued",
    ]
    assert wording.edit_in_words(Edit(EditKind.OTHER, text="turned upside down"), T) == "turned upside down"
    assert wording.edit_in_words(None, T) == "made"
    for language in LANGUAGES:
        assert all(wording.edit_in_words(Edit(kind, text="x"), Texts(language)) for kind in EditKind)


def test_every_sentence_of_the_page_is_there() -> None:
    here = Path(song_page.__file__).parent
    for file in here.glob("*.py"):
        for key in re.findall(r'\b(?:t|say)\("([\w.-]+)"', file.read_text("utf-8")):
            assert key in T.sentences, f"{file.name}: {key}"
    source = Path(actions.__file__).read_text("utf-8")
    for key in re.findall(r'"(done\.[\w-]+)"', source):
        assert f"song.{key}" in T.sentences, key
    assert song_html.frame(T).count("data-part=") == 11
    for key in song_page.WORDS.values():
        assert key in T.sentences
    for row_state in ("ready", "damaged", *(state.value for state in State if state is not State.DONE)):
        assert f"song.take.{row_state}" in T.sentences


# What is done


def test_candidates_are_takes_in_the_queue_and_the_parent_stays(context: AppContext, song: Song) -> None:
    before = song.take(1).info
    done = act(context, song, "redo", section="1", later="keep", count="3")
    assert done.values == {"take": "2, 3, 4"}
    takes = [song.take(number).info for number in (2, 3, 4)]
    assert len({info.request.seed for info in takes}) == 3
    assert all(info.parent == 1 and len(info.spans) == 1 and len(info.kept_sections) == 1 for info in takes)
    jobs = context.jobs(song.folder.name)
    assert [(job.take, job.batch_takes) for job in jobs] == [(n, (2, 3, 4)) for n in (2, 3, 4)], "one batch for all"
    assert song.take(1).info == before


def test_an_edit_is_made_the_way_the_song_was_unless_that_is_not_possible_any_more(
    context: AppContext, song: Song
) -> None:
    for wishes, then in (
        (ModelOptions(weights="nf4"), ModelOptions(weights="nf4")),
        (ModelOptions(engine="exl2"), ANY),
    ):
        context.make(song, song.take(1), "cpu", wishes)
        act(context, song, "redo", section="1", later="keep", count="1")
        job = context.jobs(song.folder.name)[-1]
        assert (job.device, job.wishes, job.batch_takes) == ("cpu", then, ())
        for job in context.jobs():
            context.queue.cancel(job.number)


@pytest.mark.parametrize("later, kept", [("keep", 1), ("remake", 0), ("stop", 0)])
def test_later_sections_are_kept_remade_or_left(context: AppContext, song: Song, later: str, kept: int) -> None:
    act(context, song, "redo", section="1", later=later, count="1")
    info = song.take(2).info
    assert len(info.kept_sections) == kept and info.request.first_sections == (2 if later == "stop" else None)


def test_the_song_goes_on_with_new_words_and_says_what_it_made_of_them(context: AppContext, song: Song) -> None:
    done = act(context, song, "continue", words="hello\n[outro]\nbye", count="")
    info = song.take(2).info
    assert [s.label for s in info.request.sections[3:]] == ["verse", "outro"] and info.edit == Edit(EditKind.CONTINUE)
    assert done.notes and done.notes[0].code is NoteCode.BEFORE_LABEL
    act(context, song, "continue", words="[outro]\nbye", count="9")
    assert song.take(3).info.request.first_sections == 4, "no more than there are"
    with pytest.raises(RequestError):
        act(context, song, "continue", words="", count="")
    with pytest.raises(RequestError, match="at most"):
        act(context, song, "continue", words="[verse]\n" + "la " * 2000, count="")
    assert song.take_numbers() == [1, 2, 3], "what cannot be sung begins no take"


def test_muting_changes_no_sound_and_needs_no_work(context: AppContext, song: Song) -> None:
    assert act(context, song, "mute", section="2").say == "done.ready"
    assert (
        song_page.handle_action(
            context, {"song": song.folder.name, "do": "mute", "values": {"take": 2, "section": 0}}, True, T
        )["front"]
        == 3
    )
    assert song.take(3).info.muted == (0, 2)
    assert song.take(2).info.muted == (2,) and song.take(2).mix.read_bytes() == song.take(1).mix.read_bytes()
    actions.act(context, song.folder.name, "mute", {"take": "2", "section": "2"})
    assert song.take(4).info.muted == () and context.jobs() == []


def test_rewind_trim_rename_rate_and_pick(context: AppContext, song: Song) -> None:
    act(context, song, "rewind", second="2.5", section="0")
    assert song.take(2).frames == 125 and song.take(2).info.spans[-1].open
    act(context, song, "rewind", section="2")
    assert len(song.take(3).info.spans) == 2
    act(context, song, "trim", section="0", seconds="0.5")
    assert song.take(4).info.spans[0].stop == 75
    act(context, song, "rename", title="  Night\tsong ")
    act(context, song, "rate", stars="4")
    act(context, song, "pick", take="1")
    info = context.song(song.folder.name).info
    assert (info.title, info.rating, info.picked) == ("Night song", 4, 1)
    act(context, song, "rate", stars="0")
    assert context.song(song.folder.name).info.rating is None


def test_stop_takes_off_the_queue_and_go_on_puts_back(context: AppContext, song: Song) -> None:
    act(context, song, "trim", section="0", seconds="0.5")
    act(context, song, "stop", take="2")
    assert context.jobs() == [] and song_view.load(context, song.folder.name).rows[0].state == "stopped"
    act(context, song, "resume", take="2")
    job = context.jobs()[0]
    context.queue.pause(job.number)
    assert song_view.load(context, song.folder.name).rows[0].state == "paused"
    act(context, song, "resume", take="2")
    assert [job.state for job in context.jobs()] == [State.WAITING]


def test_how_far_a_take_is_and_why_it_failed(context: AppContext, song: Song) -> None:
    act(context, song, "redo", section="0", later="keep", count="2")

    def shown() -> dict[str, str]:
        return song_page.render(context, {"song": song.folder.name}, True, T)["parts"]

    assert "Take 2 waits in the queue. 1 more to come." in shown()["jobs"]
    with context.queue.work():
        job = context.queue.claim()
        assert job and job.take == 2
        assert "getting ready" in shown()["jobs"]
        context.queue.save_progress(
            JobProgress(job.number, State.RUNNING, "writing", "section 1", 30, 120, "ids", eta=61.0)
        )
        assert "Take 2: writing, 25 %, about 1:01 left." in shown()["jobs"]
        assert "writing, 25 %, about 1:01 left" in shown()["takes"]
        context.queue.finish(replace(job, state=State.FAILED, what="The disk is <full>.", hint="Free some space."))
    assert "The disk is &lt;full&gt;. Free some space." in shown()["takes"]
    assert 'data-act="resume" data-take="2"' in shown()["takes"]


@pytest.mark.parametrize("name", ["..", "../songs", "/etc", ".trash", "", "C:\\songs", "a/b", "nothing", "\0"])
def test_no_name_from_a_browser_is_a_path(context: AppContext, song: Song, name: str) -> None:
    for what in actions.ACTIONS:
        with pytest.raises(YueGPError):
            actions.act(context, name, what, {"take": 1, "section": 0, "count": 1, "later": "keep"})
    assert song_page.render(context, {"song": name}, True, T)["state"] == ("broken" if name else "empty")
    assert song.take_numbers() == [1]


@pytest.mark.parametrize(
    "what, values",
    [
        ("redo", {"section": "x", "count": 1, "later": "keep"}),
        ("redo", {"section": 0, "count": 99, "later": "keep"}),
        ("redo", {"section": 0, "count": 1, "later": "burn"}),
        ("redo", {"section": 7, "count": 1, "later": "keep"}),
        ("rewind", {"second": "nan"}),
        ("rewind", {"second": "1e999"}),
        ("trim", {"section": 0, "seconds": 50}),
        ("pick", {"take": [1]}),
        ("pick", {"take": 12}),
        ("rate", {"stars": 7}),
        ("rename", {"title": " "}),
        ("export", {"kind": "exe", "mix": 1}),
        ("export", {"kind": "flac"}),
        ("delete-everything", {}),
    ],
)
def test_nonsense_is_refused_in_a_sentence(context: AppContext, song: Song, what: str, values: dict[str, Any]) -> None:
    asked = {"song": song.folder.name, "do": what, "values": {"take": 1, **values}}
    error = song_page.handle_action(context, asked, True, T)["error"]
    assert error.endswith(".") and "Traceback" not in error
    assert song.take_numbers() == [1] and context.jobs() == []
    assert (
        song_page.handle_action(context, "nonsense", True, T)["error"]
        and song_page.render(context, 3, True, T)["state"] == "empty"
    )


def test_export_is_found_by_its_name_and_nothing_else_is(context: AppContext, song: Song) -> None:
    name = song.folder.name
    done = act(context, song, "export", kind="flac", mix="1", vocal="1", artist="  Me\nand you ")
    assert done.files == ("Sea song - mix.flac", "Sea song - vocal.flac", "Sea song.lrc")
    assert all(export.find(context, name, file).is_file() for file in done.files)
    for wrong in ("../song.json", "song.json", "/etc/passwd", "..", "", ".", "no.flac"):
        with pytest.raises(LibraryError):
            export.find(context, name, wrong)
    (song.folder / "exports" / "leak.flac").symlink_to("/etc/hostname")
    with pytest.raises(LibraryError, match="link"):
        export.find(context, name, "leak.flac")


def test_the_trash_takes_the_song_and_its_waiting_jobs_and_gives_the_song_back(context: AppContext, song: Song) -> None:
    act(context, song, "trim", section="0", seconds="0.5")
    name = song_page.handle_action(context, {"song": song.folder.name, "do": "trash", "values": {}}, True, T)["name"]
    assert not song.folder.exists() and context.jobs() == []
    by_title = song_page.handle_action(context, {"song": "Sea song", "do": "restore", "values": {}}, True, T)
    assert "no longer in the trash" in by_title["error"]
    assert (
        song_page.handle_action(context, {"song": name, "do": "restore", "values": {}}, True, T)["name"]
        == song.folder.name
    )
    assert context.song(song.folder.name).take_numbers() == [1, 2]


def test_a_folder_opens_only_on_the_machine_it_is_on(
    context: AppContext, song: Song, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[list[str]] = []
    monkeypatch.setattr(actions.subprocess, "Popen", lambda command, **_: opened.append(command))
    monkeypatch.setattr(actions.sys, "platform", "linux")
    asked = {"song": song.folder.name, "do": "open-folder", "values": {"folder": "/etc"}}
    assert "another machine" in song_page.handle_action(context, asked, False, T)["error"] and not opened
    assert "said" in song_page.handle_action(context, asked, True, T)
    assert opened == [["xdg-open", str(song.folder)]]
    local = song_html.parts(song_view.load(context, song.folder.name), True, T)["more"]
    remote = song_html.parts(song_view.load(context, song.folder.name), False, T)["more"]
    assert "open-folder" in local and "open-folder" not in remote


# In a browser, with the demo set

SECTIONS = (Section("verse", "la la la\nlo lo lo"), Section("chorus", "da da"), Section("outro", "na na"))


@pytest.fixture(scope="module")
def made(page_server: PageServer) -> Song:
    """A song of three sections of at most a second, made by the demo set where the page will find it."""
    request = SongRequest(SECTIONS, "pop piano happy female airy vocal", "Sea song", seed=3, section_seconds=1)
    plan = pipeline.plan(request)
    song = store.create(plan.request, page_server.songs)
    pipeline.run(plan, song.new_take(TakeInfo(0, song.request)))
    return song


@pytest.fixture(scope="module")
def expect(browser: Any) -> Callable[..., Any]:
    """playwright's assertions, which wait: as long as the demo set needs for a short take on a busy machine."""
    from playwright.sync_api import expect as found

    found.set_options(timeout=300_000)
    return found


@pytest.fixture
def page(browser_page: Any, made: Song) -> Iterator[Any]:
    """The song, open on the Song page."""
    yield opened(browser_page, made.folder.name)


def opened(page: Any, name: str) -> Any:
    page.click("#tab-song-button")
    page.wait_for_selector("#song-page .song", state="attached")
    page.evaluate(
        """(name) => { const box = document.querySelector("#open-song input, #open-song textarea");
        box.value = name; box.dispatchEvent(new Event("input", { bubbles: true })); }""",
        name,
    )
    page.wait_for_selector("#song-page .song[data-state=open]")
    return page


def player(page: Any, what: str) -> Any:
    return page.evaluate(f"window.yuegp.player.{what}")


def watch_the_clock(page: Any) -> None:
    """From now on note, for each picture that is drawn, the seconds since the last one and how far the place went."""
    page.evaluate(
        """() => { window.steps = [];
        let last = [performance.now() / 1000, yuegp.player.at()];
        const see = () => {
            const now = [performance.now() / 1000, yuegp.player.at()];
            window.steps.push([now[0] - last[0], now[1] - last[1]]);
            last = now;
            requestAnimationFrame(see);
        };
        see(); }"""
    )


def jumps(page: Any, repeated: float) -> list[list[float]]:
    """Steps in which the place went back, or further than time did, but for the beginning anew of what is repeated.
    Where the machine drew no picture for as long as that lasts, nothing can be said."""
    steps = page.evaluate("window.steps")
    assert len(steps) > 3
    slack = 0.06  # the player is two hundredths of a second ahead of what it schedules
    return [[past, gone] for past, gone in steps if past < repeated and round(gone, 4) % repeated > past + slack]


def play(page: Any) -> None:
    page.click("[data-play]")
    page.wait_for_function("window.yuegp.player.playing")


@pytest.mark.browser
def test_the_song_is_heard(page: Any, made: Song, expect: Callable[..., Any]) -> None:
    """What the browser decodes is as long as the take, and not silent."""
    page.check("[data-loop]")
    play(page)
    expect(page.locator("[data-play]")).to_have_text("Pause")
    length, loud = page.evaluate(
        """async () => { const sound = await yuegp.player.samples(yuegp.player.url);
        return [sound.duration, sound.getChannelData(0).reduce((top, x) => Math.max(top, Math.abs(x)), 0)]; }"""
    )
    assert length == pytest.approx(made.take(1).frames / 50, abs=0.001) and loud > 0.05
    assert page.locator(".song-block").count() == 3
    boxes = [page.locator(".song-block").nth(k).bounding_box()["width"] for k in range(3)]
    spans = made.take(1).info.spans
    whole = sum(boxes)
    for box, span in zip(boxes, spans, strict=True):
        assert box / whole == pytest.approx((span.stop - span.start) / made.take(1).frames, abs=0.01)
    expect(page.locator(".song-verse.now h4")).to_have_text("verse")
    expect(page.locator(".song-verse p.now")).to_have_count(1)
    page.uncheck("[data-loop]")
    page.wait_for_function("!window.yuegp.player.playing")  # it ends by itself
    assert player(page, "at()") == 0


@pytest.mark.browser
def test_stems_take_over_where_the_other_was(page: Any) -> None:
    """A player per stem starts each from its beginning, and out of step with the others: ours share one clock."""
    page.check("[data-loop]")
    play(page)
    watch_the_clock(page)
    for stem in ("vocal", "instrumental", "mix"):
        page.click(f'.song-choice label:has([value="{stem}"])')
        page.wait_for_function(f"window.yuegp.player.url.endsWith('/{stem}.flac')")
        assert player(page, "playing")
    start, stop = player(page, "range")
    assert jumps(page, stop - start) == []


@pytest.mark.browser
def test_nothing_stops_what_plays_but_pause(page: Any, made: Song, expect: Callable[..., Any]) -> None:
    """A new song comes to the front when it is begun: what plays goes on, is named, and can be stopped."""
    page.click(".song-block >> nth=0")
    page.check("[data-loop]")
    play(page)
    page.click("#tab-create-button")
    expect(page.locator("#song-page .song")).not_to_be_visible()
    assert player(page, "playing")
    other = store.create(replace(made.request, title="Another"), made.folder.parent)
    other.new_take(TakeInfo(0, other.request))
    opened(page, other.folder.name)
    expect(page.locator(".song-title")).to_have_text("Another")
    expect(page.locator(".song-playing")).to_have_text(f"{made.info.title}, Take 1")
    assert player(page, "playing")
    page.click("[data-play]")
    page.wait_for_function("!window.yuegp.player.playing")
    expect(page.locator("[data-play]")).to_be_disabled()


@pytest.mark.browser
def test_its_settings_are_taken_to_a_new_song(page: Any, expect: Callable[..., Any]) -> None:
    page.click("[data-part=more] [data-do=copy]")
    expect(page.locator("#tab-create-button")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#tags-line")).to_have_value("pop piano happy female airy vocal")


@pytest.mark.browser
def test_a_section_is_played_and_repeated(page: Any, made: Song, expect: Callable[..., Any]) -> None:
    span = made.take(1).info.spans[1]
    page.click(".song-block >> nth=1")
    expect(page.locator("[data-part=panel] h3")).to_have_text("Section 2: chorus")
    page.check("[data-loop]")
    page.click("[data-part=panel] [data-do=play-section]")
    page.wait_for_function("window.yuegp.player.playing")
    start, stop = span.start / 50, span.stop / 50
    assert player(page, "range") == [start, stop] and start <= player(page, "at()") < stop
    page.evaluate(f"window.yuegp.player.seek({stop - 0.2})")
    page.wait_for_function(f"window.yuegp.player.at() < {stop - 0.25}")
    assert start <= player(page, "at()") and player(page, "playing"), "it begins again, and goes on"
    page.uncheck("[data-loop]")
    page.wait_for_function("window.yuegp.player.range === null")


@pytest.mark.browser
def test_keys_do_what_the_mouse_does(page: Any, expect: Callable[..., Any]) -> None:
    page.locator(".song-block input").first.focus()
    page.keyboard.press("Space")
    page.wait_for_function("window.yuegp.player.playing")
    page.keyboard.press("Space")
    page.wait_for_function("!window.yuegp.player.playing")
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-part=panel] h3")).to_have_text("Section 2: chorus")
    assert page.evaluate("document.activeElement.name") == "song-section", "the focus stays on the time line"
    page.keyboard.press("]")
    expect(page.locator("[data-part=panel] h3")).to_have_text("Section 3: outro")
    page.wait_for_function("window.yuegp.player.at() > 0.5")
    page.keyboard.press("2")
    page.wait_for_function("window.yuegp.player.url.endsWith('/vocal.flac')")
    page.locator(".song-seek").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("window.yuegp.player.at() === 0")
    page.fill("[data-part=continue] textarea", "")
    page.locator("[data-part=continue] textarea").press("Space")
    assert page.input_value("[data-part=continue] textarea") == " " and not player(page, "playing")


@pytest.mark.browser
def test_candidates_are_made_while_it_plays_compared_and_chosen(
    page: Any, made: Song, expect: Callable[..., Any]
) -> None:
    """ACE-Step's page stops what plays when a new run begins: here nothing does."""
    page.click(".song-block >> nth=1")
    expect(page.locator("[data-part=panel] h3")).to_have_text("Section 2: chorus")
    page.check("[data-loop]")
    play(page)
    page.fill("[data-act=redo] [name=count]", "2")
    page.click("[data-act=redo] button")
    expect(page.locator(".song-said")).to_contain_text("in the queue")
    expect(page.locator("[data-take-row]")).to_have_count(3)
    assert page.locator(".song-versions li").count() == 3
    height = page.locator(".song-player").bounding_box()["y"]
    expect(page.locator('[data-take-row="3"].ready')).to_be_visible()
    assert player(page, "playing") and page.locator(".song-player").bounding_box()["y"] == height
    spans = {number: made.take(number).info.spans for number in (1, 2, 3)}
    assert [span.take for span in spans[3]] == [1, 3, 1]

    page.click('[data-do=compare][data-take="3"]')
    page.click(".song-block >> nth=0")
    page.wait_for_function("window.yuegp.player.range[0] === 0")
    watch_the_clock(page)
    for slot, take in (("B", 3), ("A", 1), ("B", 3)):
        page.click(f'.song-choice label:has([value="{slot}"])')
        page.wait_for_function(f"window.yuegp.player.url.includes('/{take}/')")
    assert jumps(page, player(page, "range[1]")) == [], "A and B share one clock"
    page.click(".song-block >> nth=1")
    expect(page.locator(".song-block >> nth=1")).to_contain_text("take 3")
    page.click('.song-versions [data-act=pick][data-take="3"]')
    expect(page.locator(".song-versions .song-picked")).to_have_count(1)
    assert store.open_song(made.folder).info.picked == 3


@pytest.mark.browser
def test_the_song_goes_on(page: Any, made: Song, expect: Callable[..., Any]) -> None:
    number = made.take_numbers()[-1] + 1
    page.fill("[data-part=continue] textarea", "[bridge]\nlu lu lu")
    page.click("[data-part=continue] button[type=submit]")
    expect(page.locator(f'[data-take-row="{number}"].ready')).to_be_visible()
    assert page.input_value("[data-part=continue] textarea") == ""
    page.click(f'[data-do=front][data-take="{number}"]')
    expect(page.locator(".song-block")).to_have_count(4)
    assert made.take(number).info.spans[-1].section == 3 and made.take(number).info.stage is Stage.RENDERED


@pytest.mark.browser
def test_files_are_exported_and_downloaded(page: Any, made: Song, tmp_path: Path) -> None:
    page.select_option("[data-act=export] [name=kind]", "wav16")
    page.uncheck("[data-act=export] [name=vocal]")
    page.uncheck("[data-act=export] [name=instrumental]")
    page.click("[data-act=export] button[type=submit]")
    page.wait_for_selector(".song-said a[download]")
    with page.expect_download() as coming:
        page.click(".song-said a[download] >> nth=0")
    coming.value.save_as(tmp_path / "got.wav")
    wave, rate = soundfile.read(tmp_path / "got.wav")
    shown = int(page.locator("[data-take-row].front").get_attribute("data-take-row"))
    assert rate == 44100 and len(wave) == 882 * made.take(shown).frames and np.abs(wave).max() > 0.05
    assert coming.value.suggested_filename == "Sea song - mix.wav"


@pytest.mark.browser
def test_rating_renaming_and_an_error_are_seen(page: Any, made: Song, expect: Callable[..., Any]) -> None:
    page.click(".song-star >> nth=3")
    expect(page.locator(".song-said")).to_contain_text("Rated 4 of 5")
    expect(page.locator(".song-star.lit")).to_have_count(4)
    page.click(".song-rename summary")
    page.fill(".song-rename input", "Sea song, again")
    page.keyboard.press("Enter")
    expect(page.locator(".song-title")).to_have_text("Sea song, again")
    page.fill("[data-part=continue] textarea", "[verse]\n" + "la " * 2000)
    page.click("[data-part=continue] button[type=submit]")
    expect(page.locator(".song-said.wrong")).to_contain_text("2000 words")
    assert page.input_value("[data-part=continue] textarea").startswith("[verse]"), "what was typed is not lost"


@pytest.mark.browser
def test_the_song_goes_to_the_trash_and_comes_back(page: Any, made: Song, expect: Callable[..., Any]) -> None:
    page.click("[data-act=trash]")
    expect(page.locator("#song-page .song")).to_have_attribute("data-state", "empty")
    assert not made.folder.exists()
    page.click(".song-said button >> nth=0")  # Undo
    expect(page.locator("#song-page .song")).to_have_attribute("data-state", "open")
    expect(page.locator(".song-said")).to_contain_text("The song is back")
    assert made.folder.exists()


@pytest.mark.browser
def test_it_fits_a_narrow_window(new_person: Callable[..., Any], made: Song) -> None:
    page = opened(new_person(viewport={"width": 390, "height": 844}), made.folder.name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
