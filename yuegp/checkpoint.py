"""The shape of a released Llama folder, read from its `config.json`. No weights are touched here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelError


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of one Llama. `context` counts positions, `ffn` is the width of the gated MLP."""

    vocab_size: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rope_theta: float = 10000.0
    eps: float = 1e-5
    tied: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint, by its released name, with its shape."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden)}
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            shapes |= {
                layer + "input_layernorm.weight": (self.hidden,),
                layer + "self_attn.q_proj.weight": (q, self.hidden),
                layer + "self_attn.k_proj.weight": (kv, self.hidden),
                layer + "self_attn.v_proj.weight": (kv, self.hidden),
                layer + "self_attn.o_proj.weight": (self.hidden, q),
                layer + "post_attention_layernorm.weight": (self.hidden,),
                layer + "mlp.gate_proj.weight": (self.ffn, self.hidden),
                layer + "mlp.up_proj.weight": (self.ffn, self.hidden),
                layer + "mlp.down_proj.weight": (self.hidden, self.ffn),
            }
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden)
        return shapes

    @property
    def kv_values(self) -> int:
        """Numbers one position of one row keeps in the KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def read_config(folder: Path) -> LlamaConfig:
    """The configuration in `folder/config.json`, as written by transformers 4 (`rope_theta` at the top level) or
    5 (`rope_parameters`). ModelError when it is absent, unreadable, or describes another architecture."""
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ModelError(
            f"The model folder {folder} has no config.json.", "Download the model again; the folder is incomplete."
        ) from exc
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} cannot be read as JSON: {exc}.", "Download this file again.") from exc
    try:
        return parse_config(data)
    except (KeyError, TypeError, ValueError) as exc:
        cause = f"{exc.args[0]!r} is missing" if isinstance(exc, KeyError) else str(exc)
        raise ModelError(
            f"{path} does not describe a Llama model that yuegp can run: {cause}.",
            "Check that this is a YuE Stage-1 or Stage-2 folder.",
        ) from exc


def parse_config(data: dict[str, Any]) -> LlamaConfig:
    """A transformers Llama configuration as sizes. Raises KeyError or ValueError with the offending entry."""
    if not isinstance(data, dict):
        raise ValueError("it holds no object")
    kind = data.get("model_type", "llama")
    if kind != "llama":
        raise ValueError(f"model_type is {kind!r}")
    if data.get("attention_bias") or data.get("mlp_bias"):
        raise ValueError("it has biases, which YuE's models do not")
    if data.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {data['hidden_act']!r} instead of 'silu'")
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if (rope_type := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise ValueError(f"rope_type is {rope_type!r} instead of 'default'")
    config = LlamaConfig(
        vocab_size=int(data["vocab_size"]),
        hidden=int(data["hidden_size"]),
        ffn=int(data["intermediate_size"]),
        layers=int(data["num_hidden_layers"]),
        heads=int(data["num_attention_heads"]),
        kv_heads=int(data.get("num_key_value_heads") or data["num_attention_heads"]),
        head_dim=int(data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]),
        context=int(data["max_position_embeddings"]),
        rope_theta=float(rope.get("rope_theta") or data.get("rope_theta") or 10000.0),
        eps=float(data.get("rms_norm_eps", 1e-6)),
        tied=bool(data.get("tie_word_embeddings", False)),
    )
    if min(config.vocab_size, config.hidden, config.ffn, config.layers, config.heads, config.kv_heads) < 1:
        raise ValueError("a size in it is not positive")
    if config.heads % config.kv_heads or config.head_dim % 2:
        sizes = f"{config.heads} heads, {config.kv_heads} key heads and a head width of {config.head_dim}"
        raise ValueError(f"{sizes} do not fit together")
    return config
