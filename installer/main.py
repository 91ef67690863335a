"""The installer's command line: its own commands and options, and the start of the program."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from .builds import served
from .choose import Plan, decide
from .console import SetupError, say
from .install import clear, installer, prepare, venv_command, wheel_urls
from .own_folders import clear_fetched
from .pretend import pretend
from .probe import Machine, find_cards, probe_machine
from .record import is_ours, needed, read_record, venv_folder
from .steps import Tools, app_env, package_steps, uv_step, venv_python

HELP = """\
python launch.py                   start the page in the browser; the first time, set everything up
python launch.py make --lyrics …   any command of yuegp (python launch.py help lists them)
python launch.py install           set up, start nothing
python launch.py update            fetch the newest version (git) and what it needs
python launch.py reset             remove the environment; songs and models stay
python launch.py test [ARGS]       the tests (pytest); --coverage: how much of each file they run
python launch.py check             lint and types

before any of them:
  --cpu               never for an NVIDIA card
  --repair            set up anew, whatever is there
  --dry-run           only tell what would be done, and why
  --pretend MACHINE   the same for another machine: windows,rtx4090,driver=560,python=3.12

  YUEGP_HOME          where songs are kept; this folder when not set
  YUEGP_STACK         auto, cpu or cuda: which torch to install
  YUEGP_PYTHON        the Python to build on, when the one found is not the one wanted
  YUEGP_INSTALLER     pip: do without uv
  YUEGP_TORCH_INDEX   a mirror of torch's own package index, for those who cannot reach it
"""


class Request(NamedTuple):
    """The parsed command line; `args` is the command with its arguments."""

    args: Sequence[str]
    wish: str = "auto"
    repair: bool = False
    dry_run: bool = False
    pretend: str = ""


def read(argv: Sequence[str], env: Mapping[str, str]) -> Request:
    """Parse the command line. The installer's options stand before the command; the rest belongs to the command."""
    args, request = list(argv), Request([], env.get("YUEGP_STACK", "auto").lower())
    if request.wish not in ("auto", "cpu", "cuda"):
        raise SetupError(f"YUEGP_STACK is {request.wish!r}.", "Set it to auto, cpu or cuda.")
    if installer(env) not in ("uv", "pip"):
        raise SetupError(f"YUEGP_INSTALLER is {installer(env)!r}.", "Set it to pip, or unset it.")
    while args and args[0] in ("--cpu", "--repair", "--dry-run", "--pretend"):
        option = args.pop(0)
        if option == "--cpu":
            request = request._replace(wish="cpu")
        elif option == "--repair":
            request = request._replace(repair=True)
        elif option == "--dry-run":
            request = request._replace(dry_run=True)
        elif args:
            request = request._replace(pretend=args.pop(0), dry_run=True)
        else:
            raise SetupError("--pretend needs a machine.", "For example: --pretend windows,rtx4090,driver=560")
    return request._replace(args=args)


# ---- Telling without doing -------------------------------------------------------------------------------------------


def tell(root: Path, request: Request, machine: Machine, real: bool) -> str:
    """Every decision with its reason, and the commands that would run."""
    venv = venv_folder(root)
    plan = decide(machine, request.wish, wheel_urls(root), installer(os.environ))
    lines = [f"{'This machine' if real else 'A machine'}: {facts(machine)}", ""]
    rows = [(*decision,) for decision in plan.decisions]
    if real:
        task = "everything" if request.repair else needed(root, request.wish, request.args[:1] in (["test"], ["check"]))
        state = {
            "nothing": "in order; nothing is to be installed",
            "tests": "in order; the test tools are to be added",
            "packages": "from other requirements; its packages are to be brought up to date",
            "everything": "to be made" if not venv.exists() else "to be made anew",
        }[task]
        if venv.name != ".venv":
            state += f"; {root / '.venv'} was not made by launch.py and stays as it is"
        rows.append(("Environment", str(venv), state))
        rows += [(name, "now", how) for name, how in read_record(venv).get("optional", {}).items() if task == "nothing"]
    width = max([len(row[0]) for row in rows] or [0])
    lines += [f"{what:{width}}  {value}: {reason}" for what, value, reason in rows]
    if plan.problem:
        return "\n".join([*lines, "", "Then it stops:", plan.problem.what, plan.problem.hint])
    return "\n".join([*lines, "", "Steps:", *commands(root, venv, plan)])


def facts(machine: Machine) -> str:
    system = "macOS" if machine.system == "Darwin" else machine.system
    if machine.release:
        system += (" {}.{}" if system == "macOS" else ", glibc {}.{}").format(*machine.release)
    if machine.wsl or machine.jetson:
        system += " (WSL)" if machine.wsl else " (Jetson)"
    cards = [
        f"{card.name} (driver {card.driver}, "
        + (f"{card.memory:.0f} GB, " if card.memory else "")
        + ("compute capability {}.{})".format(*card.capability) if card.capability else "too old to be asked)")
        for card in machine.cards
    ]
    if machine.system != "Darwin":
        cards = cards or ["no NVIDIA card that answers"]
    return "; ".join([system, *cards])


