"""Lyrics: text to sections and back. No word is ever dropped; notes name what the writer may not expect.

The format: a line that is nothing but `[label]` opens a section, the lines below it are its words. No other sign has a
meaning. `trained_label` chooses the label the model sees; `tokens/prompts.py` builds the prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from yuegp.errors import RequestError

from .schema import Section

LARGEST_FILE = 200_000
"""Most bytes of a lyrics file. A long song has 5,000."""

MOST_WORDS = 400
"""Most words of a section. Even fast rap needs two minutes for these; the model was trained on sections of about 30
s."""

SUNG_PER_SECOND = 2.5
"""Words, or East Asian characters, sung in a second. A line of 8 to 12 on two bars at 100 beats per minute (4.8 s)
gives 1.7 to 2.5; the fast end, so that only a truly crowded section counts as crowded."""

FEW = 2
"""Most crowded sections that get a note each; more share one sentence."""

MANY_SECTIONS = 10
"""Sections beyond which users report skipped lines (YuE issue 73)."""

TRAINED_LABELS = ("intro", "verse", "chorus", "bridge", "outro", "inst", "solo", "break", "end")
"""Labels the model knows. The first five are in YuE's own examples. The structure analysis behind its training data
probably wrote the others; users have seen only `end` of them work."""

_OTHER_NAMES = {
    "intro": "introduction opening 前奏 序 序曲 イントロ 인트로 전주",
    "verse": "strophe couplet verso estrofa prechorus rap 主歌 导歌 導歌 预副歌 預副歌 说唱 說唱 "
    "aメロ bメロ ヴァース バース 벌스 절 프리코러스 랩",
    "chorus": "hook refrain postchorus estribillo coro refrão 副歌 サビ 大サビ ラスサビ ラストサビ 落ちサビ "
    "コーラス 후렴 후렴구 코러스 훅 싸비",
    "bridge": "middle puente pont ponte 桥段 橋段 桥 橋 过渡 過渡 cメロ ブリッジ 브릿지 브리지",
    "outro": "ending coda 尾奏 尾声 尾聲 结尾 結尾 後奏 アウトロ エンディング 아웃트로 아웃로 후주",
    "inst": "instrumental interlude 间奏 間奏 过门 過門 간주",
    "solo": "独奏 獨奏 ソロ 솔로",
    "break": "breakdown",
    "end": "结束 結束 終わり 끝",
}
_TRAINED = {name: label for label, names in _OTHER_NAMES.items() for name in (label, *names.split())}
_QUALIFIERS = frozenset(
    "a b c i ii iii iv one two three four first second third final last repeat repeated reprise double "
    "instrumental guitar piano sax saxophone drum drums bass synth violin acoustic quiet soft big short long".split()
)
_TIMES = re.compile(r"(?<!\w)[x×*]\s*\d+(?!\w)|(?<!\w)\d+\s*[x×](?!\w)")

_MARKER = re.compile(r"\[\s*((?:start|end)_of_(?:segment|reference))\s*]")
"""The strings that frame sections and references in the model's grammar; ordinary text to the tokenizer."""

_LABEL = re.compile(r"\[([^\[\]]*)]")
_HEAD = re.compile(r"[\[［【]([^\[\]［］【】]*)[\]］】](?:：|:(?=\s|$))?\s*(.*)")
"""A bracket at the start of a line, its content, and the rest. Counts only when the content is a known label."""

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060"))
"""Zero-width characters, often copied along from web pages."""

_KANA, _HANGUL = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f", "\u1100-\u11ff\uac00-\ud7af"
_HAN = "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{_KANA}{_HANGUL}{_HAN}]|[^\s{_KANA}{_HANGUL}{_HAN}]+")

_HOW_TO_LABEL = "Write a line such as [verse] or [chorus], and the words to sing below it."


