"""A stand-in for the part of ExLlamaV2 that the exl2 engine uses, whose arithmetic is real, in float32 on the CPU.
It opens no weight file: what the engine does not hand over, it does not have.

It keeps the package's ways where they matter: modules that add into the hidden states in place, one pool as a cache of
batch size 1, a description of a paged pass that must be made of CPU tensors, keys written straight into the pool when
one row's pages follow each other, lengths that are only moved forward by us, quantized caches that read back what they
rounded. Its attention follows block tables and lengths position by position, as flash-attn is documented to, so that
what the engine states for it is proved as well as what the engine's own attention is told.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yuegp.checkpoints.config import read_config
from yuegp.checkpoints.formats import stored_as
from yuegp.lm import EngineConfig
from yuegp.lm.exl2.attention import PagedAttention
from yuegp.lm.exl2.engine import Exl2LM
from yuegp.lm.exl2.format import PARTS, look_into, unpack
from yuegp.lm.exl2.package import Package


class Config:
    def __init__(self, folder: str) -> None:
        read = read_config(Path(folder))
        self.tensor_file_map: dict[str, Any] = {}
        self.num_hidden_layers, self.num_attention_heads = read.layers, read.heads
        self.num_key_value_heads, self.head_dim, self.hidden_size = read.kv_heads, read.head_dim, read.hidden
        self.norm_eps = read.eps
        self.rotary_embedding_base = 10000.0  # the package does not find one that transformers 5 has saved
        self.max_input_len, self.max_batch_size, self.max_seq_len = 2048, 1, 2048
        self.no_sdpa = self.no_flash_attn = self.no_xformers = self.no_graphs = False


class Model:
    def __init__(self, config: Config, attend: Any) -> None:
        self.config, self.attend = config, attend
        self.modules: list[Any] = [_Refused("embedding")]
        for layer in range(config.num_hidden_layers):
            self.modules += [Attention(self, layer), MLP(self, layer)]
        self.modules += [Norm(self), _Refused("head")]
        self.last_kv_layer_idx = len(self.modules) - 4
        self.unloaded = False

    def load(self, gpu_split: list[float], callback: Any) -> None:
        c = self.config
        half = torch.arange(0, c.head_dim, 2) / c.head_dim
        self.angles = torch.outer(torch.arange(c.max_seq_len), 1.0 / c.rotary_embedding_base**half)
        for index, module in enumerate(self.modules):
            callback(index, len(self.modules))
            module.load()
        callback(len(self.modules), len(self.modules))

    def unload(self) -> None:
        self.modules, self.unloaded = [], True


class _Refused:
    def __init__(self, what: str) -> None:
        self.what = what

    def load(self) -> None:
        raise AssertionError(f"the whole {self.what} must never be loaded")


class Matrix:
    """What reads a weight in the package. Its own reader must never be touched: under some folders it hangs."""

    def __init__(self, model: Model, key: str) -> None:
        self.model, self.key = model, key

    def device(self) -> str:
        return "cpu"

    def load_multi(self, key: str, keys: list[str], measure: bool = False, cpu: bool = False) -> Any:
        raise AssertionError("the package's own reader was called")

    def load(self) -> Tensor:
        there = self.model.config.tensor_file_map
        kinds = list(PARTS) if f"{self.key}.q_weight" in there else ["weight"]
        read = self.load_multi(self.key, [*kinds, "bias"])
        assert sum(part.nbytes for part in read.values()) and read.keys() == set(kinds)
        if kinds == ["weight"]:
            return read["weight"].float()
        parts = {name: part.numpy() for name, part in read.items()}
        return torch.from_numpy(unpack(parts, range(parts["q_weight"].shape[1]))).float()


class _Module:
    names: tuple[str, ...] = ()

    def __init__(self, model: Model, layer: int = 0) -> None:
        self.model, self.layer = model, layer
        self.weights: list[Tensor] = []
        self.submodules = [Matrix(model, name.format(layer)) for name in self.names]

    def load(self) -> None:
        self.weights = [matrix.load() for matrix in self.submodules]

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.model.config.norm_eps)


class Attention(_Module):
    names = ("model.layers.{}.input_layernorm", *(f"model.layers.{{}}.self_attn.{p}_proj" for p in "qkvo"))

    def forward(self, x: Tensor, cache: Any, attn_params: Any, past_len: int, loras: None) -> Tensor:
        c, (rows, n, _) = self.model.config, x.shape
        assert rows * n <= c.max_input_len * c.max_batch_size, "too many rows for the scratch memory"
        norm, *qkv, out = self.weights
        normed = self.norm(x, norm)
        q, k, v = ((normed @ w.T).view(rows, n, -1, c.head_dim) for w in qkv)
        lengths = attn_params.cache_seqlens
        q, k = self._rotated(q, lengths), self._rotated(k, lengths)
        keys, values = cache.read(self.layer, attn_params)
        new: tuple[Tensor | None, Tensor | None] = (k, v)
        if attn_params.is_sequential:
            first = attn_params.first_index
            keys.view(-1, *k.shape[2:])[first : first + n] = k[0]
            values.view(-1, *v.shape[2:])[first : first + n] = v[0]
            new, lengths = (None, None), attn_params.cache_seqlens_after
        mixed = self.model.attend(
            q=q, k=new[0], v=new[1], k_cache=keys, v_cache=values, cache_seqlens=lengths,
            block_table=attn_params.block_index, causal=True, softmax_scale=c.head_dim**-0.5,
        )  # fmt: skip
        cache.write(self.layer, attn_params, n)
        return x.add_(mixed.reshape(rows, n, -1) @ out.T)

    def _rotated(self, x: Tensor, lengths: Tensor) -> Tensor:
        positions = lengths.long()[:, None] + torch.arange(x.shape[1])
        angles = self.model.angles[positions][:, :, None]
        a, b = x.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class MLP(_Module):
    names = (
        "model.layers.{}.post_attention_layernorm",
        *(f"model.layers.{{}}.mlp.{p}_proj" for p in ("gate", "up", "down")),
    )

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        norm, gate, up, down = self.weights
        normed = self.norm(x, norm)
        return x.add_((F.silu(normed @ gate.T) * (normed @ up.T)) @ down.T)


class Norm(_Module):
    names = ("model.norm",)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.norm(x, self.weights[0])


class Cache:
    bits: int | None = None
    unwritten = torch.nan
    """What was never written must never be read. The package's own begin as zeros, which recorded steps rely on."""

    def __init__(self, model: Model, batch_size: int, max_seq_len: int) -> None:
        c = model.config
        assert batch_size == 1 and max_seq_len % 256 == 0
        shape = (c.num_hidden_layers, 1, max_seq_len, c.num_key_value_heads, c.head_dim)
        self.states = torch.full((2, *shape), self.unwritten)

    def all_tensors(self) -> list[Tensor]:
        return [layer for kind in self.states for layer in kind]

    def read(self, layer: int, params: Any) -> tuple[Tensor, Tensor]:
        keys, values = (kind[layer, 0].view(-1, params.page_size, *kind.shape[-2:]) for kind in self.states)
        return keys, values

    def write(self, layer: int, params: Any, n: int) -> None:
        """Round what was just written, as the quantized caches do; they read the past only if told there is one."""
        if self.bits is None:
            return
        assert params.max_cache_seqlen > 0
        limit = 2 ** (self.bits - 1)
        for row, length in enumerate(params.cache_seqlens.tolist()):
            for position in range(length, length + n):
                page = int(params.block_index[row, position // params.page_size])
                for kind in self.states:
                    at = kind[layer, 0, page * params.page_size + position % params.page_size]
                    top = at.abs().amax(-1, keepdim=True).clamp(min=1e-9)
                    at.copy_((at / top * limit).round().clamp(-limit, limit - 1) / limit * top)


class CacheOfZeros(Cache):
    unwritten = 0.0


class CacheQ8(Cache):
    bits = 8


class CacheQ4(Cache):
    bits = 4


class Paged:
    """A paged pass, described as the package's class describes it."""

    def __init__(
        self,
        batch_size: int,
        block_index: Tensor,
        cache_seqlens: Tensor,
        max_cache_seqlen: int,
        page_size: int,
        q_len: int,
    ) -> None:
        assert block_index.dtype == cache_seqlens.dtype == torch.int32 and q_len > 0
        assert block_index.shape[0] == batch_size == len(cache_seqlens)
        assert block_index.device.type == cache_seqlens.device.type == "cpu"
        self.block_index, self.cache_seqlens = block_index, cache_seqlens
        self.max_cache_seqlen, self.page_size, self.is_sequential = max_cache_seqlen, page_size, False
        if batch_size == 1:
            length, pages = int(cache_seqlens[0]), block_index[0].tolist()
            touched = pages[length // page_size : (length + q_len - 1) // page_size + 1]
            self.is_sequential = touched == list(range(touched[0], touched[0] + len(touched)))
            self.first_index = touched[0] * page_size + length % page_size
            self.cache_seqlens_after = cache_seqlens + q_len


def flash(
    q: Tensor, k: Tensor | None, v: Tensor | None, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor,
    block_table: Tensor, causal: bool, softmax_scale: float, faulty: bool = False,
) -> Tensor:  # fmt: skip
    """Paged attention, position by position. Lengths count what is in the cache, the new keys not included. The
    `faulty` one lets the positions of a pass see each other both ways, as ExLlamaV2 0.3.2 without flash-attn does."""
    assert causal
    out = torch.empty_like(q)
    n, page = q.shape[1], k_cache.shape[1]
    for row, length in enumerate(cache_seqlens.tolist()):
        places = [(int(block_table[row, i // page]), i % page) for i in range(length + (n if k is not None else 0))]
        if k is not None and v is not None:
            for i in range(n):
                k_cache[places[length + i]] = k[row, i]
                v_cache[places[length + i]] = v[row, i]
        at = tuple(torch.tensor(places).T)
        keys, values = (cache[at].repeat_interleave(q.shape[2] // cache.shape[2], 1) for cache in (k_cache, v_cache))
        scores = torch.einsum("nhd,lhd->hnl", q[row], keys) * softmax_scale
        hidden = torch.arange(len(places)) > torch.arange(n)[:, None] + len(places) - n
        if not faulty:
            scores = scores.masked_fill(hidden, -torch.inf)
        out[row] = torch.einsum("hnl,lhd->nhd", scores.softmax(-1), values)
    return out


def package(own_attention: bool = True, attend: Any = None) -> Package:
    """The stand-in as a `Package`. `attend` replaces the attention by a faulty one."""
    ours = PagedAttention() if own_attention else None
    return Package(
        config=Config,
        model=lambda config: Model(config, attend or ours or flash),
        caches={"fp16": Cache, "q8": CacheQ8, "q6": CacheQ4, "q4": CacheQ4},
        paged=Paged,
        attention=ours,
        stream=lambda card: None,
        dtype=torch.float32,
    )


def engine(folder: Path, kv: str = "same", own_attention: bool = True, record: Any = None, **faults: Any) -> Exl2LM:
    """The exl2 engine over the stand-in, on the CPU."""
    weights = "exl2" if stored_as(folder) == "exl2" else "float16"
    setup = EngineConfig("exl2", "cpu", weights, kv)
    if record:
        faults["caches"] = {"fp16": CacheOfZeros}
    taken = dataclasses.replace(package(own_attention), **faults)
    return Exl2LM(taken, look_into(folder, weights), setup, None, record)
