"""Layers that wait in main memory: our way of sending them ahead (`lm/llama/streaming.py`) against the hooks of
accelerate, with which transformers offloads layers, on the same random weights and in the same run.

Both sides decode two rows, as guidance has, and compute the logits of the whole vocabulary. What a card computes
meanwhile is the same; what differs is how the waiting layers come to it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from offload.units import gigabytes
from yuegp.checkpoints.config import LlamaConfig, parse_config
from yuegp.errors import DeviceError, RequestError
from yuegp.lm import EngineConfig
from yuegp.lm.llama.build import Plain, build
from yuegp.lm.llama.engine import TorchLM
from yuegp.lm.llama.network import Layer
from yuegp.lm.llama.streaming import StreamedLayers

from .reference import PROMPT, Figure, Size, milliseconds, report, size_of

ROWS = 2
STD = 0.02
"""Standard deviation of the weights, as transformers' models begin with."""


def versus(
    stage: str,
    device: str,
    resident: int,
    layers: int | None = None,
    steps: int = 16,
    rounds: int = 3,
    say: Callable[[str], None] = print,
) -> str:
    """Decoding steps with `resident` layers on the device and the others in main memory; returns the JSON line.

    DeviceError without accelerate, which only tests need otherwise."""
    size = size_of(stage, device, layers)
    if not 0 <= resident < size.layers:
        raise RequestError(
            f"Of {size.layers} layers, {resident} cannot be resident while others are streamed.",
            f"Choose --resident from 0 to {size.layers - 1}.",
        )
    if device == "cpu":
        torch.set_num_threads(1)
    say(f"timing {stage}: {size}, {resident} of them resident …")
    waiting, engine, model = _pair(size, resident)
    moving = 1000 * waiting.transfer_seconds()
    sides = partial(_ours, engine), partial(_theirs, model, device)
    difference = _difference(*sides, device)  # also warms both up
    times = [[_time(side, steps, device) for side in sides] for _ in range(rounds)]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    sent = f"{gigabytes(waiting.streamed_bytes)} of layers per step"
    note = f"{sent}, {moving:.0f} ms by moving alone; {steps} steps, median of {rounds} alternating runs"
    if device == "cpu":
        note = (
            f"no card here: ours copies {sent} within main memory, accelerate's hooks only exchange references and "
            "move nothing; both sides agree, but the ratio says nothing about cards"
        )
    facts = size.facts() | {
        "resident": resident,
        "streamed_bytes": waiting.streamed_bytes,
        "moving_ms": round(moving, 3),
        "difference": round(difference, 6),
        "accelerate": _accelerate().__version__,
    }
    figure = Figure(f"{stage}_streamed", "step", mine, other, note)
    return report("vs-reference", size.unit, [figure], facts, say, "accelerate")


def _accelerate() -> Any:
    try:
        import accelerate  # type: ignore[import-untyped]
    except ImportError as exc:
        raise DeviceError(
            "The package accelerate, which this is compared with, is not installed.",
            "Run `python launch.py test`: it installs accelerate with the other test tools.",
        ) from exc
    return accelerate


def _pair(size: Size, resident: int) -> tuple[StreamedLayers, TorchLM, Any]:
    """The same random weights as our engine and as transformers' model, with the same layers waiting. Tensors are made
    on the device one by one, so that it never holds more than both sides keep there and a layer."""
    accelerate = _accelerate()
    from transformers import LlamaForCausalLM

    theirs, device = size.theirs(), torch.device(size.device)
    dtype = getattr(torch, size.dtype)
    with accelerate.init_empty_weights():
        model = LlamaForCausalLM(theirs).eval()
    model.model.rotary_emb.to(device)
    config: LlamaConfig = parse_config(theirs.to_dict())
    away = tuple(f"model.layers.{i}." for i in range(resident, size.layers))
    generator = torch.Generator(device).manual_seed(0)

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=device)
        tensor = tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, STD, generator=generator)
        home = torch.device("cpu") if name.startswith(away) else device
        model.get_submodule(name.removesuffix(".weight")).weight = Parameter(tensor.to(home), requires_grad=False)
        return tensor

    streamed: list[StreamedLayers] = []

    def place(layers: Iterable[Layer]) -> StreamedLayers:
        streamed.append(StreamedLayers(layers, resident, device))
        return streamed[0]

    with torch.no_grad():
        network = build(config, Plain(make), size.dtype, place)
    for layer in model.model.layers[resident:]:
        accelerate.cpu_offload(layer, execution_device=device)
    return (
        streamed[0],
        TorchLM(network, "random", EngineConfig("torch", size.device, size.dtype, resident=resident)),
        model,
    )


Rows = Callable[[int], AbstractContextManager[Callable[[Tensor], Tensor]]]
"""Opens rows that have read a prompt and have room for so many ids more, as a function: ids of one step, its logits."""


@contextmanager
def _ours(engine: TorchLM, room: int) -> Iterator[Callable[[Tensor], Tensor]]:
    with engine.open([PROMPT + room] * ROWS) as lm:
        lm.prefill(0, list(range(PROMPT)))
        lm.copy(0, 1)
        yield lm.step


@contextmanager
def _theirs(model: Any, device: str, room: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Their cache grows as it is filled: `room` is nothing to it."""
    with torch.no_grad():
        prompt = torch.arange(PROMPT, device=device).expand(ROWS, -1)
        past = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
        yield lambda ids: model(ids[:, None], past_key_values=past, use_cache=True).logits[:, -1]


def _time(rows: Rows, steps: int, device: str) -> float:
    """Milliseconds of a step, in the mean of so many after a first one."""
    ids = torch.arange(ROWS, device=device)
    with rows(steps + 1) as step:
        step(ids)
        return milliseconds(device, lambda: [step(ids) for _ in range(steps)]) / steps


def _difference(one: Rows, other: Rows, device: str) -> float:
    """How far the two sides' logits of one step are apart, as a share of their size."""
    ids = torch.arange(ROWS, device=device)
    with one(1) as ours, other(1) as theirs:
        a, b = ours(ids).float(), theirs(ids).float()
    return float((a - b).norm() / b.norm())
