"""Checks this computer: findings of what works, is doubtful or fails, each a sentence with a next step.

`judge` is pure: an `Environment` in, findings out. `environment.survey` looks at the machine; fronts show the findings.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from offload.units import GIB, memory_size
from yuegp.generation.released import RELEASED_STAGE1
from yuegp.shortage import PAGE_FILE
from yuegp.units import file_size

from .environment import PORT, Environment, survey

State = Literal["ok", "warn", "fail"]
"""`warn`: it works, but."""

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

Subject = Literal[
    "python", "packages", "torch", "exllamav2", "flash-attn", "bitsandbytes", "card", "engine", "memory", "page file",
    "folder", "disk", "songs", "notes", "uploads", "queue", "models", "proxy", "sound", "page", "clock", "launcher",
]  # fmt: skip
"""What a finding can be about."""

PYTHONS = ((3, 11), (3, 13))
"""Oldest and newest tested Python."""

NEED_RAM = 3 * GIB
NEED_COMMIT = 2 * (RELEASED_STAGE1.config.layers * RELEASED_STAGE1.matrices + 2 * RELEASED_STAGE1.table)
"""Bytes of Stage 1's matrices in 16 bits, which Windows must still be able to commit for them to wait in RAM."""
NEED_DISK = 2 * 10**9
"""Bytes for a few songs; downloading a released model checks for its own, far larger size."""

USABLE_VRAM = 6 * GIB
"""Smallest card with a plan, in bytes."""

AGREED_SECONDS = 24 * 3600
"""Seconds by which the clock may lag behind the newest song."""

REPAIR = "Run `python launch.py --repair`."


@dataclass(frozen=True)
class Finding:
    """Result of one check. `state` is ok, warn (works with a drawback) or fail."""

    name: Subject
    state: State
    what: str
    hint: str = ""


def examine(port: int = PORT) -> list[Finding]:
    """Examine this machine. Returns the findings."""
    return judge(survey(port))


def judge(facts: Environment) -> list[Finding]:
    """The findings for an environment, in a fixed order."""
    return [finding for check in CHECKS for finding in check(facts)]


def _python(facts: Environment) -> Iterator[Finding]:
    version = ".".join(map(str, facts.python))
    oldest, newest = PYTHONS
    if facts.python[:2] < oldest:
        needed = f"{oldest[0]}.{oldest[1]}"
        yield Finding("python", FAIL, f"Python {version} is too old; yuegp needs {needed} or newer.", REPAIR)
    elif facts.python[:2] > newest:
        tested = f"{newest[0]}.{newest[1]}"
        yield Finding(
            "python", WARN, f"Python {version} is newer than {tested}, the newest one yuegp is tested with.", REPAIR
        )
    else:
        yield Finding("python", OK, f"Python {version} on {facts.system}.")


def _packages(facts: Environment) -> Iterator[Finding]:
    if facts.probe_error:
        yield Finding("packages", FAIL, f"The installed packages are not known: {facts.probe_error}.", REPAIR)
        return
    optional = {"exllamav2", "flash_attn", "bitsandbytes"}
    for name, package in facts.packages.items():
        if name in optional:
            continue
        if package.error:
            yield Finding("packages", FAIL, f"{name} {package.version} cannot be used: {package.error}.", REPAIR)
        elif not package.version:
            yield Finding("packages", FAIL, f"{name} is not installed.", REPAIR)


def _torch(facts: Environment) -> Iterator[Finding]:
    torch = facts.packages.get("torch")
    if not torch or not torch.version or torch.error:
        return  # `_packages` reports it
    if facts.cards and not facts.torch_cuda and (why := facts.launched.get("why")) and why != "as asked for":
        yield Finding(
            "torch",
            WARN,
            f"A {facts.cards[0].name} is here, but the processor computes: {why}.",
            "`YUEGP_STACK=cuda` insists: set it, then run `python launch.py --repair`.",
        )
    elif facts.cards and not facts.torch_cuda:
        yield Finding(
            "torch",
            WARN,
            f"A {facts.cards[0].name} is here, but torch {torch.version} is the build for machines without a card.",
            "Run `python launch.py --repair`; it chooses the build for the card.",
        )
    elif facts.torch_cuda and not facts.torch_ready:
        driver = f"driver {facts.cards[0].driver}" if facts.cards else "no NVIDIA driver that answers"
        yield Finding(
            "torch",
            FAIL if facts.cards else WARN,
            f"torch {torch.version} is built for CUDA {facts.torch_cuda} and finds no card; there is {driver}.",
            "Update the NVIDIA driver and restart the computer." if facts.cards else REPAIR,
        )
    elif unserved := [card for card in facts.torch_cards if not _served(card, facts.torch_archs)]:
        name, major, minor = unserved[0]
        yield Finding(
            "torch",
            FAIL,
            f"torch {torch.version} was not built for the {name} (compute capability {major}.{minor}).",
            REPAIR,
        )
    elif facts.torch_ready:
        yield Finding("torch", OK, f"torch {torch.version} computes on the {facts.torch_cards[0][0]}.")
    else:
        yield Finding("torch", OK, f"torch {torch.version} computes on the processor; no NVIDIA card is here.")


