"""Messages of the installer on stderr, because stdout belongs to the command, and its exception."""

from __future__ import annotations

import sys


class SetupError(Exception):
    """`what` failed, with one next step as `hint`. Exit code 4."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what + "\n" + hint)
        self.what, self.hint = what, hint


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
