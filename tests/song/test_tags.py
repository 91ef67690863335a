"""Tags: the cleaned lists, and what is said about a line of tags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yuegp.cli.wording import sentence
from yuegp.errors import RequestError
from yuegp.song import tags
from yuegp.song.tags import advise, find, fold, parse, vocabulary, without_voice

RAW = Path(__file__).resolve().parents[3] / "shared" / "data" / "top_200_tags.json"
COUNTS = {"genre": 136, "instrument": 128, "mood": 136, "gender": 8, "timbre": 170}
STABLE = "inspiring female uplifting pop airy vocal electronic bright vocal vocal"

NO_TAGS = {
    "genre": "guitar|beats",
    "instrument": "none|computer|电脑|ableton|musical instrument|lyrics|dance|electronic|singer-songwriter|synth_lead",
    "mood": "advertising|commercial|communication|沟通|at sea|fast_decay|adventure, emotion|vibraphone|asian|rock|film|"
    "documentary|child|children|instrumental|electronic|hardcore",
    "gender": "unspecified|not specified|human|human voice|human female voice|singing|singing voice|rapping|screamo|"
    "squeaky",
    "timbre": "not applicable|not specified|range|vocal range|vocal|vocals|vocalist|singing|singing voice|rapping|"
    "human|long_release|nonlinear_env|tempo-synced|helmet|helmeted|hellosing|preenched|preened|prettily|"
    "prettily produced|rhytmic|为了让声乐更加生动，使用了混响效果。",
}
"""What the reference (section 18) counts as describing nothing."""


def test_the_lists_have_the_sizes_of_the_reference() -> None:
    assert {component: len(words) for component, words in vocabulary().items()} == COUNTS
    assert list(vocabulary()) == list(tags.COMPONENTS)


def test_the_lists_have_no_duplicates_and_no_edge_blanks() -> None:
    for words in vocabulary().values():
        assert len({fold(word) for word in words}) == len(words)
        assert all(word == word.strip() and word for word in words)


@pytest.mark.skipif(not RAW.exists(), reason=f"{RAW} is not here")
def test_the_lists_are_the_published_ones_after_the_cleaning_of_the_reference() -> None:
    for component, raw in json.loads(RAW.read_text(encoding="utf-8")).items():
        ending = " vocal" if component == "timbre" else ""
        dropped = {word + ending for word in NO_TAGS[component].split("|")}
        kept: dict[str, str] = {}
        for word in map(str.strip, raw):
            if word.casefold() not in dropped:
                kept.setdefault(fold(word), word)
        assert tuple(kept.values()) == vocabulary()[component]


@pytest.mark.parametrize("line", [STABLE, "Mandarin, Pop,  R&B ; piano", "pop\tfemale", "流行、女声"])
def test_a_line_is_kept_verbatim_but_for_its_ends(line: str) -> None:
    assert parse(f" \u3000{line}\n") == line


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("", "no tags"),
        (" \n", "no tags"),
        ("pop " * 200, "have 799 characters; the limit is 500"),
        ("pop\nrock", "have 2 lines"),
        ("pop\x85rock", "have 2 lines"),
        ("pop\x00", r"U\+0000"),
        ("pop\ud800", r"U\+D800"),
        ("pop [verse] la la", r"square bracket: '\[verse"),
    ],
)
def test_unusable_lines_are_refused_with_a_next_step(line: str, what: str) -> None:
    with pytest.raises(RequestError, match=what) as caught:
        parse(line)
    assert caught.value.hint


def test_find_takes_the_longest_known_tag_and_keeps_the_rest_as_own() -> None:
    assert find("dreampunk hip hop, electric guitar; FEMALE full bodied vocal Mandarin") == {
        "own": ("dreampunk",),
        "genre": ("hiphop",),
        "instrument": ("electric guitar",),
        "gender": ("female",),
        "timbre": ("full bodied vocal",),
        "language": ("Mandarin",),
    }
    assert find("acoustic, guitar")["own"] == ("acoustic",)
    assert find("") == {}


def test_find_understands_the_line_known_to_work() -> None:
    assert find(STABLE) == {
        "mood": ("Inspiring", "Uplifting"),
        "gender": ("female",),
        "genre": ("Pop", "electronic"),
        "timbre": ("airy vocal", "bright vocal"),
        "instrument": ("vocal",),
    }


def test_every_listed_tag_is_found_in_a_line_of_its_own() -> None:
    for words in vocabulary().values():
        for word in words:
            (found,) = find(word).values()
            assert fold(found[0]) == fold(word)


def test_an_unknown_word_before_vocal_is_an_own_timbre() -> None:
    assert find("vaporwave, smoky vocal")["own"] == ("vaporwave", "smoky vocal")
    assert without_voice("vaporwave smoky vocal piano") == "vaporwave piano"
    assert without_voice("jazz, slightly smoky vocals, piano") == "jazz, piano"
    assert not any("timbre" in sentence(hint) for hint in advise("pop piano sad female smoky vocal"))


def test_advice_names_each_missing_component() -> None:
    assert advise("pop piano happy female airy vocal") == ()
    assert len(advise("xyz")) == 5
    (hint,) = advise("happy pop female airy vocal vocal")
    assert "instrument" in sentence(hint) and "piano" in sentence(hint)


def test_advice_on_two_singers_unless_it_is_a_duet() -> None:
    line = "pop piano happy male female airy vocal"
    (hint,) = advise(line)
    assert "a man and a woman" in sentence(hint)
    assert advise(line + " duet") == ()


def test_advice_on_chinese_lyrics_without_a_spoken_language() -> None:
    line = "pop piano happy female airy vocal"
    assert "Mandarin or Cantonese" in sentence(advise(line, "zh")[0])
    assert advise(line + " cantonese", "zh") == () == advise(line, "ja")
    assert advise("pop piano happy", "zh", instrumental=True) == ()


def test_advice_on_doubled_tags_and_voices_in_an_instrumental_song() -> None:
    (hint,) = advise("pop Piano happy female airy vocal piano")
    assert sentence(hint) == "piano is named 2 times; once is enough."
    (hint,) = advise("pop piano happy female airy vocal", instrumental=True)
    assert sentence(hint).endswith("female, airy vocal.")


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        (STABLE, "inspiring uplifting pop electronic"),
        ("pop  R&B, Piano", "pop  R&B, Piano"),
        ("female, Pop,airy vocal , jazz", "Pop, jazz"),
        ("pop，女声，钢琴", "pop，钢琴"),
        ("jazz choir piano, deep voice", "jazz piano"),
        ("a, b female vocal, c", "a, b, c"),
    ],
)
def test_without_voice_keeps_the_rest_as_written(line: str, rest: str) -> None:
    assert without_voice(line) == rest
    assert without_voice(rest) == rest


def test_without_voice_refuses_a_line_that_is_all_voice() -> None:
    with pytest.raises(RequestError, match="only describe a voice"):
        without_voice("female, airy vocal")
