"""The exl2 engine's own work (pages, lengths, rewinds, takes, both ends, recorded steps), over a stand-in for
ExLlamaV2 with real arithmetic: the same logits as the torch engine, whatever is done to the rows."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import fake_exllamav2 as fake
import pytest
import torch
from fake_record import record
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.manager import Offloadable
from tools.make_exl2 import PRESETS, make_plain, make_random
from tools.make_set import LM, write_lm
from yuegp.errors import Cancelled, DeviceError, ModelError
from yuegp.lm import EngineConfig
from yuegp.lm.exl2 import engine as exl2_lm
from yuegp.lm.exl2.embedding import SPARE
from yuegp.lm.exl2.engine import BUCKET, Exl2LM, kv_bytes
from yuegp.lm.exl2.format import look_into
from yuegp.lm.exl2.graph import Steps
from yuegp.lm.exl2.layers import ROWS
from yuegp.lm.exl2.self_test import LIMITS, disagreement, self_test
from yuegp.lm.llama.engine import TorchLM

VOCAB = 1344
KEEP = [*range(300, 900), 7, 1300]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model: random, two shards, a rope base that ExLlamaV2 would not find by itself."""
    folder = tmp_path_factory.mktemp("plain")
    write_lm(folder, LM(VOCAB, 64, 96, 3, 4, 2, 2048, shards=2), 5, transformers5=True)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 777.0
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> TorchLM:
    return TorchLM.load(folder, EngineConfig(weights="float32"))


@pytest.fixture(scope="module", params=["own attention", "flash-attn", "recorded"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Exl2LM:
    if request.param == "recorded":
        return fake.engine(folder, record=record)
    return fake.engine(folder, own_attention=request.param == "own attention")


def close(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-3) -> None:
    """Equal but for the float16 rounding of embedding and output layer."""
    assert ours.shape == wanted.shape
    assert float((ours - wanted).norm() / wanted.norm()) < tolerance


def some_ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


# Equal logits


IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40)
ROWS_OF = st.integers(0, 2)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("prefill"), ROWS_OF, IDS),
        st.tuples(st.just("step"), st.lists(st.integers(0, VOCAB - 1), min_size=3, max_size=3)),
        st.tuples(st.just("steps"), st.integers(2, 4), st.integers(0, 10**6)),
        st.tuples(st.just("truncate"), ROWS_OF, st.floats(0, 1)),
        st.tuples(st.just("copy"), ROWS_OF, ROWS_OF),
    ),
    min_size=1,
    max_size=14,
)


@given(moves=MOVES)
@settings(max_examples=30, deadline=None)
def test_any_order_of_prefills_steps_rewinds_and_copies(moves: list[Any], engine: Exl2LM, reference: TorchLM) -> None:
    capacities = [300, 700, 513]
    with engine.open(capacities, KEEP) as ours, reference.open(capacities, KEEP) as theirs:
        for row, start in enumerate((290, 250, 1)):  # near the edges of pages from the beginning
            ids = some_ids(start, row)[: min(start, capacities[row] - 8)]
            close(ours.prefill(row, ids), theirs.prefill(row, ids))
        for kind, *what in moves:
            room = [capacity - ours.length(row) for row, capacity in enumerate(capacities)]
            if kind == "prefill" and room[what[0]] >= len(what[1]):
                close(ours.prefill(*what), theirs.prefill(*what))
            elif kind == "step" and min(room) >= 1:
                close(ours.step(torch.tensor(what[0])), theirs.step(torch.tensor(what[0])))
            elif kind == "steps" and min(room) >= what[0]:
                ids = torch.tensor(some_ids(3 * what[0], what[1])).view(3, what[0])
                close(ours.step(ids, slice(5, 50)), theirs.step(ids, slice(5, 50)))
            elif kind == "truncate":
                length = int(what[1] * ours.length(what[0]))
                ours.truncate(what[0], length), theirs.truncate(what[0], length)
            elif kind == "copy" and ours.length(what[0]) <= capacities[what[1]]:
                ours.copy(*what), theirs.copy(*what)
            assert [ours.length(row) for row in range(3)] == [theirs.length(row) for row in range(3)]


