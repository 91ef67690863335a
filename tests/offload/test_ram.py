"""How much RAM may be counted on: from the files of Linux and its containers, Windows' answer, and macOS' tool."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from offload.device import GIB, imagined, machine
from offload.planner import RAM_SHARE, within
from offload.ram import Ram, grows, of_linux, of_mac, of_status, ram
from offload.sizes import WeightFormat
from yuegp.generation import choice

MEMINFO = """MemTotal:       32594240 kB
MemFree:         1034240 kB
MemAvailable:   25165824 kB
Cached:         20000000 kB
CommitLimit:    20971520 kB
Committed_AS:   16777216 kB
HugePages_Total:       0
"""


def system(root: Path, **files: str) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


def test_linux_and_wsl(tmp_path: Path) -> None:
    assert of_linux(system(tmp_path)) == Ram(32594240 * 1024, 24 * GIB)


def test_linux_that_promises_no_more_than_it_has(tmp_path: Path) -> None:
    assert of_linux(system(tmp_path, **{"proc/sys/vm/overcommit_memory": "2\n"})).free == 4 * GIB
    assert of_linux(system(tmp_path, **{"proc/sys/vm/overcommit_memory": "0\n"})).free == 24 * GIB


@pytest.mark.parametrize("seen_from", ["inside", "outside"])
def test_a_container_of_the_second_kind(tmp_path: Path, seen_from: str) -> None:
    """Docker with its own view of the groups, and a systemd slice: any group on the way up may have the limit."""
    name = "/" if seen_from == "inside" else "/system.slice/docker-1234.scope/app"
    group = "sys/fs/cgroup" + ("" if seen_from == "inside" else "/system.slice/docker-1234.scope")
    found = of_linux(system(tmp_path, **{
        "proc/self/cgroup": f"0::{name}\n",
        f"{group}/memory.max": f"{12 * GIB}\n",
        f"{group}/memory.current": f"{9 * GIB}\n",
        f"{group}/memory.stat": f"anon 5\ninactive_file {2 * GIB}\nactive_file 7\n",
        "sys/fs/cgroup/system.slice/memory.max": "max\n",
        "sys/fs/cgroup/system.slice/memory.current": f"{20 * GIB}\n",
    }))  # fmt: skip
    assert (found.total, found.free) == (12 * GIB, 5 * GIB)


def test_a_container_of_the_first_kind(tmp_path: Path) -> None:
    found = of_linux(system(tmp_path, **{
        "proc/self/cgroup": "11:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
    }))  # fmt: skip
    assert (found.total, found.free) == (8 * GIB, 6 * GIB)
    unlimited = system(tmp_path, **{"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert of_linux(unlimited).free == 24 * GIB


def test_windows_promises_less_than_there_is_free() -> None:
    """16 GB of RAM, 12 of them free; a page file of 1 GB that may not grow, and 5 GB left to promise."""
    found = of_status(16 * GIB, 12 * GIB, 17 * GIB, 5 * GIB, ["C:\\pagefile.sys 1024 1024"])
    assert found == Ram(16 * GIB, 5 * GIB, GIB, False, 5 * GIB)
    assert of_status(16 * GIB, 4 * GIB, 40 * GIB, 20 * GIB).free == 4 * GIB
    assert of_status(64 * GIB, 50 * GIB, 8 * GIB, 6 * GIB).total == 8 * GIB, "a job object may have less"


@pytest.mark.parametrize(
    ("files", "does"),
    [(["?:\\pagefile.sys"], True), (["c:\\pagefile.sys 0 0"], True), (["c:\\pagefile.sys 2048 4096"], False),
     ([], False), (["c:\\pagefile.sys 16 16", "d:\\pagefile.sys 0 0"], True)],
)  # fmt: skip
def test_page_files_that_windows_makes_larger_by_itself(files: list[str], does: bool) -> None:
    assert grows(files) is does


def test_macos() -> None:
    answer = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               65536.\n"
        "Pages active:                            300000.\n"
        "Pages inactive:                          131072.\n"
        "Pages speculative:                        65536.\n"
        "Pages wired down:                        120000.\n"
        "File-backed pages:                       100000.\n"
    )
    assert of_mac(16 * GIB, answer) == Ram(16 * GIB, 4 * GIB)
    assert of_mac(16 * GIB, "") == Ram(16 * GIB, 8 * GIB)


def test_this_machine() -> None:
    here = ram()
    assert 0 < here.free <= here.total and here.pinned == here.total // 2
    assert (here.page_file is None) == (sys.platform != "win32")


# What is planned


def test_no_more_than_half_of_all_ram_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that waits in RAM or streams, where nearly all RAM is free: half of all is less than the usual share."""
    card, free = imagined(8 * GIB), 30 * GIB
    stage1, stage2 = (WeightFormat("torch", kind, Fraction(16)) for kind in ("bfloat16", "float16"))
    need = replace(choice.usual([stage1], [stage2]), budget=1500, longest=1 << 20)
    loose = within(need, card, free, {})
    assert loose is not None and 0 < loose.ram <= free * RAM_SHARE
    tight = within(need, replace(card, pinned=loose.ram - 1), free, {})
    assert tight is None or tight.ram < loose.ram


def test_every_card_of_the_machine_knows_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.device._cards", lambda: (imagined(8 * GIB),))
    monkeypatch.setattr("offload.device.ram", lambda: Ram(32 * GIB, 30 * GIB))
    (card,) = machine({}).cards
    assert card.pinned == 16 * GIB
    assert machine({"YUEGP_PRETEND_VRAM": "6GB"}).cards[0].pinned == 16 * GIB
