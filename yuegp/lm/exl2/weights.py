"""Reads weights for ExLlamaV2's modules with our own reader.

The package opens weights in C++ by `fopen(char*)`: under a folder with letters outside Windows' code page that fails,
and one of its threads waits for ever or its exception ends the process silently. It also finds files by a glob pattern,
which misreads brackets in a folder's name. So the package never opens a weight file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from yuegp.checkpoints.formats import Place
from yuegp.checkpoints.safetensors import StoredTensor
from yuegp.lm.weights.reader import read_tensor, staging, torch_dtype


class Weights:
    """Provides the tensors of `places` to a model's modules on request: integers as stored, floats as float16, as the
    package converts them. A weight beyond float16's range is an error here; the package made it infinite.

    `heard(done, total)` receives bytes read, several times within a large tensor; an exception from it ends the
    loading."""

    def __init__(self, places: Mapping[str, Place], total: int, heard: Callable[[int, int], None]) -> None:
        self._places, self._heard, self.total, self.done = places, heard, total, 0
        self._buffer: Tensor | None = None

    def serve(self, modules: Iterable[Any]) -> None:
        """Replace `load_multi`, through which the package's modules read all their tensors."""
        for module in modules:
            module.load_multi = partial(self._load, module)
            self.serve(getattr(module, "submodules", ()))

    def _load(self, module: Any, key: str, keys: Iterable[str], measure: bool = False, cpu: bool = False) -> Any:
        """The existing tensors `key.keys` on the device of `module`; with `measure`, their size in bytes."""
        found = {name: self._places[f"{key}.{name}"] for name in dict.fromkeys(keys) if f"{key}.{name}" in self._places}
        if measure:
            return sum(place.stop - place.start for _, place in found.values())
        device = torch.device("cpu" if cpu else module.device())
        if self._buffer is None:
            self._buffer = staging(device)
        return {
            name: _read(f"{key}.{name}", *place, device, self._buffer, self._advance) for name, place in found.items()
        }

    def _advance(self, count: int) -> None:
        self.done += count
        self._heard(self.done, self.total)

    def close(self) -> None:
        """Free the buffer; the model keeps this object."""
        self._buffer = None


def _read(
    name: str,
    path: Path,
    place: StoredTensor,
    device: torch.device,
    buffer: Tensor | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    stored = torch_dtype(name, path, place)
    dtype = torch.float16 if stored.is_floating_point else stored
    return read_tensor(name, path, place, device, dtype, buffer, advance)


def replace_loader(stloader: Any, config: Any) -> None:
    """Do the same in ExLlamaV2's converter, which runs in a process of its own: these two modules of the package then
    read tensors with our reader and find files in folders of any name."""

    def get_tensor(file: Any, key: str, device: Any, out_dtype: torch.dtype | None = None) -> Tensor:
        entry, base = file.header[key], file.header_size
        start, stop = entry["data_offsets"]
        place = StoredTensor(entry["dtype"], tuple(entry["shape"]), base + start, base + stop)
        tensor = _read(key, Path(file.filename), place, torch.device(device))
        return tensor if out_dtype is None else tensor.to(out_dtype)

    def listed(pattern: str) -> list[str]:
        return sorted(str(path) for path in Path(pattern).parent.glob(Path(pattern).name))

    stloader.STFile.get_tensor = get_tensor
    config.glob = SimpleNamespace(glob=listed)
