"""Probes this computer: its Pythons, its NVIDIA cards, and whatever else decides what can be installed. No decisions.

Needs no torch: nvidia-smi, which comes with the driver, describes the cards."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 12), (3, 11), (3, 13))
"""Versions that all pinned packages have builds for, the most widely used first."""


class Interpreter(NamedTuple):
    """A Python as `PROBE` reports it: how to start it, and what it is."""

    command: Sequence[str]
    version: Sequence[int]
    bits: int = 64
    has_venv: bool = True
    has_pip: bool = True
    arch: str = "x86_64"
    """Architecture of the interpreter, not of the processor: x86_64, arm64 or its own name."""
    kind: str = "cpython"
    """`cpython`, `free-threaded` (needs its own builds, which few packages have), `pypy` …"""


class ProbedCard(NamedTuple):
    """An NVIDIA card as its driver describes it."""

    name: str
    driver: str
    """Driver version, such as 525.60.13."""
    capability: tuple[int, int] | None
    """Compute capability; None from a driver too old to report it."""
    memory: float | None = None
    """GB (2^30 bytes); None where the driver does not report it, as for memory shared with the processor."""


class Machine(NamedTuple):
    """Everything a decision may depend on."""

    system: str
    """Linux, Windows or Darwin."""
    pythons: Sequence[Interpreter]
    """Pythons that start, in order of preference, up to the first that fits."""
    cards: Sequence[ProbedCard] = ()
    unheard: Sequence[str] = ()
    """Makers of the installed graphics cards, whether or not their driver answers: NVIDIA, AMD, Intel."""
    libc: str = "glibc"
    """On Linux: glibc, or another (musl)."""
    release: tuple[int, int] | None = None
    """Version of glibc on Linux, of macOS on Darwin; None when unknown or irrelevant."""
    wsl: bool = False
    """Linux inside Windows, which provides the card's driver."""
    jetson: bool = False
    """One of NVIDIA's boards with a kernel and a CUDA of their own."""
    uv: str = ""
    """Path of a uv on the PATH that starts."""
    named_python: str = ""
    """The Python named in YUEGP_PYTHON."""
    free: int | None = None
    """Free bytes on the environment's disk."""
    path_length: int = 0
    """Characters in the path of the environment, where Windows limits it; else 0."""
    synced: str = ""
    """The service that copies the folder to other computers: OneDrive, Dropbox …"""


PROBE = """
import json, platform, sys, sysconfig
def has(*names):
    try:
        for name in names: __import__(name)
        return True
    except ImportError:
        return False
arch = platform.machine()
if sys.platform == "win32":  # the build, as an x64 Python on an ARM computer is an x64 Python
    arch = {"win-amd64": "x86_64", "win-arm64": "arm64"}.get(sysconfig.get_platform(), arch)
kind = platform.python_implementation().lower()
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    kind = "free-threaded"
print(json.dumps([list(sys.version_info[:3]), 64 if sys.maxsize > 2**32 else 32, has("ensurepip", "venv"), has("pip"),
                  {"AMD64": "x86_64", "aarch64": "arm64", "ARM64": "arm64"}.get(arch, arch), kind]))
"""


def clean_env(env: Mapping[str, str]) -> dict[str, str]:
    """`env` for starting a Python without foreign modules and with UTF-8."""
    # PYTHONSAFEPATH, from Python 3.11; for older ones the working folder is ours: a json.py in the user's folder must
    # not be taken for the real one.
    out = {key: value for key, value in env.items() if key not in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")}
    out.update(PYTHONUTF8="1", PYTHONSAFEPATH="1")
    return out


TIME_LIMIT = 30.0
"""Time limit in seconds of a short command."""


def ask(command: Sequence[str]) -> str:
    """Output of a short command. Raises OSError or subprocess.TimeoutExpired."""
    answer = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIME_LIMIT, env=clean_env(os.environ), cwd=ROOT
    )
    return answer.stdout.decode("utf-8", "replace")


def is_uv(command: Sequence[str]) -> bool:
    """Whether this command starts uv: a name on the PATH may be stale, and virus scanners remove programs."""
    try:
        return ask([*command, "--version"]).startswith("uv ")
    except (OSError, subprocess.TimeoutExpired):
        return False


def probe(command: Sequence[str]) -> Interpreter | None:
    """Start a Python and describe it. None when it does not start: a name on the PATH may be stale."""
    try:
        answer = json.loads(ask([*command, "-c", PROBE]))
        version, bits, has_venv, has_pip, arch, kind = answer
        return Interpreter(tuple(command), tuple(version), bits, has_venv, has_pip, arch, kind)
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired):
        return None


def fits(python: Interpreter) -> bool:
    """Whether all pinned packages have builds for this Python."""
    return python.version[:2] in PYTHONS and python.bits == 64 and python.kind == "cpython"


