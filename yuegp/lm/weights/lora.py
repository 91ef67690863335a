"""LoRA adapters as PEFT saves them, merged into the weights while these are read.

A folder holds `adapter_config.json` and `adapter_model.safetensors` with, per adapted weight, A (rank, in) and B (out,
rank): the weight becomes W + strength * scale * B A. Weights that were trained whole (`modules_to_save`) become W +
strength * (trained - W). Anything else an adapter contains is refused by name, because leaving it out silently would
give another model (`lora_config`). The torch engine merges adapters; no command or page offers them yet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from yuegp.checkpoints.sets import safetensors_header
from yuegp.errors import ModelError

from .lora_config import read_lora_config, scale
from .packed import Matrix
from .reader import Reader, read_tensor

_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.(?:default\.)?weight$")
_WHOLE = re.compile(r"^base_model\.model\.(?P<name>(?!.*\.(?:lora_|base_layer\.)).+\.weight)$")


class Adapter:
    """One adapter with its strength: 1 as trained, 0 without effect."""

    def __init__(self, folder: Path, strength: float = 1.0) -> None:
        self.folder, self.strength = folder, strength
        self._config = read_lora_config(folder)
        self._file = folder / "adapter_model.safetensors"
        if not self._file.exists() and (folder / "adapter_model.bin").exists():
            raise ModelError(
                f"The adapter {folder} holds its weights in adapter_model.bin, which yuegp does not read.",
                "Load it with PEFT and save it again: it writes adapter_model.safetensors.",
            )
        self._where = safetensors_header(self._file)
        self._pairs: dict[str, dict[str, str]] = {}
        self._whole: dict[str, str] = {}
        foreign = []
        for name in self._where:
            if match := _NAME.match(name):
                self._pairs.setdefault(match["module"] + ".weight", {})[match["side"]] = name
            elif self._config.get("modules_to_save") and (match := _WHOLE.match(name)):
                self._whole[match["name"]] = name
            else:
                foreign.append(name)
        halves = [name for name, pair in self._pairs.items() if len(pair) != 2]
        if foreign or halves or not self._pairs:
            what = (
                f"tensors that are no LoRA pairs: {', '.join((foreign or halves)[:5])}"
                if foreign or halves
                else ("no LoRA weights")
            )
            raise ModelError(f"{self._file} holds {what}.", "Use an adapter trained with plain LoRA.")

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise ModelError for an adapter of a model with other tensors."""
        for name, pair in self._pairs.items():
            a, b = (self._where[pair[side]].shape for side in "AB")
            fits = len(a) == len(b) == 2 and a[0] == b[1] > 0 and (b[0], a[1]) == shapes.get(name)
            self._require(fits, name, f"{b} times {a}", shapes)
        for name, stored in self._whole.items():
            there = self._where[stored].shape
            self._require(there == shapes.get(name), name, f"{there}", shapes)

    def _require(self, fits: bool, name: str, change: str, shapes: dict[str, tuple[int, ...]]) -> None:
        if not fits:
            here = f"has the shape {shapes[name]}" if name in shapes else "has no such weight"
            raise ModelError(
                f"The adapter {self.folder} changes {name} by {change}, but the model {here}.",
                "Use an adapter that was trained for this model.",
            )

    def touches(self, name: str) -> bool:
        return name in self._pairs or name in self._whole

    def add_(self, name: str, weight: Tensor) -> None:
        """Merge this adapter into a weight (out, in) in place, computed in single precision."""
        if name in self._whole:
            change = self._read(self._whole[name], weight).sub_(weight).mul_(self.strength)
        else:
            a, b = (self._read(self._pairs[name][side], weight) for side in "AB")
            change = (b @ a).mul_(self.strength * scale(self._config, name.removesuffix(".weight"), a.shape[0]))
        weight.copy_(change.add_(weight))
        if not bool(weight.isfinite().all()):
            kind = str(weight.dtype).removeprefix("torch.")
            raise ModelError(
                f"With the adapter {self.folder} {name} becomes too large for {kind}.",
                "Choose a smaller strength, or another adapter.",
            )

    def _read(self, stored: str, like: Tensor) -> Tensor:
        return read_tensor(stored, self._file, self._where[stored], like.device, torch.float32)


class Adapted:
    """A folder's tensors with adapters merged in. See `build.Source`. Adapted tensors come as floats."""

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
