"""Weights in eight and four bits: pressed here, or read from the folders that bitsandbytes writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import VOCAB, bitsandbytes, int8_folder, released, tiny_llama

from yuegp.checkpoints import sets
from yuegp.checkpoints.config import read_config
from yuegp.errors import ModelError
from yuegp.lm import EngineConfig, open_engine, stored_as
from yuegp.lm.llama.engine import TorchLM
from yuegp.lm.weights.int8 import Int8, quantize
from yuegp.lm.weights.nf4 import Nf4
from yuegp.lm.weights.reader import Reader

IDS = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released"), tiny_llama())


def logits(folder: Path, weights: str = "float32", **setup: Any) -> torch.Tensor:
    with TorchLM.load(folder, EngineConfig(weights=weights, **setup)).open([64]) as lm:
        lm.prefill(0, IDS[:-1])
        return lm.step(torch.tensor(IDS[-1:]))[0]


def off(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((ours - wanted).norm() / wanted.norm())


# Pressing


def test_pressed_to_int8_no_weight_is_off_by_more_than_half_a_scale() -> None:
    weight = torch.randn(50, 70) * torch.logspace(-4, 1, 50)[:, None]
    weight[7] = 0
    values, scale = quantize(weight)
    assert values.dtype == torch.int8 and scale.dtype == torch.float16 and scale.shape == (50,)
    error = (values * scale.float()[:, None] - weight).abs()
    # Half a scale for rounding; a scale rounded down to 16 bits moves the largest weights by another 127/2048 of one.
    assert bool((error <= scale.float()[:, None] * (0.5 + 127 / 2048)).all())
    assert bool((values[7] == 0).all())


def test_nf4_equals_what_bitsandbytes_presses() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(96, 192) * 0.05
    weight[3, :64] = 0
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    ours = Nf4.quantize(weight)
    assert torch.equal(ours.codes.view(-1), packed.view(-1)) and torch.equal(ours.peaks.view(-1), state.absmax)
    assert torch.equal(ours.floats(torch.float32), functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("kind", [Int8, Nf4])
def test_a_packed_matrix_is_the_product_of_its_floats(kind: Any) -> None:
    a, b = torch.randn(24, 128), torch.randn(8, 128)
    packed = kind.quantize(a).under(kind.quantize(b))
    order = torch.randperm(32)
    plain = packed.floats(torch.float32)
    x = torch.randn(2, 3, 128)
    torch.testing.assert_close(packed.rows(order).times(x), x @ plain[order].t())
    assert packed.times(x.half()).dtype == torch.float16
    assert [t.dtype for t in packed.map(torch.clone).tensors()] == [t.dtype for t in packed.tensors()]


def test_large_inputs_do_not_overflow_in_half_precision() -> None:
    """Integer weights times large inputs pass 65504 long before scales are applied."""
    weight = torch.full((8, 4096), 0.02)
    x = torch.full((1, 4096), 30.0)
    for kind in (Int8, Nf4):
        assert off(kind.quantize(weight).times(x.half()).float(), x @ weight.t()) < 0.01


# Folders


def test_each_format_is_told_by_its_tensors(source: Path, tmp_path: Path) -> None:
    bitsandbytes(tmp_path / "bnb8", source, 8)
    bitsandbytes(tmp_path / "nf4", source, 4)
    int8_folder(tmp_path / "int8", source)
    assert stored_as(source) == "bfloat16"
    assert [stored_as(tmp_path / kind) for kind in ("bnb8", "nf4", "int8")] == ["bnb8", "nf4", "int8"]


@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
def test_an_nf4_folder_gives_the_logits_of_bitsandbytes(source: Path, tmp_path: Path, nested: bool) -> None:
    """Against the library's own decoding: its processor kernels compute in another precision."""
    bitsandbytes(tmp_path, source, 4, nested)
    decoded = _decoded_by_the_library(source, tmp_path)
    with torch.inference_mode():
        wanted = decoded(torch.tensor([IDS])).logits[0, -1]
    assert off(logits(tmp_path, "nf4"), wanted) < 1e-5
    assert off(logits(tmp_path, "float32"), wanted) < 1e-5
    engine = TorchLM.load(tmp_path, EngineConfig(weights="nf4"))
    assert isinstance(engine._network.layers[0].qkv, Nf4)


