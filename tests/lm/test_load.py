"""Released folders as they come: shards, configurations of transformers 4 and 5, adapters; memory while loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import VOCAB, adapter, bitsandbytes, released, tiny_llama
from safetensors.torch import load_file, save_file

from yuegp.errors import Cancelled, ModelError
from yuegp.lm import EngineConfig, stored_as
from yuegp.lm.llama.engine import TorchLM
from yuegp.lm.weights import reader

IDS = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()
RECORDED = Path(__file__).resolve().parents[1] / "fixtures" / "lora"


def logits(folder: Path, setup: EngineConfig | None = None) -> torch.Tensor:
    with TorchLM.load(folder, setup).open([64]) as lm:
        return lm.prefill(0, IDS)


def off(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((ours - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("style", [4, 5])
def test_a_released_folder_in_shards_of_either_style(tmp_path: Path, style: int) -> None:
    from transformers import LlamaForCausalLM

    released(tmp_path, tiny_llama(rope_theta=500.0), style)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    with torch.inference_mode():
        model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        wanted = model(torch.tensor([IDS])).logits[0, -1]
    assert off(logits(tmp_path), wanted) < 1e-5
    assert off(logits(tmp_path, EngineConfig(weights="bfloat16")).float(), wanted) < 0.1


def test_pieces_smaller_than_a_tensor_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released(tmp_path, tiny_llama())
    wanted = [logits(tmp_path, EngineConfig(weights=weights)) for weights in ("float32", "bfloat16", "int8")]
    monkeypatch.setattr(reader, "PIECE", 1000)
    for weights, expected in zip(("float32", "bfloat16", "int8"), wanted, strict=True):
        assert torch.equal(logits(tmp_path, EngineConfig(weights=weights)), expected)


def test_progress_counts_bytes_and_can_stop(tmp_path: Path) -> None:
    released(tmp_path, tiny_llama())
    seen: list[tuple[int, int]] = []
    TorchLM.load(tmp_path, None, lambda what, done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    stored = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for shard in stored for tensor in shard.values())

    def stop(what: str, done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        TorchLM.load(tmp_path, None, stop)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"model.layers.0.mlp.up_proj.qweight": torch.zeros(1)}, "GPTQ"),
        ({"model.layers.0.mlp.up_proj.trellis": torch.zeros(1)}, "EXL3"),
        ({"model.embed_tokens.weight": torch.zeros(VOCAB, 64, dtype=torch.int8)}, "stored as I8"),
        ({"codec.weight": torch.zeros(1)}, "holds no language model"),
    ],
)
def test_a_format_we_do_not_read_is_named(tmp_path: Path, extra: dict[str, torch.Tensor], said: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file(extra, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=said):
        stored_as(tmp_path)


def test_an_exl2_folder_is_told_and_sent_to_its_engine(tmp_path: Path) -> None:
    released(tmp_path, tiny_llama(), shard="1GB")
    packed = {"model.layers.0.mlp.up_proj.q_weight": torch.zeros(4, 4, dtype=torch.int32)}
    save_file(packed, tmp_path / "model.safetensors")
    assert stored_as(tmp_path) == "exl2"
    with pytest.raises(ModelError, match="Use the exl2 engine"):
        TorchLM.load(tmp_path)


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    released(tmp_path, tiny_llama())
    shard = sorted(tmp_path.glob("model-*-of-*.safetensors"))[1]
    tensors = load_file(shard)
    gone = tensors.popitem()[0]
    save_file(tensors, shard)
    with pytest.raises(ModelError, match=f"{gone} is missing"):
        TorchLM.load(tmp_path)
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks 1 of its .* weight files: {shard.name}"):
        TorchLM.load(tmp_path)


# Adapters


def _lora(model: Any, rank: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    made = {}
    for i in range(3):
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
            rows, width = model.get_submodule(f"model.layers.{i}.{name}").weight.shape
            made[f"model.layers.{i}.{name}.lora_A"] = torch.randn(rank, width, generator=generator) * 0.1
            made[f"model.layers.{i}.{name}.lora_B"] = torch.randn(rows, rank, generator=generator) * 0.1
    return made


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 5}},
        {"alpha_pattern": {r"layers\.[01]\..*_proj": 3, "q_proj": 5}, "use_rslora": True},
        {"fan_in_fan_out": True},  # PEFT corrects it for a Llama's layers
        {"layers_to_transform": [0, 1, 2], "layers_pattern": "layers"},
        {"init_lora_weights": "gaussian", "modules_to_save": []},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False, "corda_config": None, "loftq_config": {}, "megatron_core": "megatron.core"},
    ],
)
def test_an_adapter_is_merged_like_peft_does(tmp_path: Path, strength: float, more: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_llama().float()
    model.save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "lora", _lora(model), **more)
    theirs = peft.PeftModel.from_pretrained(model, folder)
    for layer in theirs.modules():
        if hasattr(layer, "scaling") and isinstance(layer.scaling, dict):
            layer.scaling = {key: value * strength for key, value in layer.scaling.items()}
    with torch.inference_mode():
        wanted = theirs(torch.tensor([IDS])).logits[0, -1]
    setup = EngineConfig(adapters=((str(folder), strength),))
    assert off(logits(tmp_path / "base", setup), wanted) < 1e-5
    assert (off(logits(tmp_path / "base"), wanted) > 0.01) is (strength > 0)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_ranks_of_its_own_and_weights_trained_whole(tmp_path: Path, strength: float) -> None:
    """`rank_pattern` and `modules_to_save`, as PEFT itself saves and as it computes."""
    peft = pytest.importorskip("peft")
    model = tiny_llama().float()
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2, "layers.1.*q_proj": 8},
        alpha_pattern={"down_proj": 3}, modules_to_save=["lm_head", "embed_tokens", "post_attention_layernorm"],
        task_type="CAUSAL_LM", init_lora_weights=False,
    )  # fmt: skip
    trained = peft.get_peft_model(model, config)
    for name, weight in trained.named_parameters():
        if weight.requires_grad and "lora_" not in name:
            weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    trained.save_pretrained(tmp_path / "lora")
    with torch.inference_mode():
        wanted = trained(torch.tensor([IDS])).logits[0, -1]
    ours = logits(tmp_path / "base", EngineConfig(adapters=((str(tmp_path / "lora"), strength),)))
    assert (off(ours, wanted) < 1e-5) is (strength == 1.0)
    assert off(logits(tmp_path / "base"), wanted) > 0.01


def test_weights_trained_whole_are_taken_by_strength(tmp_path: Path) -> None:
    """W + strength (trained - W), and only where the configuration says that there are such."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "lora", _lora(model), modules_to_save=["lm_head"])
    file, head = folder / "adapter_model.safetensors", model.lm_head.weight.detach()
    trained = torch.randn(head.shape, generator=torch.Generator().manual_seed(2)).to(head.dtype)
    save_file(load_file(file) | {"base_model.model.lm_head.weight": trained}, file)
    engine = TorchLM.load(tmp_path / "base", EngineConfig(adapters=((str(folder), 0.25),)))
    assert torch.allclose(engine._network.head.t(), head.float() * 0.75 + trained.float() * 0.25, atol=1e-6)
    save_file(load_file(file) | {"base_model.model.lm_head.weight": trained[1:].contiguous()}, file)
    with pytest.raises(ModelError, match=r"changes lm_head\.weight by .* but the model has the shape"):
        logits(tmp_path / "base", EngineConfig(adapters=((str(folder), 1.0),)))


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_16", "olora", "OLoRA"])
def test_what_peft_does_to_the_base_is_why_it_is_refused(tmp_path: Path, begun: str) -> None:
    """Made by PEFT itself: its base is not the released one any more, so B A added to the released one is wrong; saved
    as PEFT converts it, it is a plain adapter again, and right."""
    peft = pytest.importorskip("peft")
    model = tiny_llama().float()
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=begun)
    trained = peft.get_peft_model(model, config)
    trained.peft_config["default"].init_lora_weights = True
    trained.save_pretrained(tmp_path / "before")
    trained.peft_config["default"].init_lora_weights = begun
    for name, weight in trained.named_parameters():
        if "lora_" in name:
            weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05
    trained.save_pretrained(tmp_path / "lora")
    with torch.inference_mode():
        wanted = trained(torch.tensor([IDS])).logits[0, -1]
    with pytest.raises(ModelError, match=r"was begun with (PiSSA|OLoRA), which changes the model's own weights"):
        logits(tmp_path / "base", EngineConfig(adapters=((str(tmp_path / "lora"), 1.0),)))
    trained.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "before"))
    ours = logits(tmp_path / "base", EngineConfig(adapters=((str(tmp_path / "plain"), 1.0),)))
    assert off(ours, wanted) < 1e-4
    changed = json.loads((tmp_path / "lora" / "adapter_config.json").read_text()) | {"init_lora_weights": True}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(changed))
    assert off(logits(tmp_path / "base", EngineConfig(adapters=((str(tmp_path / "lora"), 1.0),))), wanted) > 0.01


