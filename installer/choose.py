"""Decides what to install on a machine, and why. Pure: a `Machine` in, a `Plan` out.

The limits are those of the pinned packages:
- torch 2.9.0 for NVIDIA cards: `builds`;
- torch 2.13.0 for the processor: Linux with glibc from 2.28, Windows on x86-64, macOS from 14 on Apple's processors
  (the tags of its published builds);
- exllamav2 and flash-attn: what `requirements/fast.txt` lists; flash-attn 2 needs compute capability 8.0 (its README).
"""

from __future__ import annotations

import re
from typing import NamedTuple, Sequence

from .builds import CUDA, Choice, choose_build
from .console import SetupError
from .probe import PYTHONS, Interpreter, Machine, fits

ROOM = {"cpu": 3, "cuda": 12}
"""GB that should be free before starting: a little more than is used, because downloads are unpacked beside it."""


LONGEST_PATH = 259 - 190
"""Longest path of the environment on Windows: the longest file in torch 2.13 adds 190 characters."""


class Decision(NamedTuple):
    """A decision: its subject `what`, the chosen `value`, and the `reason` as a clause."""

    what: str
    value: str
    reason: str


class Wheel(NamedTuple):
    """An optional package: the address of its wheel for this machine, or why it is not installed."""

    name: str
    url: str
    reason: str


class Plan(NamedTuple):
    """All decisions. `problem` is set when nothing can be installed; the rest then holds the decisions before it."""

    decisions: Sequence[Decision]
    problem: SetupError | None = None
    python: Interpreter | None = None
    """The Python to build on; None if uv downloads one."""
    stack: str = "cpu"
    torch: str = ""
    """Where torch comes from: `locked` (the plain index, with hashes), or its own index: `cpu`, `cu128`, `cu126`."""
    installer: str = "uv"
    """`uv` or `pip`."""
    wheels: Sequence[Wheel] = ()
    build: str = "cpu"
    """`cpu`, or the build for NVIDIA cards: `cu128`, `cu126`."""
    beside: Sequence[str] = ()
    """Names of NVIDIA cards that the build has no code for, beside one that it has."""
    why: str = ""
    """Why the processor computes, as a clause; empty with a card."""


def how_to_get_python(system: str) -> str:
    """One sentence on how to get Python on `system`."""
    return {
        "Windows": "Install it with: winget install Python.Python.3.12. Then start again.",
        "Darwin": "Install it with: brew install python@3.12. Then start again.",
    }.get(system, "Install python3.12 and python3.12-venv with your package manager. Then start again.")


def describe(python: Interpreter) -> str:
    kind = "" if python.kind == "cpython" else ", " + python.kind
    return "{}.{}.{} ({}-bit{})".format(*python.version, python.bits, kind)


def fetchers(machine: Machine) -> list[Interpreter]:
    """Pythons that cannot run yuegp but can install uv, which downloads one that can."""
    return [p for p in machine.pythons if p.bits == 64 and tuple(p.version) >= (3, 8) and p.has_pip]


def choose_python(machine: Machine, installer: str = "uv") -> tuple[Interpreter | None, str]:
    """The Python to build on and why; None if uv must download one. Raises `SetupError` when there is no way."""
    good, with_uv = [python for python in machine.pythons if fits(python)], installer != "pip"
    for python in good:
        if python.has_venv or (machine.uv and with_uv):
            if machine.named_python:
                return python, "named in YUEGP_PYTHON"
            return python, "the first found that every package has builds for"
    if good:
        name = "python{}.{}".format(*good[0].version)
        raise SetupError(
            f"{name} is here, but without the part that makes environments (venv).",
            f"Install it, for example with: sudo apt install {name}-venv. Then start again.",
        )
    seen = ", ".join(sorted({describe(python) for python in machine.pythons})) or "none that starts"
    if machine.named_python:
        raise SetupError(
            f"YUEGP_PYTHON is {machine.named_python}, which is no Python 3.11, 3.12 or 3.13 (64-bit): {seen}.",
            "Name another, or unset it.",
        )
    if with_uv and (machine.uv or fetchers(machine)):
        return None, f"found here: {seen}; uv fetches 3.12"
    what = f"yuegp needs Python 3.11, 3.12 or 3.13 (64-bit); found here: {seen}."
    if not with_uv:
        what += " YUEGP_INSTALLER=pip keeps uv from fetching one."
    raise SetupError(what, how_to_get_python(machine.system))


