"""The tree of errors; each is a sentence and a next step.

    YueGPError
    ├── RequestError       2   the lyrics, tags, options or reference cannot be used as they are
    ├── ModelError         3   weights are missing, damaged or not what they claim to be
    ├── DeviceError        4   the machine cannot do it: memory, a driver, a missing extension
    ├── LibraryError       5   a song folder cannot be read or written
    └── GenerationError    1   our own code broke a promise while making a song

    Cancelled                  the user stopped; not an error

The number is the exit code of the command line.
"""

from __future__ import annotations

import re


class YueGPError(Exception):
    """`what` went wrong, with the actual values, and `hint`: one thing to do about it."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = one_line(what)
        self.hint = "\n".join(map(one_line, hint.splitlines()))
        super().__init__(f"{self.what}\n{self.hint}" if hint else self.what)


_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?", re.DOTALL)
"""Terminal escape sequences (CSI and OSC). Source: ECMA-48, 5.4 and 8.3.89."""

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
"""Control characters, line ends, and direction marks."""


def one_line(text: object) -> str:
    """`text` on one line without control characters, for file names and other programs' messages on the screen."""
    return _UNSEEN.sub(" ", _ESCAPE.sub("", str(text))).strip()


def said(what: object, longest: int = 200) -> str:
    """Another program's message, for quoting inside a sentence: on one line, at most `longest` characters, cut between
    sentences or words, and without its own full stop."""
    text = " ".join(one_line(what).split())
    if len(text) > longest:
        begun = text[: longest + 1]
        whole = re.match(r".{20,}[.!?](?=\s)", begun)
        text = whole[0] if whole else begun.rpartition(" ")[0] or text[:longest]
        text = text if whole else text + " …"
    return text.rstrip(".") or type(what).__name__


class RequestError(YueGPError):
    """The request cannot be sung as it stands. Raised before any model loads."""

    exit_code = 2


class ModelError(YueGPError):
    """A model's files are missing, damaged or of another kind than asked for."""

    exit_code = 3


class DeviceError(YueGPError):
    """The machine lacks what the plan needs."""

    exit_code = 4


class LibraryError(YueGPError):
    """A song folder cannot be created, read or written."""

    exit_code = 5


class GenerationError(YueGPError):
    """A promise inside the program was broken while a song was being made."""

    exit_code = 1


class Cancelled(Exception):
    """The user asked to stop. What was finished is already saved."""
