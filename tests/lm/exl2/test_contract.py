"""What every engine promises to the music above it, asked of each engine that is here in the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fake_exllamav2 as fake
import numpy as np
import pytest
import torch
from contract import refined, sections
from fake_record import record
from stub_exllamav2 import real_package

from tools.make_exl2 import PRESETS, make_random
from tools.make_set import LM, write_lm
from yuegp.lm import EngineConfig, LMEngine, open_engine
from yuegp.lm.exl2.engine import Exl2LM
from yuegp.lm.exl2.format import look_into

SHAPE = LM(1344, 64, 96, 2, 4, 2, 2048)
Open = Callable[[Path], LMEngine]


def _card(folder: Path) -> LMEngine:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA card")
    return open_engine(folder, EngineConfig("exl2", "cuda", "float16"))


ENGINES: dict[str, Open] = {
    "torch": lambda folder: open_engine(folder, EngineConfig(weights="float32")),
    "exl2 over a stand-in": lambda folder: fake.engine(folder),
    "exl2 over a stand-in with flash-attn": lambda folder: fake.engine(folder, own_attention=False),
    "exl2 over a stand-in, recorded": lambda folder: fake.engine(folder, record=record),
    "exl2 over a stand-in, packed cache": lambda folder: fake.engine(folder, "q8"),
    "exl2 on a card": _card,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "some model"
    write_lm(folder, SHAPE, 5)
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def engine(folder: Path, request: pytest.FixtureRequest) -> LMEngine:
    return ENGINES[request.param](folder)


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, SHAPE.vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_it_says_what_it_is(engine: LMEngine) -> None:
    assert (engine.name, engine.context, engine.vocab_size) == ("some model", 2048, 1344)
    assert engine.kv_bytes > 0 and engine.weight_bytes > 0 and engine.device.startswith(engine.setup.device)


def test_shapes(engine: LMEngine) -> None:
    keep = [5, 900, 7]
    with engine.open([20, 30], keep) as lm:
        assert lm.prefill(0, ids(9)).shape == (3,)
        lm.prefill(1, ids(2))
        assert lm.step(torch.tensor([1, 2])).shape == (2, 3)
        assert lm.step(torch.tensor([[1, 2], [3, 4]])).shape == (2, 3)
        assert lm.step(torch.tensor([1, 2]), slice(1, 3)).shape == (2, 2)
        assert (lm.length(0), lm.length(1)) == (13, 6)
        assert str(lm.step(torch.tensor([1, 2])).device).startswith(engine.device)


def test_a_step_is_a_prefill_of_one_and_the_order_of_keep_is_kept(engine: LMEngine) -> None:
    one, other = ids(30), ids(31)
    with engine.open([40, 40], [3, 900, 41]) as lm:
        lm.prefill(0, one[:-1]), lm.prefill(1, other[:-1])
        stepped = lm.step(torch.tensor([one[-1], other[-1]])).float()
        lm.truncate(0, 0), lm.truncate(1, 0)
        at_once = torch.stack([lm.prefill(0, one), lm.prefill(1, other)]).float()
    assert float((stepped - at_once).norm() / at_once.norm()) < 0.03
    with engine.open([40], [41, 3]) as lm:
        turned = lm.prefill(0, one).float()
    assert float((turned - at_once[0, [2, 0]]).norm() / turned.norm()) < 0.03


def test_what_a_session_refuses(engine: LMEngine) -> None:
    with engine.open([10, 12], [1, 2]) as lm:
        lm.prefill(0, ids(10)), lm.prefill(1, ids(5))
        with pytest.raises(ValueError, match="do not fit a row of 10 ids with room for 10"):
            lm.step(torch.tensor([1, 1]))
        with pytest.raises(ValueError, match="do not fit a row of 5 ids with room for 12"):
            lm.prefill(1, ids(8))
        with pytest.raises(ValueError, match="cannot cut"):
            lm.truncate(1, 6)
        with pytest.raises(ValueError, match="at least one id"):
            lm.prefill(0, [])
        with pytest.raises(ValueError, match="3 rows of ids for a session of 2 rows"):
            lm.step(torch.tensor([1, 1, 1]))
        assert (lm.length(0), lm.length(1)) == (10, 5), "a refusal changed a row"
    with pytest.raises(ValueError, match="context of 2048"):
        engine.open([2049])


EXACT = [name for name in ENGINES if name.startswith("exl2 over") and "packed" not in name]


@pytest.mark.parametrize("name", EXACT)
def test_the_same_song_as_the_torch_engine_code_for_code(folder: Path, name: str) -> None:
    """In single precision the exl2 engine's rows, pages, guidance and takes change nothing about the music."""
    ours, theirs = ENGINES[name](folder), ENGINES["torch"](folder)
    assert sections(ours) == sections(theirs)
    assert sections(ours, takes=3) == sections(theirs, takes=3)
    assert refined(ours) == refined(theirs)


def test_the_packages_own_layers_sing_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision, with packed weights and an 8-bit cache: no comparison of codes, every promise of shape."""
    package, _, _ = real_package(monkeypatch)
    folder = make_random(tmp_path / "model", PRESETS["tiny"], 6, 6)
    engine = Exl2LM(package, look_into(folder, "exl2"), EngineConfig("exl2", "cpu", "exl2", "q8"), None, None)
    for codes in [*(once := sections(engine, budget=30)), *sections(engine, takes=2, budget=30)]:
        array = np.array(codes)
        assert array.shape[0] == 2 and 10 <= array.shape[1] <= 15 and 0 <= array.min() <= array.max() < 30
    assert sections(engine, budget=30) == once


def test_an_unloaded_engine_says_so(folder: Path) -> None:
    for name in ("torch", "exl2 over a stand-in"):
        engine = ENGINES[name](folder)
        engine.unload()
        with pytest.raises(RuntimeError, match="was unloaded"):
            engine.open([8])
