#!/usr/bin/env python3
"""The door: from whatever Python there is to a running yuegp.

    python launch.py                   what to try first
    python launch.py make --lyrics …   any command of yuegp
    python launch.py test [ARGS]       the tests (pytest)
    python launch.py check             lint and types
    python launch.py --cpu …           as above, but never for an NVIDIA card

The first start makes `.venv` beside this file and installs into it; later starts only check that it is in order.
Everything said here goes to stderr: stdout belongs to the command. Problems of the set-up end with exit code 4.

    YUEGP_HOME     where songs are kept; this folder when not set
    YUEGP_STACK    auto, cpu or cuda: which torch to install
    YUEGP_PYTHON   the Python to build on, when the one found is not the one wanted

Standard library only, no import of ours, and readable by Python 3.8: this file must be able to explain itself before
anything is installed. Which packages, and which versions, stand in the requirement files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterable, Iterator, Mapping, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parent
PYTHONS = ((3, 12), (3, 11), (3, 13))
"""What all pinned packages have builds for, the most widely tried first."""

PIP = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check")


class SetupError(Exception):
    """`what` is in the way, and `hint`: one thing to do about it. Exit code 4."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what + "\n" + hint)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- Which Python ----------------------------------------------------------------------------------------------------


class Interpreter(NamedTuple):
    """An answer to `PROBE`: how to start this Python, and what it is."""

    command: Sequence[str]
    version: Sequence[int]
    bits: int
    has_venv: bool


PROBE = """
import sys
try:
    import ensurepip, venv
except ImportError:
    ensurepip = None
print(*sys.version_info[:3], 64 if sys.maxsize > 2**32 else 32, int(ensurepip is not None))
"""


def ask(command: Sequence[str]) -> str:
    """What a short command prints. Raises OSError or subprocess.TimeoutExpired."""
    answer = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, env=setup_env(os.environ)
    )
    return answer.stdout.decode("utf-8", "replace")


def probe(command: Sequence[str]) -> Interpreter | None:
    """Start a Python and ask it what it is. None when it does not start: a name on the PATH may lead nowhere."""
    try:
        answer = ask([*command, "-c", PROBE])
        *version, bits, has_venv = (int(word) for word in answer.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return Interpreter(tuple(command), tuple(version), bits, bool(has_venv))


def python_commands(system: str, env: Mapping[str, str]) -> Iterator[list[str]]:
    """Ways to start a Python, the likeliest first: the one running this, then those with a fitting name."""
    if env.get("YUEGP_PYTHON"):
        yield [env["YUEGP_PYTHON"]]
        return
    # The Python under a venv rather than the venv's own: that one may be what has to be rebuilt.
    yield [getattr(sys, "_base_executable", None) or sys.executable]
    for major, minor in PYTHONS:
        path = shutil.which(f"python{major}.{minor}")
        if path:
            yield [path]
        if system == "Windows" and shutil.which("py"):
            yield ["py", f"-{major}.{minor}"]


def choose_python(found: Iterable[Interpreter | None], system: str) -> Interpreter:
    """The first Python that all pinned packages have builds for."""
    seen: list[Interpreter] = []
    for python in found:
        if python and python.version[:2] in PYTHONS and python.bits == 64 and python.has_venv:
            return python
        if python:
            seen.append(python)
    for python in seen:
        if python.version[:2] in PYTHONS and python.bits == 64:
            name = "python{}.{}".format(*python.version)
            raise SetupError(
                f"{name} is here, but without the part that makes environments (venv).",
                f"Install it, for example with: sudo apt install {name}-venv. Then start again.",
            )
    names = sorted({"{}.{}.{} ({}-bit)".format(*python.version, python.bits) for python in seen})
    raise SetupError(
        f"yuegp needs Python 3.11, 3.12 or 3.13 (64-bit); found here: {', '.join(names) or 'none that starts'}.",
        {
            "Windows": "Install it with: winget install Python.Python.3.12. Then start again.",
            "Darwin": "Install it with: brew install python@3.12. Then start again.",
        }.get(system, "Install python3.12 and python3.12-venv with your package manager. Then start again."),
    )


# ---- Which torch -----------------------------------------------------------------------------------------------------


class Card(NamedTuple):
    """An NVIDIA card as its driver describes it; versions are (major, minor)."""

    name: str
    driver: tuple[int, int]
    capability: tuple[int, int]


def parse_cards(text: str) -> list[Card]:
    """Cards from the lines of `nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader`."""
    rows = re.findall(r"(?m)^(.+?), (\d+)\.(\d+)[\d.]*, (\d+)\.(\d+)\s*$", text)
    return [Card(name, (int(a), int(b)), (int(c), int(d))) for name, a, b, c, d in rows]


def find_cards() -> list[Card]:
    """The NVIDIA cards whose driver answers; none when there is no driver."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if not program:
        return []
    try:
        return parse_cards(ask([program, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]))
    except (OSError, subprocess.TimeoutExpired):
        return []


def choose_stack(wish: str, system: str, cards: Sequence[Card]) -> tuple[str, str]:
    """`cpu` or `cuda`, and the reason as a clause.

    Limits of requirements-cuda.txt: torch 2.9's CUDA 12.8 build holds code for compute capability 7.0 to 12.0 (its
    release matrix); CUDA 12 programs run on drivers from 525, cards of the Blackwell kind need 570 (NVIDIA's
    compatibility tables)."""
    if wish == "cpu":
        return "cpu", "as asked for"
    if system == "Darwin":
        return "cpu", "there is no CUDA on macOS"
    if wish == "cuda":
        return "cuda", "as asked for"
    if not cards:
        return "cpu", "no NVIDIA card with a working driver was found"
    card = max(cards, key=lambda c: c.capability)
    driver = "driver " + ".".join(map(str, card.driver))
    oldest = 570 if card.capability >= (10, 0) else 525
    if card.capability < (7, 0):
        return "cpu", f"the {card.name} is older than what current CUDA builds support"
    if card.driver[0] < oldest:
        return "cpu", f"{driver} of the {card.name} is older than {oldest}; update it, then set YUEGP_STACK=cuda"
    return "cuda", f"{card.name}, {driver}"


# ---- What to install -------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One thing to do with the new environment's Python: what it is called on screen, and its arguments."""

    label: str
    args: Sequence[str]