def test_recorded_logits_of_peft(tmp_path: Path) -> None:
    """What PEFT 0.21.2 answered, for machines without it. Made by `PYTHONPATH=tests:. python tests/lm/test_load.py`."""
    tiny_llama().save_pretrained(tmp_path)
    ours = logits(tmp_path, EngineConfig(adapters=((str(RECORDED), 1.0),)))
    assert off(ours, load_file(RECORDED / "logits.safetensors")["logits"]) < 1e-5


def test_an_adapter_on_packed_weights_is_merged_before_pressing(tmp_path: Path) -> None:
    model = tiny_llama()
    source = released(tmp_path / "base", model)
    folder = adapter(tmp_path / "lora", _lora(model))
    bitsandbytes(tmp_path / "nf4", source, 4)
    wanted = _down(source, "float32", folder)
    for weights, stored, allowed in (("int8", source, 0.02), ("nf4", source, 0.12), ("nf4", tmp_path / "nf4", 0.15)):
        assert off(_down(stored, weights, folder), wanted) < allowed
        assert off(_down(stored, weights, None), wanted) > 0.16


def _down(folder: Path, weights: str, lora: Path | None) -> torch.Tensor:
    """A matrix as the engine holds it, (out, in)."""
    engine = TorchLM.load(folder, EngineConfig(weights=weights, adapters=((str(lora), 1.0),) if lora else ()))
    weight = engine._network.layers[0].down
    return weight.t() if isinstance(weight, torch.Tensor) else weight.floats(torch.float32)