def _served(card: tuple[str, int, int], archs: tuple[str, ...]) -> bool:
    """Whether a build for `archs` runs on a card: with machine code of its major version up to its own minor one (CUDA
    is upward compatible within a major version), or PTX of an earlier one."""
    _, major, minor = card
    for arch in archs:
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch):
            kind, its_major, its_minor = match[1], int(match[2]), int(match[3])
            if kind == "sm" and its_major == major and its_minor <= minor:
                return True
            if kind == "compute" and (its_major, its_minor) <= (major, minor):
                return True
    return False


def _exllamav2(facts: Environment) -> Iterator[Finding]:
    if not facts.torch_ready:
        return  # no card to be fast on
    package = facts.packages.get("exllamav2")
    instead = "The torch engine is used instead: it works, more slowly. Run `python launch.py --repair` to try again."
    optional = facts.launched.get("optional")
    why = str(optional.get("exllamav2")) if isinstance(optional, dict) else ""
    if (not package or not package.version) and "not published" in why:
        what = f"ExLlamaV2, the fast engine, is not there for this machine: {why}."
        yield Finding("exllamav2", WARN, what, "Nothing to do: the torch engine is used instead. It is slower.")
    elif not package or not package.version:
        yield Finding("exllamav2", WARN, "ExLlamaV2, the fast engine, is not installed.", instead)
    elif package.error:
        yield Finding("exllamav2", WARN, f"ExLlamaV2 {package.version} cannot be used: {package.error}.", instead)
    else:
        yield Finding("exllamav2", OK, f"ExLlamaV2 {package.version} is installed.")


def _flash(facts: Environment) -> Iterator[Finding]:
    package = facts.packages.get("flash_attn")
    if not facts.torch_ready or not package or not package.version:
        return  # optional, and our own attention takes its place
    if package.error:
        yield Finding(
            "flash-attn",
            WARN,
            f"flash-attn {package.version} cannot be used: {package.error}.",
            "Nothing to do: our own attention takes its place. `python launch.py --repair` installs it anew.",
        )
    elif facts.flash:
        yield Finding(
            "flash-attn",
            WARN,
            f"{facts.flash[0].upper()}{facts.flash[1:]}.",
            "Nothing to do: our own attention takes its place.",
        )
    else:
        yield Finding("flash-attn", OK, f"flash-attn {package.version} is installed.")


def _bitsandbytes(facts: Environment) -> Iterator[Finding]:
    package = facts.packages.get("bitsandbytes")
    if not facts.torch_ready or not package:
        return
    if package.error or not package.version:
        why = package.error or "it is not installed"
        yield Finding(
            "bitsandbytes",
            WARN,
            f"nf4 models run slowly here: bitsandbytes cannot be used ({why}).",
            REPAIR,
        )
    elif facts.nf4:
        yield Finding(
            "bitsandbytes",
            WARN,
            f"nf4 models run slowly here: {facts.nf4}.",
            "Nothing to do: our own way takes its place. `python launch.py --repair` installs it anew.",
        )
    else:
        yield Finding("bitsandbytes", OK, f"bitsandbytes {package.version} is installed.")


