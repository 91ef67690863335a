"""Carries out a plan: creates the environment, installs the packages, tests them. May be killed anywhere: an
environment is valid only once its record is written, as the last step, so the next start repeats the work."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

from .choose import Plan, decide, fetchers, how_to_get_python
from .console import SetupError, say
from .own_folders import clear_fetched, own_folders
from .probe import ROOT, Machine, ask, is_uv, probe, probe_machine
from .record import is_ours, make_record, needed, patiently, read_record, venv_folder, write_record
from .steps import (
    PIP,
    Step,
    Tools,
    again,
    check_step,
    package_steps,
    pip_settings,
    setup_env,
    test_step,
    uv_step,
    venv_python,
)

NETWORK = (
    "ConnectionError|NewConnection|NameResolution|TimeoutError|ConnectTimeout|ProxyError|SSLError|dns error|"
    "error sending request|invalid peer certificate|Temporary failure in name resolution"
)


def explain(label: str, output: str, log: Path, quiet: bool = False, hint: str = "") -> SetupError:
    """The error of a failed step, from pip's or uv's output; prints its last lines unless `quiet`. `hint` is the step's
    own advice."""
    again = "Then start again: what is fetched is not fetched twice."
    if re.search(r"No space left on device|rr(no|or) 28\b|not enough space on the disk|os error 112\b", output):
        return SetupError(f"The disk is full: {log.parent.parent} has no room for {label}.", f"Free a few GB. {again}")
    if re.search(r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|SSLCertVerificationError", output):
        return SetupError(
            f"The package index was reached, but its certificate is not trusted here, while installing {label}.",
            "Behind a company's proxy, name the file with its certificate in SSL_CERT_FILE and PIP_CERT. " + again,
        )
    if re.search(NETWORK, output):
        return SetupError(
            f"The package index could not be reached while installing {label}.",
            f"Connect to the internet (behind a proxy, set HTTPS_PROXY). {again}{' ' + hint if hint else ''} "
            f"The output is in {log}.",
        )
    if re.search(r"\[Errno (1|95)\][^\n]*' -> '|symlink[^\n]*\(os error (1|95)\)", output):
        return SetupError(
            f"The disk of {log.parent.parent} cannot hold links, which a Python environment needs.",
            "Disks for exchange (exFAT, FAT32) and some in a network cannot: put the folder on another one.",
        )
    if re.search(r"(?i)hash mismatch|do not match the hashes", output):
        return SetupError(
            f"What was fetched for {label} is not the file that is meant: its hash is another.",
            f"A download that was cut off looks like this, too. {again} The output is in {log}.",
        )
    if re.search(r"WinError 225\b|os error 225\b", output):
        return SetupError(
            f"The virus protection of Windows took a file away while installing {label}.",
            f"Allow the folder {log.parent.parent} there. {again}",
        )
    lines = [line for line in output.splitlines() if line.strip()]
    for line in [] if quiet else lines[-15:]:
        say("    " + line)
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        what = f"There is no {missing[1]} for this machine ({platform.system()}, {platform.machine()})."
        hint = hint or "Another Python can be named in YUEGP_PYTHON."
        return SetupError(what, f"{hint} The whole output is in {log}.")
    what = f"Installing {label} did not work; the last lines are above."
    if quiet or not lines:
        what = (lines or [f"Installing {label} did not work and said nothing."])[-1].strip()
    return SetupError(what, f"{hint} The whole output is in {log}.".strip())


def last_line(log: Path, start: int) -> str:
    """The last non-empty line a step has written to its log so far, without terminal colours."""
    with open(log, "rb") as lines:
        lines.seek(max(start, lines.seek(0, os.SEEK_END) - 2000))
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", lines.read().decode("utf-8", "replace"))
    return next((line.strip() for line in reversed(re.split(r"[\r\n]+", text)) if line.strip()), "")


def run_way(command: Sequence[str], log: Path, env: Mapping[str, str]) -> tuple[int, str]:
    """Run one command and append its output to the log, with progress on a terminal. Returns exit code and output."""
    started, live, shown = time.monotonic(), sys.stderr.isatty(), ""
    with open(log, "ab") as output:
        output.write(("\n$ " + " ".join(command) + "\n").encode("utf-8", "replace"))
        output.flush()
        start = output.tell()
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=ROOT
            )
        except OSError as exc:
            return 127, f"{command[0]}: {exc}"
        try:
            while child.poll() is None:
                try:
                    child.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    if live:
                        width = shutil.get_terminal_size().columns - 1
                        text = f"    {time.monotonic() - started:4.0f} s  {last_line(log, start)}"[:width]
                        print("\r" + text.ljust(len(shown)), end="", file=sys.stderr, flush=True)
                        shown = text
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            if shown:
                print("\r" + " " * len(shown), end="\r", file=sys.stderr, flush=True)
    with open(log, "rb") as text_of:
        text_of.seek(start)
        return child.returncode, text_of.read().decode("utf-8", "replace")


def run_step(step: Step, log: Path, env: Mapping[str, str]) -> str:
    """Run a step, trying its ways in order. Returns an empty string on success, for an optional step also a sentence on
    its failure. Raises `SetupError`."""
    check_step(step)
    say(f"  installing {step.label}")
    output = ""
    for way in step.ways:
        code, output = run_way(way, log, env)
        if code == 0:
            return ""
    problem = explain(step.label, output, log, quiet=bool(step.optional), hint=step.hint)
    if step.optional:
        return problem.what
    raise problem


# ---- The environment -------------------------------------------------------------------------------------------------

MADE_BY = '{"made by": "launch.py"}\n'


def own_settings(python: Sequence[str]) -> dict[str, str]:
    """pip's settings on this machine; empty without pip."""
    try:
        return pip_settings(ask([*python, "-m", "pip", "config", "list"]))
    except (OSError, subprocess.TimeoutExpired):
        return {}


