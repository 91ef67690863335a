"""What is said of a machine, from recorded answers of its tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from repository import ROOT

from installer import probe as machine_
from offload import device, smi
from offload.device import DESKTOP, DRIVER, GIB, MIB, Card, imagined, machine, parse_size, parse_smi, visible
from offload.errors import NoSuchSize
from yuegp.system import environment

TWO = """0, NVIDIA GeForce RTX 3080, 10240, 9011, 8.6, Enabled, 4, 16
1, NVIDIA GeForce RTX 4060 Ti, 16380, 16079, 8.9, Disabled, 4, 8
"""


def test_cards_are_read_from_the_drivers_tool() -> None:
    first, second = parse_smi(TWO)
    assert first == Card(
        0, "NVIDIA GeForce RTX 3080", 10240 * MIB, 9011 * MIB, (8, 6), 760e9, True, pytest.approx(16 * 1.57e9)
    )
    assert (second.bandwidth_guess, second.display, second.link) == (288e9, False, pytest.approx(8 * 1.57e9))


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("NVIDIA GeForce RTX 4070 Ti SUPER", 672), ("NVIDIA GeForce RTX 3060 Laptop GPU", 360), ("NVIDIA H200", 4800),
     ("NVIDIA GeForce RTX 2080 Ti", 616), ("NVIDIA RTX A4000", None)],
)  # fmt: skip
def test_a_card_is_known_by_the_longest_part_of_its_name(name: str, gigabytes: float | None) -> None:
    (card,) = parse_smi(f"0, {name}, 8192, 8000, 8.9, Disabled, 4, 16")
    assert card.bandwidth_guess == (gigabytes and gigabytes * 1e9)


def test_what_the_tool_does_not_know_is_left_out() -> None:
    """Old drivers and virtual cards answer [N/A]; a tool without a driver answers with a sentence."""
    (card,) = parse_smi("0, GRID T4-8Q, 8192, 8000, [N/A], [N/A], [N/A], [N/A]")
    assert (card.capability, card.display, card.link) == ((0, 0), False, None)
    assert parse_smi("0, Some card, [N/A], [N/A], 8.6, Enabled, 4, 16\n") == ()
    assert parse_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == ()


def test_cuda_visible_devices_is_followed() -> None:
    cards = parse_smi(TWO)
    assert [(card.index, card.total) for card in visible(cards, "1")] == [(0, 16380 * MIB)]
    assert [card.name for card in visible(cards, "1,0")] == [cards[1].name, cards[0].name]
    assert visible(cards, "") == () and visible(cards, None) == cards == visible(cards, "GPU-3f2a")


UUIDS = {0: "GPU-3f2a1111-0000-4000-8000-000000000001", 1: "GPU-3f2b2222-0000-4000-8000-000000000002", 2: "GPU-9"}


@pytest.mark.parametrize(
    ("chosen", "places"),
    [
        (None, [0, 1, 2]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),  # what job schedulers write where a job got no card
        ("2", [2]),
        (" 2 , 0 ", [2, 0]),
        ("1,-1,0", [1]),
        ("1,7,0", [1]),
        ("0,0", []),
        ("0,", [0]),
        ("GPU-3f2b", [1]),
        ("GPU-3F2B2222-0000-4000-8000-000000000002,GPU-9", [1, 2]),
        ("GPU-3f2", []),
        ("GPU-9,GPU-unknown,GPU-3f2a", [2]),
        ("GPU-9,GPU-9", []),
        ("MIG-1c2d", [0, 1, 2]),
    ],
)
def test_cards_are_shown_as_cuda_shows_them(chosen: str | None, places: list[int]) -> None:
    assert smi.seen([0, 1, 2], chosen, UUIDS) == places


@pytest.mark.skipif(sys.platform == "win32", reason="the tool is a shell script")
def test_cards_named_by_their_uuids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some start programs by UUID, because numbers change with the order. Both questions go to the tool."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in\n*index,uuid) echo '0, GPU-3f2a'; echo '1, GPU-3f2b';;\n"
        "*uuid,name*) echo 'GPU-3f2a, A, 1, 1, 5'; echo 'GPU-3f2b, B, 1, 1, 5';;\n"
        f"*query-gpu=index*) cat <<'end'\n{TWO}end\n;;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3f2b,GPU-3f2a")
    assert [(card.index, card.name[-7:]) for card in device._smi_cards()] == [(0, "4060 Ti"), (1, "TX 3080")]
    assert [card.name for card in environment.cards()] == ["B", "A"]


def test_two_equal_cards_are_told_apart_by_their_place() -> None:
    """One of them may drive the screen."""
    text = "0, RTX 3090, 24576, 9, 8.6, Disabled, 4, 16\n1, RTX 3090, 24576, 9, 8.6, Enabled, 4, 8\n"

    alike = SimpleNamespace(name="RTX 3090", total_memory=9, major=8, minor=6)

    class Cuda:
        get_device_properties = staticmethod(lambda i: alike)
        mem_get_info = staticmethod(lambda i: (1, 9))
        memory_reserved = staticmethod(lambda i: 0)

    cards = [device._torch_card(SimpleNamespace(cuda=Cuda), i, parse_smi(text)) for i in range(2)]
    assert [card.display for card in cards] == [False, True]


WINDOWS = {"SystemRoot": r"D:\WINNT", "ProgramFiles": r"D:\Programme", "ProgramW6432": r"D:\Programme"}


@pytest.mark.parametrize("env", [{}, WINDOWS, {"SystemRoot": r"C:\Windows"}])
def test_the_tool_is_looked_for_in_the_same_places_by_everybody(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WSL keeps it off the PATH of services, older Windows drivers in a folder of their own."""
    places = smi.folders(env)
    assert places == machine_.smi_folders(env) and "/usr/lib/wsl/lib" in places
    assert (r"D:\WINNT\System32" in places) == (r"D:\Programme\NVIDIA Corporation\NVSMI" in places) == (env is WINDOWS)
    for place in places:
        asked: list[str | None] = []

        def which(name: str, path: str | None = None, wanted: str = place, asked: list = asked) -> str | None:
            asked.append(path)
            return f"{path}/{name}" if path == wanted else None

        monkeypatch.setattr(shutil, "which", which)
        monkeypatch.setattr(smi, "folders", lambda: places)
        monkeypatch.setattr(machine_, "smi_folders", lambda: places)
        assert smi.program() == machine_.nvidia_smi() == f"{place}/nvidia-smi"
        assert asked[0] is None, "the PATH comes first"