@dataclass(frozen=True)
class Note:
    """A sentence the writer should know. `line` counts from 1; 0 concerns the lyrics as a whole."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"Line {self.line}: {self.text}" if self.line else self.text


@dataclass(frozen=True)
class Lyrics:
    """Result of `parse`: at least one section, and notes in the order of their lines."""

    sections: tuple[Section, ...]
    notes: tuple[Note, ...] = ()


def read(path: str | Path) -> str:
    """The text of a lyrics file. Raises RequestError for anything but a small UTF-8 text file with words in it."""
    if Path(path).is_dir():
        raise RequestError(f"{path} is a folder, not a lyrics file.", "Name a text file inside it.")
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError as exc:
        raise RequestError(f"There is no lyrics file {path}.", "Check the spelling of the path.") from exc
    except OSError as exc:
        hint = "Check that it is a text file and that you may read it."
        raise RequestError(f"The lyrics file {path} cannot be read: {exc.strerror}.", hint) from exc
    if len(data) > LARGEST_FILE:
        raise _too_large(str(path), max(Path(path).stat().st_size, len(data)))
    return decode(data, str(path))


def decode(data: bytes, name: str = "The text") -> str:
    """UTF-8 bytes as text with plain line ends and no byte order mark. Raises RequestError, which begins with
    `name`."""
    if len(data) > LARGEST_FILE:
        raise _too_large(name, len(data))
    save = "Open it in a text editor and save it as plain text in UTF-8."
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RequestError(f"{name} is written in UTF-16, not UTF-8.", save)
    if b"\0" in data:
        raise RequestError(f"{name} is not text: byte {data.index(0)} is zero.", "Choose a plain text file.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        at = len(data) - len(exc.object) + exc.start
        raise RequestError(f"{name} is not UTF-8: byte {at} is 0x{data[at]:02x}.", save) from exc
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    _refuse_unreadable(text, name)
    return text


def _too_large(name: str, size: int) -> RequestError:
    what = f"{name} has {size / 1000:,.0f} kB; the limit is {LARGEST_FILE // 1000} kB, and a song takes a few."
    return RequestError(what, "Choose the text file that holds only the lyrics.")


def _refuse_unreadable(text: str, name: str) -> None:
    if found := _CONTROL.search(text):
        line = len((text[: found.start()] + "|").splitlines())
        what = f"{name} is not plain text: line {line} holds the control character U+{ord(found[0]):04X}."
        raise RequestError(what, "Remove it, or choose a plain text file.")
    if not text.translate(_INVISIBLE).strip():
        raise RequestError(f"{name} is empty.", _HOW_TO_LABEL)


def parse(text: str) -> Lyrics:
    """Sections and notes. Every word of `text` is in a section's label or words, or quoted in a note.

    Words keep their inner lines and blank lines. Blanks at the ends of sections and lines are removed, as in the
    model's prompt, and so are zero-width characters. Raises RequestError for empty text, control characters, and
    sections of more than `MOST_WORDS` words."""
    _refuse_unreadable(text, "The lyrics text")
    notes: list[Note] = []
    opened: list[tuple[Section, list[str]]] = []
    labels = last_unlabelled = 0
    for number, line in enumerate(text.translate(_INVISIBLE).splitlines(), 1):
        found, words = _split(line, number, notes)
        labels += len(found)
        opened += [(Section(label, line=number), []) for label in found]
        if words and not labels:
            last_unlabelled = number
            if not opened:
                opened.append((Section("verse", line=number), []))
        if opened:
            opened[-1][1].append(words)
    if not labels:
        notes.append(Note(0, f"There is no label, so all words became one [verse]. {_HOW_TO_LABEL}"))
    elif last_unlabelled:
        what = f"The words before the first label (up to line {last_unlabelled}) became a [verse]; they will be sung."
        notes.append(Note(opened[0][0].line, what))
    sections = tuple(replace(section, words="\n".join(lines).strip()) for section, lines in opened)
    for section in sections:
        if (count := word_count(section.words)) > MOST_WORDS:
            what = f"[{section.label}] on line {section.line} has {count} words; a section holds at most {MOST_WORDS}."
            raise RequestError(what, "Put a label such as [verse] or [chorus] above every four to eight lines.")
    return Lyrics(sections, tuple(sorted(notes, key=lambda note: note.line)))


def _split(line: str, number: int, notes: list[Note]) -> tuple[list[str], str]:
    """The labels a line opens (mostly none or one) and the words it adds to the last of them."""

    def note(text: str) -> None:
        notes.append(Note(number, text))

    if whole := _MARKER.fullmatch(line.strip()):
        note(f"{whole[0]} is a mark of the model's own; the section is called [{trained_label(whole[1])}].")
        return [trained_label(whole[1])], ""
    for marker in _MARKER.finditer(line):
        note(f"{marker[0]} is a mark of the model's own; it is sung as ({marker[1]}).")
    line = _MARKER.sub(r"(\1)", line)
    if whole := _LABEL.fullmatch(line.strip()):
        if not whole[1].strip():
            note(f"{whole[0]} has no name; the section is called [verse].")
        return [whole[1].strip() or "verse"], ""
    labels: list[str] = []
    while (head := _HEAD.match(line.strip())) and _is_trained(head[1]):
        labels.append(head[1].strip())
        line = head[2]
        if line:
            note(f"[{labels[-1]}] opens a section, though more follows on its line.")
        if (rest := _LABEL.fullmatch(line)) and not _is_trained(rest[1]):
            # `write` and the prompt would put it on a line of its own, where it would be a label.
            line = f"({rest[1].strip()})" if rest[1].strip() else ""
            note(f"{rest[0]} is no label here; it is " + (f"sung as {line}." if line else "left out."))
    for bracket in _LABEL.finditer(line):
        note(f"{bracket[0]} stands inside a line, so it is no label; it is sung as written.")
    if re.search(r"[\[\]]", _LABEL.sub("", line)):
        note("A square bracket has no partner; it is sung as written.")
    for token in re.findall(r"</?\w+>", line):
        note(f"{token} is sung as text.")
    return labels, line.rstrip()


def write(sections: Iterable[Section]) -> str:
    """The sections as text: label, words, a blank line between. Inverse of `parse`."""
    return "\n".join(f"[{section.label}]\n" + (f"{section.words}\n" if section.words else "") for section in sections)


def trained_label(label: str) -> str:
    """The trained label for a writer's label: `Verse 2` is verse, `サビ` is chorus.

    Ignores case, numbers, repetitions (`x2`), qualifiers (`final`, `guitar`) and everything behind a colon, comma, dash
    or parenthesis. Pre-choruses are verses and post-choruses choruses, as in music-structure data sets. An unknown
    label is returned unchanged, except that the model's own markers lose their underscores."""
    folded = _TIMES.sub(" ", unicodedata.normalize("NFKC", label).casefold())
    head = re.split(r"[:,(|/]|\s[-–—]", folded, maxsplit=1)[0]
    plain = (word for word in re.findall(r"[^\W\d_]+", head) if word not in _QUALIFIERS)
    for candidate in (folded, head, "".join(plain)):
        letters = "".join(filter(str.isalpha, candidate)).rstrip("一二三四五六七八九十")
        if letters in _TRAINED:
            return _TRAINED[letters]
    return label.replace("_", " ") if _MARKER.fullmatch(f"[{label}]") else label