def architecture(machine: Machine, python: Interpreter | None) -> str:
    """Architecture of the Python to build on; if uv downloads it, that of the machine, which a 32-bit Python reports
    under an older name."""
    known = [found.arch for found in machine.pythons if found.bits == 64] or [p.arch for p in machine.pythons]
    arch = python.arch if python else known[0] if known else "x86_64"
    return {"x86": "x86_64", "i386": "x86_64", "i686": "x86_64"}.get(arch, arch)


def check_platform(machine: Machine, arch: str) -> None:
    """Raise `SetupError` for machines without a published torch."""
    system, release = machine.system, machine.release
    if system == "Darwin" and arch == "x86_64":
        raise SetupError(
            "torch is no longer published for Macs with Intel processors, nor for an Intel build of Python.",
            "On a Mac with an Apple processor, install the Apple build of Python 3.12: brew install python@3.12.",
        )
    if system == "Darwin" and release and release < (14, 0):
        raise SetupError("macOS {}.{} is too old: torch needs macOS 14.".format(*release), "Update macOS.")
    if system == "Windows" and arch == "arm64":
        raise SetupError(
            "Some packages are not published for Windows on ARM.",
            "Install the x64 build of Python 3.12; Windows runs it by translation. Then start again.",
        )
    if system == "Linux" and machine.libc != "glibc":
        raise SetupError(
            "torch is not published for Linux without glibc (musl, as in Alpine).",
            "Use a distribution with glibc, such as Debian, or a container of one.",
        )
    if system == "Linux" and release and release < (2, 28):
        raise SetupError(
            "This Linux is too old: torch needs glibc 2.28, here is {}.{}.".format(*release),
            "Use a newer release, such as Debian 10, Ubuntu 20.04, or later.",
        )
    if system not in ("Linux", "Windows", "Darwin") or arch not in ("x86_64", "arm64"):
        raise SetupError(f"torch is not published for this machine ({system}, {arch}).", "Use a 64-bit PC or Mac.")


def choose_torch(choice: Choice, system: str, arch: str, installer: str) -> tuple[str, str]:
    """Where to get the right build of torch, and why there.

    The plain package index has the CUDA 12.8 build for Linux on x86-64 only, and no build for Linux without CUDA: its
    plain one includes several GB of CUDA. The others are in torch's own index."""
    way = "uv knows the way there" if installer == "uv" else "pip is told the way there"
    if choice.build == "cpu" and system == "Linux":
        return "cpu", f"torch's own index has the build without CUDA, which spares several GB; {way}"
    if choice.build == "cpu":
        return "locked", "the plain package index has the build without CUDA, checked by hashes"
    if (choice.build, system, arch) == ("cu128", "Linux", "x86_64"):
        return "locked", "the plain package index has the build for CUDA 12.8, checked by hashes"
    why = f"the build for {CUDA[choice.build]}"
    if choice.build != next(iter(CUDA)) and choice.card:
        why += f", the newest with code for the {choice.card.name}"
    return choice.build, f"torch's own index has {why}; {way}"