def _cards(facts: Environment) -> Iterator[Finding]:
    for card in facts.cards:
        held = ", ".join(f"{who} {memory_size(much)}" for who, much in card.held)
        if card.total < USABLE_VRAM:
            yield Finding(
                "card",
                WARN,
                f"The {card.name} has {memory_size(card.total)}; the smallest plan for the YuE models needs "
                f"{memory_size(USABLE_VRAM)}.",
                "Songs are made on the processor, or with the demo model.",
            )
        elif card.free < card.total // 2:
            yield Finding(
                "card",
                WARN,
                f"Only {memory_size(card.free)} of the {card.name}'s {memory_size(card.total)} are free"
                + (f"; {held}." if held else "."),
                "Close programs that use the card: games, browsers with video, other AI programs.",
            )
        else:
            yield Finding("card", OK, f"{card.name}: {memory_size(card.free)} of {memory_size(card.total)} free.")
    if not facts.cards:
        yield Finding(
            "card",
            OK,
            "No NVIDIA card answers: songs are made on the processor.",
            "Fine for the demo model. The YuE models need a card to be quick.",
        )


def _engine(facts: Environment) -> Iterator[Finding]:
    if facts.misfit:
        yield Finding(
            "engine", WARN, f"A whole song with YuE's models does not fit: {facts.misfit}", "Try `yuegp plan`."
        )
    elif facts.engine:
        yield Finding(
            "engine",
            OK,
            f"With YuE's models a song of six sections would run with Stage 1 as {facts.engine}.",
            "`yuegp plan` says why; that is worked out from sizes, not measured here.",
        )


def _memory(facts: Environment) -> Iterator[Finding]:
    if facts.ram_free < NEED_RAM:
        yield Finding(
            "memory",
            WARN,
            f"Only {memory_size(facts.ram_free)} of memory are free; decoding a song needs up to "
            f"{memory_size(NEED_RAM)}.",
            "Close other programs.",
        )
    else:
        yield Finding("memory", OK, f"{memory_size(facts.ram_free)} of memory free.")
    if facts.page_file is not None and facts.commit_free is not None and facts.commit_free < NEED_COMMIT:
        yield Finding(
            "page file",
            WARN,
            f"Windows has {memory_size(facts.commit_free)} left to promise, with a page file of "
            f"{memory_size(facts.page_file)} that does not grow; YuE's Stage 1 takes up to {memory_size(NEED_COMMIT)} "
            "while it waits in RAM.",
            PAGE_FILE,
        )


def _disk(facts: Environment) -> Iterator[Finding]:
    if facts.home_error:
        yield Finding(
            "folder",
            FAIL,
            f"Nothing can be saved: {facts.home_error}",
            "Set YUEGP_HOME to a folder that you may write to.",
        )
    if facts.disk_free < NEED_DISK:
        yield Finding(
            "disk",
            WARN,
            f"Only {file_size(facts.disk_free)} are free on the disk with {facts.home}.",
            "Free some space, or set YUEGP_HOME to a folder on another disk.",
        )
    elif not facts.home_error:
        yield Finding("disk", OK, f"{file_size(facts.disk_free)} free for songs and models in {facts.home}.")


def _songs(facts: Environment) -> Iterator[Finding]:
    for name, why in facts.broken:
        yield Finding(
            "songs",
            WARN,
            f"The song {name} cannot be read: {why}",
            "It was left as it is. `yuegp show` says more; its sound files can still be played.",
        )
    if not facts.broken:
        yield Finding("songs", OK, f"{facts.songs} song{'' if facts.songs == 1 else 's'}, all readable.")


def _notes(facts: Environment) -> Iterator[Finding]:
    for why in facts.damaged:
        hint = "It was left as it is, and the rest works without it. Mend it, or move it away."
        yield Finding("notes", WARN, why, hint)
    for folder, size in facts.uploads:
        what = f"{folder} ({file_size(size)}) holds uploads of an earlier yuegp; this one uses a folder of its own."
        yield Finding("uploads", WARN, what, "Nothing removes it by itself: delete it if nothing in it is yours.")


def _queue(facts: Environment) -> Iterator[Finding]:
    if facts.queue_error:
        yield Finding(
            "queue",
            FAIL,
            f"The queue cannot be read: {facts.queue_error}",
            "Move the queue folder in YUEGP_HOME aside: it holds no music, only the order of what is to be made.",
        )
    if facts.interrupted:
        count = f"{facts.interrupted} song{' was' if facts.interrupted == 1 else 's were'}"
        yield Finding(
            "queue",
            WARN,
            f"{count} interrupted while being made.",
            "Resume on the Queue page, or `yuegp queue resume all`.",
        )
    for job in facts.failed:
        yield Finding("queue", WARN, f"Job {job.number} failed: {job.what}", job.hint)


