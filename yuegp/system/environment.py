"""Surveys this machine and this installation without changing anything, for the doctor.

Whatever can crash, hang or take a second to import runs in another process with a time limit, so the page never loads
torch. `doctor.py` judges the result.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from yuegp import __version__, checked, files, owned, paths
from yuegp.checkpoints import locate, registry, sets
from yuegp.checkpoints.registry import Checkpoint
from yuegp.errors import YueGPError, said
from yuegp.files import free_bytes
from yuegp.generation import choice
from yuegp.jobs.queue import Job, Queue
from yuegp.library import catalog
from yuegp.lm.exl2.flash_probe import probe
from yuegp.lm.weights.nf4_kernels import trial

PATIENCE_SECONDS = 90.0
"""Time limit for importing torch and other packages: a cold disk needs most of it."""

PORT = 7860
"""Default port of the page, as users of such programs expect."""

_ASK = """
import importlib, importlib.metadata, importlib.util, json
found = {}
def ask(name, package, needs=None):
    entry = {}
    try:
        entry["version"] = importlib.metadata.version(package)
        if needs and importlib.util.find_spec(needs) is None:
            raise ImportError("its compiled part " + needs + " is not installed")
        importlib.import_module(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    except BaseException as exc:
        entry["error"] = type(exc).__name__ + ": " + str(exc)
    found[name] = entry
ask("torch", "torch")
if "version" in found["torch"] and "error" not in found["torch"]:
    import torch
    found["torch"].update(cuda=torch.version.cuda, ready=torch.cuda.is_available(), archs=[], cards=[])
    if torch.cuda.is_available():
        found["torch"]["archs"] = torch.cuda.get_arch_list()
        found["torch"]["cards"] = [
            [torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i)]
            for i in range(torch.cuda.device_count())
        ]
ask("exllamav2", "exllamav2", "exllamav2_ext")
ask("flash_attn", "flash-attn")
ask("bitsandbytes", "bitsandbytes")
for name in ("soundfile", "soxr", "safetensors", "sentencepiece"):
    ask(name, name)
for name in ("transformers", "gradio", "huggingface_hub"):  # slow to import, and pure Python
    found[name] = {"version": importlib.metadata.version(name)} if importlib.util.find_spec(name) else {}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Package:
    """A package: `version` is empty if it is not installed, `error` says why it cannot be imported."""

    version: str = ""
    error: str = ""


@dataclass(frozen=True)
class CardReport:
    """A graphics card as its driver describes it. Memory in bytes; `held` lists programs and the memory they hold."""

    name: str
    total: int
    free: int
    driver: str = ""
    held: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Environment:
    """Everything the survey found. Paths are absolute and private data is still included."""

    version: str = __version__
    system: str = ""
    python: tuple[int, int, int] = (0, 0, 0)
    packages: dict[str, Package] = field(default_factory=dict)
    probe_error: str = ""
    """Why the packages could not be checked at all."""
    torch_cuda: str = ""
    """CUDA version torch was built for; empty for a build without CUDA."""
    torch_ready: bool = False
    torch_archs: tuple[str, ...] = ()
    """Architectures torch was built for, such as `sm_86`."""
    torch_cards: tuple[tuple[str, int, int], ...] = ()
    """Name and compute capability of each card torch sees."""
    cards: tuple[CardReport, ...] = ()
    flash: str = ""
    """What is wrong with an importable flash-attn: on the card it may still give wrong numbers."""
    nf4: str = ""
    """The same for bitsandbytes, which multiplies nf4 weights on a card."""
    engine: str = ""
    """Format of YuE's Stage 1 on the card, for six sections of half a minute."""
    misfit: str = ""
    """Why it does not fit, in two sentences."""
    ram_free: int = 0
    page_file: int | None = None
    """Size of Windows' page files in bytes; None elsewhere, and if Windows enlarges them by itself."""
    commit_free: int | None = None
    """Bytes that Windows can still commit, RAM and page files together; None elsewhere."""
    home: Path = Path()
    home_error: str = ""
    disk_free: int = 0
    songs: int = 0
    broken: tuple[tuple[str, str], ...] = ()
    """Unreadable songs and takes: folder name and reason."""
    damaged: tuple[str, ...] = ()
    """Sentences on our own files that cannot be read."""
    uploads: tuple[tuple[str, int], ...] = ()
    """Upload folders of an earlier yuegp, and their bytes."""
    interrupted: int = 0
    failed: tuple[Job, ...] = ()
    queue_error: str = ""
    models: tuple[tuple[str, str], ...] = ()
    """Models on disk, and what is wrong with each; empty for complete ones."""
    formats: frozenset[str] = frozenset()
    """Sound formats that can be written."""
    port: int = PORT
    page: str = ""
    """Program that answers at the page's port: `yuegp`, `other`, or empty for none."""
    now: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    newest: datetime | None = None
    """Creation time of the newest song, from its own file."""
    offline: bool = False
    """True if an environment variable disables downloads."""
    proxies: tuple[tuple[str, str, str], ...] = ()
    """Proxies for downloads: where each is set, its address without a password, and why it cannot be used, if so."""
    launched: dict[str, Any] = field(default_factory=dict)
    """The record launch.py wrote when it built this environment."""


