"""What the machine has: its cards, its RAM, and where a model runs. Asks the NVIDIA driver's own tool first, so that
nothing has to load torch to know; what fits is `planner.py`'s business.

`YUEGP_PRETEND_VRAM=10GB` rehearses a smaller card: everything here reports it, and `cap` holds torch to it. Where there
is no card, it invents one to plan with.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import smi
from .errors import NoSuchDevice, NoSuchSize
from .ram import ram
from .units import GIB, MIB

SMALL = 500_000_000
"""Parameters up to which a CPU computes in float32: 2 GB, exact, and fast enough. Above, bfloat16 halves the RAM."""

CONTEXT = 550 * MIB
"""What a process has on a card before its first tensor, and cannot get rid of: CUDA context, cuBLAS workspace, odds and
ends. Assumed; the engine reference gives 0.55 GiB. Not measured yet."""

DRIVER = 300 * MIB
"""What the driver keeps of a card for itself, for cards that are only planned for. Assumed: a 24576 MiB card is listed
with some 320 MiB reserved."""

PRETEND = "YUEGP_PRETEND_VRAM"

LINK = {1: 0.2e9, 2: 0.4e9, 3: 0.79e9, 4: 1.57e9, 5: 3.15e9}
"""Bytes per second and lane that a copy from pinned RAM reaches, by PCIe generation: eight tenths of what the encoding
leaves. Modelled, not measured."""

BANDWIDTH = {
    "2060": 336, "2070": 448, "2080 ti": 616, "2080": 448,
    "3050": 224, "3060 ti": 448, "3060": 360, "3070 ti": 608, "3070": 448, "3080 ti": 912, "3080": 760,
    "3090 ti": 1008, "3090": 936,
    "4060 ti": 288, "4060": 272, "4070 ti super": 672, "4070": 504, "4080": 717, "4090": 1008,
    "5060": 448, "5070 ti": 896, "5070": 672, "5080": 960, "5090": 1792,
    "a100": 1555, "h100": 3350, "h200": 4800, "l4": 300, "t4": 320,
}  # fmt: skip
"""Memory bandwidth in GB/s as the makers state it, by a part of the card's name; longer names come first."""


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a model runs."""

    device: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Card:
    """A graphics card. Sizes in bytes."""

    index: int
    name: str
    total: int
    free: int
    """What a program that starts now could use, its CUDA context included."""
    capability: tuple[int, int] = (0, 0)
    """Compute capability; (0, 0) when unknown."""
    bandwidth_guess: float | None = None
    """Bytes per second of its memory as the maker states it."""
    display: bool = False
    """A screen hangs on it: other programs take some of it now and then."""
    link: float | None = None
    """Bytes per second between it and RAM, modelled from its PCIe generation and width."""
    imagined: bool = False
    """It is only planned for: no program can run on it here."""
    pinned: int | None = None
    """RAM that may be pinned to feed it at most; None when that is not known."""


@dataclass(frozen=True)
class Machine:
    """This computer."""

    cards: tuple[Card, ...]
    ram_total: int
    ram_free: int
    pretend: int | None = None
    """Size of the card that is rehearsed."""

    @property
    def card(self) -> Card | None:
        """The card that is used: the first one."""
        return self.cards[0] if self.cards else None


def machine(environment: Mapping[str, str] = os.environ) -> Machine:
    """The machine as it is now. NoSuchSize when `YUEGP_PRETEND_VRAM` is no size. Costs some tens of milliseconds."""
    cards = _cards()
    pretend = parse_size(environment[PRETEND]) if environment.get(PRETEND) else None
    if pretend is not None:
        cards = tuple(_shrunk(card, pretend) for card in cards) or (imagined(pretend),)
    memory = ram()
    cards = tuple(replace(card, pinned=memory.pinned) for card in cards)
    return Machine(cards, memory.total, memory.free, pretend)


DESKTOP = 600 * MIB
"""What a screen with its programs takes, for cards that are only planned for: 0.3 to 1.2 GB under Windows."""


def imagined(total: int, display: bool = True) -> Card:
    """A card of which only the size is known, with nothing on it but its driver and, on `display`, a desktop."""
    free = max(0, total - DRIVER - display * DESKTOP)
    return Card(0, f"a card of {total / GIB:g} GB", total, free, (8, 6), display=display, imagined=True)


def _shrunk(card: Card, total: int) -> Card:
    """A card as if it were smaller, with as much of it in use as is now."""
    if total >= card.total:
        return card
    used = card.total - card.free
    return replace(card, name=f"{card.name} (as if it had {total / GIB:g} GB)", total=total, free=max(0, total - used))


def parse_size(text: str) -> int:
    """A size such as `10GB`, `10`, `7.5 GiB` or `8192MB` in bytes. Cards are sold in binary gigabytes that are called
    GB, so that is what it means here. NoSuchSize for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:[.,]\d+)?)\s*(?:([GM])I?B?)?\s*", text.upper())
    size = float(found[1].replace(",", ".")) * (MIB if found[2] == "M" else GIB) if found else 0
    if not found or not MIB <= size < 1024 * GIB:
        raise NoSuchSize(f"{text!r} is no amount of memory.", "Write it like 10GB, or 8192MB.")
    return int(size)


