"""Tiny models on disk in exactly the layouts that are out there, written by the libraries that write those: shards with
an index, config.json of transformers 4 and 5, bitsandbytes 8-bit and nf4, our int8, PEFT adapters."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from yuegp.lm.weights import int8

VOCAB = 300


def tiny_llama(seed: int = 7, **changes: Any) -> Any:
    """A random transformers Llama, large enough in its weights to tell errors apart, and wide enough for nf4."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
        model.lm_head.weight.mul_(0.1)
    return model


def released(folder: Path, model: Any, style: int = 4, shard: str = "60KB") -> Path:
    """Like YuE's own repositories: bfloat16 shards with an index; `style` is the version of transformers whose way of
    writing config.json is used."""
    model = copy.deepcopy(model).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=shard)
    path = folder / "config.json"
    data = json.loads(path.read_text())
    theta = (data.pop("rope_parameters", None) or {}).get("rope_theta", data.pop("rope_theta", 10000.0))
    data.pop("dtype", None), data.pop("torch_dtype", None)
    if style == 4:
        data |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": "bfloat16"}
        data["transformers_version"] = "4.48.0"
    else:
        data |= {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}, "dtype": "bfloat16"}
    path.write_text(json.dumps(data, indent=2))
    return folder


def bitsandbytes(folder: Path, source: Path, bits: int, nested: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """What `save_pretrained` writes after loading `source` with bitsandbytes in 8 or 4 bits. Returns that model."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if bits == 8:
        how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=how, dtype=dtype, device_map="cpu")
    model.save_pretrained(folder)
    return model


def int8_folder(folder: Path, source: Path) -> Path:
    """Our own eight bits, as `quant` writes them: the seven matrices of every layer, everything else as it was."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= load_file(path)
    for name in [name for name in tensors if "_proj." in name]:
        tensors[name], tensors[name + ".scale"] = int8.quantize(tensors[name])
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": int8.METHOD}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    """A PEFT LoRA adapter of the given A and B, keyed `model.layers.0.self_attn.q_proj.lora_A` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = next(t.shape[0] for name, t in tensors.items() if name.endswith("lora_A"))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "m-a-p/YuE-s1-7B-anneal-en-cot",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
        "target_modules": sorted({name.split(".")[-2] for name in tensors}),
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    renamed = {f"base_model.model.{name}.weight": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
