"""The exl2 engine on a card, with ExLlamaV2's real kernels. Skipped where there is no card, or no ExLlamaV2."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import LAYOUT, refined, sections
from fake_exllamav2 import flash as by_hand

from tools.make_exl2 import make_plain, make_random
from tools.make_set import LM, write_lm
from yuegp.errors import Cancelled, DeviceError
from yuegp.lm import EngineConfig, open_engine
from yuegp.lm.exl2.attention import PagedAttention, sight
from yuegp.lm.exl2.engine import WHOLE_STEP, Exl2LM
from yuegp.lm.exl2.flash_probe import probe
from yuegp.lm.exl2.format import look_into
from yuegp.lm.exl2.package import load_package
from yuegp.lm.exl2.self_test import disagreement
from yuegp.lm.llama.engine import TorchLM

pytestmark = pytest.mark.gpu

SHAPE = LM(vocab=1344, hidden=1024, ffn=2816, layers=4, heads=8, kv_heads=4, context=4096)
KEEP = [*LAYOUT.stage1_ids, *range(400, 1300)]
CAPACITIES = [2000, 300, 2000]


@pytest.fixture(autouse=True, scope="module")
def _exllamav2() -> None:
    if torch.cuda.is_available():
        try:
            load_package(0)
        except DeviceError as exc:
            pytest.skip(exc.what)


def folders(root: Path, bits: float) -> tuple[Path, Path]:
    packed = make_random(root / f"exl2-{bits}", SHAPE, bits, 6, seed=3)
    return packed, make_plain(root / f"plain-{bits}", look_into(packed, "exl2"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An EXL2 model that mixes bits, and the same weights unpacked."""
    return folders(tmp_path_factory.mktemp("models"), 4.5)


def load(folder: Path, weights: str = "exl2", kv: str = "same") -> Exl2LM:
    engine = open_engine(folder, EngineConfig("exl2", "cuda", weights, kv))
    assert isinstance(engine, Exl2LM)
    return engine


@pytest.fixture(scope="module")
def reference(pair: tuple[Path, Path]) -> Iterator[TorchLM]:
    engine = TorchLM.load(pair[1], EngineConfig("torch", "cuda", "float32"))
    yield engine
    engine.unload()


def some_ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, SHAPE.vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def play(lm: Any) -> list[torch.Tensor]:
    """Long and short rows, 30 joint steps, a rewind, a copy, two ids per row."""
    out = [lm.prefill(0, some_ids(1500)), lm.prefill(1, [260]), lm.prefill(2, some_ids(700, 2))]
    out += [lm.step(torch.tensor(ids)) for ids in zip(some_ids(30, 3), some_ids(30, 4), some_ids(30, 5), strict=True)]
    lm.truncate(0, 1300), lm.truncate(1, 0), lm.copy(0, 2)
    out += [lm.prefill(1, some_ids(9, 6)), lm.step(torch.tensor(some_ids(6, 7)).view(3, 2))]
    return [logits.float().cpu() for logits in out]


