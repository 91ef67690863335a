"""What ExLlamaV2's modules are made of, read by our own reader.

The package opens weights in C++ by `fopen(char*)`: under a folder with letters outside Windows' code page that fails,
one of its threads then waits for ever, or its exception ends the process without a word. It also looks for files by a
glob pattern, in which the brackets of a folder's name mean something else. So nothing of it touches a weight file.
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
    """The tensors of `places`, handed to the modules of a model as they ask for them: integers as they are stored,
    floats as float16, which is what the package makes of each of them. A float16 too small for a weight is an error
    here, and was an infinity there.

    `heard(done, total)` is told of bytes, several times within a large tensor; what it raises ends the loading."""

    def __init__(self, places: Mapping[str, Place], total: int, heard: Callable[[int, int], None]) -> None:
        self._places, self._heard, self.total, self.done = places, heard, total, 0
        self._buffer: Tensor | None = None

    def serve(self, modules: Iterable[Any]) -> None:
        """Stand in the place of `load_multi`, through which the package's modules read whatever they read."""
        for module in modules:
            module.load_multi = partial(self._load, module)
            self.serve(getattr(module, "submodules", ()))

    def _load(self, module: Any, key: str, keys: Iterable[str], measure: bool = False, cpu: bool = False) -> Any:
        """Those of the tensors `key.keys` that there are, on the device of `module`, or how many bytes they have."""
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
        """Give back the buffer: the model keeps this object."""
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
    """The same for a process that is ExLlamaV2's own from beginning to end, its converter: in these two modules of the
    package, read tensors by our reader, and find the files of folders whatever these are called."""

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