def install_steps(root: Path, stack: str, system: str, arch: str, tests: bool) -> list[Step]:
    """torch first and exactly, so that nothing after it can bring another build.

    The plain package index has torch's CUDA 12.8 build for Linux on x86-64 only; elsewhere uv, which knows where the
    others are, fetches it."""
    torch = str(root / f"requirements-{stack}.txt")
    steps = []
    if stack == "cuda" and not (system == "Linux" and arch in ("x86_64", "AMD64")):
        steps.append(Step("uv, which finds the CUDA build of torch", (*PIP, "uv")))
        get_torch: Sequence[str] = ("-m", "uv", "pip", "install", "--torch-backend", "cu128", "-r", torch)
    else:
        get_torch = (*PIP, "-r", torch)
    steps.append(Step("torch", get_torch))
    steps.append(Step("the other packages", (*PIP, "-r", str(root / "requirements.txt"))))
    if tests:
        steps.append(test_step(root))
    return steps


def test_step(root: Path) -> Step:
    return Step("the test tools", (*PIP, "-r", str(root / "requirements-test.txt")))


def setup_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for pip and its like: no foreign modules, no questions, settings of the user's own kept."""
    out = {key: value for key, value in env.items() if key not in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")}
    out.update(PYTHONUTF8="1", PIP_USER="0")
    if env.get("PIP_FIND_LINKS"):  # uv does not read pip's settings
        out.setdefault("UV_FIND_LINKS", ",".join(env["PIP_FIND_LINKS"].split()))
    return out


def app_env(env: Mapping[str, str], root: Path) -> dict[str, str]:
    """The environment yuegp runs in; what the user has set stays.

    OMP_WAIT_POLICY: threads of torch that wait by spinning made decoding 5 to 20 times slower on a busy two-core
    machine (measured). It is read before Python starts, so it can only be set here. GRADIO_ANALYTICS_ENABLED: nothing
    calls out unasked."""
    out = {"YUEGP_HOME": str(root), "OMP_WAIT_POLICY": "PASSIVE", "GRADIO_ANALYTICS_ENABLED": "False"}
    out.update((key, value) for key, value in env.items() if key != "PYTHONHOME")
    out.update(PYTHONUTF8="1", PYTHONPATH=str(root))
    return out


# ---- What is installed -----------------------------------------------------------------------------------------------


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def venv_version(venv: Path) -> str | None:
    """The Python version of an environment, such as 3.11.7; None when it or the Python below it is not whole."""
    try:
        text = (venv / "pyvenv.cfg").read_text("utf-8")
    except (OSError, ValueError):
        return None
    settings = dict(re.findall(r"(?m)^([\w-]+) = (.*?)\s*$", text))
    base = settings.get("executable", "")
    return settings.get("version") if venv_python(venv).exists() and Path(base).is_file() else None


def digest(*paths: Path) -> str:
    """One hash over files, the same whatever their line endings: git may change those."""
    return hashlib.sha256(b"\0".join(path.read_bytes().replace(b"\r\n", b"\n") for path in paths)).hexdigest()[:16]


def make_stamp(root: Path, version: str | None, stack: str, tests: bool) -> dict[str, str | None]:
    """What an environment must be built from, to be compared with what the one there was built from."""
    stamp = {
        "python": version,
        "stack": stack,
        "packages": digest(root / f"requirements-{stack}.txt", root / "requirements.txt"),
    }
    if tests:
        stamp["tests"] = digest(root / "requirements-test.txt")
    return stamp


def read_stamp(venv: Path) -> dict[str, str]:
    """The stamp of a finished environment; empty when there is none. It is written last, so no stamp: not finished."""
    try:
        stamp = json.loads((venv / "yuegp.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and stamp.get("stack") in ("cpu", "cuda") else {}


def write_stamp(venv: Path, stamp: Mapping[str, str | None]) -> None:
    part = venv / "yuegp.json.part"
    part.write_text(json.dumps(stamp), "utf-8")
    os.replace(part, venv / "yuegp.json")


def needed(root: Path, wish: str, tests: bool) -> str:
    """What stands between the environment and a start: `nothing`, `tests`, `packages` or `everything`.

    The stack once chosen stays until another is asked for: the card is not looked for at every start."""
    venv = root / ".venv"
    have = read_stamp(venv)
    if not have:
        return "everything"
    want = make_stamp(root, venv_version(venv), have["stack"] if wish == "auto" else wish, tests)
    differs = [key for key, value in want.items() if have.get(key) != value]
    if "python" in differs or "stack" in differs:
        return "everything"
    return next((key for key in ("packages", "tests") if key in differs), "nothing")


# ---- Installing ------------------------------------------------------------------------------------------------------


def explain(label: str, output: str, log: Path) -> SetupError:
    """Why a step failed, from what it printed (pip's and uv's own words)."""
    again = "Then start again: the set-up begins anew."
    if re.search(r"No space left on device|Errno 28\b|not enough space on the disk", output):
        return SetupError(f"The disk is full: {log.parent.parent} has no room for {label}.", f"Free a few GB. {again}")
    if re.search(r"ConnectionError|NameResolution|TimeoutError|ConnectTimeout|ProxyError|SSLError|dns error", output):
        return SetupError(
            f"The package index could not be reached while installing {label}.",
            f"Connect to the internet (behind a proxy, set HTTPS_PROXY). {again} The output is in {log}.",
        )
    for line in output.splitlines()[-15:]:
        say("    " + line)
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        what = f"There is no {missing[1]} for this machine ({platform.system()}, {platform.machine()})."
        return SetupError(what, f"The whole output is in {log}; another Python can be named in YUEGP_PYTHON.")
    return SetupError(f"Installing {label} did not work; the last lines are above.", f"The whole output is in {log}.")


def run_step(label: str, command: Sequence[str], log: Path) -> None:
    """Run one step with its output in the log. On a terminal, show that time passes."""
    started, clock = time.monotonic(), sys.stderr.isatty()
    with open(log, "wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=setup_env(os.environ)
        )
        try:
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=1)
                if clock:
                    print(f"\r    {time.monotonic() - started:4.0f} s", end="\r", file=sys.stderr, flush=True)
        except BaseException:
            child.kill()
            child.wait()
            raise
    if child.returncode:
        raise explain(label, log.read_text("utf-8", "replace"), log)


def lock(fd: int) -> bool:
    """Take the right to install, if it is free. The system takes it back when its holder ends, however it ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def install(root: Path, wish: str, task: str, tests: bool) -> None:
    """Do what `needed` named. Interrupted anywhere, the next start does it again."""
    venv, log = root / ".venv", root / ".launch" / "install.log"
    system, started = platform.system(), time.monotonic()
    have = read_stamp(venv)
    if task == "tests":
        stack, steps = have["stack"], [test_step(root)]
    elif task == "packages":
        stack, tests = have["stack"], tests or "tests" in have
        (venv / "yuegp.json").unlink()
        say("The requirements have changed: updating .venv.")
        steps = install_steps(root, stack, system, platform.machine(), tests)
    else:
        python = choose_python(map(probe, python_commands(system, os.environ)), system)
        stack, reason = choose_stack(wish, system, find_cards())
        size, takes = ("1 GB or more", "about a minute") if stack == "cpu" else ("several GB", "some minutes")
        say(f"Setting up yuegp in {venv}, once: {size}, {takes} on a fast connection.")
        say(f"  torch for {'an NVIDIA card' if stack == 'cuda' else 'the processor'}: {reason}")
        say("  Python {}.{}.{}: a fresh environment".format(*python.version))
        run_step("a Python environment", [*python.command, "-m", "venv", "--clear", str(venv)], log)
        steps = install_steps(root, stack, system, platform.machine(), tests)
    for step in steps:
        say(f"  installing {step.label}")
        run_step(step.label, [str(venv_python(venv)), *step.args], log)
    write_stamp(venv, make_stamp(root, venv_version(venv), stack, tests))
    say(f"Ready after {time.monotonic() - started:.0f} s.")


def prepare(root: Path, wish: str, tests: bool) -> None:
    """Make sure the environment is what the requirement files say."""
    if needed(root, wish, tests) == "nothing":
        return
    (root / ".launch").mkdir(exist_ok=True)
    with open(root / ".launch" / "lock", "ab") as handle:
        if not lock(handle.fileno()):
            say("Another start is installing; waiting for it.")
            while not lock(handle.fileno()):
                time.sleep(0.3)
        task = needed(root, wish, tests)  # the one waited for may have done it
        if task != "nothing":
            install(root, wish, task, tests)


# ---- Starting --------------------------------------------------------------------------------------------------------


def start(command: list[str], env: Mapping[str, str], cwd: Path) -> int:
    """Become the command; where that is not possible (Windows), run it and wait. Returns its exit code."""
    if os.name == "posix":
        os.chdir(cwd)
        os.execve(command[0], command, env)
    child = subprocess.Popen(command, env=env, cwd=cwd)
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the child too, and it may have something to save
            return child.wait()


def main(argv: Sequence[str]) -> int:
    args, wish = list(argv), os.environ.get("YUEGP_STACK", "auto").lower()
    if args[:1] == ["--cpu"]:
        args, wish = args[1:], "cpu"
    command = args[0] if args else ""
    try:
        if wish not in ("auto", "cpu", "cuda"):
            raise SetupError(f"YUEGP_STACK is {wish!r}.", "Set it to auto, cpu or cuda.")
        prepare(ROOT, wish, tests=command in ("test", "check"))
    except SetupError as exc:
        say(str(exc))
        return 4
    except OSError as exc:
        say(f"{exc.filename or ROOT}: {exc.strerror or exc}.")
        say("Put the folder of yuegp where you may write and have some GB free, then start again.")
        return 4
    except KeyboardInterrupt:
        say("\nStopped. The next start begins the set-up anew.")
        return 130
    python, env = str(venv_python(ROOT / ".venv")), app_env(os.environ, ROOT)
    if command == "test":
        return start([python, "-m", "pytest", *args[1:]], env, ROOT)
    if command == "check":
        return start([python, str(ROOT / "scripts" / "check"), *args[1:]], env, ROOT)
    # -P: a torch.py or a yuegp folder where the user happens to stand must not be taken for ours
    return start([python, "-P", "-m", "yuegp", *args], env, Path.cwd())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