def python_commands(system: str, env: Mapping[str, str]) -> Iterator[list[str]]:
    """Commands that may start a Python, likeliest first: the one running this, then those with a fitting name."""
    if env.get("YUEGP_PYTHON"):
        name = env["YUEGP_PYTHON"]
        yield [os.path.abspath(name) if os.path.dirname(name) else name]
        return
    # The Python under a venv rather than the venv's own, which may have to be rebuilt.
    yield [getattr(sys, "_base_executable", None) or sys.executable]
    for major, minor in PYTHONS:
        path = shutil.which(f"python{major}.{minor}")
        if path:
            yield [path]
        if system == "Windows" and shutil.which("py"):
            yield ["py", f"-{major}.{minor}"]


def find_pythons(commands: Iterator[list[str]]) -> list[Interpreter]:
    """The Pythons that start, up to and including the first that fits."""
    found = []
    for command in commands:
        python = probe(command)
        if python:
            found.append(python)
            if fits(python) and python.has_venv:
                break
    return found


def parse_cards(text: str) -> list[ProbedCard]:
    """Cards from nvidia-smi's output for `FIELDS`, or for the first two; sizes in MiB, without units."""
    rows = re.findall(r"(?m)^([^,\n]+?), (\d+(?:\.\d+)+)(?:, (\d+)\.(\d+), (\S+))?\s*$", text)
    return [
        ProbedCard(
            name,
            driver,
            (int(major), int(minor)) if major else None,
            int(memory) / 1024 if memory.isdigit() else None,
        )
        for name, driver, major, minor, memory in rows
    ]


FIELDS = "name,driver_version,compute_cap,memory.total"


def smi_folders(env: Mapping[str, str] = os.environ) -> list[str]:
    """Folders of the driver's tool besides the PATH: as in `offload/smi.py`, which cannot be imported here."""
    folders = ["/usr/lib/wsl/lib"]
    if env.get("SystemRoot"):
        folders.append(env["SystemRoot"] + r"\System32")
    names = ("ProgramW6432", "ProgramFiles")
    return folders + [env[name] + r"\NVIDIA Corporation\NVSMI" for name in names if env.get(name)]


def nvidia_smi() -> str | None:
    """Path of nvidia-smi; None without it."""
    found = shutil.which("nvidia-smi")
    for folder in smi_folders():
        found = found or shutil.which("nvidia-smi", path=folder)
    return found


def find_cards() -> list[ProbedCard]:
    """The NVIDIA cards whose driver answers; empty without a driver."""
    program = nvidia_smi()
    if not program:
        return []
    for fields in (FIELDS, "name,driver_version"):  # old drivers do not report the capability
        try:
            cards = parse_cards(ask([program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]))
        except (OSError, subprocess.TimeoutExpired):
            return []
        if cards:
            return cards
    return []


def makers(bus: Path = Path("/sys/bus/pci/devices")) -> list[str]:
    """Makers of the graphics cards on the bus (Linux), whether or not their driver works."""
    names = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
    found = set()
    for device in bus.glob("*"):
        try:
            kind, maker = (device / "class").read_text("utf-8").strip(), (device / "vendor").read_text("utf-8").strip()
        except OSError:
            continue
        if kind.startswith("0x03") and maker in names:  # 03: display controllers
            found.add(names[maker])
    return sorted(found)


def long_paths() -> bool:
    """Whether paths may exceed 260 characters: everywhere but on Windows with its default setting."""
    if sys.platform == "win32":
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
                return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
        except OSError:
            return False
    return True


def synced_by(folder: Path, env: Mapping[str, str]) -> str:
    """The service that copies a folder to other computers, judged by the folder's name or Windows' OneDrive
    settings."""
    for key in ("OneDrive", "OneDriveConsumer", "OneDriveCommercial"):
        if env.get(key) and Path(env[key]) in folder.parents:
            return "OneDrive"
    names = ("OneDrive", "Dropbox", "Google Drive", "iCloudDrive", "Mobile Documents", "Nextcloud")
    parts = [part.split(" - ")[0] for part in folder.parts]
    return next((name for name in names if name in parts), "")


def probe_machine(env: Mapping[str, str], home: Path) -> Machine:
    """Probe the machine this runs on; `home` is the environment's folder."""
    system = platform.system()
    libc, text = platform.libc_ver() if system == "Linux" else ("glibc", platform.mac_ver()[0])
    # Newer systems report 10.16 to a Python that was built for older ones.
    release = None if text == "10.16" else re.match(r"(\d+)\.(\d+)", text)
    kernel, uv = platform.release().lower(), shutil.which("uv") or ""
    try:
        free = shutil.disk_usage(home.parent).free
    except OSError:
        free = None
    return Machine(
        system=system,
        pythons=find_pythons(python_commands(system, env)),
        cards=find_cards(),
        unheard=makers() if system == "Linux" else (),
        libc=libc or "another",
        release=(int(release[1]), int(release[2])) if release else None,
        wsl=system == "Linux" and "microsoft" in kernel,
        jetson=system == "Linux" and ("tegra" in kernel or Path("/etc/nv_tegra_release").exists()),
        uv=uv if uv and is_uv([uv]) else "",
        named_python=env.get("YUEGP_PYTHON", ""),
        free=free,
        path_length=0 if long_paths() else len(str(home)),
        synced=synced_by(home, env),
    )
