"""Random Llamas as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB = 300


def save_llama(folder: Path, kv_heads: int, **changes: Any) -> Any:
    """A random transformers Llama, saved by transformers, large enough in its weights to tell errors apart."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(7)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(TheirConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
        model.lm_head.weight.mul_(0.1)
    model.save_pretrained(folder, max_shard_size=changes.get("shard", "60KB"))
    return model


def some_ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
