"""Write docs/commands.md, the reference of every command and option, from the program's own parser.

    python tools/write_commands.py

A test holds the page to the parser, so that it cannot go stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from yuegp.__main__ import COMMANDS  # noqa: E402
from yuegp.cli.main import build_parser  # noqa: E402

PAGE = ROOT / "docs" / "commands.md"

HEAD = """# Commands

Every command is called as `python launch.py COMMAND …`. Exit codes: 0 done, 2 the request, 3 a model, 4 the machine or
the set-up, 5 a song folder, 1 our own fault, 130 stopped. This page is written by `python tools/write_commands.py`.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_commands(build_parser(COMMANDS), ""))


def _commands(parser: argparse.ArgumentParser, before: str) -> Iterator[str]:
    """Every command of a parser; of one that has commands of its own, those."""
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    about = {choice.dest: choice.help for choice in group._choices_actions}
    for name, command in group.choices.items():
        if any(isinstance(a, argparse._SubParsersAction) for a in command._actions):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield _command(before + name, command, about[name] or "")


def _command(name: str, parser: argparse.ArgumentParser, text: str) -> str:
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    words = " ".join(_usage(a) for a in actions if not a.option_strings or a.required)
    rows = "".join(f"| `{_name(a)}` | {_help(a)} |\n" for a in actions)
    usage = f"{name} {words}".rstrip()
    return f"\n## {name}\n\n{text[0].upper()}{text[1:]}.\n\n    {usage}\n\n| | |\n| --- | --- |\n{rows}"


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    return action.metavar or (action.dest.upper() if action.option_strings else action.dest)  # type: ignore[return-value]


def _usage(action: argparse.Action) -> str:
    value = _value(action)
    if action.option_strings:
        return f"{action.option_strings[-1]} {value}"
    return f"[{value} …]" if action.nargs == "*" else value


def _name(action: argparse.Action) -> str:
    return " ".join([", ".join(action.option_strings), _value(action)]).strip()


def _help(action: argparse.Action) -> str:
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
    return f"{action.help}{choices}".replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
