"""Taking ExLlamaV2 in: under the settings that make it right, or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from yuegp.errors import DeviceError
from yuegp.lm.exl2 import package as exl2_package
from yuegp.lm.exl2 import presence
from yuegp.lm.exl2.attention import PagedAttention
from yuegp.lm.exl2.flash_probe import Probe
from yuegp.lm.exl2.package import load_package

WORKS, FAILS = Probe(True, "works"), Probe(False, "is not installed")

ROOT = """
import os, torch
__version__ = "0.3.2"
SEEN = {name: value for name, value in os.environ.items() if name.startswith("EXLLAMA_")}
torch.set_num_threads(1)
print("chatter")
class ExLlamaV2Config:
    def prepare(self, no_tensors=False): self.looked_for_files = not no_tensors
class ExLlamaV2: pass
class ExLlamaV2Cache: pass
class ExLlamaV2Cache_Q8: pass
class ExLlamaV2Cache_Q6: pass
class ExLlamaV2Cache_Q4: pass
"""
ATTN = """
import os
has_flash_attn_with_paged = "EXLLAMA_NO_FLASH_ATTN" not in os.environ
flash_attn_with_kvcache = "flash-attn's own"
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "exllamav2"
    package.mkdir()
    for name, source in (
        ("__init__", ROOT), ("attn", ATTN), ("attn_params", "class PagedParams: pass"),
        ("device", "def get_device_stream(index): return None"),
    ):  # fmt: skip
        (package / f"{name}.py").write_text(source)
    (tmp_path / "exllamav2_ext.py").write_text("")
    for name in [name for name in sys.modules if name.split(".")[0] in ("exllamav2", "exllamav2_ext")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(exl2_package, "probe", lambda card: FAILS)
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] in ("exllamav2", "exllamav2_ext")]:
        del sys.modules[name]


def test_without_flash_attn_ours_takes_its_place(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXLLAMA_NO_SDPA", "before")
    monkeypatch.delenv("EXLLAMA_NO_XFORMERS", raising=False)
    package = load_package(0)
    root, attn = sys.modules["exllamav2"], sys.modules["exllamav2.attn"]
    assert root.SEEN == {"EXLLAMA_NO_SDPA": "1", "EXLLAMA_NO_XFORMERS": "1", "EXLLAMA_NO_FLASH_ATTN": "1"}
    assert isinstance(package.attention, PagedAttention) and attn.flash_attn_with_kvcache is package.attention
    assert os.environ["EXLLAMA_NO_SDPA"] == "before" and "EXLLAMA_NO_XFORMERS" not in os.environ
    assert capsys.readouterr().out == "", "stdout belongs to results"


def test_two_loaded_models_share_one_attention(installed: Path) -> None:
    """The package calls whatever lies under the name: a second one of ours would leave the first model without."""
    assert load_package(0).attention is load_package(0).attention


def test_with_flash_attn_it_is_left_alone(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exl2_package, "probe", lambda card: WORKS)
    monkeypatch.setenv("EXLLAMA_NO_FLASH_ATTN", "1")
    package = load_package(0)
    assert package.attention is None and os.environ["EXLLAMA_NO_FLASH_ATTN"] == "1"
    assert sys.modules["exllamav2.attn"].flash_attn_with_kvcache == "flash-attn's own"


def test_the_number_of_threads_is_given_back(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ExLlamaV2 sets one thread for the whole process; the codec on the processor would crawl afterwards."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        load_package(0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_package_that_cannot_be_imported_is_said(installed: Path) -> None:
    (installed / "attn.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    with pytest.raises(DeviceError, match="cannot be loaded: undefined symbol") as caught:
        load_package(0)
    assert f"torch {torch.__version__}" in caught.value.hint and "torch engine" in caught.value.hint


def test_another_version_is_refused(installed: Path) -> None:
    (installed / "__init__.py").write_text(ROOT.replace("0.3.2", "0.3.1"))
    with pytest.raises(DeviceError, match=r"ExLlamaV2 0\.3\.1 is installed; only 0\.3\.2"):
        load_package(0)


def test_flash_attn_that_the_package_did_not_take_is_refused(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_package(0)
    monkeypatch.setattr(exl2_package, "probe", lambda card: WORKS)
    with pytest.raises(DeviceError, match="loaded without it earlier"):
        load_package(0)


def test_the_compiled_part_is_not_built_unasked(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel of the package index compiles for 10 to 20 minutes at its first import."""
    (installed.parent / "exllamav2_ext.py").unlink()
    monkeypatch.delenv("YUEGP_EXL2_BUILD", raising=False)
    with pytest.raises(DeviceError, match="needs the compiled part") as caught:
        load_package(0)
    assert "YUEGP_EXL2_BUILD=1" in caught.value.hint and "exllamav2" not in sys.modules
    monkeypatch.setenv("YUEGP_EXL2_BUILD", "1")
    assert load_package(0).attention


def test_absence_is_said(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="needs the package exllamav2"):
        load_package(0)


def test_settings_open_no_weight_file(installed: Path) -> None:
    settings = load_package(0).config("C:\\Users\\Jürgen")
    assert settings.model_dir == "C:\\Users\\Jürgen" and not settings.looked_for_files and not settings.tensor_file_map


def test_a_plan_can_ask_without_loading_anything(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(presence.BUILD, raising=False)
    assert presence.missing() == ""
    (installed.parent / "exllamav2-0.3.1.dist-info").mkdir()
    metadata = installed.parent / "exllamav2-0.3.1.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: exllamav2\nVersion: 0.3.1\n")
    assert presence.missing().endswith("and 0.3.1 is installed.")
    metadata.write_text("Metadata-Version: 2.1\nName: exllamav2\nVersion: 0.3.2+cu128.torch0.1.0\n")
    assert "needs torch 0.1" in presence.missing()
    metadata.write_text("Metadata-Version: 2.1\nName: exllamav2\nVersion: 0.3.2\n")
    assert presence.missing() == ""
    (installed.parent / "exllamav2_ext.py").unlink()
    assert presence.missing() == presence.UNCOMPILED
    assert "exllamav2" not in sys.modules