def make_env(root: Path, python: Sequence[str]) -> dict[str, str]:
    """Environment variables for pip and uv, with the settings of this Python's pip."""
    settings = own_settings(python)
    return setup_env({**os.environ, **own_folders(root, os.environ, settings)}, settings)


def clear(root: Path, venv: Path) -> None:
    """Remove an environment of ours. It is renamed first, so a kill leaves no half of it in place."""
    if not is_ours(venv):
        raise SetupError(f"{venv} was not made by launch.py.", "Move it away, then start again.")
    old = root / ".launch" / "old"
    old.mkdir(parents=True, exist_ok=True)
    if old.is_symlink():
        raise SetupError(f"{old} is a link, and links are not followed.", "Remove the link, then start again.")
    if venv.exists():
        patiently(lambda: os.replace(venv, old / f"{venv.name}-{time.time_ns()}"), venv)
    for gone in old.iterdir():
        if re.fullmatch(r"\.venv(-yuegp)?-\d+", gone.name):  # renamed just now, or by an earlier start
            gone.unlink() if gone.is_symlink() else shutil.rmtree(gone, ignore_errors=True)  # or else next time
    with contextlib.suppress(OSError):  # something else is in it
        old.rmdir()


def make_venv(root: Path, venv: Path, plan: Plan, machine: Machine, log: Path, env: Mapping[str, str]) -> None:
    """Create an empty environment with pip."""
    clear(root, venv)
    venv.mkdir()
    (venv / "launch.json").write_text(MADE_BY, "utf-8")
    uv = machine.uv
    if not uv and not (plan.python and plan.python.has_venv):
        uv = fetch_uv(root, fetchers(machine)[0].command, log, env)
    code, output = run_way(venv_command(plan, uv, venv), log, env)
    if code == 0 and venv_python(venv).exists():
        return
    if plan.python:
        raise explain("a Python environment", output, log)
    raise SetupError(
        "No Python 3.11, 3.12 or 3.13 is here, and uv could not fetch one.",
        f"Connect to the internet, or install Python 3.12 yourself. Then start again. The output is in {log}.",
    )


