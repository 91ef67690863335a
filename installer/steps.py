"""Turns a plan into commands, in order, with alternatives for when the first way fails.

Never compiles: every package is a wheel (`--only-binary`). The lock files name the packages with their hashes, as long
as they fit the requirement files beside them."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Mapping, NamedTuple, Sequence

from .builds import index_of
from .choose import Plan
from .console import SetupError
from .probe import clean_env
from .record import lock_fits, named

PIP = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:")
UV = ("pip", "install", "--only-binary", ":all:")


class Step(NamedTuple):
    """One step: its name on screen, and alternative commands, of which the first that works counts.

    `optional` names the package to skip when all fail; `hint` is the advice for that case."""

    label: str
    ways: Sequence[Sequence[str]]
    optional: str = ""
    hint: str = ""


class Tools(NamedTuple):
    """Programs to install with: the environment's Python, and uv if available."""

    python: str
    uv: Sequence[str] = ()

    def ways(self, *args: str) -> list[list[str]]:
        """Commands that install `args`: with uv if available, and with pip otherwise or when uv fails."""
        by_uv = [[*self.uv, *UV, "--python", self.python, *args]] if self.uv else []
        return [*by_uv, [self.python, *PIP, *args]]


def torch_step(root: Path, plan: Plan, tools: Tools, env: Mapping[str, str] = os.environ) -> Step:
    """The step that installs torch, first and exactly, so that no later package replaces its build."""
    version = named(root / "requirements" / f"{plan.stack}.txt")["torch"]
    lock = root / "requirements" / "lock" / f"torch-{plan.stack}.txt"
    plain = ["-r", str(lock), "--require-hashes", "--no-deps"]
    if not lock_fits(root, lock):
        plain = ["-r", str(root / "requirements" / f"{plan.stack}.txt")]
    if plan.torch == "locked":
        return Step("torch", tools.ways(*plain))
    exact, index = f"torch=={version}+{plan.torch}", index_of(plan.torch, env)
    # The other packages include the dependencies of the build without CUDA, checked by hashes.
    alone = (
        ["--no-deps"]
        if plan.torch == "cpu" and lock_fits(root, root / "requirements" / "lock" / "packages.txt")
        else []
    )
    # First where the user's settings lead, at no cost: a company's index or a folder of files may have the build.
    ways = tools.ways(*alone, exact)
    if tools.uv and not env.get("YUEGP_TORCH_INDEX"):
        own = ["--python", tools.python, "--torch-backend", plan.torch, *alone, f"torch=={version}"]
        ways.append([*tools.uv, *UV, *own])
    # Beside the user's index, not in its place: torch's dependencies still come from there.
    by_index = tools.ways("--extra-index-url", index, *alone, exact)
    ways += by_index if env.get("YUEGP_TORCH_INDEX") else by_index[-1:]
    if plan.torch == "cpu":
        return Step("torch", ways + tools.ways(*plain))
    hint = f"It was looked for in {index}. YUEGP_TORCH_INDEX names another place with such builds; --cpu does without."
    return Step("torch", ways, hint=hint)


def package_steps(root: Path, plan: Plan, tools: Tools, tests: bool, env: Mapping[str, str] = os.environ) -> list[Step]:
    """All steps, torch first. Raises `SetupError` when one has no way."""
    steps = [torch_step(root, plan, tools, env)]
    steps.append(locked_step(root, "the other packages", "packages", "requirements", tools))
    for wheel in plan.wheels:
        if wheel.url:
            steps.append(Step(wheel.name, tools.ways("--no-deps", wheel.url), wheel.name))
    if tests:
        steps.append(test_step(root, tools))
    for step in steps:
        check_step(step)
    return steps


def check_step(step: Step) -> None:
    """Raise `SetupError` for a step without a way."""
    if not step.ways:
        raise SetupError(
            f"There is no way to install {step.label} on this machine.",
            step.hint or "Start again with --cpu, which needs the least.",
        )


def locked_step(root: Path, label: str, lock: str, requirements: str, tools: Tools) -> Step:
    path = root / "requirements" / "lock" / f"{lock}.txt"
    if lock_fits(root, path):
        return Step(label, tools.ways("-r", str(path), "--require-hashes", "--no-deps"))
    return Step(label, tools.ways("-r", str(root / f"{requirements}.txt")))


