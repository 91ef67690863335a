"""The table of sentences: every language has every sentence with the same places, and no page says one of its own."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path
from string import Formatter

import pytest

from ui import texts
from ui.texts import ENGLISH, LANGUAGES, Texts, preferred, sentences

ROOT = Path(__file__).resolve().parents[2]
UI = ROOT / "ui"
OTHERS = [language for language in LANGUAGES if language != ENGLISH]

TOLD = {
    *(f"server/{name}" for name in "api guard hosts intake offline password serve sound uploaded".split()),
    *("command", "pages/song/export", "processes/generator", "settings", "texts"),
}
"""Modules that speak to programs and terminals, whose language is English."""


def places(text: str) -> Counter[str]:
    return Counter(name for _, name, _, _ in Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_sentence_and_no_other(language: str) -> None:
    assert set(sentences(language)) == set(sentences(ENGLISH))


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_the_places_of_its_original(language: str) -> None:
    english, own = sentences(ENGLISH), sentences(language)
    wrong = {key: text for key, text in own.items() if set(places(text)) != set(places(english.get(key, "")))}
    assert wrong == {}


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_is_one(language: str) -> None:
    """Few sentences read the same in another language: names, formats, what is a place and nothing else."""
    english, own = sentences(ENGLISH), sentences(language)
    same = [key for key in own if own[key] == english.get(key) and re.search(r"[a-z]{3} [a-z]{3}", own[key])]
    assert same == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_key_stands_twice_in_a_file(language: str) -> None:
    for file in texts.pages(language):
        twice: list[str] = []

        def once(pairs: list[tuple[str, str]], twice: list[str] = twice) -> dict[str, str]:
            twice += [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            return dict(pairs)

        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once)
        assert twice == [], file.name


def test_a_sentence_that_a_language_lacks_is_the_english_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"en": {"a.b": "{n} songs", "a.c": "See"}, "zh": {"a.b": "{n} 首歌"}}
    monkeypatch.setattr(texts, "sentences", found.__getitem__)
    t = Texts("zh")
    assert (t("a.b", n=2), t("a.c"), t.part("a.")) == ("2 首歌", "See", {"b": "{n} 首歌", "c": "See"})


def test_no_text_is_spelled_with_braces_that_do_not_close() -> None:
    for language in LANGUAGES:
        for key, text in sentences(language).items():
            assert text.strip() and places(text) is not None, key
            text.format(**{name: 1 for name in places(text)})


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        ("", "en"),
        ("de-DE,de;q=0.9", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("fr;q=0.9, ja;q=0.4, ko;q=0.6", "ko"),
        ("*;q=x,ko", "ko"),
    ],
)
def test_a_browsers_wish_chooses_the_language(accept: str, language: str) -> None:
    assert preferred(accept) == language


# What the pages say


def modules() -> dict[str, ast.Module]:
    files = sorted(UI.rglob("*.py"))
    return {path.relative_to(UI).with_suffix("").as_posix(): ast.parse(path.read_text("utf-8")) for path in files}


def asked_for(tree: ast.Module) -> set[str]:
    """Keys of `t("…")` calls; of `t(f"…{x}…")` the beginning up to the place, and a star."""
    found = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("t", "say")
            and node.args
        ):
            key = node.args[0]
            for one in (key.body, key.orelse) if isinstance(key, ast.IfExp) else (key,):
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    found.add(one.value)
                elif isinstance(one, ast.JoinedStr) and isinstance(one.values[0], ast.Constant):
                    found.add(f"{one.values[0].value}*")
    return found


def templates() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(UI.rglob("templates/*.html"))}


def asked_in(template: str) -> set[str]:
    """The same of a template, where `~` joins a key with what is filled in."""
    found = set()
    for called in re.findall(r"\bt\(([^()]*)", template):
        for key, joined in re.findall(r"""["']([a-z][\w-]*\.[\w.-]*)["']( ~)?""", called):
            found.add(f"{key}*" if joined else key)
    return found


def test_every_sentence_that_a_page_asks_for_is_there() -> None:
    known = set(sentences(ENGLISH))
    wanted = {name: asked_for(tree) for name, tree in modules().items()}
    wanted |= {name: asked_in(template) for name, template in templates().items()}
    assert {"song.panel.play", "song.redo.*", "song.mute.go", "login.label"} <= set().union(*wanted.values())
    for name, keys in wanted.items():
        for key in keys:
            there = any(k.startswith(key[:-1]) for k in known) if key.endswith("*") else key in known
            assert there, f"{name} asks for {key}"


def test_no_template_says_a_sentence_of_its_own() -> None:
    for name, template in templates().items():
        text = re.sub(r"(?s)<style>.*</style>|\{[{%#].*?[}%#]\}|<[^>]*>", " ", template)
        assert not re.search(r"[A-Za-z]{2}", text.replace("yuegp", "")), name


def test_no_template_leaves_a_value_unescaped() -> None:
    for name, template in templates().items():
        assert not re.search(r"\|\s*safe|autoescape|Markup", template), name


SENTENCE = re.compile(r"[A-Z][a-z]+('s)? [a-z]+ [a-z]+|[a-z]+ [a-z]+ [a-z]+[.!?]")


def own_sentences(tree: ast.Module) -> list[str]:
    """Texts in a module that read like sentences, but for docstrings, what is raised, and what a colon or a bracket
    shows to be style or script."""
    passed: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.Expr) or (
            isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Error", "warn", "print"))
        ):
            passed |= (
                set(ast.walk(node)) if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)) else set()
            )
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node not in passed
        and SENTENCE.search(node.value)
        and not re.search(r"[<>{};=]", node.value)
    ]


def test_no_page_says_a_sentence_that_is_not_in_the_table() -> None:
    found = {name: own_sentences(tree) for name, tree in modules().items() if name not in TOLD and "__" not in name}
    assert {name: texts for name, texts in found.items() if texts} == {}


def test_no_script_says_one_either() -> None:
    for path in (UI / "assets").glob("*.js"):
        code = re.sub(r"^\s*//.*$|\s//\s.*$|/\*.*?\*/", "", path.read_text("utf-8"), flags=re.M | re.S)
        found = [text for text in re.findall(r'"([^"\n]*)"|`([^`]*)`', code) for text in text if SENTENCE.search(text)]
        assert found == [], path.name


def test_a_sentence_in_a_page_would_be_found() -> None:
    assert own_sentences(ast.parse('gr.Button("Make the song now")')) == ["Make the song now"]
    assert own_sentences(ast.parse('"""A docstring of this module."""\nraise E("It does not work.")')) == []


def test_scripts_ask_only_for_sentences_of_their_page() -> None:
    """`t.key` and `t["key"]` in the scripts of Library, Queue and Set-up, whose `t` is their part of the table."""
    for page in ("library", "queue", "setup"):
        code = (UI / "assets" / f"{page}.js").read_text("utf-8")
        known = Texts().part(f"{page}.")
        for key in re.findall(r'\bt\.([a-z_]+)\b(?!\()|\bt\["([^"]+)"\]', code):
            name = "".join(key)
            assert name in known, f"{page}.js asks for {name}"
