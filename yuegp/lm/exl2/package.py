"""Imports the ExLlamaV2 package with the settings under which it computes right, or refuses it with the reason.

Version 0.3.2 only: it is the last one, and this engine relies on its internals. Without flash-attn its own attention
has no causal mask (0.2.9 to 0.3.2), so its fall-backs are switched off and ours takes their place.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from yuegp.errors import DeviceError, said

from .attention import PagedAttention
from .flash_probe import Probe, probe
from .presence import BUILD, UNCOMPILED, VERSION, missing, other_version

_TORCH = "Use the torch engine instead."


@dataclass(frozen=True)
class Package:
    """The parts of ExLlamaV2 this engine uses.

    `config` makes settings from a folder's name and opens no weight file. `attention` is ours where flash-attn does not
    work, None where it does. `stream` returns the CUDA stream ExLlamaV2 works on, None on a CPU."""

    config: Callable[[str], Any]
    model: Callable[[Any], Any]
    caches: Mapping[str, Callable[..., Any]]
    paged: Callable[..., Any]
    attention: PagedAttention | None
    stream: Callable[[int], torch.cuda.Stream | None]
    dtype: torch.dtype = torch.float16


def load_package(card: int) -> Package:
    """Import ExLlamaV2 for card number `card`. Raises DeviceError when it is absent, of another version, or broken."""
    flash = probe(card)
    names = ["exllamav2", "exllamav2.attn", "exllamav2.attn_params", "exllamav2.device"]
    _check_presence()
    threads = torch.get_num_threads()
    try:
        with _switches(flash), contextlib.redirect_stdout(sys.stderr):
            root, attn, params, device = (importlib.import_module(name) for name in names)
    except (ImportError, OSError, RuntimeError) as exc:
        raise DeviceError(f"ExLlamaV2 cannot be loaded: {said(exc)}.", _wheel_hint()) from exc
    finally:
        torch.set_num_threads(threads)  # the package sets one thread for the whole process
    check(root.__version__, attn, flash)
    attention = None
    if not flash.works:
        there = getattr(attn, "flash_attn_with_kvcache", None)
        attention = there if isinstance(there, PagedAttention) else PagedAttention()  # one for all loaded models
        attn.flash_attn_with_kvcache = attention  # type: ignore[attr-defined]
    return Package(
        config=lambda folder: prepared(root.ExLlamaV2Config, folder),
        model=root.ExLlamaV2,
        caches={
            "fp16": root.ExLlamaV2Cache,
            "q8": root.ExLlamaV2Cache_Q8,
            "q6": root.ExLlamaV2Cache_Q6,
            "q4": root.ExLlamaV2Cache_Q4,
        },
        paged=params.PagedParams,
        attention=attention,
        stream=device.get_device_stream,
    )


def prepared(kind: Callable[[], Any], folder: str) -> Any:
    """The package's settings for a model folder. It does not search for weight files: `weights.py` provides them."""
    settings = kind()
    settings.model_dir = folder
    settings.prepare(no_tensors=True)
    settings.tensor_file_map, settings.checkpoint_fused_mlp, settings.vision_model_type = {}, False, None
    return settings


def check(version: str, attn: Any, flash: Probe) -> None:
    """Raise DeviceError unless this version and attention are known to compute right."""
    if why := other_version(version):
        raise DeviceError(why, _wheel_hint())
    ours = isinstance(getattr(attn, "flash_attn_with_kvcache", None), PagedAttention)
    if flash.works and (ours or not getattr(attn, "has_flash_attn_with_paged", False)):
        raise DeviceError(
            "flash-attn works on its own, but ExLlamaV2 was loaded without it earlier in this program.",
            "Start the program again.",
        )


def _check_presence() -> None:
    if why := missing():
        build = f" Or set {BUILD}=1 to compile it at the next start: that takes 10 to 20 minutes and needs NVIDIA's "
        raise DeviceError(why, _wheel_hint() + (build + "CUDA toolkit." if why == UNCOMPILED else ""))


def _wheel_hint() -> str:
    here = f"torch {torch.__version__} and Python {sys.version_info.major}.{sys.version_info.minor}"
    return f"{_TORCH} Or install the ExLlamaV2 {VERSION} wheel made for {here}, if there is one: see docs/engines.md."


@contextlib.contextmanager
def _switches(flash: Probe) -> Iterator[None]:
    """Set the environment for importing the package: a flash-attn or xformers made for another torch would break the
    import."""
    wanted = {"EXLLAMA_NO_SDPA": "1", "EXLLAMA_NO_XFORMERS": "1"}
    wanted |= {} if flash.works else {"EXLLAMA_NO_FLASH_ATTN": "1"}
    before = {name: os.environ.get(name) for name in (*wanted, "EXLLAMA_NO_FLASH_ATTN")}
    if flash.works:
        os.environ.pop("EXLLAMA_NO_FLASH_ATTN", None)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