def survey(port: int = PORT) -> Environment:
    """Survey this machine. Takes some seconds, mostly for importing torch in another process."""
    packages, torch, probe_error = _packages()
    home = paths.home().absolute()
    home_error = ""
    try:
        files.check_writable(home)
    except YueGPError as exc:
        home_error = exc.what
    entries, broken = _songs()
    interrupted, failed, queue_error = _queue()
    flash = probe() if torch.get("ready") and packages["flash_attn"].version else None
    tried = torch.get("ready") and packages["bitsandbytes"].version and not packages["bitsandbytes"].error
    nf4 = trial("cuda:0", "float16") if tried else None
    engine, misfit = _foreseen(packages)
    return Environment(
        flash="" if flash is None or flash.works else flash.why,
        nf4="" if nf4 is None or nf4.works else nf4.why,
        engine=engine,
        misfit=misfit,
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        python=sys.version_info[:3],
        packages=packages,
        probe_error=probe_error,
        torch_cuda=torch.get("cuda") or "",
        torch_ready=bool(torch.get("ready")),
        torch_archs=tuple(torch.get("archs", ())),
        torch_cards=tuple((name, major, minor) for name, major, minor in torch.get("cards", ())),
        cards=cards(),
        **_memory(),
        home=home,
        home_error=home_error,
        disk_free=free_bytes(home) or 0,
        songs=len(entries),
        broken=broken,
        damaged=_damaged(home),
        uploads=_uploads(home),
        interrupted=interrupted,
        failed=failed,
        queue_error=queue_error,
        models=tuple(_models()),
        formats=_formats(),
        port=port,
        page=_page(port),
        now=datetime.now(UTC),
        newest=max((at for entry in entries if (at := _moment(entry.created))), default=None),
        offline=os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True"),
        proxies=_proxies(),
        launched=_launched(),
    )


def _packages() -> tuple[dict[str, Package], dict[str, Any], str]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {}, {}, f"asking Python for its packages took more than {PATIENCE_SECONDS:.0f} s"
    except (OSError, ValueError, IndexError) as exc:
        return {}, {}, f"Python could not be asked for its packages ({type(exc).__name__})"
    errors = {name: said(entry["error"]) for name, entry in found.items() if "error" in entry}
    packages = {name: Package(entry.get("version", ""), errors.get(name, "")) for name, entry in found.items()}
    return packages, found.get("torch", {}), ""


def _foreseen(packages: Mapping[str, Package]) -> tuple[str, str]:
    """Format of Stage 1 that `choice` would pick for this card, and why none fits; both empty without a card.
    `packages` were imported, so this knows more about the fast engine than `choice` does."""
    from yuegp.generation.memory import machine

    here = machine()
    if here.card is None:
        return "", ""
    fast = packages.get("exllamav2", Package())
    usable = bool(fast.version and not fast.error and not choice.lacking(here.card))
    found = choice.choose("en", "cot", here.card, usable, here.ram_free)
    if found.plan is None:
        return "", f"{' and '.join(c.id for c in found.checkpoints[:2])} are {found.reason}."
    return str(found.plan.stage1_format), ""


def cards() -> tuple[CardReport, ...]:
    """The cards visible to CUDA as nvidia-smi describes them, in its order; empty without nvidia-smi."""
    from offload.smi import seen

    rows = _nvidia_smi("--query-gpu=uuid,name,memory.total,memory.free,driver_version")
    held = [(row[0], ", ".join(row[1:-1]), row[-1]) for row in
            _nvidia_smi("--query-compute-apps=gpu_uuid,process_name,used_memory") if len(row) > 2]  # fmt: skip
    cards = []
    for place in seen(range(len(rows)), os.environ.get("CUDA_VISIBLE_DEVICES"), {i: r[0] for i, r in enumerate(rows)}):
        with contextlib.suppress(ValueError):
            uuid, name, total, free, driver = rows[place]
            users = [(Path(who).name, int(much) << 20) for gpu, who, much in held if gpu == uuid and much.isdigit()]
            cards.append(CardReport(name, int(total) << 20, int(free) << 20, driver, tuple(users)))
    return tuple(cards)


def _nvidia_smi(query: str) -> list[list[str]]:
    from offload.smi import ask

    return [[part.strip() for part in line.split(",")] for line in ask(query, 20).splitlines() if line.strip()]