def venv_command(plan: Plan, uv: str, venv: Path) -> list[str]:
    """Command that creates an environment with pip: by the chosen Python, or by uv if that cannot or there is none."""
    if plan.python and plan.python.has_venv:
        return [*plan.python.command, "-m", "venv", str(venv)]
    python = plan.python.command[-1] if plan.python else "3.12"
    return [uv, "venv", "--allow-existing", "--seed", "--python", python, str(venv)]


def fetch_uv(root: Path, python: Sequence[str], log: Path, env: Mapping[str, str]) -> str:
    """Install a uv of our own, for machines without a Python to build on. Returns its path."""
    folder = root / ".launch" / "uv"
    say("  fetching uv, which can fetch Python")
    code, output = run_way([*python, *PIP, "--upgrade", "--target", str(folder), "uv"], log, env)
    programs = [path for path in folder.glob("*/uv*") if path.stem == "uv" and path.suffix in ("", ".exe")]
    if code or not programs:
        raise explain("uv", output, log)
    if not is_uv([str(programs[0])]):
        raise SetupError(
            "uv, which would fetch Python, does not start here: it hangs, or a virus scanner keeps it from it.",
            how_to_get_python(platform.system()),
        )
    return str(programs[0])


def get_tools(root: Path, venv: Path, plan: Plan, uv: str, log: Path, env: Mapping[str, str]) -> Tools:
    """The tools to install with: uv where available, else pip. Raises `SetupError` without network."""
    python = str(venv_python(venv))
    if plan.installer == "pip":
        return Tools(python)
    step = uv_step(root, python)
    say(f"  installing {step.label}")
    code, output = run_way(step.ways[0], log, env)
    if code == 0 and is_uv((python, "-m", "uv")):
        return Tools(python, (python, "-m", "uv"))
    if code == 0:
        say("  uv does not start here; pip does its work")
    elif re.search(NETWORK, output):
        raise explain(step.label.split(",")[0], output, log)
    return Tools(python, (uv,) if uv else ())


# ---- Does it work? ---------------------------------------------------------------------------------------------------

VERIFY = """
import importlib, json, sys
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as exc:
        failed[name] = "%s: %s" % (type(exc).__name__, str(exc).split("\\n")[0])
torch, card, error = sys.modules.get("torch"), False, ""
if torch and torch.cuda.is_available():
    try:  # a build without code for the card says that it is available, too
        ones = torch.ones(2, 2, device="cuda")
        card = float((ones @ ones)[0, 0]) == 2
    except Exception as exc:
        error = "%s: %s" % (type(exc).__name__, str(exc).split("\\n")[0])
print("\\n" + json.dumps({"failed": failed, "torch": getattr(torch, "__version__", ""), "card": card, "error": error}))
"""
IMPORTS = {"pyyaml": "yaml", "flash-attn": "flash_attn"}
"""Import names that differ from the package's name with underscores."""
PACKAGES = {module: package for package, module in IMPORTS.items()}
DISPENSABLE = ("bitsandbytes",)
"""Packages installed everywhere whose failure to load only makes the program slower."""


def modules(requirements: Path) -> list[str]:
    """Import names of the packages in a requirement file."""
    names = re.findall(r"(?m)^([A-Za-z][\w.-]*)", requirements.read_text("utf-8"))
    return [IMPORTS.get(name.lower(), name.lower().replace("-", "_")) for name in names]


