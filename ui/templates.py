"""Jinja2 templates for HTML: those of a package lie in its folder `templates`. They escape every value they fill in."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.ext import Extension


class Unindented(Extension):
    """Drop line breaks and indentation in front of tags and Jinja blocks. They are for readers of the template; between
    two buttons a browser would show them as a space."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return re.sub(r"\n\s*(?=[<{])", "", source)


@cache
def templates(package: str) -> Environment:
    """The templates of a package, each compiled once. A template that names a missing value raises UndefinedError."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        extensions=[Unindented],
    )
