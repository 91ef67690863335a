"""Sizes of a Llama, read from its folder's `config.json`. Opens no weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from yuegp.checked import Between, Fault, build, object_of, shown
from yuegp.errors import ModelError
from yuegp.files import read_json


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
        """Shape of every tensor of the checkpoint, by its released name."""
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
        """Values per position and row in the KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def read_config(folder: Path) -> LlamaConfig:
    """Read `folder/config.json`, as written by transformers 4 (`rope_theta` at the top level) or 5 (`rope_parameters`).
    Raises ModelError when it is absent, unreadable, or describes another architecture."""
    data = read_entries(folder)
    try:
        return parse_config(data)
    except ValueError as exc:
        raise ModelError(
            f"{folder / 'config.json'} does not describe a Llama model that yuegp can run: {exc}.",
            "Check that this is a YuE Stage-1 or Stage-2 folder.",
        ) from exc


def read_entries(folder: Path) -> dict[str, Any]:
    """Raw contents of `folder/config.json`. Raises ModelError when it is absent or no JSON object."""
    path = folder / "config.json"
    try:
        return object_of(read_json(path))
    except FileNotFoundError as exc:
        raise ModelError(
            f"The model folder {folder} has no config.json.", "Download the model again; the folder is incomplete."
        ) from exc
    except (OSError, Fault) as exc:
        raise ModelError(f"{path} cannot be read as JSON: {exc}.", "Download this file again.") from exc


def parse_config(data: Any) -> LlamaConfig:
    """Sizes from a transformers Llama configuration. Raises ValueError that names the offending entry."""
    kind = object_of(data).get("model_type", "llama")
    if kind != "llama":
        raise ValueError(f"model_type is {shown(kind)}")
    if data.get("attention_bias") or data.get("mlp_bias"):
        raise ValueError("it has biases, which YuE's models do not")
    if data.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {shown(data['hidden_act'])} instead of 'silu'")
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"its rope_scaling is {shown(rope)}, not an object")
    if (rope_type := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise ValueError(f"rope_type is {shown(rope_type)} instead of 'default'")
    here = {field.name: data[field.name] for field in fields(_Entries) if field.name in data}
    entries = build(_Entries, here | {key: rope[key] for key in ("rope_theta",) if rope.get(key)})
    heads, hidden = entries.num_attention_heads, entries.hidden_size
    config = LlamaConfig(
        vocab_size=entries.vocab_size,
        hidden=hidden,
        ffn=entries.intermediate_size,
        layers=entries.num_hidden_layers,
        heads=heads,
        kv_heads=entries.num_key_value_heads or heads,
        head_dim=entries.head_dim or hidden // heads,
        context=entries.max_position_embeddings,
        rope_theta=entries.rope_theta or 10000.0,
        eps=entries.rms_norm_eps,
        tied=bool(entries.tie_word_embeddings),
    )
    if config.heads % config.kv_heads or config.head_dim % 2 or (not entries.head_dim and hidden % heads):
        sizes = f"{heads} heads, {config.kv_heads} key heads and a head width of {config.head_dim}"
        raise ValueError(f"{sizes} do not fit together at a width of {hidden}")
    return config


Width = Annotated[int, Between(1, 1 << 17)]
Heads = Annotated[int, Between(1, 1024)]


@dataclass(frozen=True)
class _Entries:
    """The entries that shape a Llama, under transformers' names. The ranges end far beyond every existing Llama: a
    number outside is a fault, and would make callers reserve memory or list layers without end."""

    vocab_size: Annotated[int, Between(1, 1 << 22)]
    hidden_size: Width
    intermediate_size: Annotated[int, Between(1, 1 << 19)]
    num_hidden_layers: Annotated[int, Between(1, 512)]
    num_attention_heads: Heads
    max_position_embeddings: Annotated[int, Between(1, 1 << 24)]
    num_key_value_heads: Heads | None = None
    head_dim: Annotated[int, Between(2, 4096)] | None = None
    rope_theta: Annotated[float, Between(1, 1e12)] | None = None
    rms_norm_eps: Annotated[float, Between(0, 1)] = 1e-6
    tie_word_embeddings: bool | None = None
