"""The released architecture for training, and its export as a released Hugging Face folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yuegp.bench.noise import config_of
from yuegp.checkpoints.config import LlamaConfig
from yuegp.tokens.vocab import VocabLayout


class Watched(NamedTuple):
    """What enters a layer, (rows, n, hidden), and its first head's queries and keys, (rows, n, head_dim)."""

    entering: Tensor
    queries: Tensor
    keys: Tensor


class Llama(nn.Module):
    """The released architecture for training; parameters carry the released names."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.model.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.model.norm = nn.RMSNorm(config.hidden, config.eps)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.5 / math.sqrt(config.hidden))
        if not config.tied:
            # As large as the layers' outputs: else these drown rare pieces of text, and lyrics have no effect.
            nn.init.normal_(self.model.embed_tokens.weight, std=2.0)

    @property
    def head(self) -> Tensor:
        """(vocabulary, hidden)."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def forward(self, ids: Tensor, watch: int = 0, places: Tensor | None = None) -> tuple[Tensor, Watched]:
        """Hidden states (rows, n, hidden) after the final norm, and `Watched` of layer `watch`. `places` are positions
        (rows, n); without them each row counts from 0."""
        c = self.config
        frequencies = c.rope_theta ** -(torch.arange(0, c.head_dim, 2, device=ids.device) / c.head_dim)
        counted = torch.arange(ids.shape[1], device=ids.device)[None] if places is None else places
        angles = counted[:, None, :, None] * frequencies  # one for all heads
        rotation = angles.cos(), angles.sin()
        x, seen = self.model.embed_tokens(ids), []
        for layer in self.model.layers:
            entering, (x, asked) = x, layer(x, rotation)
            seen.append(Watched(entering, *asked))
        return self.model.norm(x), seen[watch]


class _Layer(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.shape = c
        width, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.input_layernorm = nn.RMSNorm(c.hidden, c.eps)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden, c.eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(c.hidden, width, bias=False),
                "k_proj": nn.Linear(c.hidden, narrow, bias=False),
                "v_proj": nn.Linear(c.hidden, narrow, bias=False),
                "o_proj": nn.Linear(width, c.hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(c.hidden, c.ffn, bias=False),
                "up_proj": nn.Linear(c.hidden, c.ffn, bias=False),
                "down_proj": nn.Linear(c.ffn, c.hidden, bias=False),
            }
        )

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        c, (rows, n, _) = self.shape, x.shape
        h, attn = self.input_layernorm(x), self.self_attn
        q = _rotate(attn["q_proj"](h).view(rows, n, c.heads, c.head_dim).transpose(1, 2), rotation)
        k = _rotate(attn["k_proj"](h).view(rows, n, c.kv_heads, c.head_dim).transpose(1, 2), rotation)
        v = attn["v_proj"](h).view(rows, n, c.kv_heads, c.head_dim).transpose(1, 2)
        mixed = _attend(q, k, v)
        x = x + attn["o_proj"](mixed.transpose(1, 2).reshape(rows, n, -1))
        h = self.post_attention_layernorm(x)
        gated = F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h)
        return x + self.mlp["down_proj"](gated), (q[:, 0], k[:, 0])


BLOCK = 256
"""Queries per block on a CPU, where attention by plain products is up to twice as fast as torch's own (measured:
bfloat16, 400 to 1,000 positions, forward and backward)."""


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (rows, heads, n, head_dim) over (rows, kv_heads, n, head_dim)."""
    if q.is_cuda or q.shape[2] > 8 * BLOCK:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    (rows, heads, length, width), kv_heads = q.shape, k.shape[1]
    blocks = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        grouped = q[:, :, start:stop].reshape(rows, kv_heads, -1, width) * width**-0.5
        scores = (grouped @ k[:, :, :stop].transpose(-1, -2)).view(rows, heads, stop - start, stop)
        future = torch.ones(stop - start, stop, dtype=torch.bool, device=q.device).triu_(1 + start)
        shares = scores.masked_fill(future, -1e4).softmax(-1).to(v.dtype).view(rows, kv_heads, -1, stop)
        blocks.append((shares @ v[:, :, :stop]).view(rows, heads, stop - start, width))
    return torch.cat(blocks, 2)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    (cos, sin), (a, b) = rotation, x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def export(model: Llama, folder: Path, context: int, dtype: torch.dtype = torch.float16) -> None:
    """Write a Hugging Face folder: `config.json` and `model.safetensors`, without auxiliary layers."""
    from safetensors.torch import save_file

    c = model.config
    folder.mkdir(parents=True, exist_ok=True)
    more = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    config = {**config_of(replace(c, context=context)), **more, "torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def stage_config(
    layout: VocabLayout, stage: int, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int
) -> LlamaConfig:
    """Sizes of a stage's model: Stage 1 speaks text and codebook 0, Stage 2 all codebooks."""
    return LlamaConfig(vocabulary(layout, stage), hidden, ffn, layers, heads, kv_heads, hidden // heads, 16384)


def vocabulary(layout: VocabLayout, stage: int) -> int:
    """Vocabulary size of a stage's model."""
    return layout.codes_of(0).stop if stage == 1 else layout.stage2_ids.stop
