"""The exl2 engine over ExLlamaV2's own layers on a CPU (see stub_exllamav2.py), against the torch engine in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_exllamav2 import flash
from stub_exllamav2 import Extension, real_package

from tools.make_exl2 import PRESETS, make_plain, make_random
from tools.make_set import LM, write_lm
from yuegp.errors import Cancelled, DeviceError, ModelError
from yuegp.lm import EngineConfig
from yuegp.lm.exl2.engine import Exl2LM
from yuegp.lm.exl2.format import look_into
from yuegp.lm.exl2.self_test import LIMITS, disagreement, self_test
from yuegp.lm.exl2.weights import Weights
from yuegp.lm.llama.engine import TorchLM

VOCAB = 1344
KEEP = list(range(300, 900))
Parts = tuple[Any, Any, Extension]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    return real_package(monkeypatch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain model, an EXL2 one, and for each the plain folder the torch engine is to read."""
    root = tmp_path_factory.mktemp("models")
    write_lm(root / "plain", LM(VOCAB, 128, 256, 3, 4, 2, 2048, shards=2), 5, transformers5=True)
    make_random(root / "packed", PRESETS["tiny"], bits=4.5, head_bits=6, seed=3)
    make_plain(root / "unpacked", look_into(root / "packed", "exl2"))
    wide = LM(VOCAB, 512, 256, 2, 4, 4, 2048)  # as Stage 1: 512 keys a position, which caches pack position by position
    make_random(root / "wide", wide, bits=5, head_bits=6, seed=4)
    make_plain(root / "wide unpacked", look_into(root / "wide", "exl2"))
    return {folder.name: folder for folder in root.iterdir()}


def load(parts: Parts, folder: Path, weights: str, kv: str = "same", **more: Any) -> Exl2LM:
    return Exl2LM(
        parts[0], look_into(folder, weights), EngineConfig("exl2", "cpu", weights, kv), more.get("progress"), None
    )


def some_ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def play(lm: Any) -> list[torch.Tensor]:
    """Prefills over pages, guidance's two rows at different lengths, a rewind, a copy, several ids per row."""
    out = [lm.prefill(0, some_ids(300)), lm.prefill(1, [260]), lm.prefill(2, some_ids(40, 2))]
    out += [lm.step(torch.tensor(ids)) for ids in zip(some_ids(20, 3), some_ids(20, 4), some_ids(20, 5), strict=True)]
    lm.truncate(0, 250), lm.truncate(1, 0), lm.copy(0, 2)
    out += [lm.prefill(1, some_ids(9, 6)), lm.step(torch.tensor(some_ids(6, 7)).view(3, 2))]
    return out


def worst(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("name", "twin"), [("plain", "plain"), ("packed", "unpacked")])
def test_the_same_logits_as_the_torch_engine(parts: Parts, folders: dict[str, Path], name: str, twin: str) -> None:
    weights = "exl2" if name == "packed" else "float16"
    engine = load(parts, folders[name], weights)
    capacities = [500, 40, 400]
    with (
        engine.open(capacities, KEEP) as ours,
        TorchLM.load(folders[twin], EngineConfig()).open(capacities, KEEP) as theirs,
    ):
        assert worst(play(ours), play(theirs)) < 0.01
    assert (len(parts[2].calls) > 0) == (name == "packed"), "packed layers run in the package's fused calls"