def commands(root: Path, venv: Path, plan: Plan) -> list[str]:
    """The steps in words and commands, with the environment's own programs by their short names."""
    python = str(venv_python(venv))
    tools = Tools("python", ("uv",) if plan.installer == "uv" else ())
    lines = ["  an environment: " + " ".join(venv_command(plan, "uv", venv)).replace(str(venv), venv.name)]
    steps = package_steps(root, plan, tools, tests=False)
    for step in [uv_step(root, "python"), *steps] if plan.installer == "uv" else steps:
        for number, way in enumerate(step.ways):
            start = f"  {step.label}: " if number == 0 else "    or, where that fails: "
            lines.append(start + " ".join(way).replace(str(root) + os.sep, "").replace(python, "python"))
    return [*lines, "  every package imported once; only then the environment counts as made"]


# ---- The set-up's own commands ---------------------------------------------------------------------------------------


def update(root: Path) -> int:
    """Pull the newest version with git, then run its launcher's set-up. Returns the exit code."""
    git = shutil.which("git")
    if not (root / ".git").exists() or not git:
        say("This folder was not made by git: to update, unpack the new version over it. Songs and models stay.")
    else:
        answer = subprocess.run([git, "-C", str(root), "pull", "--ff-only"], stdin=subprocess.DEVNULL)
        if answer.returncode:
            raise SetupError(
                "git could not fetch the newest version; what it said is above.",
                "It needs the network, and a folder without changes of your own. The program you have still works.",
            )
    return subprocess.run([sys.executable, str(root / "launch.py"), "install"]).returncode


def reset(root: Path) -> None:
    venv = venv_folder(root)
    if not venv.exists():
        say("There is no environment to remove.")
    elif is_ours(venv):
        clear(root, venv)
        clear_fetched(root, everything=True)
        say(f"{venv} is removed. Songs and models are untouched; the next start sets up anew.")
    else:
        say(f"{venv} was not made by launch.py and stays.")


def hide_cards(env: Mapping[str, str], record: Mapping[str, Any]) -> dict[str, str]:
    """Environment that hides cards without code in the installed torch from the program. Searches for cards only if the
    record names such cards; keeps the user's own setting."""
    out = dict(env)
    if record.get("beside") and "CUDA_VISIBLE_DEVICES" not in out:
        arch = "x86_64" if platform.machine() in ("x86_64", "AMD64") else "arm64"
        shown = served(str(record.get("build")), arch, find_cards())
        if shown:
            out.update(CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=shown)
    return out


def start(command: list[str], env: Mapping[str, str], cwd: Path) -> int:
    """Replace this process by the command, or on Windows run it and wait. Returns its exit code."""
    if os.name == "posix":
        os.chdir(cwd)
        os.execve(command[0], command, env)
    child = subprocess.Popen(command, env=env, cwd=cwd)
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the child too, which may need to save
            return child.wait()


def pytest_words(rest: Sequence[str]) -> list[str]:
    """What `launch.py test` hands to pytest: the words behind it; without any, the whole suite side by side.
    `--coverage` adds how many lines of each file were run."""
    measured = [f"--cov={part}" for part in ("yuegp", "ui", "offload", "quant")] if "--coverage" in rest else []
    words = [word for word in rest if word != "--coverage"]
    return [*(words or side_by_side()), *measured, *(["--cov-report=term:skip-covered"] if measured else [])]


def side_by_side() -> list[str]:
    """pytest arguments to run the suite on several processors, each file on one, since its tests share fixtures."""
    return ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]


def run(root: Path, argv: Sequence[str]) -> int:
    """Run the command line. Returns the exit code. Raises `SetupError` or OSError for failures before the program
    starts."""
    request = read(argv, os.environ)
    command, rest = (request.args[0], list(request.args[1:])) if request.args else ("ui", [])
    if request.dry_run:
        machine = pretend(request.pretend) if request.pretend else probe_machine(os.environ, venv_folder(root))
        print(tell(root, request, machine, real=not request.pretend))
        return 0
    if command in ("-h", "--help") and needed(root, request.wish, False) != "nothing":
        print(HELP, end="")
        return 0
    if command == "update":
        return update(root)
    if command == "reset":
        reset(root)
        return 0
    prepare(root, request.wish, tests=command in ("test", "check"), repair=request.repair)
    if command == "install":
        say("Everything is in place. Start with: python launch.py")
        return 0
    venv = venv_folder(root)
    python, env = str(venv_python(venv)), hide_cards(app_env(os.environ, root), read_record(venv))
    if command == "test":
        return start([python, "-m", "pytest", *pytest_words(rest)], env, root)
    if command == "check":
        return start([python, str(root / "tools" / "check.py"), *rest], env, root)
    # -P: a torch.py or a yuegp folder where the user happens to stand must not be taken for ours
    return start([python, "-P", "-m", "yuegp", command, *rest], env, Path.cwd())


def main(root: Path, argv: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # a console with an old encoding must not fail at a letter it lacks
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return run(root, argv)
    except SetupError as exc:
        say(str(exc))
        return 4
    except OSError as exc:
        say(f"{exc.filename or root}: {exc.strerror or exc}.")
        say("Put the folder of yuegp where you may write and have some GB free, then start again.")
        return 4
    except KeyboardInterrupt:
        say("\nStopped. The next start begins the set-up anew.")
        return 130
