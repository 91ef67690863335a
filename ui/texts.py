"""Every sentence of the page, by key. One JSON file per page and language in `texts/`; a language is a folder there."""

from __future__ import annotations

import json
from importlib import resources
from importlib.resources.abc import Traversable

ENGLISH = "en"

LANGUAGES = {"en": "English", "zh": "中文", "ja": "日本語", "ko": "한국어"}
"""Languages of the page, in their own names: what a person looks for who cannot read the others."""


class Texts:
    """`t("create.make")` is the sentence under `make` in `create.json`; values fill its {places}. A sentence that a
    language lacks is the English one."""

    def __init__(self, language: str = ENGLISH) -> None:
        self.language = language
        self.sentences = {**sentences(ENGLISH), **(sentences(language) if language != ENGLISH else {})}

    def __call__(self, key: str, **values: object) -> str:
        return self.sentences[key].format(**values)

    def part(self, prefix: str) -> dict[str, str]:
        """The sentences whose keys begin with `prefix`, by what follows it, places unfilled: for scripts."""
        return {key.removeprefix(prefix): text for key, text in self.sentences.items() if key.startswith(prefix)}


def sentences(language: str) -> dict[str, str]:
    """What one language has, by key. KeyError when it is none of `LANGUAGES`."""
    LANGUAGES[language]
    return {
        f"{file.name.removesuffix('.json')}.{key}": text
        for file in pages(language)
        for key, text in json.loads(file.read_text(encoding="utf-8")).items()
    }


def pages(language: str) -> list[Traversable]:
    """The files of one language; none when nobody has written any."""
    folder = resources.files(__package__) / "texts" / language
    return [file for file in folder.iterdir() if file.name.endswith(".json")] if folder.is_dir() else []


def preferred(accept: str) -> str:
    """The language of the page for a browser's `Accept-Language` header: the first we have, by weight; else English."""
    wishes: list[tuple[float, str]] = []
    for part in accept.split(","):
        tag, _, weight = part.strip().partition(";q=")
        try:
            wishes.append((float(weight or 1), tag[:2].lower()))
        except ValueError:
            continue
    ranked = sorted(wishes, key=lambda wish: -wish[0])
    return next((tag for _, tag in ranked if tag in LANGUAGES), ENGLISH)
