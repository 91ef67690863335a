"""HTML from Jinja2 templates, which stand in the folder `templates` of the package whose page they are.

Every value that a template fills in is escaped there, texts of ours included."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.ext import Extension


class Unindented(Extension):
    """Leaves out a line's end and the next one's indentation where a tag or a Jinja block follows. They are there for
    people who read the template; between two buttons a browser would show them as a space."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return re.sub(r"\n\s*(?=[<{])", "", source)


@cache
def templates(package: str) -> Environment:
    """The templates of a package, each read and compiled once. A name that nobody has filled in is an error."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        extensions=[Unindented],
    )
