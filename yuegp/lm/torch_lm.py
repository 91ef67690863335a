"""The torch engine: released Hugging Face folders on a CPU or a CUDA card. Deterministic, and needs no compiled wheel.

Loading reads one tensor at a time, so the peak is the weights themselves plus one tensor. The network is `llama.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint import LlamaConfig, read_config
from ..errors import ModelError
from .llama import KVBank, Layer, Llama, pair_rotary_rows

PREFILL = 512
"""Ids per prefill pass: bounds the scratch memory of a long prompt; larger passes are no faster on a CPU."""


class TorchLM:
    """A loaded Llama. See `LMEngine`."""

    def __init__(self, network: Llama, name: str) -> None:
        self._network: Llama | None = network
        self.name = name
        self.context = network.config.context
        self.vocab_size = network.config.vocab_size
        self.device = str(network.embedding.device)
        self.dtype = network.embedding.dtype
        self.kv_bytes = network.config.kv_values * network.embedding.element_size()

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", dtype: str = "float32") -> Self:
        """Read `config.json` and the safetensors of a released folder. ModelError names what is wrong with it."""
        config = read_config(folder)
        return cls(build(config, TensorReader(folder, torch.device(device), getattr(torch, dtype))), folder.name)

    def open(self, capacities: Sequence[int], keep: Sequence[int] | None = None) -> TorchSession:
        if self._network is None:
            raise RuntimeError(f"the engine {self.name} was unloaded")
        if too_long := [c for c in capacities if c > self.context]:
            raise ValueError(f"a row of {max(too_long)} ids does not fit the context of {self.context}")
        return TorchSession(self._network, capacities, keep)

    def unload(self) -> None:
        self._network = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class TorchSession:
    """Rows with their own KV caches. See `LMSession`. Neighbouring rows of equal capacity share a bank."""

    def __init__(self, network: Llama, capacities: Sequence[int], keep: Sequence[int] | None) -> None:
        self._network = network
        self._device = network.embedding.device
        self._banks: list[KVBank] = []
        self._places: list[tuple[KVBank, int]] = []
        for capacity, count in _runs(capacities):
            bank = KVBank(network.config, count, capacity, network.embedding)
            self._banks.append(bank)
            self._places += [(bank, i) for i in range(count)]
        if keep is None:
            self._head = network.head
        else:
            self._head = network.head[:, torch.as_tensor(list(keep), device=self._device)]

    @torch.inference_mode()
    def prefill(self, row: int, ids: Sequence[int]) -> Tensor:
        if not ids:
            raise ValueError("a prefill needs at least one id")
        bank, index = self._places[row]
        self._check_room(bank, bank.lengths[index], len(ids))
        alone = _one_row(bank, index)
        for start in range(0, len(ids), PREFILL):
            part = torch.tensor([ids[start : start + PREFILL]], device=self._device)
            hidden = self._network.hidden(part, [alone])
        bank.lengths[index] = alone.lengths[0]
        return (hidden @ self._head)[0]

    @torch.inference_mode()
    def step(self, ids: Tensor, select: slice | None = None) -> Tensor:
        ids = ids.to(self._device)
        if ids.dim() == 1:
            ids = ids[:, None]
        if ids.shape[0] != len(self._places):
            raise ValueError(f"{ids.shape[0]} rows of ids for a session of {len(self._places)} rows")
        for bank in self._banks:
            self._check_room(bank, max(bank.lengths), ids.shape[1])
        for start in range(0, ids.shape[1], PREFILL):
            hidden = self._network.hidden(ids[:, start : start + PREFILL], self._banks)
        return hidden @ (self._head if select is None else self._head[:, select])

    def truncate(self, row: int, length: int) -> None:
        bank, index = self._places[row]
        if not 0 <= length <= bank.lengths[index]:
            raise ValueError(f"cannot cut a row of {bank.lengths[index]} ids to {length}")
        bank.lengths[index] = length

    def copy(self, src: int, dst: int) -> None:
        (a, i), (b, j) = self._places[src], self._places[dst]
        length = a.lengths[i]
        self._check_room(b, 0, length)
        b.kv[:, j, :, :length] = a.kv[:, i, :, :length]
        b.lengths[j] = length

    def length(self, row: int) -> int:
        bank, index = self._places[row]
        return bank.lengths[index]

    def close(self) -> None:
        self._banks, self._places = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @staticmethod
    def _check_room(bank: KVBank, length: int, more: int) -> None:
        if length + more > bank.capacity:
            raise ValueError(f"{more} more ids do not fit a row of {length} ids with room for {bank.capacity}")


def _runs(capacities: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of equal capacities as (capacity, how many)."""
    start = 0
    for i in range(1, len(capacities) + 1):
        if i == len(capacities) or capacities[i] != capacities[start]:
            yield capacities[start], i - start
            start = i


def _one_row(bank: KVBank, index: int) -> KVBank:
    """A bank that is a window on one row of another."""
    alone = object.__new__(KVBank)
    alone.capacity, alone.lengths = bank.capacity, [bank.lengths[index]]
    alone.kv = bank.kv[:, index : index + 1]
    return alone


class TensorReader:
    """Tensors of a released folder by name: one `model.safetensors`, or shards with an index."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / name for name in names]
        else:
            files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"{folder} holds no *.safetensors files.", "Download the model again; the folder is incomplete."
            )
        self._where: dict[str, tuple[Path, object]] = {}
        for path in files:
            try:
                shard = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as exc:
                raise ModelError(f"{path} cannot be read: {exc}.", "Download this file again.") from exc
            self._where |= {name: (path, shard) for name in shard.keys()}  # noqa: SIM118 (not a dict)

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._where:
            raise ModelError(f"The tensor {name} is missing from the model.", "Download the model again.")
        path, shard = self._where[name]
        tensor = shard.get_tensor(name)  # type: ignore[attr-defined]
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{path}: the tensor {name} has shape {tuple(tensor.shape)}, but config.json asks for {shape}.",
                "The weights and config.json come from different models; download both again.",
            )
        tensor = tensor.to(self._device, self._dtype)
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{path}: the tensor {name} contains values that are not numbers.",
                "The file is damaged, or the weights overflow in this precision. Download it again.",
            )
        return tensor


def build(config: LlamaConfig, read: Callable[[str, tuple[int, ...]], Tensor]) -> Llama:
    """A network from a function that hands over each released tensor by name and shape."""
    shapes = config.tensors()

    def get(name: str) -> Tensor:
        return read(name, shapes[name])

    embedding = get("model.embed_tokens.weight")
    layers = []
    for i in range(config.layers):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        queries, keys = (pair_rotary_rows(get(attention + name), config.head_dim) for name in
                         ("q_proj.weight", "k_proj.weight"))
        layers.append(
            Layer(
                input_norm=get(f"model.layers.{i}.input_layernorm.weight"),
                qkv=_turned(queries, keys, get(attention + "v_proj.weight")),
                out=_turned(get(attention + "o_proj.weight")),
                mlp_norm=get(f"model.layers.{i}.post_attention_layernorm.weight"),
                gate_up=_turned(get(mlp + "gate_proj.weight"), get(mlp + "up_proj.weight")),
                down=_turned(get(mlp + "down_proj.weight")),
            )
        )
    head = embedding.t() if config.tied else _turned(get("lm_head.weight"))
    return Llama(config, embedding, layers, get("model.norm.weight"), head)


def _turned(*weights: Tensor) -> Tensor:
    """Released weights (out, in), side by side, as one (in, out) matrix."""
    return torch.cat([weight.t() for weight in weights], dim=1)
