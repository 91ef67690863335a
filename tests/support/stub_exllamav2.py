"""ExLlamaV2's own Python layers on a CPU: its package, with a stand-in for its compiled extension.

Nothing of the package is kept here. It is taken from where it is installed, or from the folder that the variable
YUEGP_EXLLAMAV2 names (its pure wheel, unpacked). The kernels' stand-ins follow what the extension's sources state, in
float32 rounded to float16; packed matrices are unpacked by `yuegp/lm/exl2/format.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yuegp.lm.exl2.attention import PagedAttention
from yuegp.lm.exl2.format import unpack
from yuegp.lm.exl2.package import VERSION, Package, prepared


class Extension(types.ModuleType):
    """The functions that the layers call. Handles are numbers, as in the real one."""

    def __init__(self) -> None:
        super().__init__("exllamav2_ext")
        self.__file__ = __file__
        self.things: dict[int, Any] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def unexpected(*args: Any) -> None:
            raise AssertionError(f"the layers call {name}, which has no stand-in")

        return unexpected

    def _keep(self, thing: Any) -> int:
        self.things[len(self.things) + 1] = thing
        return len(self.things)

    def free_q_matrix(self, handle: int) -> None:
        del self.things[handle]

    free_q_attn = free_q_mlp = free_q_matrix

    def stloader_read(self, file: str, offset: int, size: int, tensor: Tensor) -> None:
        """On Windows it hangs or ends the process for folders with non-ASCII letters: nothing may go through it."""
        raise AssertionError(f"the package's own reader was called for {file}")

    def rms_norm(self, x: Tensor, weight: Tensor, out: Tensor, eps: float) -> None:
        out.copy_(F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps))

    def rope_(
        self, x: Tensor, sin: Tensor, cos: Tensor, past: int, heads: int, dim: int, lengths: Tensor, neox: bool
    ) -> None:
        assert neox, "Llama's rotary pairs lie half a head apart"
        starts = torch.full((x.shape[0],), past) if lengths.is_meta else past + lengths.clamp(min=0)
        at = starts.long()[:, None] + torch.arange(x.shape[1])
        s, c = sin[0, 0][at][:, :, None].float(), cos[0, 0][at][:, :, None].float()
        a, b = x.float().chunk(2, -1)
        turned = torch.cat([-b, a], -1)
        x.copy_(x.float() * c + turned * s)

    def make_group_map(self, groups: Tensor, words: int) -> Tensor:
        return torch.zeros(0, dtype=torch.short)

    def tensor_remap(self, tensor: Tensor, index: Tensor) -> None:
        tensor.copy_(tensor[:, index.long()])

    def tensor_remap_4bit(self, tensor: Tensor, index: Tensor) -> None:
        nibbles = (tensor[:, :, None] >> (4 * torch.arange(8))) & 15
        moved = nibbles.flatten(1)[:, index.long()].view(len(tensor), -1, 8).numpy().astype(np.uint32)
        packed = np.bitwise_or.reduce(moved << (4 * np.arange(8, dtype=np.uint32)), axis=2)
        tensor.copy_(torch.from_numpy(packed.view(np.int32)))

    def make_q_matrix(
        self, weight: Tensor, perm: Tensor, invperm: Tensor, scale: Tensor, scale_max: Tensor, groups: Tensor, *_: Any
    ) -> int:
        rows = sum(count for _, count in _rows(groups, len(weight)))
        order = torch.arange(rows) if invperm.is_meta else invperm
        parts = {
            "q_weight": weight.numpy(),
            "q_scale": scale.numpy(),
            "q_scale_max": (scale_max * 256).numpy(),  # the package has divided it by 256 already
            "q_groups": groups.numpy(),
            "q_invperm": order.numpy(),
        }
        return self._keep(torch.from_numpy(unpack(parts, range(weight.shape[1]))))

    def gemm_half_q_half(self, x: Tensor, handle: int, out: Tensor, force: bool) -> None:
        out.copy_(x.float() @ self.things[handle].float().T)

    def make_q_attn(self, norm: Tensor, bias: Tensor, is_rms: bool, headnorm: bool, eps: float, *rest: Any) -> int:
        matrices = [self.things[handle] for handle in rest[:4]]
        max_rows, _hidden, heads, kv_heads, width = rest[6:11]
        return self._keep((norm, eps, matrices, max_rows, heads, kv_heads, width))

    def q_attn_forward_1(
        self, handle: int, x: Tensor, rows: int, n: int, past: int, lengths: Tensor, q: Tensor, k: Tensor, v: Tensor,
        sin: Tensor, cos: Tensor, loras: list[int], temp: Tensor,
    ) -> None:  # fmt: skip
        norm, eps, matrices, max_rows, heads, kv_heads, width = self.things[handle]
        assert rows * n <= max_rows and x.is_contiguous()
        normed = F.rms_norm(x.float(), (x.shape[-1],), norm.float(), eps).half().float()
        for out, matrix in zip((q, k, v), matrices, strict=False):
            out.copy_((normed @ matrix.float().T).view(out.shape))
        self.rope_(q, sin, cos, past, heads, width, lengths, True)
        self.rope_(k, sin, cos, past, kv_heads, width, lengths, True)
        self.calls.append("q_attn")

    def q_attn_forward_2(self, handle: int, x: Tensor, mixed: Tensor, *rest: Any) -> None:
        x.add_((mixed.float() @ self.things[handle][2][3].float().T).half())

    def make_q_mlp(self, norm: Tensor, bias: Tensor, is_rms: bool, eps: float, *rest: Any) -> int:
        return self._keep((norm, eps, [self.things[handle] for handle in rest[:3]], rest[7]))

    def q_mlp_forward_(self, handle: int, x: Tensor, loras: list[int], temp: Tensor) -> None:
        norm, eps, (gate, up, down), max_rows = self.things[handle]
        assert x.numel() // x.shape[-1] <= max_rows and x.is_contiguous()
        normed = F.rms_norm(x.float(), (x.shape[-1],), norm.float(), eps).half().float()
        inner = (F.silu(normed @ gate.float().T) * (normed @ up.float().T)).half().float()
        x.add_((inner @ down.float().T).half())

    def fp16_to_q_kv(self, *args: Any) -> None:
        self._each_kv(args, store=True)

    def q_to_fp16_kv(self, *args: Any) -> None:
        self._each_kv(args, store=False)

    def _each_kv(self, args: tuple[Any, ...], store: bool) -> None:
        """Rotate by a Hadamard matrix, and round to 4 or 8 bits with one scale for 32 values: two interleaved
        transforms of 64 neighbours, as a warp does it."""
        pairs = (args[0:3], args[3:6])
        _, _, n, page, lengths, table, bits = args[6:]
        assert page, "only paged passes are wanted"
        widths = {8: (8, 8), 6: (8, 4), 4: (4, 4)}[bits]
        for row, length in enumerate(lengths.tolist()):
            span = range(length, length + n) if store else range(length)
            at = [int(table[row, i // page]) * page + i % page for i in span]
            for (first, second, third), width in zip(pairs, widths, strict=True):
                if not at:
                    continue
                if store:
                    values, packed, scales = first, second, third
                    q, s = _rounded(values[0, at].float(), width)
                    packed[0, at], scales[0, at] = q, s
                else:
                    packed, values, scales = first, second, third
                    values[0, at] = _restored(packed[0, at], scales[0, at].float(), width).half()


def _rows(groups: Tensor, words: int) -> list[tuple[int, int]]:
    pairs = groups.view(-1, 2).tolist()
    ends = [first for _, first in pairs[1:]] + [words]
    return [(bits, (end - first) * 32 // bits) for (bits, first), end in zip(pairs, ends, strict=True)]


def _hadamard() -> Tensor:
    h = torch.ones(1, 1)
    while len(h) < 32:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def _rounded(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    turned = (x.reshape(-1, 32, 2).transpose(1, 2) @ _hadamard()).transpose(1, 2).reshape(-1, 32)
    top = turned.abs().amax(1, keepdim=True).clamp(min=1e-6)
    half = 2 ** (bits - 1)
    q = (turned / top * half + half).round().clamp(0, 2 * half - 1).to(torch.uint8).view(x.shape)
    if bits == 4:
        q = q[..., ::2] | (q[..., 1::2] << 4)
    return q, (top / half).half().view(*x.shape[:-1], -1)


def _restored(q: Tensor, scales: Tensor, bits: int) -> Tensor:
    if bits == 4:
        q = torch.stack([q & 15, q >> 4], -1).flatten(-2)
    values = (q.float() - 2 ** (bits - 1)).view(-1, 32) * scales.reshape(-1, 1)
    return ((values.view(-1, 32, 2).transpose(1, 2) @ _hadamard()).transpose(1, 2) / 32).reshape(q.shape)


class Context:
    """What the package keeps per card: rotary tables and scratch memory."""

    def __init__(self, config: Any) -> None:
        half = torch.arange(0, config.head_dim, 2) / config.head_dim
        angles = torch.outer(torch.arange(config.max_seq_len), 1.0 / config.rotary_embedding_base**half)
        angles = torch.cat([angles, angles], -1)[None, None]
        self.sin, self.cos = [angles.sin().half()], [angles.cos().half()]

    def begin_scratch_alloc(self) -> None:
        pass

    def get_scratch_slice(self, size: int) -> Tensor:
        return torch.empty(size // 2, dtype=torch.float16)


def real_package(monkeypatch: pytest.MonkeyPatch) -> tuple[Package, Any, Extension]:
    """ExLlamaV2's classes for the CPU as a `Package`, its `attn` module and the extension's stand-in; skips the test
    where the package's source is not at hand."""
    if folder := os.environ.get("YUEGP_EXLLAMAV2"):
        monkeypatch.syspath_prepend(folder)
    spec = importlib.util.find_spec("exllamav2")
    if spec is None or spec.origin is None:
        pytest.skip("no ExLlamaV2 here; unpack its pure wheel and name the folder in YUEGP_EXLLAMAV2")
    said = (Path(spec.origin).parent / "version.py").read_text()
    if VERSION not in said:
        pytest.skip(f"this ExLlamaV2 is not {VERSION}: {said.strip()}")
    for name in [name for name in sys.modules if name.split(".")[0] in ("exllamav2", "exllamav2_ext")]:
        monkeypatch.delitem(sys.modules, name)
    extension = Extension()
    monkeypatch.setitem(sys.modules, "exllamav2_ext", extension)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *a: None)
    for switch in ("FLASH_ATTN", "XFORMERS", "SDPA"):
        monkeypatch.setenv(f"EXLLAMA_NO_{switch}", "1")
    threads = torch.get_num_threads()
    root, attn, params = (importlib.import_module(f"exllamav2{name}") for name in ("", ".attn", ".attn_params"))
    torch.set_num_threads(threads)

    class CpuModel(root.ExLlamaV2):  # type: ignore[misc, name-defined]
        def set_device_map(self, allocation: Any, embed_cpu: bool = True) -> None:
            for module in self.modules:
                module.set_device_idx(-1)
            self.context = Context(self.config)
            self.set_cache_map()

        def get_device_context(self, device_idx: int, scratch: bool = True) -> Context:
            return self.context

    class CpuParams(params.PagedParams):  # type: ignore[misc, name-defined]
        def get_block_index(self, device: Any) -> Tensor:
            return self.block_index

        def get_cache_seqlens(self, device: Any) -> Tensor:
            return self.cache_seqlens

        def get_cache_seqlens_after(self, device: Any) -> Tensor:
            return self.cache_seqlens_after

    attention = PagedAttention()
    attn.flash_attn_with_kvcache = attention  # type: ignore[attr-defined]
    caches = {"fp16": "", "q8": "_Q8", "q6": "_Q6", "q4": "_Q4"}
    package = Package(
        config=lambda folder: prepared(root.ExLlamaV2Config, folder),
        model=CpuModel,
        caches={kind: getattr(root, f"ExLlamaV2Cache{name}") for kind, name in caches.items()},
        paged=CpuParams,
        attention=attention,
        stream=lambda card: None,
    )
    return package, attn, extension
