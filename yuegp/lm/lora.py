"""LoRA adapters as PEFT saves them, merged into the weights while these are read.

A folder holds `adapter_config.json` and `adapter_model.safetensors` with, per adapted weight, A (rank, in) and B (out,
rank): the weight becomes W + strength * scale * B A. Only what changes a Llama's matrices is taken; anything else an
adapter might bring is refused by name, because leaving it out silently would be another model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..models import safetensors_header
from .packed import Matrix
from .reader import Reader, read_tensor

_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.(?:default\.)?weight$")

UNKNOWN = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "bare parameters",
    "layer_replication": "repeated layers",
    "lora_bias": "biases",
    "fan_in_fan_out": "turned weights",
}
"""Entries of adapter_config.json that change the arithmetic in ways not known here."""


class Adapter:
    """One adapter with a strength: 1 as it was trained, 0 not at all."""

    def __init__(self, folder: Path, strength: float = 1.0) -> None:
        self.folder, self.strength = folder, strength
        self._config = _config(folder)
        self._file = folder / "adapter_model.safetensors"
        self._where = safetensors_header(self._file)
        self._pairs: dict[str, dict[str, str]] = {}
        foreign = []
        for name in self._where:
            if match := _NAME.match(name):
                self._pairs.setdefault(match["module"] + ".weight", {})[match["side"]] = name
            else:
                foreign.append(name)
        halves = [name for name, pair in self._pairs.items() if len(pair) != 2]
        if foreign or halves or not self._pairs:
            what = f"tensors that are no LoRA pairs: {', '.join((foreign or halves)[:5])}" if foreign or halves else (
                "no LoRA weights"
            )
            raise ModelError(f"{self._file} holds {what}.", "Use an adapter trained with plain LoRA.")

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse an adapter that was made for a model of other tensors."""
        for name, pair in self._pairs.items():
            a, b = (self._where[pair[side]].shape for side in "AB")
            wanted = shapes.get(name)
            if wanted is None or len(a) != 2 or len(b) != 2 or (b[0], a[1]) != wanted or a[0] != b[1]:
                here = "has no such weight" if wanted is None else f"has the shape {wanted}"
                raise ModelError(
                    f"The adapter {self.folder} changes {name} by {b} times {a}, but the model {here}.",
                    "Use an adapter that was trained for this model.",
                )

    def touches(self, name: str) -> bool:
        return name in self._pairs

    def add_(self, name: str, weight: Tensor) -> None:
        """Add this adapter's part to a weight (out, in) in place, computed in single precision."""
        pair = self._pairs[name]
        a, b = (
            read_tensor(pair[side], self._file, self._where[pair[side]], weight.device, torch.float32) for side in "AB"
        )
        change = (b @ a).mul_(self.strength * self._scale(name.removesuffix(".weight"), a.shape[0]))
        weight.copy_(change.add_(weight))

    def _scale(self, module: str, rank: int) -> float:
        patterns = self._config.get("alpha_pattern") or {}
        own = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
        alpha = float((own or [self._config.get("lora_alpha", 8)])[0])
        return alpha / (rank**0.5 if self._config.get("use_rslora") else rank)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} cannot be read as JSON: {exc}.", "Name the folder of a PEFT LoRA adapter.") from exc
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{path} does not describe a LoRA adapter.", "Name the folder of a PEFT LoRA adapter.")
    odd = [said for key, said in UNKNOWN.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append("biases")
    if odd:
        raise ModelError(
            f"The adapter {folder} uses {' and '.join(odd)}, which yuegp does not know.",
            "Use an adapter trained with plain LoRA.",
        )
    return config


class Adapted:
    """A folder's tensors with adapters merged in. See `build.Source`. What an adapter changes comes as floats."""

    def __init__(self, reader: Reader, adapters: Sequence[Adapter]) -> None:
        self._reader, self._adapters = reader, adapters

    def floats(self, name: str, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        weight = self._reader.floats(name, shape, device)
        for adapter in self._adapters:
            if adapter.touches(name):
                adapter.add_(name, weight)
        return weight

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        if any(adapter.touches(name) for adapter in self._adapters):
            return self.floats(name, shape)
        return self._reader.matrix(name, shape)
