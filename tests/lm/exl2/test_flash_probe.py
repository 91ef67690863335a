"""The test of flash-attn in another process: every way it can end becomes an answer, and none ends this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from repository import ROOT

from yuegp.lm.exl2 import flash_probe

RIGHT = """
from fake_exllamav2 import flash
def flash_attn_with_kvcache(**given):
    return flash(**given)
"""
WRONG = """
from fake_exllamav2 import flash
def flash_attn_with_kvcache(**given):
    return flash(**given | {"cache_seqlens": given["cache_seqlens"] - 1})
"""
PRETEND = """
import torch
torch.cuda.is_available = lambda: True
device = torch.device
torch.device = lambda kind, *index: device("cpu")
"""
"""A torch that takes the processor for a card."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    flash_probe._probe.cache_clear()


def test_none_is_installed_here_or_it_is_tried() -> None:
    found = flash_probe.probe()
    assert found.why and (not found.works or torch.cuda.is_available())


@pytest.mark.parametrize(
    ("source", "works", "why"),
    [
        (RIGHT, True, "flash-attn 2.8.3 gives the right numbers"),
        (WRONG, False, "does not work here: its result is off by"),
        ("raise ImportError('undefined symbol: _ZN3c10')", False, "ImportError: undefined symbol"),
        ("import os; os.abort()", False, "ended with"),
        ("import time; time.sleep(600)", False, "no answer within 2 seconds"),
        ("raise ModuleNotFoundError(\"No module named 'flash_attn'\")", False, "flash-attn is not installed"),
    ],
)
def test_every_end_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, works: bool, why: str
) -> None:
    (tmp_path / "flash_attn.py").write_text("__version__ = '2.8.3'\n" + (PRETEND if "fake" in source else "") + source)
    paths = [tmp_path, ROOT / "tests" / "support", ROOT]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    found = flash_probe.probe(time_limit=2.0 if "sleep" in source else flash_probe.TIME_LIMIT)
    assert found.works == works and why in found.why, found


def test_the_answer_is_kept_until_the_environment_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[str]] = []

    def run(command: list[str], **_: object) -> object:
        runs.append(command)
        raise OSError("no such file")

    monkeypatch.setattr(flash_probe.subprocess, "run", run)
    first, again = flash_probe.probe(), flash_probe.probe()
    assert first is again and not first.works and "could not be started" in first.why and len(runs) == 1
    flash_probe.probe(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    flash_probe.probe()
    assert len(runs) == 3
