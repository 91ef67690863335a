"""How the installer speaks: on stderr, because stdout belongs to the command; and how it gives up."""

from __future__ import annotations

import sys


class SetupError(Exception):
    """`what` is in the way, and `hint`: one thing to do about it. Exit code 4."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what + "\n" + hint)
        self.what, self.hint = what, hint


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