def _memory() -> dict[str, Any]:
    from offload.ram import ram

    here = ram()
    fixed = None if here.page_file_grows else here.page_file
    return {"ram_free": here.free, "page_file": fixed, "commit_free": here.commit_free}


def _songs() -> tuple[list[catalog.SongSummary], tuple[tuple[str, str], ...]]:
    try:
        entries = catalog.entries(paths.songs_dir())
    except YueGPError as exc:
        return [], ((paths.songs_dir().name, exc.what),)
    broken = [(entry.folder.name, entry.broken) for entry in entries if entry.broken]
    broken += [
        (entry.folder.name, why) for entry in entries if not entry.broken for why in catalog.faults(entry.folder)
    ]
    return entries, tuple(broken)


def _damaged(home: Path) -> tuple[str, ...]:
    """Sentences on our own unreadable files: notes on models, downloads, and the page's settings."""
    found = list(registry.usable()[2])
    for checkpoint in registry.usable()[0].values():
        try:
            locate.read_pin(checkpoint)
        except YueGPError as exc:
            found.append(exc.what)
    path = home / "settings.json"
    try:
        kept = files.read_json(path)
        checked.version(kept, sys.maxsize)
        checked.build(str, kept.get("language"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as exc:
        found.append(f"{path} cannot be read: {exc}.")
    return tuple(dict.fromkeys(found))


def _uploads(home: Path) -> tuple[tuple[str, int], ...]:
    """Upload folders without our mark whose contents look like an earlier yuegp's, and their bytes. They are reported,
    never removed."""
    folder = home / "uploads"
    if owned.is_ours(folder) or owned.is_link(folder) or not owned.looks_like_uploads(folder):
        return ()
    return ((str(folder), owned.size(folder)),)


def _queue() -> tuple[int, tuple[Job, ...], str]:
    try:
        jobs = Queue().jobs()
    except YueGPError as exc:
        return 0, (), exc.what
    return sum(job.state == "interrupted" for job in jobs), tuple(job for job in jobs if job.state == "failed"), ""


def _models() -> list[tuple[str, str]]:
    """Sets with files on disk, and what is wrong with each. Omits released sets without any."""
    states = []
    for name in sets.names():
        parts = sets.candidates(name)
        if parts and not any(_begun(checkpoint) for checkpoint in parts["stage1"]):
            continue
        try:
            sets.check(choice.find(name))
            states.append((name, ""))
        except YueGPError as exc:
            states.append((name, exc.what))
    return states


def _begun(checkpoint: Checkpoint) -> bool:
    found = locate.locate(checkpoint) or locate.unfinished(checkpoint) or locate.own_folder(checkpoint).is_dir()
    return bool(found)


def _formats() -> frozenset[str]:
    try:
        import soundfile
    except (ImportError, OSError):
        return frozenset()
    return frozenset(soundfile.available_formats())


def _page(port: int) -> str:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy's 127.0.0.1 is another machine
        with direct.open(f"http://127.0.0.1:{port}/", timeout=3) as answer:
            return "yuegp" if b"yuegp" in answer.read(200_000).lower() else "other"
    except urllib.error.HTTPError as exc:
        return "yuegp" if exc.headers.get("X-Yuegp") else "other"
    except urllib.error.URLError:
        return ""
    except (OSError, ValueError):
        return "other"


def _proxies() -> tuple[tuple[str, str, str], ...]:
    """The proxies of downloads, as Python finds them in the environment and the system's settings."""
    found = urllib.request.getproxies()
    if "*" in [name.strip() for name in found.get("no", "").split(",")]:
        return ()
    return tuple(
        (_where_set(scheme), _without_password(found[scheme]), _unfit(found[scheme]))
        for scheme in ("https", "http", "all")
        if found.get(scheme)
    )


def _where_set(scheme: str) -> str:
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
    return next((name for name in names if os.environ.get(name)), "the system's settings")


def _without_password(proxy: str) -> str:
    scheme = re.match(r"\s*[A-Za-z0-9+.-]+://", proxy)
    return (scheme[0] if scheme and "@" in proxy else "") + proxy.rpartition("@")[2]


def _unfit(proxy: str) -> str:
    """Why a proxy cannot be used, tested with the HTTP client that would use it; empty when it can."""
    import httpx2

    address = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(address)
        if not parts.hostname or parts.port == 0:
            return "that is no address"
        httpx2.HTTPTransport(proxy=address).close()
    except ImportError:
        return "the package socksio, which speaks SOCKS, is not installed"
    except (ValueError, httpx2.InvalidURL):
        return "that is no address of a kind that is understood"
    return ""


def _moment(created: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _launched() -> dict[str, Any]:
    """launch.py's record of this Python's environment (`installer/record.py`)."""
    try:
        return checked.object_of(files.read_json(Path(sys.prefix) / "yuegp.json"))
    except (OSError, ValueError):
        return {}