def try_imports(python: Path, names: Sequence[str], log: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Import `names` in a fresh process of the environment. Returns each one's result; a crash counts for all."""
    code, output = run_way([str(python), "-P", "-c", VERIFY, *names], log, env)
    try:
        return dict(json.loads(output.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        failed = {name: f"the process ended with {code}" for name in names}
        return {"failed": failed, "torch": "", "card": False, "error": ""}


def verify(root: Path, tools: Tools, stack: str, log: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Import every required package. Raises `SetupError` for the first that fails.

    Of several package indexes uv takes the first that has a release, even one whose build lacks something this machine
    needs, such as soundfile's library; pip checks all of them. So pip reinstalls what fails after uv."""
    say("  trying what was installed")
    wanted = ["torch", *modules(root / "requirements.txt")]
    found = try_imports(Path(tools.python), wanted, log, env)
    broken = [name for name in found["failed"] if name != "torch" and name not in DISPENSABLE]
    if broken and tools.uv:
        say(f"  once more, by pip: {', '.join(broken)}")
        run_way(again(root, tools, [PACKAGES.get(name, name) for name in broken], log.with_name("again.txt")), log, env)
        found = try_imports(Path(tools.python), wanted, log, env)
    for name, error in found["failed"].items():
        if name in DISPENSABLE:
            say(f"  {name} does not work here: {error}. yuegp goes on without it, more slowly.")
            continue
        if re.search(r"WinError 12[67]|DLL load failed", error):
            hint = "Install Microsoft's Visual C++ Redistributable (x64): winget install Microsoft.VCRedist.2015+.x64."
        else:
            hint = f"Start with --repair; if it stays so, the whole output is in {log}."
        raise SetupError(f"{name} was installed but does not work: {error}.", hint)
    if stack == "cuda" and found["error"]:
        say(f"  The card does not compute with this torch: {found['error']}. `python launch.py --cpu` does without it.")
    elif stack == "cuda" and not found["card"]:
        say("  torch sees no NVIDIA card: yuegp will compute on the processor. `python launch.py doctor` says more.")
    return found


def try_wheels(plan: Plan, tools: Tools, results: dict[str, str], log: Path, env: Mapping[str, str]) -> None:
    """Import each optional package by itself. Removes one that fails: a broken flash-attn breaks exllamav2."""
    for name in [wheel.name for wheel in reversed(plan.wheels) if results.get(wheel.name) == ""]:
        module = IMPORTS.get(name, name)
        error = try_imports(Path(tools.python), ["torch", module], log, env)["failed"].get(module)
        if error:
            results[name] = f"installed, but does not work: {error}"
            run_way([tools.python, "-m", "pip", "uninstall", "-y", name], log, env)


# ---- The whole -------------------------------------------------------------------------------------------------------


def wheel_urls(root: Path) -> list[str]:
    """Addresses of the optional packages' wheels, with `#sha256=…` at the end where the hash is known."""
    path = root / "requirements" / "fast.txt"
    return re.findall(r"(?m)^[\w-]+ @ (\S+\.whl\S*)", path.read_text("utf-8")) if path.exists() else []


def installer(env: Mapping[str, str]) -> str:
    """`uv`, or the value of YUEGP_INSTALLER."""
    return env.get("YUEGP_INSTALLER", "").strip().lower() or "uv"


def make_plan(root: Path, venv: Path, wish: str, task: str) -> tuple[Plan, Machine]:
    """The plan and the machine: for a new environment from a probe, for an existing one from its own Python and
    stack."""
    machine = probe_machine(os.environ, venv)
    if task != "everything":
        own = probe([str(venv_python(venv))])
        machine = machine._replace(pythons=[own] if own else [], named_python="", free=None)
        wish = read_record(venv)["stack"]
    return decide(machine, wish, wheel_urls(root), installer(os.environ)), machine


def install(root: Path, wish: str, task: str, tests: bool) -> None:
    """Install what `needed` returned: `tests`, `packages` or `everything`."""
    venv, log, started = venv_folder(root), root / ".launch" / "install.log", time.monotonic()
    log.write_bytes(b"")
    record = read_record(venv)
    if task == "tests":
        python = str(venv_python(venv))
        tools = Tools(python, (python, "-m", "uv") if record.get("installer") == "uv" else ())
        run_step(test_step(root, tools), log, make_env(root, [python]))
        write_record(venv, {**record, **make_record(root, venv, record["stack"], tests=True)})
        clear_fetched(root)
        return
    plan, machine = make_plan(root, venv, wish, task)
    if plan.problem:
        raise plan.problem
    env = make_env(root, plan.python.command if plan.python else [sys.executable])
    if task == "everything":
        announce(root, venv, plan)
        make_venv(root, venv, plan, machine, log, env)
    else:
        say(f"The requirements have changed: updating {venv.name}.")
        (venv / "launch.json").write_text(MADE_BY, "utf-8")
        patiently((venv / "yuegp.json").unlink, venv / "yuegp.json")
    tests = tests or "tests" in record
    made = fill(root, venv, plan, machine.uv, tests, log, env)
    if task != "everything" and "why" in record:
        made["why"] = record["why"]  # an update keeps the existing stack
    write_record(venv, made)
    clear_fetched(root)
    say(f"Ready after {time.monotonic() - started:.0f} s.")


def fill(root: Path, venv: Path, plan: Plan, uv: str, tests: bool, log: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Install the packages into an environment. Returns the results for its record."""
    tools = get_tools(root, venv, plan, uv, log, env)
    results = {wheel.name: wheel.reason for wheel in plan.wheels if not wheel.url}
    for step in package_steps(root, plan, tools, tests):
        problem = run_step(step, log, env)
        if step.optional:
            results[step.optional] = problem
    found = verify(root, tools, plan.stack, log, env)
    if plan.torch == "cpu" and "+cpu" not in found["torch"]:
        say("  The torch without CUDA could not be had here; the one with CUDA, 4 GB larger, does the same work.")
    try_wheels(plan, tools, results, log, env)
    for name, problem in results.items():
        if problem and plan.stack == "cuda":
            say(f"  without {name}: {problem}")
    return {
        **make_record(root, venv, plan.stack, tests),
        "torch": found["torch"],
        "card": found["card"],
        "installer": "uv" if tools.uv else "pip",
        "build": plan.build,
        "beside": list(plan.beside),
        "why": plan.why,
        "optional": {name: problem or "installed" for name, problem in results.items()},
        "failed": {
            **{wheel.name: results[wheel.name] for wheel in plan.wheels if wheel.url and results[wheel.name]},
            **found["failed"],
        },
    }


def announce(root: Path, venv: Path, plan: Plan) -> None:
    """Print in a few lines what is about to happen."""
    if venv.name != ".venv":
        say(f"{root / '.venv'} was not made by launch.py: it stays as it is, and {venv.name} is used.")
    size, takes = ("1 to 2 GB", "about a minute") if plan.stack == "cpu" else ("several GB", "some minutes")
    say(f"Setting up yuegp in {venv}, once: {size}, {takes} on a fast connection.")
    for decision in plan.decisions:
        if decision.what in ("Python", "Computes on", "Folder"):
            say(f"  {decision.what} {decision.value}: {decision.reason}")


def hold(fd: int) -> bool:
    """Try to take the installer's lock. The system releases it when its holder ends, however it ends."""
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


def prepare(root: Path, wish: str, tests: bool, repair: bool = False) -> None:
    """Bring the environment up to the requirement files; with `repair`, rebuild it in any case."""
    if not repair and needed(root, wish, tests) == "nothing":
        return
    (root / ".launch").mkdir(exist_ok=True)
    with open(root / ".launch" / "lock", "ab") as handle:
        if not hold(handle.fileno()):
            say("Another start is installing; waiting for it.")
            while not hold(handle.fileno()):
                time.sleep(0.3)
        task = "everything" if repair else needed(root, wish, tests)  # the process waited for may have done it
        if task != "nothing":
            install(root, wish, task, tests)
