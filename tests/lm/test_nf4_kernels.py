"""bitsandbytes in all the states it is found in: none of them ends a song, and only one that computes right is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import VOCAB, bitsandbytes, int8_folder, released, tiny_llama

from yuegp.lm import EngineConfig
from yuegp.lm.llama import engine
from yuegp.lm.llama.engine import TorchLM
from yuegp.lm.weights import nf4, nf4_kernels
from yuegp.lm.weights.nf4 import Nf4
from yuegp.lm.weights.nf4_kernels import kernels, missing, trial

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")

RIGHT = """
import torch
from types import SimpleNamespace
class QuantState(SimpleNamespace): pass
functional = SimpleNamespace(QuantState=QuantState)
def matmul_4bit(x, codes, state):
    codes = codes.t().view(-1).int()
    assert state.quant_type == "nf4" and state.dtype == x.dtype
    values = state.code[torch.stack([codes >> 4, codes & 15], 1)].view(-1, state.blocksize)
    weight = (values * state.absmax[:, None]).view(state.shape)
    return (x.float() @ weight.t()).to(x.dtype)
"""
SETUP_FAILED = '''
raise RuntimeError("""
        CUDA Setup failed despite GPU being available. Please run the following command to get more information:

        python -m bitsandbytes

        and open an issue at: https://github.com/bitsandbytes-foundation/bitsandbytes/issues""")
'''
"""As the library itself words it."""


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    for cached in (nf4_kernels._taken, trial):
        cached.cache_clear()
    yield
    for cached in (nf4_kernels._taken, trial):
        cached.cache_clear()


def put(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bitsandbytes.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)  # noted, so that what was there, or nothing, comes back
    monkeypatch.delitem(sys.modules, "bitsandbytes")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (SETUP_FAILED, "RuntimeError: CUDA Setup failed despite GPU being available"),
        ("raise OSError('[WinError 126] The specified module could not be found')", "OSError: [WinError 126]"),
        ("raise ImportError('DLL load failed while importing _C')", "ImportError: DLL load failed"),
        ("from torch import no_such_name", "ImportError: cannot import name 'no_such_name'"),
        ("None.get_context", "AttributeError: 'NoneType' object has no attribute"),
        ("str2optimizer32bit", "NameError"),
        ("", "AttributeError"),
        (RIGHT.replace("return (x", "return 0 * (x"), "its product of 1 rows is off by 100%"),
        (RIGHT.replace("return (x", "return torch.nan * (x"), "its product of 1 rows is off by nan%"),
        (RIGHT.replace("return (x", "return 1.05 * (x"), "its product of 1 rows is off by 5%"),
        (RIGHT.replace("codes >> 4, codes & 15", "codes & 15, codes >> 4"), "its product of 1 rows is off by"),
        (RIGHT.replace("    return", "    if len(x) > 8: x = x.flip(0)\n    return"), "its product of 40 rows is off"),
        (RIGHT.replace("return (x", "return (x[:, :5]"), "RuntimeError"),
        (RIGHT, None),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_it_raises_and_what_it_gets_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, why: str | None, dtype: str
) -> None:
    put(tmp_path, source, monkeypatch)
    said = nf4_kernels.compare("cpu", dtype, "64")
    assert said == why or (why and said and said.startswith(why) and "\n" not in said)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (SETUP_FAILED, "does not work here: RuntimeError: CUDA Setup failed despite GPU being available"),
        ("this is no Python", "does not work here: SyntaxError"),
        ("import sys; sys.exit('Error no kernel image')", "does not work here: Error no kernel"),
        ("import os; os.abort()", "does not work here: the test ended with"),
        ("import time; time.sleep(600)", "gave no answer within 5 seconds"),
        (RIGHT, "gives the right numbers"),
    ],
)
def test_every_end_of_its_process_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, why: str
) -> None:
    put(tmp_path, source, monkeypatch)
    found = trial("cpu", "float16", time_limit=5.0 if "sleep" in source else nf4_kernels.TIME_LIMIT)
    assert found.works == (source == RIGHT) and f"bitsandbytes {why}" in found.why and "\n" not in found.why, found


def test_absence_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_kernels.importlib.util, "find_spec", lambda name: None)
    said = nf4_kernels.compare("cpu", "float16", "64")
    monkeypatch.setattr(nf4_kernels, "PROGRAM", f"import sys; sys.exit({said!r})")
    assert trial("cpu", "float16").why == "bitsandbytes is not installed"


def test_the_real_one_is_tried_here() -> None:
    pytest.importorskip("bitsandbytes")
    assert trial("cpu", "float32").works


def test_it_is_asked_once_in_a_process_and_only_for_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def broken(*what: Any) -> nf4_kernels.Trial:
        asked.append(what)
        return nf4_kernels.Trial(False, "bitsandbytes does not work here: OSError")

    monkeypatch.setattr(nf4_kernels, "trial", broken)
    assert kernels(CPU, torch.float32, 64) is None and missing(CPU, torch.float32, 64) == "" and not asked
    for card in (torch.device("cuda"), CARD, CARD):
        assert kernels(card, torch.float16, 64) is None and "OSError" in missing(card, torch.float16, 64)
    assert asked == [("cuda:0", "float16", 64)]


def test_one_that_fails_only_beside_our_libraries_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "raise ImportError('undefined symbol')", monkeypatch)
    monkeypatch.setattr(nf4_kernels, "trial", lambda *what: nf4_kernels.Trial(True, "works"))
    assert kernels(CARD, torch.float16, 64) is None
    assert missing(CARD, torch.float16, 64) == "bitsandbytes does not work here: ImportError: undefined symbol"


def test_a_trusted_one_multiplies_and_gives_our_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, RIGHT, monkeypatch)
    import bitsandbytes as library

    weight, x = Nf4.quantize(torch.randn(48, 128)), torch.randn(2, 3, 128)
    ours = weight.times(x)
    used: list[int] = []
    product = library.matmul_4bit
    monkeypatch.setattr(library, "matmul_4bit", lambda *given: (used.append(1), product(*given))[1])
    monkeypatch.setattr(nf4, "kernels", lambda *what: library)
    assert torch.allclose(weight.times(x), ours, atol=1e-4) and used


def test_loading_says_once_why_it_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = released(tmp_path, tiny_llama())
    monkeypatch.setattr(engine, "missing", lambda *what: "bitsandbytes does not work here: OSError")
    said: list[str] = []
    TorchLM.load(folder, EngineConfig(weights="nf4"), lambda what, done, total: said.append(what))
    words = "bitsandbytes does not work here: OSError. Four-bit weights are multiplied by our own way, which is slower"
    assert said.count(words) == 1


@pytest.mark.parametrize("weights", ["nf4", "bnb8", "int8"])
def test_a_broken_one_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    source = released(tmp_path / "source", tiny_llama())
    folder = tmp_path / "packed"
    int8_folder(folder, source) if weights == "int8" else bitsandbytes(folder, source, 8 if weights == "bnb8" else 4)
    put(tmp_path, SETUP_FAILED, monkeypatch)
    ids = torch.randint(0, VOCAB, (20,), generator=torch.Generator().manual_seed(3)).tolist()
    for stored in (folder, source):
        with TorchLM.load(stored, EngineConfig(weights=weights)).open([64]) as lm:
            assert bool(lm.prefill(0, ids).isfinite().all())
