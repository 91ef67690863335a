"""YuE's released repositories in their own layout, with its vocabularies and tiny widths, for the tests of models."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import pathlib
import shutil
import struct
import sys
import types
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tools.make_set import LM, SIZES, write_codec, write_lm

STAGE1, STAGE2, SOUND = "YuE-s1-7B-anneal-en-cot", "YuE-s2-1B-general", "xcodec_mini_infer"


def write_released(folder: Path, pth: bool = True) -> Path:
    """The three repositories of English without reference, in `folder`. Without `pth` the codec is the copy that holds
    safetensors."""
    write_lm(folder / STAGE1, LM(83968, 8, 16, 2, 4, 2, 16384, shards=3), seed=0)
    write_lm(folder / STAGE2, LM(83840, 8, 16, 2, 2, 2, 8192), seed=1)
    write_codec(folder / SOUND, replace(SIZES["tiny"].codec), seed=2, pth=pth)
    if pth:
        as_trained(folder / SOUND)
    for name in (STAGE1, STAGE2):
        (folder / name / "tokenizer.model").write_bytes(b"not a real one")
    return folder


# The released pickles


def as_trained(codec: Path) -> None:
    """Make the `.pth` files of a codec folder what their training left: the codec between optimizers, schedulers,
    discriminators and configurations, the upsamplers as a table with torch's notes on versions."""
    import torch

    for path in codec.rglob("*.pth"):
        content = torch.load(path, weights_only=True)
        state = content.get("codec_model", content)
        table = OrderedDict(state)
        table._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
        save_trained(path, {"codec_model": table} if state is not content else table)


def save_trained(path: Path, content: Any) -> None:
    """`torch.save`, with training state around a table that is an entry of `content`. The classes in it exist while it
    is written, and not when it is read."""
    import torch

    with stand_ins() as made:
        if "codec_model" in content:
            content = training_state(made, before=True) | content | training_state(made, before=False)
        torch.save(content, path)


def training_state(made: Any, before: bool) -> dict[str, Any]:
    """Half of what lies beside the weights. Its pickle names all that the released `ckpt_00360000.pth` names, in Python
    2's spelling where it has one (`__builtin__.long`), and what other trainers leave."""
    import numpy as np
    import torch

    discriminator = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-4)
    discriminator(torch.ones(2, 2, 5)).sum().backward()
    optimizer.step()
    if before:
        return {"epoch": 9, "mfd": discriminator.state_dict(), "optimizer_d": optimizer.state_dict()}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=made.Warmup(steps=4000))
    container = made.ContainerMetadata(ref_type=typing.Any, object_type=dict, resolver_cache=defaultdict(dict, a={}))
    config = made.DictConfig(_metadata=container, _parent=None, _content={})
    numbers = made.ListConfig(_metadata=replace_type(container, list), _parent=config, _content=[])
    for value in (8, 5, 0.5, "x", None):
        node = made.AnyNode(_metadata=made.Metadata(ref_type=typing.Any, object_type=int), _parent=numbers, _val=value)
        numbers._content.append(node)
    config._content["ratios"] = numbers
    return {
        "optimizer_g": optimizer.state_dict(),
        "lr_scheduler_g": scheduler.state_dict(),
        "lr_scheduler_d": {"lr_lambdas": [functools.partial(max, 1)], "base_lrs": [np.float64(1e-4)]},
        "config": config,
        "hyper_parameters": argparse.Namespace(
            out=pathlib.PurePosixPath("/mnt/runs"), when=datetime.datetime(2024, 11, 7), shape=torch.Size([1, 2]),
            device=torch.device("cuda:0"), dtype=torch.bfloat16, losses=np.arange(5), tags={"a"}, frozen=frozenset({1}),
            weight=torch.nn.Parameter(torch.ones(2)), sampler=complex(1, 2), raw=b"\x00\xff", names=("a", ("b",)),
        ),
        "rng_state": torch.get_rng_state(),
        (1, "odd key"): slice(1, 2),
    }  # type: ignore[dict-item]  # fmt: skip


def replace_type(metadata: Any, object_type: type) -> Any:
    return type(metadata)(**vars(metadata) | {"object_type": object_type})


@contextlib.contextmanager
def stand_ins() -> Iterator[SimpleNamespace]:
    """OmegaConf's classes and a trainer's own, to be written into a pickle; gone afterwards, as on a user's machine."""
    names = {
        "omegaconf.dictconfig": ["DictConfig"], "omegaconf.listconfig": ["ListConfig"], "omegaconf.nodes": ["AnyNode"],
        "omegaconf.base": ["ContainerMetadata", "Metadata"], "omegaconf": [],
        "trainer.schedules": ["Warmup"], "trainer": [],
    }  # fmt: skip
    kept = {name: sys.modules.get(name) for name in names}
    made = SimpleNamespace()
    for module, classes in names.items():
        sys.modules[module] = types.ModuleType(module)
        for name in classes:
            made.__dict__[name] = type(name, (_Plain,), {"__module__": module})
            setattr(sys.modules[module], name, made.__dict__[name])
    try:
        yield made
    finally:
        for name, module in kept.items():
            sys.modules.pop(name)
            if module:
                sys.modules[name] = module


class _Plain:
    """Pickled like objects of ordinary classes: made without arguments, then given their state."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)

    def __call__(self, step: int) -> float:
        return float(step)


def write_tokenizer(path: Path, size: int = 32000) -> None:
    """A SentencePiece model (unigram) that spells Latin text, with as many pieces as YuE's. Source: the package's
    `sentencepiece_model.proto`: pieces are field 1, each with text (1), score (2) and type (3)."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, *_varint(len(data))]) + data

    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"[]()<>_-\n"]
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    plain = [(text, 1) for text in [*letters, *(f"▁filler{n}" for n in range(size - len(special) - len(letters)))]]
    pieces = (
        field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", -1.0) + bytes([3 << 3, kind]))
        for text, kind in [*special, *plain]
    )
    path.write_bytes(b"".join(pieces) + field(3, field(1, b"identity")))


def _varint(value: int) -> list[int]:
    return [value] if value < 128 else [value & 127 | 128, *_varint(value >> 7)]


# Copies in other formats


def pretend_exl2(source: Path, target: Path, bits: float) -> Path:
    """A folder as ExLlamaV2's converter leaves it: `output.safetensors` in its names, the original's index beside it.
    The words are zeros: good for names and shapes."""
    import numpy as np
    from safetensors.numpy import save_file

    from yuegp.checkpoints.safetensors import safetensors_header
    from yuegp.checkpoints.verify import weight_files

    tensors = {}
    for path in weight_files(source):
        for name, tensor in safetensors_header(path).items():
            stem = name.removesuffix(".weight")
            if len(tensor.shape) == 1 or "embed" in name:
                tensors[name] = np.zeros(tensor.shape, np.float16)
                continue
            out, width = tensor.shape
            tensors |= {
                f"{stem}.q_weight": np.zeros((max(1, int(width * bits / 32)), out), np.int32),
                f"{stem}.q_scale": np.zeros((1, max(1, out // 8)), np.int32),
                f"{stem}.q_scale_max": np.zeros(1, np.float16),
                f"{stem}.q_groups": np.zeros(2, np.int16),
                f"{stem}.q_invperm": np.zeros(width, np.int16),
            }
    target.mkdir(parents=True)
    save_file(tensors, target / "output.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "exl2", "version": "0.3.2", "bits": bits, "head_bits": 8}
    (target / "config.json").write_text(json.dumps(config))
    if (index := source / "model.safetensors.index.json").is_file():
        shutil.copy(index, target)
    return target