def choose_wheels(urls: Sequence[str], choice: Choice, machine: Machine, tag: str, arch: str) -> list[Wheel]:
    """For each optional package, its wheel for this machine or why there is none. `tag` is like cp312."""
    out: list[Wheel] = []
    for name in dict.fromkeys(file_name(url).split("-")[0] for url in urls):
        title, card = name.replace("_", "-"), choice.card
        platform = {"Linux": "linux_", "Windows": "win_"}.get(machine.system, "none_")
        platform += {"x86_64": "x86_64" if machine.system == "Linux" else "amd64", "arm64": "aarch64"}.get(arch, arch)
        published = [url for url in urls if re.match(rf"{name}-[^/]*-{tag}-{tag}-{platform}\.whl$", file_name(url))]
        found = [url for url in published if choice.build in file_name(url)]
        if choice.build == "cpu":
            out.append(Wheel(title, "", "it needs an NVIDIA card"))
        elif not published:
            out.append(Wheel(title, "", f"not published ready-built for {machine.system}, {arch}, Python {tag}"))
        elif not found:
            out.append(Wheel(title, "", f"not published ready-built for {CUDA[choice.build]}"))
        elif title == "flash-attn" and card and card.capability and card.capability < (8, 0):
            out.append(Wheel(title, "", f"the {card.name} is older than what it supports"))
        elif title == "flash-attn" and not any(wheel.url for wheel in out):
            out.append(Wheel(title, "", "only exllamav2 uses it"))
        else:
            checked = ", checked by its hash" if "#" in found[0] else ""
            out.append(Wheel(title, found[0], f"ready-built for this Python and torch{checked}"))
    return out


def file_name(url: str) -> str:
    return url.split("#")[0].rsplit("/", 1)[-1]


def decide(machine: Machine, wish: str, urls: Sequence[str], installer: str = "uv") -> Plan:
    """Make all decisions, in order of dependence.

    `wish`: auto, cpu or cuda; `urls`: addresses of the optional packages' wheels; `installer`: uv or pip."""
    said: list[Decision] = []
    try:
        python, reason = choose_python(machine, installer)
        said.append(Decision("Python", describe(python) if python else "3.12 by uv", reason))
        arch = architecture(machine, python)
        check_platform(machine, arch)
    except SetupError as problem:
        return Plan(said, problem)
    tag = "cp{}{}".format(*(python.version if python else PYTHONS[0]))
    choice = choose_build(wish, machine, arch)
    stack = "cpu" if choice.build == "cpu" else "cuda"
    said.append(Decision("Computes on", "an NVIDIA card" if stack == "cuda" else "the processor", choice.reason))
    torch, reason = choose_torch(choice, machine.system, arch, installer)
    version = "2.13.0 without CUDA" if stack == "cpu" else f"2.9.0 for {CUDA[choice.build]}"
    said.append(Decision("torch", version, reason))
    wheels = choose_wheels(urls, choice, machine, tag, arch)
    for wheel in wheels:
        said.append(Decision(wheel.name, "yes" if wheel.url else "no", wheel.reason))
    reason = "fetched into the environment; where it fails, pip takes over" if installer == "uv" else "as asked for"
    said.append(Decision("Installer", installer, reason))
    if machine.synced:
        reason = "it would copy several GB to its servers; a folder outside of it spares that"
        said.append(Decision("Folder", f"inside {machine.synced}", reason))
    why = choice.reason if stack == "cpu" else ""
    plan = Plan(said, None, python, stack, torch, installer, wheels, choice.build, choice.beside, why)
    if machine.free is not None and machine.free < ROOM[stack] * 10**9:
        return plan._replace(
            problem=SetupError(
                f"{machine.free / 10**9:.1f} GB are free; the set-up needs {ROOM[stack]} GB.",
                "Free some, or put the folder on another disk, then start again.",
            )
        )
    if machine.system == "Windows" and machine.path_length > LONGEST_PATH:
        return plan._replace(
            problem=SetupError(
                f"The path of .venv has {machine.path_length} characters; torch in it passes Windows' limit of 260.",
                "Move the folder to a shorter path, such as C:\\yuegp, then start again.",
            )
        )
    return plan