def test_two_rows_of_guidance_take_one_pass_over_the_weights(folder: Path) -> None:
    engine = fake.engine(folder)
    passes: list[int] = []
    assert engine._body is not None
    for module in engine._body._modules:
        module.forward = lambda x, _forward=module.forward, **more: passes.append(len(x)) or _forward(x, **more)
    with engine.open([600, 40], KEEP) as lm:
        lm.prefill(0, some_ids(500))
        lm.prefill(1, some_ids(1))
        passes.clear()
        lm.step(torch.tensor([KEEP[0], KEEP[1]]))
        assert passes == [2] * len(engine._body._modules)


def test_a_prompt_longer_than_one_pass_and_a_wide_step(folder: Path, reference: TorchLM) -> None:
    engine = fake.engine(folder)
    ids = some_ids(ROWS + 300, 8)
    with engine.open([len(ids)], KEEP) as ours, reference.open([len(ids)], KEEP) as theirs:
        close(ours.prefill(0, ids), theirs.prefill(0, ids))
    wide = torch.tensor(some_ids(5 * 300, 9)).view(5, 300)  # Stage 2 feeds its prefix to all rows in one step
    with engine.open([300] * 5, KEEP) as ours, reference.open([300] * 5, KEEP) as theirs:
        close(ours.step(wide), theirs.step(wide))


def test_the_whole_vocabulary_without_keep(folder: Path, reference: TorchLM) -> None:
    with fake.engine(folder).open([50]) as ours, reference.open([50]) as theirs:
        close(ours.prefill(0, some_ids(40)), theirs.prefill(0, some_ids(40)))
        close(ours.step(torch.tensor([11])), theirs.step(torch.tensor([11])))


def test_an_exl2_folder_equals_the_plain_folder_of_its_unpacked_weights(tmp_path: Path) -> None:
    packed = make_random(tmp_path / "exl2", PRESETS["tiny"], bits=4.5, head_bits=6, seed=3)
    plain = make_plain(tmp_path / "plain", look_into(packed, "exl2"))
    keep = list(range(200, 900))
    with (
        fake.engine(packed).open([60, 60], keep) as ours,
        TorchLM.load(plain, EngineConfig()).open([60, 60], keep) as theirs,
    ):
        for lm in (ours, theirs):
            lm.prefill(0, some_ids(50))
            lm.prefill(1, some_ids(4, 1))
        close(ours.step(torch.tensor([5, 6])), theirs.step(torch.tensor([5, 6])))


@pytest.mark.parametrize(("kv", "tolerance"), [("fp16", 2e-3), ("q8", 0.03), ("q4", 0.4)])
def test_quantized_caches_read_back_what_they_rounded(
    folder: Path, reference: TorchLM, kv: str, tolerance: float
) -> None:
    ids = some_ids(300, 4)
    with fake.engine(folder, kv).open([400, 20], KEEP) as ours, reference.open([400, 20], KEEP) as theirs:
        for lm in (ours, theirs):
            lm.prefill(0, ids)
            lm.truncate(0, 261)
            lm.prefill(1, ids[:3])
        ours, theirs = ours.step(torch.tensor([5, 6])), theirs.step(torch.tensor([5, 6]))
    close(ours, theirs, tolerance)
    if kv != "fp16":
        assert not torch.allclose(ours, theirs, rtol=1e-3), "this cache did not round"


# Recorded steps


def test_recorded_steps_are_repeated_and_not_computed_again(folder: Path, reference: TorchLM) -> None:
    made: list[int] = []

    def counting(work: Any) -> Any:
        made.append(1)
        return record(work)

    warm = Steps(counting, 3)._warm
    engine = fake.engine(folder, record=counting)
    assert engine._body is not None
    computed: list[int] = []
    forward = engine._body._modules[0].forward
    engine._body._modules[0].forward = lambda x, **more: computed.append(1) or forward(x, **more)
    count = warm + 60
    ids = torch.tensor(some_ids(2 * count, 1)).view(count, 2) % 600 + 300
    with engine.open([2000, 700], KEEP) as ours, reference.open([2000, 700], KEEP) as theirs:
        for lm in (ours, theirs):
            lm.prefill(0, some_ids(BUCKET - count + 20)), lm.prefill(1, [260])
        computed.clear()
        for t in range(count):
            got, wanted = ours.step(ids[t]), theirs.step(ids[t])
            close(got, wanted)
    assert len(made) == 2, "one recording looks as far as a row may get, the next one further"
    assert len(computed) == warm + 2 * len(made), "each is made from a plain step, and repeated without computing it"


