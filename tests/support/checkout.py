"""A made-up checkout in a difficult folder, with stand-ins for Python, pip and uv, to start its launch.py.

The folder's name has spaces and letters beyond ASCII. Its Python makes environments in which pip and uv are programs
that note what they were asked and write empty modules in place of packages. `FAKE_MOOD` makes them fail, or stop at a
point where they can be killed."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from installer import record

ROOT = Path(__file__).resolve().parents[2]

FAKE_PYTHON = """
# Stands for the Python found on the machine: real in all but this, that its environments get the pip below.
import os, sys, venv
args = sys.argv[1:]
if args[:2] == ["-m", "venv"]:
    site = os.path.join(args[-1], "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
    sys.path.insert(0, site)
    os.makedirs(os.path.join(site, "pip"))
    for name, code in (("fake_events.py", os.environ["FAKE_EVENTS"]), ("pip/__main__.py", os.environ["FAKE_PIP"])):
        with open(os.path.join(site, name), "w") as out:
            out.write(code)
    import fake_events
    fake_events.event()
    venv.EnvBuilder(symlinks=True).create(args[-1])
    fake_events.event()
elif args[:4] == ["-m", "pip", "config", "list"]:
    print("global.timeout='15'")
else:
    os.execv(sys.executable, [sys.executable, *args])
"""
FAKE_EVENTS = """
# Counts what happens, over all processes; `stop:N` waits at the N-th to be killed.
import os, signal
def event():
    path, mood = os.environ["FAKE_NOTES"] + ".events", os.environ.get("FAKE_MOOD", "")
    with open(path, "a") as out:
        out.write(".")
    if mood.startswith("stop:") and os.path.getsize(path) == int(mood[5:]):
        with open(os.environ["FAKE_FIFO"], "w") as out:
            out.write("here")
        signal.pause()
"""
FAKE_PIP = """
import os, re, signal, sys
from fake_events import event
args, mood = sys.argv[1:], os.environ.get("FAKE_MOOD", "")
tool = os.path.basename(os.path.dirname(__file__))
site = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if args[:2] == ["config", "list"]:
    sys.exit()
if args == ["--version"]:
    sys.exit("taken away" if mood == "quarantined-uv" else print("uv 9"))
if "uninstall" in args:
    os.remove(os.path.join(site, args[-1].replace("-", "_") + ".py"))
    sys.exit()
what = args[args.index("-r") + 1] if "-r" in args else args[-1]
short = os.path.basename(what).split("#")[0]
how = tool + (" " + args[args.index("--torch-backend") + 1] if "--torch-backend" in args else "")
how += " " + args[args.index("--extra-index-url") + 1] if "--extra-index-url" in args else ""
cache = os.environ.get("PIP_CACHE_DIR", "")
if ".launch" in cache:  # what both leave behind
    os.makedirs(os.path.dirname(cache), exist_ok=True)
    open(os.path.join(os.path.dirname(cache), "fetched"), "w").close()
with open(os.environ["FAKE_NOTES"], "a") as notes:
    print(how + ":" + short, file=notes)
event()
if mood == "offline":
    sys.exit("WARNING: Retrying after NewConnectionError: Failed to establish a new connection")
if mood == "no-uv" and short == "setup.txt" or mood == "broken" and short == "packages.txt":
    sys.exit("ERROR: Failed to build something")
no_torch = mood == "no-cpu-torch" and ("+cpu" in short or "--torch-backend" in args)
if mood == "uv-fails" and tool == "uv" or no_torch or mood == "own-index" and "+" in short and "torch" in short and (
    "--extra-index-url" not in args
):
    sys.exit("ERROR: No matching distribution found for " + short)
if mood == "no-wheels" and "://" in what:
    sys.exit("ERROR: HTTP error 404 while getting " + what)
if mood == short:
    with open(os.environ["FAKE_FIFO"], "w") as out:
        out.write("here")
    signal.pause()
if short.endswith(".whl"):
    names = [short.split("-")[0]]
elif "-r" in args:
    names = re.findall("(?m)^([A-Za-z][A-Za-z0-9._-]*)", open(what).read())
else:
    names = [short.split("=")[0]]
for name in names:
    event()
    name = {"pyyaml": "yaml"}.get(name.lower(), name.lower().replace("-", "_"))
    with open(os.path.join(site, name + ".py"), "w") as out:
        if name == "torch":
            print("import fake_events; fake_events.event()", file=out)
            print("__version__ = '9'\\nclass cuda:\\n    is_available = lambda: False", file=out)
        if name in mood and mood.startswith("bad-") and (tool == "uv" or not mood.startswith("bad-uv-")):
            print("raise ImportError('undefined symbol: _ZN3c10')", file=out)
if short == "setup.txt":
    folder = os.path.join(site, "uv")
    os.makedirs(folder, exist_ok=True)
    os.remove(folder + ".py")
    with open(__file__) as own, open(os.path.join(folder, "__main__.py"), "w") as out:
        out.write(own.read())
event()
"""
FAKE_YUEGP = """
import json, os, sys
keys = ("YUEGP_HOME", "OMP_WAIT_POLICY", "GRADIO_ANALYTICS_ENABLED", "PYTHONUTF8")
print(json.dumps({"args": sys.argv[1:], "cwd": os.getcwd(), "env": {key: os.environ.get(key) for key in keys},
                  "prefix": sys.prefix, "file": __file__}))
sys.exit(7)
"""


REQUIREMENTS = {
    "requirements.txt": "bitsandbytes>=0\nnumpy>=2\nPyYAML>=6\nsoxr>=1\n",
    "requirements/cpu.txt": "torch==2.13.0\n",
    "requirements/cuda.txt": "torch==2.9.0\n",
    "requirements/test.txt": "hypothesis>=6\n",
    "requirements/setup.txt": "uv>=0.13\n",
}
LOCKS = {
    "packages": "bitsandbytes==0.50\nfilelock==4\nnumpy==2.4\npyyaml==6.0\nsoxr==1.1\nsympy==1.14",
    "torch-cpu": "torch==2.13.0\ntriton==3.7",
    "torch-cuda": "torch==2.9.0\nnvidia-nvtx-cu12==12.8",
    "test": "hypothesis==6.1",
    "setup": "uv==0.13.8",
}


class House:
    """A made-up checkout in a difficult folder, and starts of its launch.py."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "Müsik & möre ☃"
        self.cwd = folder / "somewhere else"
        self.notes, self.fifo = folder / "notes", folder / "fifo"
        (self.root / "yuegp").mkdir(parents=True)
        (self.root / "requirements" / "lock").mkdir(parents=True)
        self.cwd.mkdir()
        for name in ("launch.py", "requirements/fast.txt"):
            shutil.copy(ROOT / name, self.root / name)
        shutil.copytree(ROOT / "installer", self.root / "installer", ignore=shutil.ignore_patterns("__pycache__"))
        for name, text in REQUIREMENTS.items():
            (self.root / name).write_text(text)
        for name, text in LOCKS.items():
            (self.root / "requirements" / "lock" / f"{name}.txt").write_text(
                f"{record.heading(self.root, name)}\n{text}\n"
            )
        (self.root / "yuegp" / "__main__.py").write_text(FAKE_YUEGP)
        python, script = folder / "fakepython", folder / "fakepython.py"
        script.write_text(FAKE_PYTHON)
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n')
        python.chmod(0o755)
        os.mkfifo(self.fifo)
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("YUEGP_", "PIP_", "UV_"))}
        self.env.pop("OMP_WAIT_POLICY", None)
        self.env.update(
            YUEGP_PYTHON=str(python),
            YUEGP_STACK="cpu",
            FAKE_PIP=FAKE_PIP,
            FAKE_EVENTS=FAKE_EVENTS,
            FAKE_NOTES=str(self.notes),
            FAKE_FIFO=str(self.fifo),
        )

    def popen(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self.root / "launch.py"), *args],
            cwd=self.cwd,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def start(self, *args: str, **env: str) -> tuple[int, str, str]:
        child = self.popen(*args, **env)
        out, err = child.communicate(timeout=180)
        return child.returncode, out, err

    def popen_until(self, mood: str, *args: str) -> subprocess.Popen[str]:
        """A start that has got as far as `mood` says, and stays there."""
        fifo = os.open(self.fifo, os.O_RDWR)
        child = self.popen(*args, FAKE_MOOD=mood)
        there, _, _ = select.select([fifo], [], [], 180)
        os.close(fifo)
        assert there, child.communicate(timeout=1)
        return child

    def installed(self) -> list[str]:
        """What the stand-ins were asked to install since the last look, as `tool:what`."""
        names = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return names

    def events(self) -> int:
        """How many things have happened since the last look."""
        path = Path(f"{self.notes}.events")
        count = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
        return count

    def modules(self) -> list[str]:
        return sorted(path.name for path in next((self.root / ".venv" / "lib").glob("*/site-packages")).glob("*.py"))

    def record(self) -> dict[str, object]:
        return dict(json.loads((self.root / ".venv" / "yuegp.json").read_text()))
