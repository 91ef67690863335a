"""The torch engine: the same logits as transformers for the same weights, whatever is done to the rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from llamas import save_llama, some_ids

from yuegp.checkpoints.config import LlamaConfig, parse_config, read_config
from yuegp.errors import ModelError
from yuegp.lm import EngineConfig
from yuegp.lm.llama.engine import PREFILL, TorchLM


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["MHA", "GQA2", "GQA4"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, TorchLM]]:
    folder = tmp_path_factory.mktemp("llama")
    model = save_llama(folder, request.param)
    assert len(list(folder.glob("*.safetensors"))) > 1, "the test wants shards"
    yield model, TorchLM.load(folder)


def theirs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def close(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    assert ours.shape == wanted.shape
    assert float((ours - wanted).abs().max()) <= 1e-5


def test_same_logits_as_transformers_for_a_prompt_and_each_step(pair: tuple[Any, TorchLM]) -> None:
    model, engine = pair
    ids = some_ids(40)
    wanted = theirs(model, ids)
    with engine.open([64]) as lm:
        close(lm.prefill(0, ids[:20]), wanted[19])
        for t in range(20, 40):
            close(lm.step(torch.tensor([ids[t]]))[0], wanted[t])
        assert lm.length(0) == 40


def test_same_logits_for_rows_of_different_lengths(pair: tuple[Any, TorchLM]) -> None:
    model, engine = pair
    a, b, c = some_ids(50, 1), some_ids(30, 2), some_ids(33, 3)
    with engine.open([80, 40, 40]) as lm:
        lm.prefill(0, a[:30]), lm.prefill(1, b[:1]), lm.prefill(2, c[:13])
        for t in range(20):
            logits = lm.step(torch.tensor([a[30 + t], b[1 + t], c[13 + t]]))
        for row, ids in ((0, a[:50]), (1, b[:21]), (2, c[:33])):
            close(logits[row], theirs(model, ids)[-1])


def test_same_logits_after_a_rewind(pair: tuple[Any, TorchLM]) -> None:
    model, engine = pair
    ids, other = some_ids(40, 1), some_ids(25, 2)
    with engine.open([64, 64]) as lm:
        lm.prefill(0, ids), lm.prefill(1, ids[:5])
        lm.step(torch.tensor([1, 2]))
        lm.truncate(0, 15)
        lm.truncate(1, 0)
        close(lm.prefill(0, other), theirs(model, ids[:15] + other)[-1])
        close(lm.prefill(1, other), theirs(model, other)[-1])


def test_a_copied_row_goes_on_like_its_source(pair: tuple[Any, TorchLM]) -> None:
    model, engine = pair
    ids = some_ids(30, 4)
    with engine.open([64, 40, 64]) as lm:
        lm.prefill(0, ids)
        lm.copy(0, 1), lm.copy(0, 2)
        logits = lm.step(torch.tensor([5, 6, 7]))
        for row, last in enumerate((5, 6, 7)):
            close(logits[row], theirs(model, [*ids, last])[-1])


def test_several_ids_per_row_in_one_step(pair: tuple[Any, TorchLM]) -> None:
    model, engine = pair
    a, b = some_ids(20, 5), some_ids(20, 6)
    with engine.open([32, 32]) as lm:
        lm.step(torch.tensor([a[:12], b[:12]]))
        logits = lm.step(torch.tensor([a[12:14], b[12:14]]))
        close(logits[0], theirs(model, a[:14])[-1])
        close(logits[1], theirs(model, b[:14])[-1])


def test_a_trimmed_head_gives_the_same_numbers(pair: tuple[Any, TorchLM]) -> None:
    model, engine = pair
    ids, keep = some_ids(10, 7), [250, 3, 100, 101]
    wanted = theirs(model, ids)
    with engine.open([16], keep) as lm:
        close(lm.prefill(0, ids[:9]), wanted[8][keep])
        close(lm.step(torch.tensor(ids[9:]), slice(1, 3))[0], wanted[9][keep[1:3]])


def test_a_prompt_longer_than_one_pass(pair: tuple[Any, TorchLM]) -> None:
    model, engine = pair
    ids = some_ids(2 * PREFILL + 77, 8)
    with engine.open([len(ids)]) as lm:
        close(lm.prefill(0, ids), theirs(model, ids)[-1])


def test_a_row_never_grows_beyond_its_capacity(pair: tuple[Any, TorchLM]) -> None:
    _, engine = pair
    with engine.open([10, 12]) as lm:
        lm.prefill(0, some_ids(10)), lm.prefill(1, some_ids(5))
        with pytest.raises(ValueError, match="do not fit a row of 10 ids with room for 10"):
            lm.step(torch.tensor([1, 1]))
        with pytest.raises(ValueError, match="cannot cut"):
            lm.truncate(1, 6)
    with pytest.raises(ValueError, match="context of 2048"):
        engine.open([4096])


def test_an_unloaded_engine_says_so(tmp_path: Path) -> None:
    save_llama(tmp_path, 2)
    engine = TorchLM.load(tmp_path)
    engine.unload()
    with pytest.raises(RuntimeError, match="was unloaded"):
        engine.open([8])


def test_bfloat16_stays_close_to_float32(pair: tuple[Any, TorchLM], tmp_path: Path) -> None:
    model, _ = pair
    model.save_pretrained(tmp_path)
    ids = some_ids(30, 9)
    wanted = theirs(model, ids)[-1]
    with TorchLM.load(tmp_path, EngineConfig(weights="bfloat16")).open([32]) as lm:
        lm.prefill(0, ids[:29])
        ours = lm.step(torch.tensor(ids[29:]))[0].float()
    assert float((ours - wanted).norm() / wanted.norm()) < 0.05


def test_tied_embeddings(tmp_path: Path) -> None:
    model = save_llama(tmp_path, 2, tie_word_embeddings=True)
    ids = some_ids(12)
    with TorchLM.load(tmp_path).open([16]) as lm:
        close(lm.prefill(0, ids), theirs(model, ids)[-1])


def test_rope_theta_of_both_styles_of_configuration(tmp_path: Path) -> None:
    model = save_llama(tmp_path, 2, rope_theta=500.0)
    data = model.config.to_dict()
    new = parse_config({**data, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}})
    old = {k: v for k, v in data.items() if k != "rope_parameters"} | {"rope_theta": 500.0, "rope_scaling": None}
    assert new == parse_config(old) and new.rope_theta == 500.0
    ids = some_ids(40)
    with TorchLM.load(tmp_path).open([64]) as lm:
        close(lm.prefill(0, ids), theirs(model, ids)[-1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mistral"}, "mistral"),
        ({"attention_bias": True}, "biases"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "yarn"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_key_value_heads": 3}, "do not fit together"),
    ],
)
def test_a_configuration_we_cannot_run_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    import json

    save_llama(tmp_path, 2)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    data.pop("rope_parameters", None)
    path.write_text(json.dumps({**data, **change}))
    with pytest.raises(ModelError, match=said):
        read_config(tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_refused_at_load(tmp_path: Path, value: str) -> None:
    model = save_llama(tmp_path, 2, shard="1GB")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float(value)
    model.save_pretrained(tmp_path, max_shard_size="1GB")
    for stale in tmp_path.glob("*-of-*"):
        stale.unlink()
    (tmp_path / "model.safetensors.index.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight contains values that are not numbers"):
        TorchLM.load(tmp_path)


def test_released_sizes() -> None:
    """Parameter counts of the released models. Source: sums of the published shard sizes."""
    stage1 = LlamaConfig(83968, 4096, 11008, 32, 32, 4, 128, 16384)
    stage2 = LlamaConfig(83840, 2048, 5504, 32, 16, 16, 128, 8192)
    count = lambda c: sum(torch.Size(shape).numel() for shape in c.tensors().values())  # noqa: E731
    assert (count(stage1), count(stage2)) == (6_224_613_376, 1_962_543_104)
    assert stage1.kv_values * 2 == 64 * 1024