def _models(facts: Environment) -> Iterator[Finding]:
    for name, problem in facts.models:
        if problem:
            yield Finding("models", WARN, problem, f"Run `yuegp models get {name}`: what is whole is kept.")
    whole = [name for name, problem in facts.models if not problem]
    if "demo" not in whole:
        yield Finding(
            "models", FAIL, "The demo model that comes with the program is not whole.", "Install yuegp again."
        )
    elif whole == ["demo"]:
        offline = " Downloads are switched off here (HF_HUB_OFFLINE)." if facts.offline else ""
        yield Finding(
            "models",
            OK,
            "Only the tiny demo model is here: it hums, it does not sing words." + offline,
            "`yuegp models get` fetches the YuE models that suit this machine.",
        )
    else:
        yield Finding("models", OK, "Models ready: " + ", ".join(whole) + ".")


def _proxies(facts: Environment) -> Iterator[Finding]:
    for where, address, why in facts.proxies:
        if why:
            yield Finding(
                "proxy",
                WARN,
                f"Models cannot be downloaded: the proxy {address}, from {where}, cannot be used; {why}.",
                "Set it to an address such as http://proxy.example:8080, or unset it. The page needs none."
                + (" " + REPAIR if "socksio" in why else ""),
            )
        else:
            yield Finding("proxy", OK, f"Downloads go through the proxy {address}, from {where}.")


def _sound(facts: Environment) -> Iterator[Finding]:
    if missing := {"WAV", "FLAC", "MP3"} - facts.formats:
        yield Finding(
            "sound", WARN if missing == {"MP3"} else FAIL, "Cannot write " + " and ".join(sorted(missing)) + ".", REPAIR
        )
    else:
        yield Finding("sound", OK, "WAV, FLAC and MP3 can be written.")


def _page(facts: Environment) -> Iterator[Finding]:
    if facts.page == "yuegp":
        yield Finding("page", OK, f"The page answers at http://127.0.0.1:{facts.port}.")
    elif facts.page:
        yield Finding(
            "page",
            WARN,
            f"Another program uses port {facts.port}.",
            "The page takes the next free port and says which; or choose one with `yuegp ui --port`.",
        )
    else:
        yield Finding("page", OK, f"Port {facts.port} is free for the page.")


def _clock(facts: Environment) -> Iterator[Finding]:
    if facts.newest and (facts.newest - facts.now).total_seconds() > AGREED_SECONDS:
        yield Finding(
            "clock",
            WARN,
            f"The clock says {facts.now:%Y-%m-%d}, but the newest song was made on {facts.newest:%Y-%m-%d}.",
            "Set the computer's clock: downloads fail and songs are listed in the wrong order until then.",
        )


def _launched(facts: Environment) -> Iterator[Finding]:
    failed = facts.launched.get("failed")
    for name, why in failed.items() if isinstance(failed, dict) else ():
        yield Finding(
            "launcher",
            WARN,
            f"{name} could not be installed: {why}",
            "The program works without it; " + REPAIR[:1].lower() + REPAIR[1:],
        )


CHECKS: tuple[Callable[[Environment], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _torch,
    _exllamav2,
    _flash,
    _bitsandbytes,
    _cards,
    _engine,
    _memory,
    _disk,
    _songs,
    _notes,
    _queue,
    _models,
    _proxies,
    _sound,
    _page,
    _clock,
    _launched,
)

_MARKS = {OK: "ok  ", WARN: "warn", FAIL: "FAIL"}


def report(findings: list[Finding], version: str) -> str:
    """All findings as text for a bug report, worst first, without private paths, names or addresses."""
    order = (FAIL, WARN, OK)
    lines = [f"yuegp {version}"]
    for finding in sorted(findings, key=lambda finding: order.index(finding.state)):
        lines.append(f"{_MARKS[finding.state]}  {finding.name}: {finding.what}")
        if finding.hint and finding.state != OK:
            lines.append(f"      {finding.hint}")
    return public("\n".join(lines))


def public(text: str) -> str:
    """`text` without the user's name, home folder and anything like a token."""
    home = str(Path.home())
    for private in {home, home.replace("\\", "/")}:
        if len(private) > 1:
            text = text.replace(private, "~")
    text = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_…", text)
    user = getpass.getuser()
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$)", "…", text) if user else text
