"""Fictional machines with one fault each, and the finding that names it: for tests and docs/troubleshooting.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from offload.units import GIB
from yuegp.jobs.queue import Job
from yuegp.system.doctor import FAIL, WARN
from yuegp.system.environment import CardReport, Environment, Package

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NEEDED = "torch soundfile soxr transformers safetensors sentencepiece gradio huggingface_hub"
WHOLE = {name: Package("1.0") for name in NEEDED.split()}
CPU = Environment(
    system="Linux 6, x86_64",
    python=(3, 12, 1),
    packages=WHOLE,
    ram_free=16 * GIB,
    home=Path("/home/somebody/yuegp"),
    disk_free=100 * GIB,
    songs=2,
    models=(("demo", ""),),
    formats=frozenset({"WAV", "FLAC", "MP3", "OGG"}),
    now=NOW,
    newest=NOW - timedelta(days=1),
)
CARD = CardReport("NVIDIA GeForce RTX 3060", 12 * GIB, 11 * GIB, "560.94")
GPU = replace(
    CPU,
    packages=WHOLE | dict.fromkeys(("exllamav2", "flash_attn", "bitsandbytes"), Package("1.0")),
    torch_cuda="12.8",
    torch_ready=True,
    torch_archs=("sm_80", "sm_86", "sm_90", "sm_120", "compute_120"),
    torch_cards=((CARD.name, 8, 6),),
    cards=(CARD,),
)


def packages(**changed: Package) -> dict[str, Package]:
    return {**GPU.packages, **changed}


@dataclass(frozen=True)
class Fault:
    """A fault: its story, the environment of such a machine, and the finding's name, state and words."""

    story: str
    facts: Environment
    name: str
    state: str
    words: str


