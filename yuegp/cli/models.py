"""The command `models`: list, get, check, add and remove checkpoints. `yuegp.system.provision` does the work."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yuegp.checkpoints.registry import Checkpoint
from yuegp.errors import RequestError
from yuegp.units import file_size

from .arguments import Commands, add_command, print_json

if TYPE_CHECKING:
    from yuegp.generation.plan import Event
    from yuegp.jobs.queue import JobProgress
    from yuegp.system.provision import Choice, DownloadPlan


def add_commands(commands: Commands) -> None:
    """Add the command `models`."""
    p = add_command(commands, "models", models, "list, download, check, add and remove models")
    p.add_argument(
        "action",
        nargs="?",
        choices=tuple(ACTIONS),
        default="list",
        help="list: what there is, and where. get NAME: download and check. check [NAME]: read all that is here. "
        "add FOLDER, or OWNER/NAME with @BRANCH and :FOLDER where it has several. "
        "remove NAME: delete what was downloaded",
    )
    p.add_argument("words", nargs="*", help="a set (yue-en-cot), a checkpoint (s2-nf4), a repository or a folder")
    p.add_argument("--language", choices=("en", "zh", "jp-kr", "ja", "ko"), help="get: for lyrics in this language")
    p.add_argument("--mode", choices=("cot", "icl"), help="get: cot needs no reference (default), icl follows one")
    p.add_argument("--for-card", metavar="SIZE", help="get: choose for a card of this size, such as 12GB")
    p.add_argument("--newest", action="store_true", help="get: the newest revision, not the one yuegp is made for")
    p.add_argument("--name", help="add: call it so")
    p.add_argument("--all", action="store_true", help="list: smaller copies too")
    p.add_argument("--yes", action="store_true", help="do not ask")
    p.add_argument("--quiet", action="store_true", help="no progress")


def models(arguments: argparse.Namespace) -> None:
    """The action that was asked for."""
    ACTIONS[arguments.action](arguments)


# list


def show(arguments: argparse.Namespace) -> None:
    """Every checkpoint: where it is, or how large, and what it is good for."""
    from yuegp import paths
    from yuegp.checkpoints import locate, registry
    from yuegp.checkpoints.sets import EMBEDDED

    rows = []
    for checkpoint in registry.known().values():
        folder = locate.locate(checkpoint)
        state = "here" if folder else "unfinished" if locate.unfinished(checkpoint) else "missing"
        rows.append((checkpoint, state, folder, _size(folder) if folder else checkpoint.about))
    if arguments.json:
        print_json([asdict(c) | {"state": s, "folder": f, "bytes": b} for c, s, f, b in rows])
        return
    for checkpoint, state, folder, size in rows:
        if state == "missing" and not arguments.all and not _is_principal(checkpoint):
            continue
        about = "" if folder else "about "
        print(f"{checkpoint.id:<28} {state:<11} {about + file_size(size):>15}  {_what(checkpoint)}")
        if folder:
            print(f"{'':<28} {folder}")
        for aside in sorted(locate.own_folder(checkpoint).rglob("*.bad")):
            print(f"{'':<28} set aside, may be deleted: {aside} ({file_size(aside.stat().st_size)})")
    print(f"\nModels are kept in {paths.models_dir()}. The model {', '.join(EMBEDDED)} is built in.")
    if not arguments.all:
        print("Smaller copies are left out here: python launch.py models list --all")
    print("Get what suits this machine: python launch.py models get --language en --mode cot")


def _is_principal(checkpoint: Checkpoint) -> bool:
    return checkpoint.repo.startswith("m-a-p/")


def _what(checkpoint: Checkpoint) -> str:
    from yuegp.checkpoints.registry import LANGUAGES, MODES

    said = {"stage1": "Stage 1", "stage2": "Stage 2", "codec": "sound"}[checkpoint.role]
    if checkpoint.language != "any":
        said += f", {LANGUAGES.get(checkpoint.language, checkpoint.language)}"
    if checkpoint.mode != "any":
        said += f", {MODES.get(checkpoint.mode, checkpoint.mode)}"
    held = {"exl2": "EXL2", "bnb8": "8 bit", "int8": "8 bit", "nf4": "4 bit"}.get(checkpoint.stored, "")
    held += f" {checkpoint.bits:g} bit" if checkpoint.stored == "exl2" else ""
    return "; ".join(part for part in (said, held, checkpoint.good_for) if part)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# get


def get(arguments: argparse.Namespace) -> None:
    """Choose, show what it costs, ask, download, judge."""
    from yuegp.checkpoints.hub import HubUnreachable
    from yuegp.system import provision

    from .progress import ProgressBar

    choice, checkpoints = _wanted(arguments)
    if choice and not arguments.json:
        print(f"For {choice.name}: {choice.reason}.")
    try:
        order = provision.order(checkpoints, arguments.newest)
    except HubUnreachable:
        if not arguments.json:
            _show_missing(checkpoints)
        raise
    if not arguments.json:
        _show_order(order)
    if order.plans and not _agreed(arguments, f"Download {file_size(order.missing)}?"):
        print("Nothing was downloaded.")
        return
    with ProgressBar(arguments.quiet or arguments.json, meter := TransferMeter()) as screen:
        folders = provision.execute(order, _reporter(screen, meter))
    if choice:
        provision.remember_choice(choice, order)
    if arguments.json:
        instead = {one.asked.id: one.taken.id for one in order.instead}
        print_json({"set": choice and choice.name, "folders": list(map(str, folders)), "instead": instead})
        return
    print("Everything is here and whole." if order.plans else "Everything was here already.")
    if choice:
        print(f"Make a song with it: python launch.py make --model {choice.name} …")


def _wanted(arguments: argparse.Namespace) -> tuple[Choice | None, list[Checkpoint]]:
    """The checkpoints the arguments ask for, and the choice they come from when they were chosen."""
    from yuegp.checkpoints import registry
    from yuegp.checkpoints.sets import RELEASED
    from yuegp.system import provision

    language, mode = arguments.language, arguments.mode
    if len(arguments.words) > 1:
        raise RequestError("One model at a time can be got.", "Name one, or --language and --mode.")
    if arguments.words:
        if arguments.words[0] not in RELEASED:
            return None, [registry.named(arguments.words[0])]
        language, mode = RELEASED[arguments.words[0]]
    elif not language:
        raise RequestError("Which model?", "Name one, or say --language en --mode cot.")
    language = {"ja": "jp-kr", "ko": "jp-kr"}.get(language, language)
    card = None
    if arguments.for_card:
        from offload.device import imagined
        from yuegp.generation.memory import parse_size

        card = imagined(parse_size(arguments.for_card))
    choice = provision.choose(language, mode or "cot", card, elsewhere=True)
    return choice, list(choice.checkpoints)


def _show_order(order: DownloadPlan) -> None:
    for one in order.instead:
        print(one)
    for checkpoint, folder in order.here:
        print(f"  here      {checkpoint.id:<28} {folder}")
    for _, why in order.passed:
        print(f"  not used  {why}")
    for plan in order.plans:
        here = plan.total - plan.missing
        begun = f", {file_size(here)} of it are here" if here >= 1e6 else ""
        print(f"  download  {plan.checkpoint.id:<28} {file_size(plan.total)} from {plan.checkpoint.source}{begun}")
    if order.plans:
        print(f"To download: {file_size(order.missing)}. Free on that disk: {file_size(order.free)}.")


def _show_missing(checkpoints: list[Checkpoint]) -> None:
    """What would have been downloaded, as far as that is known without the hub."""
    from yuegp.checkpoints import locate

    for checkpoint in checkpoints:
        if folder := locate.locate(checkpoint):
            print(f"  here      {checkpoint.id:<28} {folder}")
        else:
            print(f"  missing   {checkpoint.id:<28} about {file_size(checkpoint.about)} from {checkpoint.source}")


def _agreed(arguments: argparse.Namespace, question: str) -> bool:
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise RequestError(f"{question} Nobody is here to answer.", "Say --yes to go ahead.")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _reporter(screen: Any, meter: TransferMeter) -> Any:
    from yuegp.generation.plan import Event, Phase

    def report(doing: str, what: str, done: int, total: int) -> None:
        meter.now = time.monotonic()
        screen.show(Event(Phase(doing), what, done // 1_000_000, max(1, total // 1_000_000), "MB", done // 1_000_000))

    return report


class TransferMeter:
    """The rate and remaining time of a download: a `ProgressView`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.part = ("", "")

    def update(self, event: Event) -> None:
        from yuegp.checkpoints.download import RateEstimator

        if (event.stage, event.what) != self.part:
            self.part, self.pace = (event.stage, event.what), RateEstimator()
        self.pace.update(self.now, event.done)
        self.event = event

    def progress(self) -> JobProgress | None:
        from yuegp.jobs.queue import JobProgress, State

        return JobProgress(0, State.RUNNING, rate=self.pace.rate(), eta=self.pace.left(self.event.total))


