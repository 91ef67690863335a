"""Chooses the model for a song, with a sentence that says why. It follows the language of the lyrics and whether there
is a reference recording, unless the user names a model."""

from __future__ import annotations

from dataclasses import dataclass

from ui.texts import Texts
from yuegp.checkpoints import sets
from yuegp.errors import ModelError
from yuegp.generation import choice

TRAINED = {"en": "en", "zh": "zh", "ja": "jp-kr", "ko": "jp-kr"}
"""Language of the lyrics → language of the checkpoint trained for it."""

FALLBACK = "demo"
"""The set that comes with the program."""


@dataclass(frozen=True)
class Choice:
    """A model set, and the sentence that says why. `missing` is the better model that is not on disk, or empty."""

    model: sets.ModelSet
    reason: str
    missing: str = ""


def choose(wish: str, language: str, reference: bool, t: Texts) -> Choice:
    """The model for lyrics in `language` (as `lyrics.language` gives it). `wish` is a model's name, or empty.

    ModelError when the wish names no usable model."""
    if wish:
        found = choice.find(wish)
        return Choice(found, t("create.model.wished", title=found.title))
    mode = "icl" if reference else "cot"
    best = f"yue-{TRAINED[language]}-{mode}"
    name = t(f"create.model.language.{language}")
    try:
        found = choice.find(best)
    except ModelError:
        return Choice(sets.find(FALLBACK), t(f"create.model.missing.{mode}", language=name, model=best), best)
    return Choice(found, t(f"create.model.because.{mode}", language=name, title=found.title))


def usable() -> list[tuple[str, str]]:
    """(title, name) of every model that is on disk."""
    found = []
    for name in sets.names():
        try:
            found.append((sets.find(name).title, name))
        except ModelError:
            continue
    return found