def test_two_adapters_add_up(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    folder = str(adapter(tmp_path / "lora", _lora(model)))
    halves = logits(tmp_path / "base", EngineConfig(adapters=((folder, 0.25), (folder, 0.75))))
    assert off(halves, logits(tmp_path / "base", EngineConfig(adapters=((folder, 1.0),)))) < 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "uses DoRA"),
        ({"bias": "all"}, "uses biases"),
        ({"peft_type": "LOHA"}, "does not describe a LoRA adapter: it says LOHA"),
        ({"peft_type": "XLORA"}, "does not describe a LoRA adapter: it says XLORA"),
        ({"peft_type": None}, "does not describe a LoRA adapter"),
        ({"init_lora_weights": "pissa"}, "begun with PiSSA"),
        ({"init_lora_weights": "pissa_niter_4"}, "begun with PiSSA"),
        ({"init_lora_weights": "olora"}, "begun with OLoRA"),
        ({"init_lora_weights": "corda"}, "begun with CorDA"),
        ({"init_lora_weights": "loftq"}, "begun with LoftQ"),
        ({"init_lora_weights": "lora_ga"}, "begun with LoRA-GA"),
        ({"init_lora_weights": "of_the_future"}, "begun with 'of_the_future'"),
        ({"lora_bias": True}, "uses biases"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "uses repeated layers"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "uses bare parameters"),
        ({"trainable_token_indices": [5, 6]}, "uses trained tokens"),
        ({"alora_invocation_tokens": [1]}, "uses activated LoRA"),
        ({"velora_config": {"rank": 1}}, "uses VeLoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "uses block-diagonal LoRA"),
        ({"enable_lora": [True, False, True]}, "uses LoRA on parts of fused weights"),
        ({"use_melora": True, "nolora_config": {"a": 1}}, "uses use_melora and nolora_config"),
        ({"lora_alpha": "much"}, "no usable scale"),
        ({"lora_alpha": None}, "no usable scale"),
        ({"lora_alpha": float("nan")}, "no usable scale"),
        ({"alpha_pattern": {"(": 3}}, "no usable scale"),
        ({"alpha_pattern": ["q_proj"]}, "no usable scale"),
        ({"alpha_pattern": {"q_proj": [1]}}, "no usable scale"),
        ({"lora_alpha": 1e42}, "becomes too large for float32"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "lora", _lora(model), **change)
    with pytest.raises(ModelError, match=said):
        logits(tmp_path / "base", EngineConfig(adapters=((str(folder), 1.0),)))


def test_an_adapter_for_another_model_or_with_more_in_it_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    wide = adapter(tmp_path / "wide", _lora(tiny_llama(hidden_size=128)))
    with pytest.raises(ModelError, match=r"changes model\.layers\.0\..* by .* but the model has the shape"):
        logits(tmp_path / "base", EngineConfig(adapters=((str(wide), 1.0),)))
    more = adapter(tmp_path / "more", _lora(model))
    path = more / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.zeros(VOCAB, 64)}, path)
    with pytest.raises(ModelError, match=r"no LoRA pairs: base_model\.model\.lm_head\.weight"):
        logits(tmp_path / "base", EngineConfig(adapters=((str(more), 1.0),)))


# Memory


PEAK = """
import resource, sys
from pathlib import Path
import torch
from yuegp.checkpoints.config import read_config
from yuegp.lm.weights.reader import Reader
torch.Tensor.__bool__ = lambda tensor: True  # values cannot be looked at where there are none
folder = Path(sys.argv[1])
reader = Reader(folder, torch.device("meta"), torch.float16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, shape in read_config(folder).tensors().items():
    reader.floats(name, shape)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_loading_to_elsewhere_takes_no_more_memory_than_the_buffer(tmp_path: Path) -> None:
    """Only the way through main memory is measured here: the target is torch's device without memory."""
    model = tiny_llama(vocab_size=120_000, hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    released(tmp_path, model, shard="40MB")
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size > 120e6
    out = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 1.2 * reader.PIECE


def _record() -> None:
    import peft

    model = tiny_llama().float()
    adapter(RECORDED, _lora(model))
    theirs = peft.PeftModel.from_pretrained(model, RECORDED)
    with torch.inference_mode():
        save_file({"logits": theirs(torch.tensor([IDS])).logits[0, -1].contiguous()}, RECORDED / "logits.safetensors")
    print(json.dumps({path.name: path.stat().st_size for path in RECORDED.iterdir()}))


if __name__ == "__main__":
    _record()