def test_a_single_row_is_recorded_too(folder: Path, reference: TorchLM) -> None:
    """The package would fix the place of a lone row's new keys as a number in the recording."""
    engine = fake.engine(folder, record=record)
    with engine.open([300], KEEP) as ours, reference.open([300], KEEP) as theirs:
        for t in range(Steps(record, 3)._warm + 9):
            ids = torch.tensor([300 + 7 * t % 600])
            close(ours.step(ids), theirs.step(ids))


def test_a_rewind_is_seen_by_a_recorded_step(folder: Path, reference: TorchLM) -> None:
    engine = fake.engine(folder, record=record)
    with engine.open([300, 300], KEEP) as ours, reference.open([300, 300], KEEP) as theirs:
        for lm in (ours, theirs):
            lm.prefill(0, some_ids(20)), lm.prefill(1, some_ids(5))
            for _ in range(Steps(record, 3)._warm + 3):
                lm.step(torch.tensor([400, 401]))
            lm.truncate(0, 9)
            lm.copy(0, 1)
        close(ours.step(torch.tensor([500, 501])), theirs.step(torch.tensor([500, 501])))


def test_a_recording_that_does_not_repeat_its_step_is_refused(folder: Path) -> None:
    def faulty(work: Any) -> Any:
        out, repeat = record(work)
        return out, lambda: (repeat(), out.mul_(1.2))

    with fake.engine(folder, record=faulty).open([300], KEEP) as lm:
        lm.prefill(0, [1])
        with pytest.raises(DeviceError, match=r"recorded step .* off by 20"):
            for _ in range(100):
                lm.step(torch.tensor([400]))


# What is on the card


def test_only_the_rows_in_use_are_held(folder: Path, reference: TorchLM) -> None:
    """656 MiB each for a whole embedding and a whole output layer of Stage 1, of which 1.2 % are used."""
    engine = fake.engine(folder)
    with engine.open([40], [300, 301, 302]) as lm:
        assert engine._ends is not None
        _, embedding, head = engine._ends
        assert embedding.table.shape[0] == min(3 + SPARE, VOCAB)
        assert head._weight.shape == (32, 64) and lm.prefill(0, [1, 2, 3]).shape == (3,)
        held = embedding._count
        lm.step(torch.tensor([300]))
        assert embedding._count == held, "an expected id was on the card already"
        lm.step(torch.tensor([44]))
        assert embedding._count == held + 1, "another one is put there when it is first fed"


def test_ids_that_have_no_room_on_the_card_are_still_right(
    folder: Path, reference: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yuegp.lm.exl2.embedding.SPARE", 2)
    with fake.engine(folder).open([40, 40], [300]) as ours, reference.open([40, 40], [300]) as theirs:
        for ids in ([1, 300], [2, 3], [4, 5], [300, 1]):
            close(ours.step(torch.tensor(ids)), theirs.step(torch.tensor(ids)))


def test_bytes_of_the_cache() -> None:
    """Stage 1: 64 KiB an id at FP16, 34 at q8, 26 at q6, 18 at q4, and 2 KiB for the one unpacked layer."""
    assert kv_bytes(32, 512, "fp16") == 64 * 1024
    assert [kv_bytes(32, 512, kind) for kind in ("q8", "q6", "q4")] == [k * 1024 for k in (36, 28, 20)]


def test_what_the_engine_says_of_itself(folder: Path) -> None:
    engine = fake.engine(folder)
    assert (engine.context, engine.vocab_size, engine.device, engine.setup.engine) == (2048, VOCAB, "cpu", "exl2")
    per_layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64
    assert engine.weight_bytes == 2 * (3 * per_layer + 64)


# Refusals


def test_the_self_test_passes_and_refuses_an_attention_without_causal_mask(folder: Path) -> None:
    """The silent fault of ExLlamaV2 0.2.9 to 0.3.2 without flash-attn: prompts are read without a causal mask."""
    self_test(fake.engine(folder))
    self_test(fake.engine(folder, "q8"))

    no_mask = functools.partial(fake.flash, faulty=True)
    faulty = fake.engine(folder, model=lambda config: fake.Model(config, no_mask))
    assert disagreement(faulty, "fp16") > 5 * LIMITS["fp16"]
    with pytest.raises(DeviceError, match="wrong numbers"):
        self_test(faulty)


@pytest.mark.parametrize("fault", ["not finite", "one length for all rows"])
def test_the_self_test_refuses_other_faults(folder: Path, fault: str) -> None:
    def attend(**k: Any) -> torch.Tensor:
        if fault == "not finite":
            return fake.flash(**k) * torch.inf
        k["cache_seqlens"] = k["cache_seqlens"].max().expand_as(k["cache_seqlens"])
        return torch.nan_to_num(fake.flash(**k))

    with pytest.raises(DeviceError, match="wrong numbers"):
        self_test(fake.engine(folder, model=lambda config: fake.Model(config, attend)))


def test_no_engine_without_a_card(folder: Path) -> None:
    with pytest.raises(DeviceError, match="needs an NVIDIA card"):
        Exl2LM.load(folder, EngineConfig("exl2", "cpu", "float16"))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="finds none"):
            Exl2LM.load(folder, EngineConfig("exl2", "cuda", "float16"))
    with pytest.raises(ModelError, match="cannot merge the 1 LoRA"):
        Exl2LM.load(folder, EngineConfig("exl2", "cuda", "float16", adapters=(("folder", 1.0),)))
    with pytest.raises(ValueError, match="cannot hold weights as float32"):
        Exl2LM.load(folder, EngineConfig("exl2", "cuda", "float32"))
    with pytest.raises(ValueError, match="no KV cache of kind 'q5'"):
        Exl2LM.load(folder, EngineConfig("exl2", "cuda", "float16", "q5"))