def worst(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bits", [8, 6, 5, 4.25, 4, 3, 2])
def test_packed_weights_are_what_we_unpack(tmp_path: Path, bits: float) -> None:
    """The kernels' reading of every width against ours, through whole models."""
    packed, plain = folders(tmp_path, bits)
    engine, reference = load(packed), TorchLM.load(plain, EngineConfig("torch", "cuda", "float32"))
    with engine.open(CAPACITIES, KEEP) as ours, reference.open(CAPACITIES, KEEP) as theirs:
        assert worst(play(ours), play(theirs)) < 0.03


@pytest.mark.parametrize(("kv", "limit"), [("fp16", 0.03), ("q8", 0.06), ("q6", 0.25), ("q4", 0.4)])
def test_quantized_caches(pair: tuple[Path, Path], reference: TorchLM, kv: str, limit: float) -> None:
    engine = load(pair[0], kv=kv)
    with engine.open(CAPACITIES, KEEP) as ours, reference.open(CAPACITIES, KEEP) as theirs:
        error = worst(play(ours), play(theirs))
    print(f"{kv}: {error:.4f}, two readings differ by {disagreement(engine, kv):.4f}")
    assert error < limit


def test_weights_that_are_not_packed(pair: tuple[Path, Path], reference: TorchLM) -> None:
    with load(pair[1], "float16").open(CAPACITIES, KEEP) as ours, reference.open(CAPACITIES, KEEP) as theirs:
        assert worst(play(ours), play(theirs)) < 0.02


def test_songs_keep_their_promises_and_score_as_the_torch_engine_scores_them(
    pair: tuple[Path, Path], reference: TorchLM
) -> None:
    engine = load(pair[0])
    for codes in [*sections(engine), *sections(engine, takes=3)]:
        array = np.array(codes)
        assert array.shape[0] == 2 and 10 <= array.shape[1] <= 60 and 0 <= array.min() <= array.max() < 30
    assert np.array(refined(engine)).shape == (2, 8, 12)
    ids = some_ids(600, 8)
    with engine.open([700], KEEP) as ours, reference.open([700], KEEP) as theirs:
        scored = ours.score(0, ids).float().cpu()
        wanted = torch.stack([theirs.prefill(0, ids[:1]), *(theirs.step(torch.tensor([i]))[0] for i in ids[1:])]).cpu()
    assert worst([scored], [wanted]) < 0.03
    assert float((scored.argmax(1) == wanted.argmax(1)).float().mean()) > 0.97


@pytest.mark.parametrize("weights", ["float16", "exl2"])
def test_one_step_a_hundred_times(pair: tuple[Path, Path], weights: str) -> None:
    """Plain weights repeat exactly. Packed ones are summed in changing order: counted, and close."""
    engine = load(pair[0] if weights == "exl2" else pair[1], weights)
    with engine.open([900, 300], KEEP) as lm:
        lm.prefill(0, some_ids(800)), lm.prefill(1, some_ids(20))
        results = []
        for _ in range(100):
            results.append(lm.step(torch.tensor([400, 401])).float().cpu())
            lm.truncate(0, 800), lm.truncate(1, 20)
    distinct = len({result.numpy().tobytes() for result in results})
    print(f"{weights}: {distinct} distinct results of 100")
    if weights == "float16":
        assert distinct == 1
    assert worst(results, [results[0]] * 100) < 0.03


@pytest.mark.parametrize("kv", ["fp16", "q8"])
@pytest.mark.parametrize("weights", ["float16", "exl2"])
def test_recorded_steps_equal_plain_ones(
    pair: tuple[Path, Path], weights: str, kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pair[0] if weights == "exl2" else pair[1]
    fed = torch.tensor(some_ids(2 * 200, 9)).view(200, 2) % 900 + 400

    def run(engine: Exl2LM) -> list[torch.Tensor]:
        with engine.open([1500, 300], KEEP) as lm:
            lm.prefill(0, some_ids(950)), lm.prefill(1, [260])
            out = [lm.step(ids.to(engine.device)).float().cpu() for ids in fed]
            lm.truncate(0, 400), lm.truncate(1, 10)
            out.append(lm.step(fed[0].to(engine.device)).float().cpu())
            recorded = lm._steps._recorded if lm._steps else {}
            assert bool(recorded) == (engine._record is not None)
        return out

    plain = run(load(folder, weights, kv))
    monkeypatch.setenv(WHOLE_STEP, "1")
    assert worst(run(load(folder, weights, kv)), plain) < 0.05


@pytest.mark.parametrize("n", [1, 2, 300])
def test_our_attention_on_the_card(n: int) -> None:
    """Half precision on the card against single precision by hand; and flash-attn's own, where it works."""
    torch.manual_seed(0)
    lengths, page, device = [3000, 37], 256, torch.device("cuda", 0)
    counts = [-(-(length + n) // page) for length in lengths]
    starts = [0, counts[0] * page]
    given = {"q": torch.randn(2, n, 32, 128), "k": torch.randn(2, n, 4, 128), "v": torch.randn(2, n, 4, 128)}
    given |= {name: torch.randn(sum(counts), page, 4, 128) for name in ("k_cache", "v_cache")}
    table = torch.tensor([list(range(counts[0])), [counts[0] + min(i, counts[1] - 1) for i in range(counts[0])]])
    rest: dict[str, Any] = {"causal": True, "softmax_scale": 128**-0.5}
    held = torch.tensor(lengths, dtype=torch.int32)
    wanted = by_hand(
        **{name: value.clone() for name, value in given.items()}, cache_seqlens=held, block_table=table, **rest
    )
    there = held.to(device)
    calls: dict[str, Any] = {}
    for exact in (True, False):
        calls[f"ours, exact {exact}"] = attention = PagedAttention()
        widths = [length + n if exact else count * page for length, count in zip(lengths, counts, strict=True)]
        attention.sight = sight(starts, there, n, widths, exact, torch.tensor(starts, device=device))
    if probe().works:
        import flash_attn

        calls["flash-attn"] = flash_attn.flash_attn_with_kvcache
    for name, call in calls.items():
        card = {key: value.half().to(device) for key, value in given.items()}
        got = call(**card, cache_seqlens=there, block_table=table.int().to(device), **rest).float().cpu()
        assert float((got - wanted).abs().max()) < 0.01, name


def test_a_wrong_attention_is_refused_at_load(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import exllamav2.attn as attn

    package = load_package(0)
    right = attn.flash_attn_with_kvcache

    def shifted(**given: Any) -> torch.Tensor:
        """Steps are right, which hides it; in prompts every position gets its neighbour's result."""
        out = right(**given)
        return out if out.shape[1] == 1 else out.roll(1, 1)

    monkeypatch.setattr(attn, "flash_attn_with_kvcache", shifted)
    monkeypatch.setattr("yuegp.lm.exl2.engine.load_package", lambda card: package)
    with pytest.raises(DeviceError, match="wrong numbers"):
        load(pair[1], "float16")


def test_cancel_and_go_on(pair: tuple[Path, Path]) -> None:
    engine = load(pair[0])
    with engine.open([900], KEEP) as lm:
        lm.prefill(0, some_ids(500))
        engine.abort.set()
        with pytest.raises(Cancelled):
            lm.prefill(0, some_ids(300))
        engine.abort.clear()
        assert lm.length(0) == 500
        assert bool(torch.isfinite(lm.step(torch.tensor([400]))).all())


@pytest.mark.parametrize("kv", ["fp16", "q4"])
@pytest.mark.parametrize("caches", [False, True])
def test_sessions_outlast_a_turn_of_somebody_else(pair: tuple[Path, Path], kv: str, caches: bool) -> None:
    engine, ids = load(pair[0], kv=kv), some_ids(8, 2)
    heard: list[list[torch.Tensor]] = [[], []]
    for turns, logits in zip((False, True), heard, strict=True):
        with engine.open([900, 300], KEEP) as lm:
            lm.prefill(0, some_ids(800)), lm.prefill(1, some_ids(20))
            for id_ in ids:
                if turns:
                    held = torch.cuda.memory_allocated()
                    engine.park(caches)
                    assert torch.cuda.memory_allocated() < held - 0.8 * engine.weight_bytes
                    engine.unpark()
                logits.append(lm.step(torch.tensor([id_, id_])).float().cpu())
    assert worst(*heard) < 0.02
    engine.unload()


def test_five_loads_leave_nothing_but_the_context(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    write_lm(folder, SHAPE, 3)

    def cycle() -> int:
        engine = load(folder, "bfloat16", "q8")
        with engine.open(CAPACITIES, KEEP) as lm:
            play(lm)
        engine.unload()
        del engine, lm
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        return torch.cuda.mem_get_info()[0]

    first = cycle()
    leaked = first - min(cycle() for _ in range(5))
    print(f"{leaked / 2**20:.1f} MiB after five more cycles; torch holds {torch.cuda.memory_allocated() / 2**20:.1f}")
    assert leaked < 50 * 2**20
