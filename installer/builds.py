"""The builds of torch for NVIDIA cards: which cards they have code for, which drivers run them, where to get them.

From the build scripts of torch 2.9 (`.ci/manywheel/build_cuda.sh`, `.ci/aarch64_linux/aarch64_ci_build.sh`,
`.ci/pytorch/windows/cuda126.bat` and `cuda128.bat`), and NVIDIA's CUDA release notes (driver versions)."""

from __future__ import annotations

import re
from typing import Mapping, NamedTuple, Sequence

from .probe import Machine, ProbedCard

TORCH_INDEX = "https://download.pytorch.org/whl"
"""torch's own package index, the only host named here: uv knows it, pip does not, and no other index has the CUDA
builds for Windows and arm64."""

CUDA = {"cu128": "CUDA 12.8", "cu126": "CUDA 12.6"}
"""The builds, preferred first: exllamav2 is published for the first only."""

CODE = {
    ("cu128", "x86_64"): ((7, 0), (7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)),
    ("cu126", "x86_64"): ((5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)),
    ("cu128", "arm64"): ((8, 0), (9, 0), (10, 0), (12, 0)),
}
"""Compute capabilities with code in (build, architecture). Code for 8.6 runs on 8.9 too: same first number, second not
smaller."""

DRIVERS = {"Linux": ("525.60.13", "570.26"), "Windows": ("528.33", "570.65")}
"""Oldest drivers for CUDA 12, and for CUDA 12.8, the first with Blackwell cards."""

LEAST_MEMORY = 3.5
"""Least GB of a usable card. With 3, not even the smallest copies of YuE's models fit (`yuegp plan --vram 3GB`)."""

KEPLER = re.compile(r"\bGTX? ?(?!745|750)[67]\d\d|\bTITAN( BLACK| Z)?$|\b(TESLA|QUADRO) K\d", re.I)
"""Names of cards whose last driver is of branch 470 or older, which does not report the compute capability."""


class Choice(NamedTuple):
    """`build` is `cpu` or a key of `CUDA`; `reason` is a clause; `card` is the deciding one, if any, and `beside` are
    names of cards that the build has no code for."""

    build: str
    reason: str
    card: ProbedCard | None = None
    beside: Sequence[str] = ()


def index_of(build: str, env: Mapping[str, str]) -> str:
    """Address of the package index with a build: torch's own, or the one in YUEGP_TORCH_INDEX, which may or may not end
    with the build's name."""
    base = env.get("YUEGP_TORCH_INDEX", "").strip().rstrip("/") or TORCH_INDEX
    return re.sub(r"/(cpu|cu\d+)$", "", base) + "/" + build


def holds_code(build: str, arch: str, capability: tuple[int, int]) -> bool:
    major, minor = capability
    return any(of == major and from_ <= minor for of, from_ in CODE.get((build, arch), ()))


def build_for(card: ProbedCard, arch: str) -> str:
    """The preferred build with code for a card; empty when there is none."""
    if card.capability is None:
        return next(iter(CUDA))
    return next((build for build in CUDA if holds_code(build, arch, card.capability)), "")


def objection(card: ProbedCard, machine: Machine, arch: str) -> str:
    """Why a card cannot be used, as a clause; empty when it can."""
    driver = tuple(map(int, card.driver.split(".")))
    in_windows = machine.system == "Windows" or machine.wsl  # WSL uses and reports the driver of Windows
    oldest, for_blackwell = DRIVERS["Windows" if in_windows else "Linux"]
    needed = for_blackwell if card.capability and card.capability >= (10, 0) else oldest
    if card.memory is not None and card.memory < LEAST_MEMORY:
        return f"the {card.name} has {card.memory:.0f} GB, too little for any of YuE's models"
    if (card.capability and card.capability < (5, 0)) or (card.capability is None and KEPLER.search(card.name)):
        return f"the {card.name} is older than what any current CUDA build holds code for"
    if not build_for(card, arch):
        return f"no published build of torch 2.9.0 for {arch} holds code for the {card.name}"
    if driver < tuple(map(int, needed.split("."))):
        where = "the one in Windows" if machine.wsl else "it"
        return (
            f"driver {card.driver} of the {card.name} is older than {needed}; update {where}, then start with --repair"
        )
    return ""


def without_code(build: str, arch: str, cards: Sequence[ProbedCard]) -> list[str]:
    """Names of the cards that a build has no code for, each once."""
    others = [card for card in cards if card.capability and not holds_code(build, arch, card.capability)]
    return list(dict.fromkeys(card.name for card in others))


def choose_build(wish: str, machine: Machine, arch: str) -> Choice:
    """Choose the build of torch. `wish`: auto, cpu or cuda."""
    if wish == "cpu":
        return Choice("cpu", "as asked for")
    if machine.system == "Darwin":
        return Choice("cpu", "there is no CUDA on macOS")
    cards = sorted(machine.cards, key=lambda card: card.capability or (0, 0), reverse=True)
    if wish == "cuda":
        card = next((card for card in cards if build_for(card, arch)), None)
        build = build_for(card, arch) if card else next(iter(CUDA))
        return Choice(build, "as asked for", card, without_code(build, arch, cards) if card else ())
    if machine.jetson:
        return Choice("cpu", "a Jetson needs NVIDIA's own builds of torch, which this program does not know")
    objections = [objection(card, machine, arch) for card in cards]
    if "" in objections:
        card = cards[objections.index("")]
        build = build_for(card, arch)
        beside = without_code(build, arch, cards)
        more = f"; not on the {' and '.join(beside)}, for which this build holds no code" if beside else ""
        return Choice(build, f"{card.name}, driver {card.driver}{more}", card, beside)
    return Choice("cpu", objections[0] if cards else no_card(machine))


def served(build: str, arch: str, cards: Sequence[ProbedCard]) -> str:
    """CUDA_VISIBLE_DEVICES for the cards that a build has code for, in nvidia-smi's order, which is that of the bus;
    empty when no card needs hiding. Programs use the first card, which may be an old one without code."""
    numbers = [
        str(i) for i, card in enumerate(cards) if not card.capability or holds_code(build, arch, card.capability)
    ]
    return ",".join(numbers) if len(numbers) < len(cards) else ""


def no_card(machine: Machine) -> str:
    """Why no NVIDIA card was found, as a clause."""
    if "NVIDIA" in machine.unheard:
        return "there is an NVIDIA card, but its driver does not answer; install the driver, then --repair"
    if machine.unheard:
        return f"the graphics card is from {' and '.join(machine.unheard)}; only NVIDIA's are used"
    if machine.wsl:
        return "no NVIDIA card was found; in WSL, the driver that counts is the one in Windows"
    return "no NVIDIA card with a working driver was found"