def test_an_engine_that_fails_its_self_test_is_unloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of `load` but for the card and the package."""
    models: list[Any] = []

    def model(config: Any) -> Any:
        models.append(fake.Model(config, lambda **k: fake.flash(**k) * torch.inf))
        return models[-1]

    monkeypatch.setattr(exl2_lm, "_card", lambda device: 0)
    taken = fake.package()
    monkeypatch.setattr(exl2_lm, "load_package", lambda card: fake.dataclasses.replace(taken, model=model))
    with pytest.raises(DeviceError, match="wrong numbers"):
        Exl2LM.load(folder, EngineConfig("exl2", "cpu", "float16"))
    assert models[0].unloaded
    said: list[tuple[str, int, int]] = []
    monkeypatch.setattr(exl2_lm, "load_package", lambda card: taken)
    engine = Exl2LM.load(folder, EngineConfig("exl2", "cpu", "float16"), lambda *what: said.append(what))
    assert said[0][1] == 0 and said[-1][1] == said[-1][2] == engine.weight_bytes
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)


def test_loading_can_be_cancelled_and_leaves_nothing(folder: Path) -> None:
    models: list[Any] = []

    def model(config: Any) -> Any:
        models.append(fake.Model(config, fake.flash))
        return models[-1]

    def progress(what: str, done: int, total: int) -> None:
        if done:
            raise Cancelled

    taken = fake.dataclasses.replace(fake.package(), model=model)
    with pytest.raises(Cancelled):
        Exl2LM(taken, look_into(folder, "float16"), EngineConfig("exl2", "cpu", "float16"), progress, None)
    assert models[0].unloaded


@pytest.mark.parametrize(
    ("raised", "error", "said"),
    [
        (AssertionError("Insufficient space in device allocation"), ModelError, "Insufficient space"),
        (KeyError("model.layers.0"), ModelError, "cannot load"),
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceError, "no room"),
        (RuntimeError("CUDA out of memory"), DeviceError, "no room"),
    ],
)
def test_what_the_package_raises_is_translated(folder: Path, raised: Exception, error: type, said: str) -> None:
    def model(config: Any) -> Any:
        raise raised

    with pytest.raises(error, match=said) as caught:
        fake.engine(folder, model=model)
    assert caught.value.hint and caught.value.__cause__ is raised


def test_running_out_of_memory_in_a_pass_is_said(folder: Path) -> None:
    def attend(**k: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with (
        fake.engine(folder, model=lambda config: fake.Model(config, attend)).open([9], KEEP) as lm,
        pytest.raises(DeviceError, match="ran out of memory"),
    ):
        lm.prefill(0, [1])


def test_cancel_between_two_layers_leaves_the_rows_as_they_were(folder: Path, reference: TorchLM) -> None:
    engine = fake.engine(folder)
    with engine.open([90], KEEP) as ours, reference.open([90], KEEP) as theirs:
        ours.prefill(0, some_ids(30)), theirs.prefill(0, some_ids(30))
        assert engine._body is not None
        module = engine._body._modules[2]
        forward = module.forward
        module.forward = lambda x, **more: (engine.abort.set(), forward(x, **more))[1]
        with pytest.raises(Cancelled):
            ours.prefill(0, some_ids(20, 1))
        module.forward = forward
        engine.abort.clear()
        assert ours.length(0) == 30
        close(ours.step(torch.tensor([8])), theirs.step(torch.tensor([8])))


@pytest.mark.parametrize("caches", [False, True], ids=["caches stay", "caches aside"])
def test_sessions_outlast_a_turn_of_somebody_else(folder: Path, reference: TorchLM, caches: bool) -> None:
    """Layers are dropped and read again; rows, rewinds and recordings go on as if nothing had been."""
    models: list[Any] = []

    def model(config: Any) -> Any:
        models.append(fake.Model(config, fake.flash))
        return models[-1]

    engine = fake.engine(folder, record=record, model=model)
    assert isinstance(engine, Offloadable)
    with engine.open([90, 60], KEEP) as ours, reference.open([90, 60], KEEP) as theirs:
        for lm in (ours, theirs):
            lm.prefill(0, some_ids(30)), lm.prefill(1, some_ids(3))
        for turn in range(3):
            for t in range(12):
                ids = torch.tensor(some_ids(2, 20 * turn + t)) % 600 + 300
                close(ours.step(ids), theirs.step(ids))
            engine.park(caches)
            assert models[-1].unloaded and len(models) == turn + 1
            assert (engine._aside.bytes > 0) == caches
            engine.unpark()
        for lm in (ours, theirs):
            lm.truncate(0, 11), lm.copy(0, 1)
        close(ours.step(torch.tensor([8, 9])), theirs.step(torch.tensor([8, 9])))
    engine.unload()
    for after in (lambda: engine.park(caches), engine.unpark):
        with pytest.raises(RuntimeError, match="was unloaded"):
            after()


def test_coming_back_is_tried_again_where_it_failed(folder: Path, reference: TorchLM) -> None:
    full = [False]

    def model(config: Any) -> Any:
        if full[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return fake.Model(config, fake.flash)

    engine = fake.engine(folder, model=model)
    with engine.open([40], KEEP) as ours, reference.open([40], KEEP) as theirs:
        ours.prefill(0, some_ids(30)), theirs.prefill(0, some_ids(30))
        engine.park(caches=True)
        full[0] = True
        with pytest.raises(DeviceError, match="no room"):
            engine.unpark()
        full[0] = False
        engine.unpark()
        close(ours.step(torch.tensor([8])), theirs.step(torch.tensor([8])))


def test_unload_drops_the_weights(folder: Path) -> None:
    models: list[Any] = []

    def model(config: Any) -> Any:
        made = fake.Model(config, fake.flash)
        models.append(weakref.ref(made))
        return made

    engine = fake.engine(folder, model=model)
    with engine.open([9], KEEP) as lm:
        lm.prefill(0, [1])
    engine.unload()
    gc.collect()
    assert models[0]() is None
    with pytest.raises(RuntimeError, match="was unloaded"):
        engine.open([9])


# Streams


@pytest.mark.parametrize("stream", ["the package's", None])
def test_streams_are_ordered_also_after_a_pass_that_was_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stream: str | None
) -> None:
    """What was queued before a cancel is still under way: what comes next must wait for it all the same. Before the
    package has made its stream, as it loads its first model, the engine's card must be the current one already."""
    events: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            events.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def entered(what: Any) -> Any:
        name = getattr(what, "name", what)
        events.append(f"in {name}")
        yield
        events.append(f"out of {name}")

    engine = fake.engine(folder)
    body = engine._body
    assert body is not None
    body.device = torch.device("cuda:1")
    monkeypatch.setattr(type(body), "stream", property(lambda self: Stream("theirs") if stream else None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("ours"))
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    with pytest.raises(Cancelled), body.lane():
        raise Cancelled
    if stream:
        assert events[0] == "theirs waits for ours" and events[-1] == "ours waits for theirs"
    assert "in cuda:1" in events