def again(root: Path, tools: Tools, names: Sequence[str], some: Path) -> list[str]:
    """Command that reinstalls the packages `names` with pip, with the lock's hashes if it fits. Writes their lines to
    the file `some`."""
    lock = root / "requirements" / "lock" / "packages.txt"
    source = (lock if lock_fits(root, lock) else root / "requirements.txt").read_text("utf-8")
    entries = [rf"(?mi)^{name.replace('_', '[-_]')}\b.*(?:\n[ \t].*)*" for name in names]
    some.write_text("".join(entry + "\n" for each in entries for entry in re.findall(each, source)), "utf-8")
    return [tools.python, *PIP, "--force-reinstall", "--no-deps", "-r", str(some)]


def uv_step(root: Path, python: str) -> Step:
    """The step that installs uv into the environment with pip; the first that needs the network."""
    return locked_step(root, "uv, which installs faster", "setup", "requirements/setup", Tools(python))


def test_step(root: Path, tools: Tools) -> Step:
    return locked_step(root, "the test tools", "test", "requirements/test", tools)


# ---- The environment of pip and uv -----------------------------------------------------------------------------------


def pip_settings(text: str) -> dict[str, str]:
    """pip's install settings from the output of `pip config list`: `index-url`, `cert` … Later lines win, as in pip,
    because they come from the environment."""
    out = {}
    for name, value in re.findall(r"(?m)^(?:global|install|:env:)\.([\w-]+)=(.*?)\s*$", text):
        try:
            out[name] = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
    return out


def setup_env(env: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for pip and uv: without foreign modules, and with pip's settings for uv, which ignores
    them.

    The user's own settings for uv stay. Both read proxies (HTTPS_PROXY and the like) themselves. On a slow line a large
    file may wait long for its next bytes: by default uv fails after 30 seconds, pip after 15. After an interruption pip
    (from 25.1) resumes within the file, uv restarts the file; of several at once all would be interrupted."""
    out = clean_env(env)
    out["PIP_USER"] = "0"
    words = {name: " ".join(value.split()) for name, value in settings.items()}
    for name, key, joiner in (
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("extra-index-url", "UV_INDEX", " "),
        ("find-links", "UV_FIND_LINKS", ","),
        ("trusted-host", "UV_INSECURE_HOST", " "),
        ("cert", "SSL_CERT_FILE", " "),
        ("proxy", "HTTPS_PROXY", " "),
        ("proxy", "HTTP_PROXY", " "),
    ):
        if words.get(name):
            out.setdefault(key, joiner.join(words[name].split()) if name != "cert" else settings[name])
    if "UV_INDEX" in out:
        out.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # as pip treats several indexes
    out.setdefault("UV_SYSTEM_CERTS", "1")  # a company's own certificates are among the system's
    if not {"UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"} & set(out):
        out["UV_HTTP_TIMEOUT"] = "300"
    if not {"timeout", "default-timeout"} & set(settings) and "PIP_TIMEOUT" not in out:
        out.setdefault("PIP_DEFAULT_TIMEOUT", "120")
    if "resume-retries" not in settings:
        out.setdefault("PIP_RESUME_RETRIES", "20")
    out.setdefault("UV_HTTP_RETRIES", "5")
    out.setdefault("UV_CONCURRENT_DOWNLOADS", "4")
    out.setdefault("UV_LINK_MODE", "copy")  # a rebuilt or edited environment must not reach into the cache
    return out


def app_env(env: Mapping[str, str], root: Path) -> dict[str, str]:
    """Environment variables for yuegp; the user's own settings stay.

    OMP_WAIT_POLICY: torch threads that wait by spinning made decoding 5 to 20 times slower on a busy two-core machine
    (measured). It is read before Python starts, so it can only be set here. GRADIO_ANALYTICS_ENABLED: the program sends
    nothing unasked. CUDA_DEVICE_ORDER: CUDA counts cards as the driver's tool does, not the fastest first."""
    out = {"YUEGP_HOME": str(root), "OMP_WAIT_POLICY": "PASSIVE", "GRADIO_ANALYTICS_ENABLED": "False"}
    out["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    out.update((key, value) for key, value in env.items() if key != "PYTHONHOME")
    out.update(PYTHONUTF8="1", PYTHONPATH=str(root))
    return out


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
