"""Parses a machine from a line of text, for `--pretend`: `windows,rtx4090,driver=560,python=3.12`.

Shows what the launcher would do elsewhere, and serves its tests; nothing is installed for a described machine."""

from __future__ import annotations

import re

from .console import SetupError
from .probe import Interpreter, Machine, ProbedCard

# Compute capabilities by NVIDIA's names for its cards (its own list of CUDA GPUs).
CAPABILITIES = (
    (r"gtx6\d\d|k10", (3, 0)),
    (r"gt7[1-4]0|gtx7[678]0|k20|k40|titan", (3, 5)),
    (r"gtx7[45][05]|m10", (5, 0)),
    (r"gtx9\d\d|m40|titanx", (5, 2)),
    (r"p100", (6, 0)),
    (r"gtx10\d\d|gt10\d\d|p40|p4|p2000|titanxp", (6, 1)),
    (r"v100|titanv", (7, 0)),
    (r"gtx16\d\d|rtx20\d\d|titanrtx|t4g?", (7, 5)),
    (r"a100|a30", (8, 0)),
    (r"rtx30\d\d|a40|a10|a6000", (8, 6)),
    (r"orin", (8, 7)),
    (r"rtx40\d\d|l4|l40s?", (8, 9)),
    (r"h[12]00|gh200", (9, 0)),
    (r"b200|gb200", (10, 0)),
    (r"b300|gb300", (10, 3)),
    (r"thor", (11, 0)),
    (r"rtx50\d\d|rtxpro6000", (12, 0)),
    (r"gb10", (12, 1)),
)
SYSTEMS = {"windows": "Windows", "linux": "Linux", "macos": "Darwin", "mac": "Darwin", "wsl": "Linux"}
HELP = (
    "Write words with commas between: windows, linux or macos; arm64, musl; a card such as rtx4090, gtx1080, h100, amd "
    "or intel; driver=560, vram=8 (GB), python=3.12 (again for another; none; 3.12-32 for 32 bits, 3.13t, "
    "3.12-novenv), uv, wsl, jetson, glibc=2.31, macos=14, disk=20 (GB), path=200 (characters), onedrive."
)


def capability(word: str) -> tuple[int, int] | None:
    """Compute capability of a card by its name, such as `rtx4090` or `rtx4070super`; None for an unknown name."""
    plain = re.sub(r"(ti|super|mobile|laptop|d)+$", "", word)
    return next((number for names, number in CAPABILITIES if re.fullmatch(names, plain)), None)


def version(text: str, word: str) -> tuple[int, int]:
    major, minor = (*numbers(text, word).split("."), "0")[:2]
    return int(major), int(minor)


def numbers(text: str, word: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)*", text):
        raise SetupError(f"--pretend: {word!r} holds no version.", HELP)
    return text


def interpreter(text: str, arch: str) -> Interpreter:
    """An interpreter from `3.12`, `3.12.1-32`, `3.13t`, `3.12-novenv` or `3.11-pypy`."""
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(t?)((?:-\w+)*)", text)
    if not found:
        raise SetupError(f"--pretend: python={text} is no version.", HELP)
    notes = found[5].split("-")
    return Interpreter(
        command=(f"python{found[1]}.{found[2]}",),
        version=(int(found[1]), int(found[2]), int(found[3] or 0)),
        bits=32 if "32" in notes else 64,
        has_venv="novenv" not in notes,
        has_pip="nopip" not in notes,
        arch="x86" if "32" in notes else arch,
        kind="free-threaded" if found[4] else "pypy" if "pypy" in notes else "cpython",
    )


def pretend(text: str) -> Machine:
    """The described machine, with usual values for the rest. Raises `SetupError` for unknown words."""
    system, arch, names, pythons = "Linux", "", [], []
    driver = "580.65.06"
    memory = None
    more: dict[str, object] = {}
    unheard, release, driver_said = [], None, False
    for word in filter(None, (part.strip().lower() for part in text.split(","))):
        key, _, value = word.partition("=")
        if key in SYSTEMS:
            system = SYSTEMS[key]
            more["wsl"] = key == "wsl"
            if value:
                release = version(value, word)
        elif word in ("x86_64", "x64", "intel-mac"):
            arch, system = "x86_64", "Darwin" if word == "intel-mac" else system
        elif word in ("arm64", "aarch64"):
            arch = "arm64"
        elif word == "jetson":
            arch, more["jetson"] = "arm64", True
        elif word == "onedrive":
            more["synced"] = "OneDrive"
        elif word == "musl":
            more["libc"] = "musl"
        elif word in ("uv", "nouv"):
            more["uv"] = "uv" if word == "uv" else ""
        elif word in ("amd", "intel", "nvidia"):
            unheard.append({"amd": "AMD", "intel": "Intel", "nvidia": "NVIDIA"}[word])
        elif key == "driver":
            driver, driver_said = numbers(value, word), True
        elif key == "vram" and value.isdigit():
            memory = float(value)
        elif key == "glibc":
            release = version(value, word)
        elif key == "python":
            pythons.append(value)
        elif key == "disk" and value.isdigit():
            more["free"] = int(value) * 10**9
        elif key == "path" and value.isdigit():
            more["path_length"] = int(value)
        elif capability(word):
            names.append(word)
        else:
            raise SetupError(f"--pretend: {word!r} is not known.", HELP)
    if driver_said and not names:
        raise SetupError("--pretend: a driver without a card.", HELP)
    arch = arch or ("arm64" if system == "Darwin" else "x86_64")
    pythons = pythons or ["3.12"]
    return Machine(
        system=system,
        pythons=[interpreter(word, arch) for word in pythons if word != "none"],
        cards=[ProbedCard(name.upper(), driver, capability(name), memory) for name in names],
        unheard=unheard,
        release=release,
        **more,  # type: ignore[arg-type]
    )
