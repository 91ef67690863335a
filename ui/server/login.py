"""The two pages before the page itself: the password form, and the one for a host name that is not allowed."""

from __future__ import annotations

from ui.templates import templates
from ui.texts import Texts


def page(t: Texts) -> str:
    """The form that asks for the password, as HTML."""
    return templates(__package__).get_template("login.html").render(t=t)


def stranger(t: Texts, name: str, command: str) -> str:
    """The page for a browser that asked for `name`, which is not allowed. `command` starts the program with it."""
    return templates(__package__).get_template("stranger.html").render(t=t, name=name, command=command)
