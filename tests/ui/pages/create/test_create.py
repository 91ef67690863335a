"""What the Create page knows, without a browser: words, tags, model, reference, plan, and the song they make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from released import as_trained

from tools.make_set import make_set
from ui import machine
from ui.context import AppContext
from ui.pages.create import fields, model, page, tags, words
from ui.pages.create import plan as create_plan
from ui.pages.create import reference as create_reference
from ui.texts import LANGUAGES, Texts
from yuegp import paths
from yuegp.checkpoints import sets
from yuegp.cli import wording
from yuegp.errors import DeviceError, LibraryError, ModelError, RequestError
from yuegp.generation.options import ModelOptions
from yuegp.jobs.queue import Queue, State
from yuegp.song import lyrics
from yuegp.song.notes import NoteCode, Word
from yuegp.song.schema import Reference

T = Texts("en")
WORDS = "[verse]\nhold the light\n\n[chorus]\nlet it go\n"


def values(**changes: Any) -> dict[str, Any]:
    """What the page holds when somebody has written words and tags."""
    empty = {field.name: field.empty for field in fields.FIELDS}
    return {**empty, "words": WORDS, "tags": "pop piano happy female bright vocal", "reference": None, **changes}


@pytest.fixture
def context() -> AppContext:
    return AppContext(paths.songs_dir().absolute(), Queue())


def tone(path: Path, seconds: float, loud: float = 0.3, rate: int = 22050) -> str:
    soundfile.write(path, loud * np.sin(np.arange(int(seconds * rate)) * 0.06), rate)
    return str(path)


# The page itself


def test_the_page_is_built_without_torch() -> None:
    """Loading torch takes seconds, in which the page would show nothing."""
    code = (
        "import sys; from pathlib import Path; from ui.app import build, page_options;"
        "from ui.context import AppContext; from ui.texts import Texts; from yuegp.jobs.queue import Queue;"
        "build(AppContext(Path('songs').absolute(), Queue()), Texts('en')); page_options();"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[4]
    )
    assert done.stdout.split() == ["False"], done.stderr


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "C:x", ".trash", "x\0y", "no such song"]
)
def test_a_browser_names_songs_and_never_paths(context: AppContext, name: str) -> None:
    context.root.mkdir(parents=True)
    (context.root / "song.json").write_text("{}")
    with pytest.raises(LibraryError):
        context.folder(name)


# Words


def test_words_are_read_as_the_song_reads_them() -> None:
    read = words.read("[Chorus x2]\nla la\n\n[zither]\n", T)
    assert [(row["label"], row["words"]) for row in read["sections"]] == [("Chorus x2", "la la"), ("zither", "")]
    assert "chorus" in read["sections"][0]["hint"] and "unusual" in read["sections"][1]["hint"]
    assert read["language"] == "en" and "2 sections" in read["total"]


def test_words_that_are_not_sung_are_marked() -> None:
    kinds = {note["kind"] for note in words.read("[verse]\n[start_of_segment] la\n", T)["notes"]}
    assert "unsung" in kinds


@pytest.mark.parametrize("text", ["[verse]\n\x07", "[verse]\n" + "la " * 5000, "\ud800"])
def test_a_text_that_cannot_be_read_is_shown_whole_with_the_reason(text: str) -> None:
    read = words.read(text, T)
    assert [note["kind"] for note in read["notes"]] == ["bad"]
    assert read["sections"][0]["words"] == text


def test_the_examples_and_forms_can_be_made_into_songs() -> None:
    for example in words.examples():
        asked = create_plan.asked(values(words=example.lyrics, tags=example.tags, instrumental=example.instrumental), T)
        assert asked.request.sections
        assert not tags.read(example.tags, "en", example.instrumental, T)["hints"]
        assert T(f"create.example.{example.name}")
    for name, labels in words.SHAPES.items():
        assert tuple(section.label for section in lyrics.parse(words.shape(name)).sections) == labels
        assert T(f"create.shape.{name}")


def test_notes_are_told_in_the_language_of_the_page() -> None:
    told = {code: words.read("[verse]\n[x] la\n", Texts(code))["notes"][0]["text"] for code in LANGUAGES}
    assert told["en"] == "Line 2: [x] stands inside a line, so it is no label; it is sung as written."
    assert len(set(told.values())) == len(LANGUAGES) and all("[x]" in text and "2" in text for text in told.values())
    for language in LANGUAGES:
        hints = tags.read("male female", "en", False, Texts(language))["hints"]
        assert len(hints) == 5 and len({hint["text"] for hint in hints}) == 5


def test_every_note_has_a_sentence_on_the_page_and_in_the_terminal() -> None:
    """With the same places, so that values of one fill the other."""

    def places(text: str) -> set[tuple[str | None, str | None]]:
        return {(name, spec) for _, name, spec, _ in Formatter().parse(text) if name}

    for code in NoteCode:
        assert places(T.sentences[f"note.{code}"]) == places(wording._NOTES[code]), code
    assert set(T.part("note.word.")) == set(Word) == set(wording._WORDS)


# Tags


def test_chinese_words_bring_the_languages_to_choose_from() -> None:
    hints = tags.read("pop piano happy female bright vocal", "zh", False, T)["hints"]
    assert [hint["add"] for hint in hints] == [["Mandarin", "Cantonese"]]
    assert tags.read("pop piano happy female bright vocal Mandarin", "zh", False, T)["hints"] == []


def test_known_tags_are_found_whatever_their_spelling() -> None:
    assert tags.read("Hip Hop, zydeco-core", "en", False, T)["folded"][:1] == ["hiphop"]
    assert "bracket" in tags.read("pop [verse]", "en", False, T)["hints"][0]["text"]


# Model


def test_the_model_follows_language_and_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "find", lambda name: SimpleNamespace(id=name, title=name))
    chosen = {
        (language, reference): model.choose("", language, reference, T).model.id
        for language in ("en", "zh", "ja", "ko")
        for reference in (False, True)
    }
    assert chosen == {
        ("en", False): "yue-en-cot", ("en", True): "yue-en-icl",
        ("zh", False): "yue-zh-cot", ("zh", True): "yue-zh-icl",
        ("ja", False): "yue-jp-kr-cot", ("ja", True): "yue-jp-kr-icl",
        ("ko", False): "yue-jp-kr-cot", ("ko", True): "yue-jp-kr-icl",
    }  # fmt: skip


def test_without_the_real_models_the_demo_is_named_plainly() -> None:
    choice = model.choose("", "ja", False, T)
    assert choice.model.id == "demo" and choice.missing == "yue-jp-kr-cot"
    assert "does not sing words" in choice.reason and "Japanese" in choice.reason


def test_a_wish_is_followed_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUEGP_MODELS", str(tmp_path))
    make_set(tmp_path / "mine", "tiny")
    assert model.choose("mine", "en", False, T).model.id == "mine"
    assert "mine" in [name for _, name in model.usable()]
    with pytest.raises(ModelError):
        model.choose("nothing", "en", False, T)


# Reference


def test_a_reference_is_drawn(tmp_path: Path) -> None:
    seen = create_reference.render({"mix": tone(tmp_path / "a.wav", 4), "vocal": None, "instrumental": None}, T)
    (file,) = seen["files"]
    assert seen["error"] == "" and seen["seconds"] == pytest.approx(4)
    assert (file["role"], file["name"], len(file["peaks"])) == ("mix", "a.wav", create_reference.PEAKS)
    assert 0.25 < min(file["peaks"]) <= max(file["peaks"]) <= 0.31


def test_a_pair_shares_the_shorter_length_and_half_of_one_is_asked_to_be_completed(tmp_path: Path) -> None:
    vocal, band = tone(tmp_path / "v.wav", 4), tone(tmp_path / "b.wav", 3)
    assert create_reference.render({"vocal": vocal, "instrumental": band}, T)["seconds"] == pytest.approx(3)
    assert "belong together" in create_reference.render({"vocal": vocal}, T)["error"]
    with pytest.raises(RequestError):
        create_reference.reference({"vocal": vocal}, None)


@pytest.mark.parametrize(
    ("seconds", "loud", "part"), [(0.5, 0.3, "at least 1 s"), (4, 0.0, "silent"), (1300, 0.1, "22 minutes")]
)
def test_a_bad_reference_is_named_without_its_path(tmp_path: Path, seconds: float, loud: float, part: str) -> None:
    error = create_reference.render({"mix": tone(tmp_path / "mine.wav", seconds, loud, 8000)}, T)["error"]
    assert part in error and str(tmp_path) not in error


def test_the_window_goes_into_the_reference() -> None:
    window = {"start": 12.5, "end": 40}
    assert create_reference.reference({"mix": "a"}, window) == Reference(mix="a", start=12.5, end=40.0)
    assert create_reference.reference({"mix": None}, window) is None


# The plan in words, and the click


def test_the_plan_says_what_will_happen(context: AppContext) -> None:
    plan = create_plan.describe(values(takes=2), context.root, T)
    rows = {row["name"]: row["text"] for row in plan["rows"]}
    assert plan["error"] == "" and plan["details"]
    assert "tiny model" in rows["Model"] and rows["Length"].startswith("2 versions of 2 sections, up to 48 s")
    assert "not known yet" in rows["Time"] and "free" in rows["Memory"] and "free" in rows["Disk"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"tags": ""}, "no tags"), ({"temperature": 9}, "temperature is 9"), ({"first_sections": 7}, "number of sections"),
     ({"words": "[verse]\n\x07"}, "control character"), ({"model": "gone"}, "no model")],
)  # fmt: skip
def test_what_cannot_be_made_is_said_instead_of_a_plan(context: AppContext, changes: dict[str, Any], part: str) -> None:
    plan = create_plan.describe(values(**changes), context.root, T)
    assert part in plan["error"] and plan["rows"] == []


def test_a_sound_model_that_cannot_be_read_is_said_instead_of_a_plan(context: AppContext, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", "tiny", pth=True)
    as_trained(folder / "codec")
    assert create_plan.describe(values(model=str(folder)), context.root, T)["error"] == ""
    path = folder / "codec" / "decoders" / "decoder_131000.pth"
    path.write_bytes(path.read_bytes().replace(b"head.out.bias", b"head.out.bass"))
    error = create_plan.describe(values(model=str(folder)), context.root, T)["error"]
    assert "decoder_131000.pth lacks 1 tensors: head.out.bias" in error and "models get codec-safetensors" in error


def test_an_empty_page_is_no_error(context: AppContext) -> None:
    plan = create_plan.describe(values(words=" \n"), context.root, T)
    assert plan["error"] == "" and plan["empty"]
    assert create_plan.describe(values(words="", instrumental=True), context.root, T)["rows"]


def test_no_memory_is_said_before_the_click(context: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "describe_machine", lambda: machine.Machine((), 1 << 20, 1 << 20))
    assert create_plan.describe(values(), context.root, T)["error"]


def test_a_song_without_a_title_is_named_by_its_first_line() -> None:
    assert create_plan.asked(values(), T).request.title == "hold the light"
    long = create_plan.asked(values(words="[verse]\n" + "word " * 40), T).request.title
    assert len(long) <= create_plan.LONGEST_TITLE + 1 and long.endswith("…")
    assert create_plan.asked(values(words="[verse]\n", instrumental=True), T).request.title == "Instrumental"


def test_every_version_is_a_take_with_its_own_seed(context: AppContext) -> None:
    name = page.begin(context, create_plan.asked(values(takes=3, seed=7, title="Three"), T))
    song = context.song(name)
    assert [song.take(n).info.request.seed for n in song.take_numbers()] == [7, 8, 9]
    assert [(job.take, job.state) for job in context.jobs(name)] == [(n, State.WAITING) for n in (1, 2, 3)]
    assert (song.folder / "lyrics.txt").read_text() == WORDS
    assert song.request.section_seconds == 24


def test_nothing_is_written_for_a_song_that_is_refused(context: AppContext) -> None:
    with pytest.raises(RequestError):
        page.begin(context, create_plan.asked(values(tags="[pop]"), T))
    assert not context.root.exists() and context.jobs() == []


def test_a_songs_settings_come_back_as_they_were(context: AppContext) -> None:
    name = page.begin(context, create_plan.asked(values(seed=7, temperature=0.8, title="Again"), T))
    shown = page._shown(context.take(name, 1).info.request)
    assert (shown["words"], shown["tags"], shown["seed"]) == (WORDS, values()["tags"], 7)
    assert (shown["temperature"], shown["top_p"], shown["title"]) == (0.8, None, "Again")


# How the models are held, and what is taken over from another song


def test_one_section_is_one_section_in_every_language(context: AppContext) -> None:
    for language in LANGUAGES:
        t = Texts(language)
        plan = create_plan.describe(values(words="[verse]\nhold the light\n"), context.root, t)
        length = next(row["text"] for row in plan["rows"] if row["name"] == t("create.plan.length"))
        assert "1" in length and "1 sections" not in length
        assert "1 sections" not in words.read("[verse]\nla\n", t)["total"]


def test_the_plan_says_how_the_models_are_held_and_follows_the_wish(context: AppContext) -> None:
    def held(**wishes: str) -> str:
        plan = create_plan.describe(values(device="cpu", **wishes), context.root, T)
        return next((row["text"] for row in plan["rows"] if row["name"] == "Held as"), plan["error"])

    assert "float32" in held() and "large model: nf4, by the engine torch" in held(weights="nf4")
    assert "need a graphics card" in held(engine="exl2") and "cannot go together" in held(engine="torch", kv="q8")


def test_wishes_go_with_the_jobs_and_impossible_ones_leave_nothing_behind(context: AppContext) -> None:
    name = page.begin(context, create_plan.asked(values(takes=2, device="cpu", weights="int8"), T))
    assert [job.wishes for job in context.jobs(name)] == [ModelOptions(weights="int8")] * 2
    assert "int8" not in (context.root / name / "song.json").read_text()
    before = list(context.root.iterdir())
    with pytest.raises(DeviceError):
        page.begin(context, create_plan.asked(values(device="cpu", kv="q8"), T))
    assert list(context.root.iterdir()) == before and len(context.jobs()) == 2


def test_a_songs_reference_is_lent_as_a_copy_with_its_window(
    context: AppContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    reference = Reference(mix=tone(tmp_path / "a.wav", 8), start=2, end=5)
    name = page.begin(context, create_plan.asked(values(reference=reference), T))
    kept = context.take(name, 1).info.request.reference
    lent = create_reference.lend(kept)
    assert lent.window == {"start": 2, "end": 5} and lent.files["vocal"] is None
    assert Path(str(lent.files["mix"])).is_relative_to(tmp_path / "uploads")
    assert Path(str(lent.files["mix"])).read_bytes() == (tmp_path / "a.wav").read_bytes()
    assert kept and kept.mix
    Path(kept.mix).unlink()
    with pytest.raises(RequestError, match="cannot be read"):
        create_reference.lend(kept)
    assert create_reference.lend(None).files == {"mix": None, "vocal": None, "instrumental": None}