# check, add, remove


def check(arguments: argparse.Namespace) -> None:
    """Read everything that is here: checksums and every weight."""
    from yuegp.checkpoints import locate, registry
    from yuegp.errors import ModelError
    from yuegp.system import provision

    from .progress import ProgressBar

    named = [registry.named(word) for word in arguments.words]
    found = [(c, folder) for c in named or registry.known().values() if (folder := locate.locate(c))]
    for checkpoint in named:
        if checkpoint.id not in [c.id for c, _ in found]:
            raise ModelError(
                f"{checkpoint.id} is not on this computer.", f"python launch.py models get {checkpoint.id}"
            )
    for checkpoint, folder in found:
        with ProgressBar(arguments.quiet or arguments.json, meter := TransferMeter()) as screen:
            provision.examine(checkpoint, folder, _reporter(screen, meter))
        if not arguments.json:
            print(f"{checkpoint.id:<28} whole   {folder}")
    if arguments.json:
        print_json([{"id": checkpoint.id, "folder": str(folder)} for checkpoint, folder in found])
    elif not found:
        print("No models are here but the built-in one.")


def add(arguments: argparse.Namespace) -> None:
    """Use a folder where it is, or remember a repository."""
    from yuegp.checkpoints import registry
    from yuegp.system import provision

    if len(arguments.words) != 1:
        raise RequestError("One folder or repository can be added at a time.", "Put a path with spaces in quotes.")
    said = {"language": arguments.language, "mode": arguments.mode}
    word, extra = arguments.words[0], {key: value for key, value in said.items() if value}
    added: list[tuple[Checkpoint, Path | None]] = []
    if os.path.isdir(os.path.expanduser(word)):
        added += provision.add_folder(Path(word).expanduser().absolute(), arguments.name, extra)
    else:
        entry = registry.own(word, arguments.name, extra)
        registry.add(entry)
        added.append((entry, None))
    if arguments.json:
        print_json([asdict(replace(c, place=str(folder or ""))) for c, folder in added])
        return
    for checkpoint, folder in added:
        print(f"{checkpoint.id:<28} {_what(checkpoint)}")
        where = f"used from {folder}" if folder else f"not downloaded: python launch.py models get {checkpoint.id}"
        print(f"{'':<28} {where}")


def remove(arguments: argparse.Namespace) -> None:
    """Delete what we downloaded; only forget what is another program's."""
    from yuegp.checkpoints import locate, registry
    from yuegp.system import provision

    if len(arguments.words) != 1:
        raise RequestError("Which model is to be removed?", "Name one; python launch.py models shows them.")
    checkpoint = registry.named(arguments.words[0])
    folder = locate.own_folder(checkpoint)
    if folder.is_dir() and not _agreed(arguments, f"Delete {folder} ({file_size(_size(folder))})?"):
        print("Nothing was deleted.")
        return
    freed, left = provision.remove(checkpoint), locate.locate(checkpoint)
    if arguments.json:
        print_json({"freed": freed, "left": left and str(left)})
        return
    print(f"Freed {file_size(freed)}." if freed else f"{checkpoint.id} was forgotten; no files of ours were there.")
    if left:
        print(f"Another program's copy stays where it is: {left}")


ACTIONS = {"list": show, "get": get, "check": check, "add": add, "remove": remove}