FAULTS = [
    Fault("old Python", replace(CPU, python=(3, 10, 2)), "python", FAIL, "3.10.2 is too old"),
    Fault("new Python", replace(CPU, python=(3, 15, 0)), "python", WARN, "newer than 3.13"),
    Fault(
        "packages hang", replace(CPU, packages={}, probe_error="asking took more than 90 s"), "packages", FAIL, "90 s"
    ),
    Fault(
        "no gradio", replace(CPU, packages=WHOLE | {"gradio": Package()}), "packages", FAIL, "gradio is not installed"
    ),
    Fault(
        "soundfile without its library",
        replace(CPU, packages=WHOLE | {"soundfile": Package("0.13", "OSError: sndfile library not found")}),
        "packages",
        FAIL,
        "sndfile library not found",
    ),
    Fault("torch of the wrong kind", replace(CPU, cards=(CARD,)), "torch", WARN, "build for machines without a card"),
    Fault("driver too old", replace(GPU, torch_ready=False, torch_cards=()), "torch", FAIL, "driver 560.94"),
    Fault(
        "CUDA build, card gone",
        replace(GPU, torch_ready=False, torch_cards=(), cards=()),
        "torch",
        WARN,
        "no NVIDIA driver that answers",
    ),
    Fault(
        "RTX 50 with a build from before it",
        replace(GPU, torch_cards=(("NVIDIA GeForce RTX 5090", 12, 0),), torch_archs=("sm_80", "sm_90")),
        "torch",
        FAIL,
        "compute capability 12.0",
    ),
    Fault(
        "a card that no CUDA build serves",
        replace(
            CPU, cards=(CARD,), launched={"why": "the GeForce GTX 680 is older than any CUDA build holds code for"}
        ),
        "torch",
        WARN,
        "the processor computes: the GeForce GTX 680 is older",
    ),
    Fault(
        "exllamav2 that is not published for the card's build of torch",
        replace(
            GPU,
            packages=packages(exllamav2=Package()),
            launched={"optional": {"exllamav2": "not published ready-built for CUDA 12.6"}},
        ),
        "exllamav2",
        WARN,
        "not published ready-built for CUDA 12.6",
    ),
    Fault("no exllamav2", replace(GPU, packages=packages(exllamav2=Package())), "exllamav2", WARN, "not installed"),
    Fault(
        "exllamav2 without its compiled part",
        replace(GPU, packages=packages(exllamav2=Package("0.3.2", "ImportError: its compiled part"))),
        "exllamav2",
        WARN,
        "its compiled part",
    ),
    Fault(
        "flash-attn for another torch",
        replace(GPU, packages=packages(flash_attn=Package("2.8", "ImportError: undefined symbol"))),
        "flash-attn",
        WARN,
        "undefined symbol",
    ),
    Fault(
        "flash-attn that gives wrong numbers",
        replace(GPU, flash="flash-attn does not work here: its result is off by 0.3"),
        "flash-attn",
        WARN,
        "off by 0.3",
    ),
    Fault(
        "a song that does not fit the card",
        replace(GPU, misfit="Stage 1 lacks 0.4 GB. Choose fewer bits."),
        "engine",
        WARN,
        "lacks 0.4 GB",
    ),
    Fault(
        "no bitsandbytes", replace(GPU, packages=packages(bitsandbytes=Package())), "bitsandbytes", WARN, "run slowly"
    ),
    Fault(
        "bitsandbytes that gives wrong numbers",
        replace(GPU, nf4="bitsandbytes does not work here: its product of 1 rows is off by 100%"),
        "bitsandbytes",
        WARN,
        "off by 100%",
    ),
    Fault(
        "card taken by a game",
        replace(GPU, cards=(replace(CARD, free=2 * GIB, held=(("game.exe", 9 * GIB),)),)),
        "card",
        WARN,
        "game.exe 9.0 GB",
    ),
    Fault("small card", replace(GPU, cards=(replace(CARD, total=4 * GIB, free=4 * GIB),)), "card", WARN, "4.0 GB"),
    Fault("little memory", replace(CPU, ram_free=GIB), "memory", WARN, "1.0 GB of memory"),
    Fault(
        "Windows with a small page file",
        replace(CPU, page_file=2 * GIB, commit_free=7 * GIB),
        "page file",
        WARN,
        "7.0 GB left to promise",
    ),
    Fault("little disk", replace(CPU, disk_free=10**9), "disk", WARN, "1.00 GB are free"),
    Fault("home not writable", replace(CPU, home_error="/x may not be written."), "folder", FAIL, "may not be written"),
    Fault("broken song", replace(CPU, broken=(("2026-song", "song.json is cut short."),)), "songs", WARN, "cut short"),
    Fault(
        "damaged notes",
        replace(CPU, damaged=("models.json, where yuegp notes which models you added, cannot be read.",)),
        "notes",
        WARN,
        "models.json",
    ),
    Fault("uploads of an earlier version", replace(CPU, uploads=(("/x/uploads", 10**9),)), "uploads", WARN, "1.00 GB"),
    Fault("broken queue", replace(CPU, queue_error="queue.json is damaged."), "queue", FAIL, "damaged"),
    Fault("power cut", replace(CPU, interrupted=1), "queue", WARN, "1 song was interrupted"),
    Fault(
        "failed job",
        replace(CPU, failed=(Job(7, "/s", 1, what="Out of memory.", hint="Close games."),)),
        "queue",
        WARN,
        "Job 7 failed: Out of memory.",
    ),
    Fault(
        "model cut short",
        replace(CPU, models=(("demo", ""), ("yue-en-cot", "a shard is cut short."))),
        "models",
        WARN,
        "cut short",
    ),
    Fault("demo model damaged", replace(CPU, models=(("demo", "NaN"),)), "models", FAIL, "demo model"),
    Fault(
        "SOCKS proxy",
        replace(CPU, proxies=(("ALL_PROXY", "socks5://127.0.0.1:1080", "the package socksio is not installed"),)),
        "proxy",
        WARN,
        "socks5://127.0.0.1:1080, from ALL_PROXY, cannot be used",
    ),
    Fault("no MP3", replace(CPU, formats=frozenset({"WAV", "FLAC"})), "sound", WARN, "Cannot write MP3"),
    Fault("no FLAC", replace(CPU, formats=frozenset({"WAV"})), "sound", FAIL, "FLAC"),
    Fault("port taken", replace(CPU, page="other"), "page", WARN, "Another program uses port"),
    Fault("clock in the past", replace(CPU, now=NOW - timedelta(days=400)), "clock", WARN, "clock says 2025"),
    Fault(
        "a wheel that could not be installed",
        replace(GPU, launched={"failed": {"flash-attn": "no wheel for Python 3.13"}}),
        "launcher",
        WARN,
        "no wheel for Python 3.13",
    ),
]
