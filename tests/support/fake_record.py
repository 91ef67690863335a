"""A recording as CUDA graphs are one, for the CPU: the same operations on the same memory, every number in them fixed.

Operations are noted below Python, with the tensors they were given. Repeating one writes its result where the first
one lay. Recording leaves everything as it was, as a CUDA graph does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Note(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value was read back to the host while recording")
        if func._schema.is_mutable and args[0].data_ptr() not in self.before:
            self.before[args[0].data_ptr()] = args[0], args[0].clone()
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        return out


def record(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """A `Record` (see yuegp/lm/exl2/graph.py)."""
    with _Note() as note:
        result = work()
    for tensor, before in reversed(note.before.values()):
        tensor.copy_(before)
    result.fill_(torch.nan)

    def repeat() -> None:
        for func, args, kwargs, out in note.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    return result, repeat
