"""Every sentence of the page, by key: `texts/<language>/<page>.json`."""

from __future__ import annotations

import json
from importlib import resources
from importlib.resources.abc import Traversable

ENGLISH = "en"

LANGUAGES = {"en": "English", "zh": "中文", "ja": "日本語", "ko": "한국어"}
"""Languages of the page, each by its own name, for readers who know no other."""


class Texts:
    """`t("create.make")` is the sentence under `make` in `create.json`, with its {places} filled in. Where a language
    lacks a sentence, the English one is used."""

    def __init__(self, language: str = ENGLISH) -> None:
        self.language = language
        self.sentences = {**sentences(ENGLISH), **(sentences(language) if language != ENGLISH else {})}

    def __call__(self, key: str, **values: object) -> str:
        return self.sentences[key].format(**values)

    def part(self, prefix: str) -> dict[str, str]:
        """The sentences whose keys begin with `prefix`, by the rest of the key, with unfilled places: for scripts."""
        return {key.removeprefix(prefix): text for key, text in self.sentences.items() if key.startswith(prefix)}


def sentences(language: str) -> dict[str, str]:
    """The sentences of one language by key. KeyError when it is none of `LANGUAGES`."""
    LANGUAGES[language]
    return {
        f"{file.name.removesuffix('.json')}.{key}": text
        for file in pages(language)
        for key, text in json.loads(file.read_text(encoding="utf-8")).items()
    }


def pages(language: str) -> list[Traversable]:
    """The files of one language; none where it has no folder."""
    folder = resources.files(__package__) / "texts" / language
    return [file for file in folder.iterdir() if file.name.endswith(".json")] if folder.is_dir() else []


def preferred(accept: str) -> str:
    """The page's language for a browser's `Accept-Language` header: the heaviest one that we have, else English."""
    wishes: list[tuple[float, str]] = []
    for part in accept.split(","):
        tag, _, weight = part.strip().partition(";q=")
        try:
            wishes.append((float(weight or 1), tag[:2].lower()))
        except ValueError:
            continue
    ranked = sorted(wishes, key=lambda wish: -wish[0])
    return next((tag for _, tag in ranked if tag in LANGUAGES), ENGLISH)
