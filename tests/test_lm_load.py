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
from yuegp.lm import Setup, reader, stored_as
from yuegp.lm.torch_lm import TorchLM

IDS = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()
RECORDED = Path(__file__).parent / "fixtures" / "lora"


def logits(folder: Path, setup: Setup | None = None) -> torch.Tensor:
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
    assert off(logits(tmp_path, Setup(weights="bfloat16")).float(), wanted) < 0.1


def test_pieces_smaller_than_a_tensor_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released(tmp_path, tiny_llama())
    wanted = [logits(tmp_path, Setup(weights=weights)) for weights in ("float32", "bfloat16", "int8")]
    monkeypatch.setattr(reader, "PIECE", 1000)
    for weights, expected in zip(("float32", "bfloat16", "int8"), wanted, strict=True):
        assert torch.equal(logits(tmp_path, Setup(weights=weights)), expected)


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
    "more", [{}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 5}}]
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
    setup = Setup(adapters=((str(folder), strength),))
    assert off(logits(tmp_path / "base", setup), wanted) < 1e-5
    assert (off(logits(tmp_path / "base"), wanted) > 0.01) is (strength > 0)


def test_recorded_logits_of_peft(tmp_path: Path) -> None:
    """What PEFT 0.21.2 answered, for machines without it. Made by `PYTHONPATH=tests:. python tests/test_lm_load.py`."""
    tiny_llama().save_pretrained(tmp_path)
    ours = logits(tmp_path, Setup(adapters=((str(RECORDED), 1.0),)))
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
    engine = TorchLM.load(folder, Setup(weights=weights, adapters=((str(lora), 1.0),) if lora else ()))
    weight = engine._network.layers[0].down
    return weight.t() if isinstance(weight, torch.Tensor) else weight.floats(torch.float32)


def test_two_adapters_add_up(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    folder = str(adapter(tmp_path / "lora", _lora(model)))
    halves = logits(tmp_path / "base", Setup(adapters=((folder, 0.25), (folder, 0.75))))
    assert off(halves, logits(tmp_path / "base", Setup(adapters=((folder, 1.0),)))) < 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "uses DoRA"),
        ({"bias": "all"}, "uses biases"),
        ({"peft_type": "LOHA"}, "does not describe a LoRA"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "lora", _lora(model), **change)
    with pytest.raises(ModelError, match=said):
        logits(tmp_path / "base", Setup(adapters=((str(folder), 1.0),)))


def test_an_adapter_for_another_model_or_with_more_in_it_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    wide = adapter(tmp_path / "wide", _lora(tiny_llama(hidden_size=128)))
    with pytest.raises(ModelError, match=r"changes model\.layers\.0\..* by .* but the model has the shape"):
        logits(tmp_path / "base", Setup(adapters=((str(wide), 1.0),)))
    more = adapter(tmp_path / "more", _lora(model))
    path = more / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.zeros(VOCAB, 64)}, path)
    with pytest.raises(ModelError, match=r"no LoRA pairs: base_model\.model\.lm_head\.weight"):
        logits(tmp_path / "base", Setup(adapters=((str(more), 1.0),)))


# Memory


PEAK = """
import resource, sys
from pathlib import Path
import torch
from yuegp.checkpoint import read_config
from yuegp.lm.reader import Reader
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