def test_a_smaller_card_is_rehearsed_with_what_is_in_use_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cards", lambda: parse_smi(TWO))
    here = machine({"YUEGP_PRETEND_VRAM": "8GB"})
    assert here.pretend == 8 * GIB and here.card is not None
    assert (here.card.total, here.card.free) == (8 * GIB, 8 * GIB - (10240 - 9011) * MIB)
    assert "as if it had 8 GB" in here.card.name
    assert machine({"YUEGP_PRETEND_VRAM": "24GB"}).card == machine({}).card, "no card becomes larger"


def test_without_a_card_one_is_imagined_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cards", lambda: ())
    assert machine({}).card is None
    here = machine({"YUEGP_PRETEND_VRAM": "10GB"})
    assert here.card == replace(imagined(10 * GIB), pinned=here.ram_total // 2)
    assert here.card.free == 10 * GIB - DRIVER - DESKTOP
    assert 0 < here.ram_free <= here.ram_total


@pytest.mark.parametrize(
    ("text", "size"),
    [("10GB", 10 * GIB), ("10", 10 * GIB), (" 7.5 gib ", 15 * GIB // 2), ("7,5G", 15 * GIB // 2), ("8192MB", 8 * GIB)],
)
def test_sizes_are_read_as_cards_are_sold(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-4GB", "0GB", "10 TB", "1e3", "nan"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(NoSuchSize, match="no amount of memory"):
        parse_size(text)


def test_the_tool_is_asked_once_and_a_broken_one_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setattr(smi.shutil, "which", lambda name: str(tool))
    assert device._smi_cards() == ()
    if sys.platform != "win32":
        tool.write_text("#!/bin/sh\nexit 9\n")
        tool.chmod(0o755)
        assert device._smi_cards() == ()
        tool.write_text(f"#!/bin/sh\ncat <<'end'\n{TWO}end\n")
        assert len(device._smi_cards()) == 2


def test_nothing_here_loads_torch() -> None:
    """The page asks for the machine before torch is loaded."""
    code = (
        "import sys; from offload.device import machine; from offload import explain, planner; machine({}); "
        "from yuegp.generation import memory; from yuegp.cli import plan; print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.stdout.strip() == "False", answer.stderr