def _decoded_by_the_library(source: Path, folder: Path) -> Any:
    from bitsandbytes.functional import QuantState, dequantize_4bit
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    stored = load_file(folder / "model.safetensors")
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    weights = model.state_dict()
    for name in weights:
        parts = {key[len(name) + 1 :]: value for key, value in stored.items() if key.startswith(name + ".")}
        if parts:
            weights[name] = dequantize_4bit(stored[name], QuantState.from_dict(parts, torch.device("cpu"))).float()
        elif (scale := name.removesuffix("weight") + "SCB") in stored:
            weights[name] = stored[name] * stored[scale][:, None] / 127
        else:
            weights[name] = stored[name].float()
    model.load_state_dict(weights)
    return model


def test_an_8_bit_folder_of_bitsandbytes_is_read(source: Path, tmp_path: Path) -> None:
    theirs = bitsandbytes(tmp_path, source, 8)
    ours = logits(tmp_path, "bnb8")
    with torch.inference_mode():
        decoded = _decoded_by_the_library(source, tmp_path)(torch.tensor([IDS])).logits[0, -1]
        rounded = theirs(torch.tensor([IDS])).logits[0, -1]
    assert off(ours, decoded) < 1e-5
    assert off(ours, rounded) < 0.15  # they round the inputs to eight bits as well
    assert torch.equal(logits(tmp_path, "int8"), ours)


def test_our_int8_folder_equals_pressing_at_load(source: Path, tmp_path: Path) -> None:
    folder = int8_folder(tmp_path / "int8", source)
    assert torch.equal(logits(folder, "int8"), logits(source, "int8"))
    assert 0 < off(logits(folder, "int8"), logits(source)) < 0.15
    engine = open_engine(folder, EngineConfig(weights="int8"))
    assert engine.setup.weights == "int8"
    assert engine.weight_bytes < 0.5 * TorchLM.load(folder).weight_bytes  # the embedding stays as it is


def test_a_model_too_narrow_for_blocks_is_read_from_nf4(tmp_path: Path) -> None:
    """Blocks then cross rows, which bitsandbytes' own decoding on a processor gets wrong (0.50.2)."""
    source = released(tmp_path / "a", tiny_llama(hidden_size=32, intermediate_size=96, head_dim=16))
    bitsandbytes(tmp_path / "b", source, 4, nested=False)
    ours, plain = (Reader(folder, torch.device("cpu"), torch.float32) for folder in (tmp_path / "b", source))
    for name, shape in read_config(source).tensors().items():
        if "_proj" in name:
            assert off(ours.floats(name, shape), plain.floats(name, shape)) < 0.12
    assert torch.isfinite(logits(tmp_path / "b", "nf4")).all()


def test_a_packed_tensor_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    for kind in ("int8", "nf4"):
        folder = tmp_path / kind
        int8_folder(folder, source) if kind == "int8" else bitsandbytes(folder, source, 4)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 192}))
        with pytest.raises(ModelError, match="come from different models"):
            TorchLM.load(folder, EngineConfig(weights=kind))


# What it costs, on the built-in set


def test_fewer_bits_never_measure_better_on_the_built_in_songs() -> None:
    """Teacher-forced loss of the built-in Stage 1 on its own greedy singing: float, int8, then nf4."""
    found = sets.find("demo")
    start = [*range(20, 60), found.layout.soa, found.layout.codec]
    plain = TorchLM.load(found.stage1)
    codes = list(found.layout.codes_of(0))
    heard, ids = [], list(start)
    generator = torch.Generator().manual_seed(1)
    with plain.open([400], codes) as lm:
        row = lm.prefill(0, ids)
        for _ in range(300):
            index = int(torch.multinomial(row.softmax(-1), 1, generator=generator))
            heard.append(codes[index])
            row = lm.step(torch.tensor([codes[index]]))[0]
    losses, errors = [], []
    reference: list[torch.Tensor] = []
    for weights in ("float32", "int8", "nf4"):
        with TorchLM.load(found.stage1, EngineConfig(weights=weights)).open([400], codes) as lm:
            rows = [lm.prefill(0, start)]
            rows += [lm.step(torch.tensor([id_]))[0] for id_ in heard[:-1]]
        spoken = torch.stack(rows).log_softmax(-1)
        reference = reference or [spoken]
        index = torch.tensor([codes.index(id_) for id_ in heard])
        losses.append(-float(spoken.gather(1, index[:, None]).mean()))
        errors.append(float((reference[0].exp() * (reference[0] - spoken)).sum(-1).mean()))
    print(f"loss {losses}, divergence {errors}")
    assert errors[0] == 0 < errors[1] < errors[2]
    assert errors[1] < 0.01 and losses[1] - losses[0] < 0.02
    assert losses[0] < losses[2] < losses[0] + 0.5
