"""Style and script of the page, as text. Each page has its own `<page>.css` and `<page>.js`; `theme.css` and `shell.js`
come first because the others build on them. The browser loads nothing from other servers."""

from __future__ import annotations

from importlib import resources

FIRST = ("theme", "shell")


def _joined(ending: str) -> str:
    files = [file for file in resources.files(__package__).iterdir() if file.name.endswith(ending)]
    files.sort(key=lambda file: (file.name.removesuffix(ending) not in FIRST, file.name))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def css() -> str:
    """All style sheets, joined."""
    return _joined(".css")


def head() -> str:
    """All scripts as one element for the page's head. They only define functions on `window.yuegp`."""
    return f"<script>{_joined('.js')}</script>"


def icon() -> str:
    """The page's icon, as SVG. Browsers ask for it even where a page names none."""
    return (resources.files(__package__) / "icon.svg").read_text(encoding="utf-8")
