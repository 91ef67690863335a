"""Everything that can go wrong, as a sentence and a next step.

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


class YueGPError(Exception):
    """`what` went wrong, with the actual values, and `hint`: one thing to do about it."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\n{hint}")
        self.what = what
        self.hint = hint


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
