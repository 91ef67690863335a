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

from .notes import Note, NoteCode, note
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

INSTRUMENTAL_SECTIONS = tuple(Section(label) for label in ("verse", "chorus", "verse", "chorus", "outro"))
"""The sections of an instrumental song for which no lyrics name any."""

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
        notes.append(note(NoteCode.NO_LABEL))
    elif last_unlabelled:
        notes.append(note(NoteCode.BEFORE_LABEL, opened[0][0].line, last=last_unlabelled))
    sections = tuple(replace(section, words="\n".join(lines).strip()) for section, lines in opened)
    for section in sections:
        if (count := word_count(section.words)) > MOST_WORDS:
            what = f"[{section.label}] on line {section.line} has {count} words; a section holds at most {MOST_WORDS}."
            raise RequestError(what, "Put a label such as [verse] or [chorus] above every four to eight lines.")
    return Lyrics(sections, tuple(sorted(notes, key=lambda note: note.line)))


def _split(line: str, number: int, notes: list[Note]) -> tuple[list[str], str]:
    """The labels a line opens (mostly none or one) and the words it adds to the last of them."""

    def add(code: NoteCode, **values: str) -> None:
        notes.append(note(code, number, **values))

    if whole := _MARKER.fullmatch(line.strip()):
        label = trained_label(whole[1])
        add(NoteCode.MARK_IS_LABEL, mark=whole[0], label=label)
        return [label], ""
    for marker in _MARKER.finditer(line):
        add(NoteCode.MARK_IS_SUNG, mark=marker[0], words=f"({marker[1]})")
    line = _MARKER.sub(r"(\1)", line)
    if whole := _LABEL.fullmatch(line.strip()):
        if not whole[1].strip():
            add(NoteCode.UNNAMED_LABEL, bracket=whole[0])
        return [whole[1].strip() or "verse"], ""
    labels: list[str] = []
    while (head := _HEAD.match(line.strip())) and _is_trained(head[1]):
        labels.append(head[1].strip())
        line = head[2]
        if line:
            add(NoteCode.WORDS_BEHIND_LABEL, label=labels[-1])
        if (rest := _LABEL.fullmatch(line)) and not _is_trained(rest[1]):
            # `write` and the prompt would put it on a line of its own, where it would be a label.
            line = f"({rest[1].strip()})" if rest[1].strip() else ""
            if line:
                add(NoteCode.BRACKET_IS_SUNG, bracket=rest[0], words=line)
            else:
                add(NoteCode.BRACKET_LEFT_OUT, bracket=rest[0])
    for bracket in _LABEL.finditer(line):
        add(NoteCode.BRACKET_IN_LINE, bracket=bracket[0])
    if re.search(r"[\[\]]", _LABEL.sub("", line)):
        add(NoteCode.LONE_BRACKET)
    for token in re.findall(r"</?\w+>", line):
        add(NoteCode.TOKEN_IS_SUNG, token=token)
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
        notes.append(note(NoteCode.MANY_SECTIONS, count=len(sections), most=MANY_SECTIONS))
    sung = any(section.words for section in sections)
    if not sung:
        notes.append(note(NoteCode.NO_WORDS))
    for number, section in enumerate(sections):
        label, trained, line = section.label, trained_label(section.label), section.line
        if trained not in TRAINED_LABELS:
            known = f"[{'], ['.join(TRAINED_LABELS[:5])}]"
            notes.append(note(NoteCode.UNKNOWN_LABEL, line, label=label, known=known))
        if number == 0 and trained == "intro":
            notes.append(note(NoteCode.BEGINS_WITH_INTRO, line, label=label))
        if sung and not section.words:
            notes.append(note(NoteCode.NO_WORDS_HERE, line, label=label))
        if (seconds := seconds_estimate(section.words)) > section_seconds:
            words = word_count(section.words)
            crowded.append(
                note(NoteCode.CROWDED, line, label=label, words=words, seconds=seconds, limit=section_seconds)
            )
    if len(crowded) > FEW:
        room = section_seconds * SUNG_PER_SECOND
        crowded = [note(NoteCode.CROWDED_MANY, count=len(crowded), limit=section_seconds, words=room)]
    return tuple(sorted([*notes, *crowded], key=lambda note: note.line))