def _is_trained(label: str) -> bool:
    return trained_label(label) in TRAINED_LABELS


def _units(words: str) -> list[str]:
    return [unit for unit in _UNIT.findall(words) if any(map(str.isalnum, unit))]


def word_count(words: str) -> int:
    """Number of words, counting each Chinese, Japanese or Korean character as one. Lone signs do not count."""
    return len(_units(words))


def seconds_estimate(words: str) -> float:
    """Seconds to sing `words` at `SUNG_PER_SECOND`: a rough guide, slow ballads take twice as long."""
    return word_count(words) / SUNG_PER_SECOND


def language(sections: Iterable[Section]) -> str:
    """Language guessed from the script alone: `zh`, `ja` or `ko`; `en` for any other script and without words."""
    units = [unit for section in sections for unit in _units(section.words)]
    kana, hangul, han = (sum(bool(re.match(f"[{script}]", u)) for u in units) for script in (_KANA, _HANGUL, _HAN))
    # Japanese is about half kana; a single の in a Chinese line does not make it Japanese.
    shares = {"en": len(units) - kana - hangul - han, "ja" if kana * 10 > han else "zh": han + kana, "ko": hangul}
    return max(shares, key=lambda code: shares[code])


def advise(lyrics: Lyrics, section_seconds: float = 30.0) -> tuple[Note, ...]:
    """Advice that makes the song likelier to come out as written. Source: YuE's guide and users."""
    sections = lyrics.sections
    notes: list[Note] = []
    crowded: list[Note] = []
    if len(sections) > MANY_SECTIONS:
        notes.append(Note(0, f"{len(sections)} sections are many: beyond {MANY_SECTIONS} lines tend to be skipped."))
    sung = any(section.words for section in sections)
    if not sung:
        notes.append(Note(0, "No section has words: this will be an instrumental song."))
    for number, section in enumerate(sections):
        name, label = f"[{section.label}]", trained_label(section.label)
        if label not in TRAINED_LABELS:
            what = f"{name} is not among the labels the model knows, such as [{'], ['.join(TRAINED_LABELS[:5])}]."
            notes.append(Note(section.line, f"{what} If it is to be sung, write ({section.label})."))
        if number == 0 and label == "intro":
            what = f"Songs that begin with {name} come out less reliably than with [verse] or [chorus]."
            notes.append(Note(section.line, what))
        if sung and not section.words:
            notes.append(Note(section.line, f"{name} has no words: it will be instrumental."))
        if (seconds := seconds_estimate(section.words)) > section_seconds:
            what = f"{name} has {word_count(section.words)} words, about {seconds:.0f} s of singing in"
            crowded.append(Note(section.line, f"{what} {section_seconds:.0f} s: lines may be skipped. Make two of it."))
    if len(crowded) > FEW:
        what = f"{len(crowded)} sections have more words than can be sung in {section_seconds:.0f} s"
        crowded = [Note(0, f"{what} (about {section_seconds * SUNG_PER_SECOND:.0f}): lines may be skipped.")]
    return tuple(sorted([*notes, *crowded], key=lambda note: note.line))