def cap(here: Machine, device: str) -> None:
    """Hold torch to the rehearsed card: its allocator then fails where the smaller card would. Only on CUDA."""
    if here.pretend is None or not device.startswith("cuda"):
        return
    import torch

    index = torch.device(device).index or 0
    total = torch.cuda.get_device_properties(index).total_memory
    share = max(0, here.pretend - DRIVER - CONTEXT) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), index)


# Cards


QUERY = "index,name,memory.total,memory.free,compute_cap,display_active,pcie.link.gen.max,pcie.link.width.max"


def _cards() -> tuple[Card, ...]:
    """From nvidia-smi; from torch where it is loaded anyway."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        known = _smi_cards()
        return tuple(_torch_card(torch, i, known) for i in range(torch.cuda.device_count()))
    return _smi_cards()


def _smi_cards() -> tuple[Card, ...]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = parse_smi(smi.ask(f"--query-gpu={QUERY}"))
    uuids = {}
    if cards and chosen and "GPU-" in chosen:
        rows = (line.partition(",") for line in smi.ask("--query-gpu=index,uuid").splitlines())
        uuids = {int(index): uuid.strip() for index, _, uuid in rows if index.strip().isdigit()}
    return visible(cards, chosen, uuids)


def parse_smi(text: str) -> tuple[Card, ...]:
    """Cards from nvidia-smi's answer to `QUERY`. Fields it does not know come as `[N/A]`; a line without sizes is
    passed over."""
    cards = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(QUERY.split(",")) or not (row[0].isdigit() and row[2].isdigit() and row[3].isdigit()):
            continue
        index, name, total, free, capability, display, generation, width = row
        major, minor = capability.split(".") if re.fullmatch(r"\d+\.\d+", capability) else ("0", "0")
        lane = LINK.get(int(generation)) if generation.isdigit() else None
        link = lane * int(width) if lane and width.isdigit() and int(width) else None
        shown = display.lower() in ("enabled", "yes")
        sizes = int(total) * MIB, int(free) * MIB
        cards.append(Card(int(index), name, *sizes, (int(major), int(minor)), _bandwidth(name), shown, link))
    return tuple(cards)


def visible(cards: tuple[Card, ...], chosen: str | None, uuids: Mapping[int, str] | None = None) -> tuple[Card, ...]:
    """The cards in the order CUDA sees them, given CUDA_VISIBLE_DEVICES and, by index, what the driver calls them."""
    order = smi.seen([card.index for card in cards], chosen, uuids)
    return tuple(replace(cards[place], index=new) for new, place in enumerate(order))


def _torch_card(torch: Any, index: int, known: Sequence[Card]) -> Card:
    """A card as torch sees it. What this process holds already counts as free: it is ours to use again."""
    properties = torch.cuda.get_device_properties(index)
    free = torch.cuda.mem_get_info(index)[0] + torch.cuda.memory_reserved(index) + CONTEXT
    plain = Card(index, properties.name, properties.total_memory, min(free, properties.total_memory),
                 (properties.major, properties.minor), _bandwidth(properties.name))  # fmt: skip
    alike = [card for card in known if card.name == plain.name]
    more = next((card for card in alike if card.index == index), alike[-1] if alike else None)
    return replace(plain, display=more.display, link=more.link) if more else plain


def _bandwidth(name: str) -> float | None:
    found = [part for part in BANDWIDTH if re.search(rf"\b{part}\b", name.lower())]
    return BANDWIDTH[max(found, key=len)] * 1e9 if found else None


# Placing and RAM


def place(parameters: int, device: str = "auto") -> Placement:
    """The placement of a model of so many parameters. `device` is auto, cpu or cuda; NoSuchDevice when there is no
    such device here."""
    import torch

    present = torch.cuda.is_available()
    if device == "cuda" and not present:
        raise NoSuchDevice(
            f"No CUDA card can be used here: torch {torch.__version__} finds none.",
            "Use --device cpu, or run `python launch.py` again on a machine with an NVIDIA driver.",
        )
    if device != "cpu" and present:
        return Placement("cuda", "bfloat16", f"{torch.cuda.get_device_name()} is here")
    reason = "no CUDA card is here" if device == "auto" else "asked for"
    if parameters <= SMALL:
        return Placement("cpu", "float32", f"{reason}, and the model is small")
    return Placement("cpu", "bfloat16", f"{reason}; bfloat16 halves the memory of a large model")
