"""Holds the documentation to the program: its commands are parsed by the real parsers and run with the demo set, its
links, pictures, options and environment variables exist, and its table of cards is what the program works out."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

from installer.main import HELP, read
from yuegp.__main__ import COMMANDS, main
from yuegp.cli.main import build_parser

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

DOOR = {"help", "install", "update", "reset", "test", "check"}
"""Commands that launch.py answers itself."""

NOT_RUN = {
    r"$": "the page stays open until Ctrl-C; tests/ui/server/test_serve.py starts it",
    r"ui --(listen|allow-host)": "the same; tests/ui/server/test_hosts.py and tests/ui/server/test_proxy.py",
    r"ui --hosts --forget-host": "forgets what the reader has allowed; tests/ui/server/test_hosts.py",
    r"(test|check)\b": "these are what runs this file",
    r"--(dry-run|pretend)\b": "launch.py's own; tests/installer/test_choose.py tells about many machines",
    r"models (get|remove)\b": "needs a network or what was downloaded; tests/cli/test_models.py has a hub of its own",
    r"models add\b": "needs a folder of the reader's; tests/cli/test_models.py",
    r".*--model (yue-|shanties)": "needs YuE's weights, or a model of the reader's",
    r"quant (calibrate|convert|measure)\b": "takes minutes even with the demo; tests/quant has a smaller model",
    r"bench (song|lm|vs-reference|loops)\b": "measures: takes minutes, or a card; tests/bench/test_bench.py",
}
"""Commands that are parsed and not run: how they begin, and why."""

SHORTER = {"--second 42": "--second 1.5"}
"""What is asked of the reader's song, and of the test's, which lasts seconds."""

LYRICS = "[verse]\nLa la\n\n[chorus]\nLo lo\n\n[verse]\nLe le\n\n[outro]\nLu\n"
MORE = "[bridge]\nLi li\n"

EXIT_CODES = {"doctor": (0, 4)}
"""Where 0 is not the only good answer: the doctor may find something."""

ONCE = re.compile(r"(doctor|plan|models|lyrics)\b")
"""Commands that change nothing: run where they are met first."""


# Reading pages


def blocks(page: Path) -> Iterator[str]:
    """The lines of a page's blocks, fenced or indented."""
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def quoted(page: Path) -> list[str]:
    """What stands between backticks in a page's sentences."""
    assert not [line for line in prose(page).splitlines() if line.count("`") % 2], f"{page}: code broken across lines"
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page: Path) -> list[str]:
    """The command lines in a page's blocks, without `python launch.py`. A remark in brackets after blanks is none."""
    found = (re.match(r"(?:\$ )?python launch\.py(?: (.*))?$", line) for line in blocks(page))
    return [re.sub(r"\s{2,}\(.*\)$", "", hit[1] or "") for hit in found if hit]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def reason(command: str) -> str:
    return next((why for start, why in NOT_RUN.items() if re.match(start, command)), "")


def parse(command: str) -> None:
    """Through the installer's parser and the program's. AssertionError when one of them refuses it."""
    args = list(read(words(command), {}).args)
    if args and args[0] not in DOOR and "…" not in args:
        try:
            build_parser(COMMANDS).parse_args(args)
        except SystemExit as exc:
            raise AssertionError(f"the program does not understand: {command}") from exc


def parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its name, commands of commands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield name, command
                yield from parsers(command)


# Commands


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood(name: str) -> None:
    known = {command for command, _ in parsers(build_parser(COMMANDS))} | DOOR
    for command in commands(ROOT / name):
        parse(command)
    for text in quoted(ROOT / name):
        for pattern in (r"python launch\.py ([a-z]+)\b", r"yuegp ([a-z]+)\b"):
            hit = re.match(pattern, text)
            assert not hit or hit[1] in known, f"{name}: there is no command {hit and hit[1]!r} (`{text}`)"


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """Commands of `ONCE` that have been run."""
    return set()


