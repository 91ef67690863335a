"""Lyrics: nothing is lost, nothing is misread, and what cannot be used is refused in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yuegp.cli.wording import note_in_words, sentence
from yuegp.errors import RequestError
from yuegp.song import lyrics
from yuegp.song.lyrics import Lyrics, advise, decode, parse, read, trained_label, word_count, write
from yuegp.song.notes import NoteCode
from yuegp.song.schema import Section

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def said(parsed: Lyrics) -> list[tuple[str, str]]:
    return [(section.label, section.words) for section in parsed.sections]


def notes(parsed: Lyrics) -> str:
    return "\n".join(map(note_in_words, parsed.notes))


# The faults of earlier programs, by name.


@pytest.mark.parametrize("label", ["pre-chorus", "verse 2", "Chorus x2", "サビ", "a.b_c!", "  outro "])
def test_fault_labels_with_spaces_digits_or_hyphens_vanish_with_their_words(label: str) -> None:
    parsed = parse(f"[verse]\none\n[{label}]\ntwo\n[outro]\nthree\n")
    assert said(parsed) == [("verse", "one"), (label.strip(), "two"), ("outro", "three")]
    assert not parsed.notes


@pytest.mark.parametrize("bracket", ["[x2]", "[oh yeah]", "[chorus]", "[]"])
def test_fault_a_bracket_inside_a_line_opens_a_section(bracket: str) -> None:
    parsed = parse(f"[verse]\nsing it {bracket} again\nlast line\n")
    assert said(parsed) == [("verse", f"sing it {bracket} again\nlast line")]
    assert parsed.notes[0].line == 2 and bracket in sentence(parsed.notes[0])


def test_fault_a_hash_in_a_line_cuts_it() -> None:
    parsed = parse("[verse]\nI'm #1 in town\n#chorus # 20\nstill here")
    assert said(parsed) == [("verse", "I'm #1 in town\n#chorus # 20\nstill here")]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r", "\n\n \n"])
def test_fault_a_missing_final_newline_loses_a_section(end: str) -> None:
    assert said(parse("[verse]\none\n[outro]\ntwo" + end)) == [("verse", "one"), ("outro", "two")]
    assert said(parse("[verse]\none\n[outro]" + end)) == [("verse", "one"), ("outro", "")]


@pytest.mark.parametrize("token", ["<SOA>", "<EOA>", "<s>", "</s>", "<PAD>", "<xcodec>"])
def test_fault_a_control_token_typed_by_a_user_is_more_than_words(token: str) -> None:
    parsed = parse(f"[verse]\nbefore {token} after")
    assert said(parsed) == [("verse", f"before {token} after")]
    assert notes(parsed) == f"Line 2: {token} is sung as text."


@pytest.mark.parametrize("mark", ["start_of_segment", "end_of_segment", "start_of_reference", "end_of_reference"])
def test_fault_the_models_own_marks_typed_by_a_user_reach_the_prompt(mark: str) -> None:
    parsed = parse(f"[verse]\nfoo [{mark}] bar\n[ {mark} ]\nbaz")
    label = mark.replace("_", " ")
    assert said(parsed) == [("verse", f"foo ({mark}) bar"), (label, "baz")]
    assert [note.line for note in parsed.notes] == [2, 3]
    assert trained_label(mark) == label


def test_fault_text_before_the_first_label_vanishes() -> None:
    parsed = parse("\nMy Song\nby me\n\n[chorus]\nla\n")
    assert said(parsed) == [("verse", "My Song\nby me"), ("chorus", "la")]
    assert notes(parsed) == (
        "Line 2: The words before the first label (up to line 3) became a [verse]; they will be sung."
    )


# The format.


def test_no_label_makes_one_verse_and_says_how_to_write_labels() -> None:
    parsed = parse("la la\nla")
    assert said(parsed) == [("verse", "la la\nla")]
    assert "[chorus]" in notes(parsed)


def test_line_numbers_point_at_the_labels() -> None:
    assert [section.line for section in parse("\n\n[verse]\r\nx\r\n\r\n[chorus]").sections] == [3, 6]


def test_words_after_a_known_label_on_its_line_belong_to_its_section() -> None:
    parsed = parse("[Verse 2] la la\nlo\n[chorus]: [bridge] hey\n[oh] my")
    assert said(parsed) == [("Verse 2", "la la\nlo"), ("chorus", ""), ("bridge", "hey\n[oh] my")]
    assert [note.line for note in parsed.notes] == [1, 3, 3, 4]


def test_a_bracket_after_a_label_is_sung_and_opens_nothing() -> None:
    parsed = parse("[chorus] [x2]\nla\n[verse] []")
    assert said(parsed) == [("chorus", "(x2)\nla"), ("verse", "")]
    assert "[x2]" in notes(parsed) and "[] is no label here" in notes(parsed)


def test_east_asian_brackets_hold_known_labels_only() -> None:
    assert said(parse("【副歌】\n风\n［サビ］歌\n【风】")) == [("副歌", "风"), ("サビ", "歌\n【风】")]


def test_unclosed_brackets_stay_as_words_with_a_note() -> None:
    parsed = parse("[verse]\n[chorus\nla]")
    assert said(parsed) == [("verse", "[chorus\nla]")]
    assert [note.line for note in parsed.notes] == [2, 3]


def test_an_empty_label_is_a_verse_with_a_note() -> None:
    parsed = parse("[ ]\nla")
    assert said(parsed) == [("verse", "la")] and parsed.notes[0].line == 1


def test_blanks_go_at_the_ends_of_sections_and_lines_but_not_inside() -> None:
    parsed = parse("[verse]\n\u3000\xa0 padded \t\u3000\n\n  inner  blank\nx\u200b\n\n")
    assert said(parsed) == [("verse", "padded\n\n  inner  blank\nx")]


@pytest.mark.parametrize("text", ["", " \n\t\u3000", "\ufeff\n", "a\x07b", "\ud800"])
def test_parse_refuses_what_holds_no_words(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert caught.value.hint


def test_a_section_with_absurdly_many_words_is_refused_by_name_line_and_count() -> None:
    with pytest.raises(RequestError, match=r"\[chorus\] on line 3 has 401 words"):
        parse("[verse]\nla\n[chorus]\n" + "la " * 401)
    parse("[verse]\n" + "la " * 400)


def test_write_is_the_canonical_text() -> None:
    text = "[verse]\nla\n\nlo\n\n[inst]\n\n[chorus]\nhey\n"
    assert write(parse(text).sections) == text


# Nothing is lost: fuzzed.

FRAGMENTS = [
    *("[", "]", "[]", "[x2]", "[oh yeah]", "[verse]", "[Chorus 2]", "[pre-chorus]", "[[", "]]", "【", "】", "【副歌】"),
    *("[start_of_segment]", "[ end_of_reference]", "start_of_segment", "<SOA>", "#", ":", "：", "verse", "(", ")"),
    *(" ", "  ", "\t", "\u3000", "\u200b", "\ufeff", "\n", "\n", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028"),
]
PRINTABLE = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("[]\n 【】"), min_size=1, max_size=12
)
MIXED = st.lists(st.sampled_from(FRAGMENTS) | PRINTABLE, min_size=1, max_size=30).map("".join)
IGNORED = re.compile(r"[\s\[\]()【】［］:：_\u200b\u2060\ufeff]+")


def parsed_or_none(text: str) -> Lyrics | None:
    try:
        return parse(text)
    except RequestError:
        assert not text.translate(dict.fromkeys(map(ord, "\ufeff\u200b\u2060"))).strip()
        return None


@settings(max_examples=500, deadline=None)
@given(MIXED)
@example("[verse] [chorus] [x2]")
@example("[[start_of_segment]]")
@example("[verse] [start_of_segment]\n[ver\u200bse]")
def test_parse_write_parse_is_identity(text: str) -> None:
    if parsed := parsed_or_none(text):
        canonical = write(parsed.sections)
        again = parse(canonical)
        assert again.sections == parsed.sections
        assert write(again.sections) == canonical


@settings(max_examples=500, deadline=None)
@given(MIXED)
def test_every_character_that_is_not_a_bracket_or_blank_comes_out_in_order(text: str) -> None:
    if parsed := parsed_or_none(text):
        made = iter(IGNORED.sub("", "".join(label + words for label, words in said(parsed))))
        assert all(char in made for char in IGNORED.sub("", text))  # `in` consumes: a subsequence test


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.just("WORD"), min_size=1, max_size=40))
def test_every_word_is_in_exactly_one_section(fragments: list[str]) -> None:
    text = "".join(f" w{i}w " if fragment == "WORD" else fragment for i, fragment in enumerate(fragments))
    if parsed := parsed_or_none(text):
        made = re.findall(r"w\d+w", " ".join(label + " " + words for label, words in said(parsed)))
        assert made == re.findall(r"w\d+w", text)


@settings(max_examples=300, deadline=None)
@given(MIXED)
def test_the_prompt_holds_no_mark_of_the_models_own(text: str) -> None:
    if parsed := parsed_or_none(text):
        for section in parsed.sections:
            prompt = f"[{trained_label(section.label)}]\n{section.words}"
            assert not re.search(r"\[(start|end)_of_(segment|reference)]", prompt)


# What labels mean.


VARIANTS = {
    "intro": "Intro|前奏|イントロ|인트로|전주",
    "verse": "Verse|VERSE 2|verse1|Verse 1: Anna|Verse II|pre-chorus|Pre Chorus|PRECHORUS 2|主歌|導歌|"
    "Ａメロ|Bメロ|벌스 1|2절",
    "chorus": "Chorus x2|chorus (2x)|Final Chorus|chorus:|post-chorus|Hook|refrain|副歌2|副歌二|サビ|ｻﾋﾞ|ラスサビ|후렴",
    "bridge": "Bridge - softly|Middle 8|桥段|Cメロ|브릿지",
    "outro": "Ending|Outro, fading|尾奏|아웃트로",
    "inst": "interlude|Instrumental|间奏|間奏|간주",
    "solo": "Guitar Solo|ソロ",
    "break": "instrumental break|Breakdown",
    "end": "END|结束",
}


@pytest.mark.parametrize("meaning", lyrics.TRAINED_LABELS)
def test_variants_mean_a_trained_label(meaning: str) -> None:
    for label in (meaning, *VARIANTS[meaning].split("|")):
        assert trained_label(label) == meaning, label


@pytest.mark.parametrize("label", ["x2", "oh yeah", "end of the world", "Anna", "", "2", "guitar", "break my heart"])
def test_unknown_labels_come_back_unchanged(label: str) -> None:
    assert trained_label(label) == label


# How much, which language, advice.


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("", 0),
        ("Don't stop — (oh)", 3),
        ("月光洒在，旧城墙", 7),
        ("君のメロディー", 7),
        ("노래해 오늘", 5),
        ("爱你 baby 1 ✨", 4),
    ],
)
def test_word_count(words: str, count: int) -> None:
    assert word_count(words) == count
    assert lyrics.seconds_estimate(words) == pytest.approx(count / lyrics.SUNG_PER_SECOND)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("", "en"),
        ("Corazón, hold on", "en"),
        ("月光洒在旧城墙", "zh"),
        ("我们去吃の面包店旁边的老地方啊", "zh"),
        ("夜明けの街を歩いてく", "ja"),
        ("바람이 불어오는 곳 baby", "ko"),
        ("a long English line with one 月 in it", "en"),
    ],
)
def test_language_is_guessed_from_the_script(words: str, code: str) -> None:
    assert lyrics.language([Section("verse", words)]) == code


def test_advice_on_length_labels_and_order() -> None:
    parsed = parse("[intro]\n[verse]\n" + "la " * 80 + "\n[oh yeah]\nx")
    told = [(note.line, sentence(note).split(".")[0]) for note in advise(parsed)]
    assert told == [
        (1, "Songs that begin with [intro] come out less reliably than with [verse] or [chorus]"),
        (1, "[intro] has no words: it will be instrumental"),
        (2, "[verse] has 80 words, about 32 s of singing in 30 s: lines may be skipped"),
        (4, "[oh yeah] is not among the labels the model knows, such as [intro], [verse], [chorus], [bridge], [outro]"),
    ]
    assert len(advise(parsed, section_seconds=60)) == 3
    assert "11 sections are many" in sentence(advise(parse("[verse]\nla\n" * 11))[0])
    assert [sentence(note) for note in advise(parse("[verse]\n[outro]"))] == [
        "No section has words: this will be an instrumental song."
    ]


# Files.


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf[verse]\nla\n", b"[verse]\r\nla\r\n", b"[verse]\rla\r"])
def test_byte_order_mark_and_line_ends_of_other_systems_are_read(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "my song.txt"
    file.write_bytes(data)
    assert read(file) == "[verse]\nla\n"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not text: byte 8 is zero"),
        (b"[verse]\nla\x1b[0m", "line 2 holds the control character U+001B"),
        ("[verse]\nla".encode("utf-16"), "UTF-16"),
        ("[verse]\ncafé".encode("latin-1"), "is not UTF-8: byte 11 is 0xe9"),
        (b"\xef\xbb\xbfab\xff", "is not UTF-8: byte 5 is 0xff"),
        (b"la\n" * 3_400_000, "has 10,200 kB; the limit is 200 kB"),
    ],
)
def test_unusable_files_are_refused_with_their_values_and_a_next_step(tmp_path: Path, data: bytes, what: str) -> None:
    file = tmp_path / "song.txt"
    file.write_bytes(data)
    with pytest.raises(RequestError, match=re.escape(what)) as caught:
        read(file)
    assert str(file) in caught.value.what and caught.value.hint
    with pytest.raises(RequestError, match=re.escape(what)):
        decode(data, "The pasted text")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no lyrics file"):
        read(tmp_path / "nothing.txt")
    with pytest.raises(RequestError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.txt")), ids=lambda file: file.stem)
def test_the_examples_need_no_notes(file: Path) -> None:
    text = read(file)
    parsed = parse(text)
    assert not parsed.notes and write(parsed.sections) == text
    assert all(trained_label(section.label) in lyrics.TRAINED_LABELS for section in parsed.sections)
    assert [note for note in advise(parsed) if note.code is not NoteCode.NO_WORDS] == []


def test_many_crowded_sections_are_said_once() -> None:
    text = "\n".join(f"[verse]\n{'la ' * 40}\n" for _ in range(4))
    notes = lyrics.advise(lyrics.parse(text), 6)
    assert [note_in_words(n) for n in notes] == [
        "4 sections have more words than can be sung in 6 s (about 15): lines may be skipped."
    ]