def test_flash_attention_gets_the_right_pages_and_lengths(
    parts: Parts, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    def attend(**k: Any) -> torch.Tensor:
        single = {name: value.float() if torch.is_floating_point(value) else value for name, value in k.items()
                  if isinstance(value, torch.Tensor)}  # fmt: skip
        out = flash(**{**k, **single})
        for name in ("k_cache", "v_cache"):
            k[name].copy_(single[name])
        return out.half()

    monkeypatch.setattr(parts[1], "flash_attn_with_kvcache", attend)
    engine = load((dataclasses.replace(parts[0], attention=None), *parts[1:]), folders["packed"], "exl2")
    capacities = [500, 40, 400]
    reference = TorchLM.load(folders["unpacked"], EngineConfig())
    with engine.open(capacities, KEEP) as ours, reference.open(capacities, KEEP) as theirs:
        assert worst(play(ours), play(theirs)) < 0.01


@pytest.mark.parametrize(("name", "twin"), [("packed", "unpacked"), ("wide", "wide unpacked")])
@pytest.mark.parametrize(("kv", "tolerance"), [("q8", 0.03), ("q6", 0.15), ("q4", 0.3)])
def test_quantized_caches(
    parts: Parts, folders: dict[str, Path], kv: str, tolerance: float, name: str, twin: str
) -> None:
    engine = load(parts, folders[name], "exl2", kv)
    self_test(engine)
    assert disagreement(engine, kv) < LIMITS[kv] / 2
    capacities = [500, 40, 400]
    reference = TorchLM.load(folders[twin], EngineConfig())
    with engine.open(capacities, KEEP) as ours, reference.open(capacities, KEEP) as theirs:
        error = worst(play(ours), play(theirs))
    assert 1e-3 < error < tolerance


def test_the_packages_own_attention_without_flash_attn_is_wrong_and_ours_is_not(
    parts: Parts, folders: dict[str, Path]
) -> None:
    """The fault this engine is built around, shown in the package itself: its forward without flash-attn and with
    SDPA left on, against the same without SDPA."""
    package, attn, _ = parts
    config, places = package.config(str(folders["plain"])), look_into(folders["plain"], "float16").places
    attn.has_lower_right_sdpa, config.no_flash_attn, config.max_input_len = True, True, 512
    weights = Weights(places, 1, lambda done, total: None)
    config.tensor_file_map = dict.fromkeys(places, weights)
    model = package.model(config)
    weights.serve(model.modules)
    model.load()
    ids = torch.tensor([some_ids(60)])
    logits = {}
    for no_sdpa in (False, True):
        config.no_sdpa = no_sdpa
        cache = package.caches["fp16"](model, batch_size=1, max_seq_len=256)
        logits[no_sdpa] = model.forward(ids, cache, last_id_only=True)[0, -1, KEEP].float()
    with TorchLM.load(folders["plain"], EngineConfig()).open([60], KEEP) as lm:
        right = lm.prefill(0, ids[0].tolist())
    assert worst([logits[True]], [right]) < 0.01
    assert worst([logits[False]], [right]) > 0.1
    engine = load(parts, folders["plain"], "float16")
    assert disagreement(engine, "fp16") < 0.01


def test_the_self_test_refuses_the_package_without_its_mask(parts: Parts, folders: dict[str, Path]) -> None:
    def no_mask(**k: Any) -> torch.Tensor:
        k["k_cache"], k["v_cache"] = k["k_cache"].float(), k["v_cache"].float()
        k["q"] = k["q"].float()
        for name in ("k", "v"):
            k[name] = None if k[name] is None else k[name].float()
        return flash(**k, faulty=True).half()

    parts[1].flash_attn_with_kvcache = no_mask
    with pytest.raises(DeviceError, match="wrong numbers"):
        self_test(load(parts, folders["plain"], "float16"))


def test_embedding_and_output_layer_are_never_loaded_whole(parts: Parts, folders: dict[str, Path]) -> None:
    engine = load(parts, folders["packed"], "exl2")
    assert engine._body is not None
    kinds = [type(module).__name__ for module in engine._body._modules]
    assert kinds == ["ExLlamaV2Attention", "ExLlamaV2MLP"] * 3 + ["ExLlamaV2RMSNorm"]
    stored = engine._body._model.config
    assert stored.no_sdpa and stored.max_seq_len == 2048 and stored.rotary_embedding_base == 10000


def test_unload_frees_every_handle_and_a_second_load_works(parts: Parts, folders: dict[str, Path]) -> None:
    for _ in range(2):
        engine = load(parts, folders["packed"], "exl2")
        assert parts[2].things
        engine.unload()
        assert not parts[2].things


def test_a_cancelled_load_frees_every_handle(parts: Parts, folders: dict[str, Path]) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        load(parts, folders["packed"], "exl2", progress=progress)
    assert not parts[2].things


def test_a_damaged_folder_is_said(parts: Parts, folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["plain"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = look_into(tmp_path, "float16")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="ExLlamaV2 cannot load"):
        Exl2LM(parts[0], found, EngineConfig("exl2", "cpu", "float16"), None, None)