@pytest.mark.parametrize("name", [name for name in NAMES if commands(ROOT / name)])
def test_every_command_that_can_run_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: set[str]
) -> None:
    """In the page's order, in a folder as the reader has it."""
    for example in (ROOT / "examples").glob("*.txt"):
        (tmp_path / "examples").mkdir(exist_ok=True)
        (tmp_path / "examples" / example.name).write_text(LYRICS, encoding="utf-8")
    (tmp_path / "more.txt").write_text(MORE, encoding="utf-8")
    monkeypatch.setenv("YUEGP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
    for command in commands(ROOT / name):
        if reason(command) or "…" in command or command in seen:
            continue
        seen |= {command} if ONCE.match(command) else set()
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        argv = words(command)
        if argv[0] == "make":
            argv += ["--section-seconds", "1"] + (["--sections", "2"] if "--sections" not in argv else [])
        monkeypatch.setattr(sys, "argv", ["yuegp", *argv])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("yuegp", run_name="__main__", alter_sys=True)  # what `python -m yuegp` does
        assert (ended.value.code or 0) in EXIT_CODES.get(argv[0], (0,)), f"{name}: {command}"


def test_no_reason_is_stale() -> None:
    """Each stands for a command that is really there, and names only tests that are."""
    every = [command for page in PAGES for command in commands(page)]
    for start, why in NOT_RUN.items():
        assert any(re.match(start, command) for command in every), f"no page has a command like {start!r}"
        for test in re.findall(r"tests/\S+\.py", why):
            assert list(ROOT.glob(test)), test
    for long in SHORTER:
        assert any(long in command for command in every), long


def test_a_wrong_command_would_be_found() -> None:
    parse("redo song 2 --later keep")
    for command in ("redo song", "rewind song", "sing", "make --tags pop --lowder", "plan --take 2 3"):
        with pytest.raises(AssertionError):
            parse(command)


# What pages name


@pytest.mark.parametrize("name", NAMES)
def test_every_option_exists(name: str) -> None:
    known = {option for _, parser in parsers(build_parser(COMMANDS)) for option in parser._option_string_actions}
    known |= set(build_parser(COMMANDS)._option_string_actions) | set(re.findall(r"--[a-z-]+", HELP))
    known |= {option for tool in (ROOT / "tools").rglob("*.py")
              for option in re.findall(r'add_argument\("(--[a-z-]+)"', tool.read_text(encoding="utf-8"))}  # fmt: skip
    others = ("pip ", "docker ", "uv ", "python tools/", "python -m pytest", "curl ")
    for text in quoted(ROOT / name):
        if not text.startswith(others):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
                assert option in known, f"{name}: there is no option {option} (`{text}`)"


@pytest.mark.parametrize("name", NAMES)
def test_every_link_and_picture_exists(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target) or target.startswith("/"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}, target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in PAGES if f"({page.name})" not in index and f"(../{page.name})" not in index
                and page.parent.name == "docs" and page.name != "README.md"]  # fmt: skip


def test_environment_variables_are_those_of_the_code() -> None:
    variable = re.compile(r"\bYUEGP_[A-Z0-9_]*[A-Z0-9]\b")
    rooms = [ROOT / room for room in ("yuegp", "ui", "offload", "quant", "installer", "tools", "tests")]
    files = [ROOT / "launch.py", *(path for room in rooms for path in room.rglob("*.py") if path != Path(__file__))]
    read_by_code = {name for path in files for name in variable.findall(path.read_text(encoding="utf-8"))}
    told = {name for page in PAGES for name in variable.findall(page.read_text(encoding="utf-8"))}
    assert told == read_by_code


# Figures


def test_the_table_of_cards_is_what_the_program_works_out(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- plan table")[2].partition("<!-- end of plan table -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "GB" in line]
    assert [row[0] for row in rows] == ["6 GB", "8 GB", "10 GB", "12 GB", "16 GB", "24 GB"]
    for row in rows:
        asked = ["plan", "--vram", row[0].replace(" ", ""), "--sections", "6", "--ram", "16GB", "--json"]
        assert main(asked) == 0
        plan = json.loads(capsys.readouterr().out)
        used = f"{plan['peak'] / 2**30:.1f} of {plan['budget'] / 2**30:.1f} GB"
        order = {
            "stages": "refined when all are written",
            "first": "refined in full batches, the first at once",
            "sections": "refined one by one",
        }[plan["hear"]]
        assert row == [row[0], plan["stage1"], plan["stage2"], used, order]


def test_the_size_of_pictures() -> None:
    """A reader's first page loads in a moment: no picture beyond half a megabyte."""
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 500_000, picture.name
