"""A training run: schedule, optimizers, saving and resuming.

Everything is drawn from one seeded generator and the schedule counts tokens, not seconds, so a run can be stopped,
resumed and repeated.

Several processes may share a run, one for each core: where they have met (`meet`), each draws the same batches, takes
its share of them, and their gradients are averaged. torch's own threads gain little on models this small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

Say = Callable[[str], None]

SAVE_SECONDS = 60.0
"""Seconds between two saves of a training's state."""


def meet(place: Path, rank: int, crew: int) -> None:
    """Wait, at a file that does not exist yet, for the others of a crew that trains together."""
    torch.distributed.init_process_group("gloo", init_method=place.resolve().as_uri(), rank=rank, world_size=crew)


@dataclass(frozen=True)
class Plan:
    """A training run. Learning rates are constant up to `hold` of the run, then fall linearly to zero. `decay` shrinks
    the matrices a little with each update (times the learning rate), so that no layer grows louder than the others."""

    tokens: int
    batch: int = 4200
    muon: float = 0.006
    adam: float = 0.003
    decay: float = 0.0
    hold: float = 0.4
    warmup: int = 20
    look: float = 0.3
    name: float = 0.3
    clock: float = 0.1
    left: float = 0.0
    where: float = 0.0
    seed: int = 1


class Trainer:
    """A model, its optimizers and the position in its schedule, saved together and resumed from `file`."""

    def __init__(self, model: nn.Module, plan: Plan, file: Path, device: str, say: Say) -> None:
        self.model, self.plan, self.file, self.say = model.to(device), plan, file, say
        met = torch.distributed.is_initialized()
        self.rank, self.crew = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if met else (0, 1)
        self.rng = np.random.default_rng(plan.seed)
        self.tokens = self.steps = 0
        self.seconds = 0.0
        matrices = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=plan.muon, weight_decay=plan.decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=plan.adam, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.log: list[dict[str, float]] = []
        if file.is_file():
            self._load()

    @property
    def progress(self) -> float:
        return self.tokens / self.plan.tokens

    def share(self, batches: list[Any]) -> list[Any]:
        """This process's share of a pool of batches; all get equally many, so up to `crew - 1` are dropped."""
        return batches[self.rank : len(batches) // self.crew * self.crew : self.crew]

    def step(self, loss: Tensor, tokens: int) -> None:
        """One update."""
        loss.backward()
        if self.crew > 1:
            tokens = self._averaged(tokens)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = min(1.0, (self.steps + 1) / self.plan.warmup, max(0.0, 1 - self.progress) / (1 - self.plan.hold))
        for optimizer, rate in zip(self.optimizers, (self.plan.muon, self.plan.adam), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.tokens += tokens
        self.steps += 1

    def _averaged(self, tokens: int) -> int:
        """Average the gradients over all processes. Returns the tokens they saw together."""
        weights = [p for group in self.optimizers for p in group.param_groups[0]["params"]]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        message = torch.cat([*(grad.flatten() for grad in grads), grads[0].new_tensor([tokens])])
        torch.distributed.all_reduce(message)
        *means, total = message.split([*(grad.numel() for grad in grads), 1])
        for weight, mean in zip(weights, means, strict=True):
            weight.grad = mean.view_as(weight) / self.crew
        return round(total.item())

    def save(self) -> None:
        """Save the run's state; in a crew, only the first process does."""
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.bit_generator.state,
            "where": (self.tokens, self.steps, self.seconds),
            "log": self.log,
            "plan": asdict(self.plan),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.file)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.file, weights_only=True)
        if state["plan"] != asdict(self.plan):
            raise SystemExit(f"{self.file} belongs to another plan; delete it to train anew.")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rng.bit_generator.state = state["rng"]
        self.tokens, self.steps, self.seconds = state["where"]
        self.log = state["log"]

    def run(
        self,
        batches: Callable[[np.random.Generator, float], Iterator[tuple[Tensor, int, dict[str, float]]]],
        ask: Callable[[], dict[str, float]] = dict,
        every: float = 120.0,
    ) -> None:
        """Update until the plan's tokens are used up. `batches(rng, progress)` yields (loss, tokens, figures to show);
        the run is saved between pools of batches only, so that a resumed run draws what an unbroken one would."""
        shown = saved = time.monotonic()
        sums: dict[str, list[float]] = {}
        while self.progress < 1:
            began = time.monotonic()
            for loss, tokens, figures in batches(self.rng, self.progress):
                self.step(loss, tokens)
                for name, value in figures.items():
                    sums.setdefault(name, []).append(value)
            now = time.monotonic()
            self.seconds += now - began
            if not self.rank and (now - shown > every or self.progress >= 1):
                figures = {name: float(np.mean(values)) for name, values in sums.items()} | ask()
                self.log.append({"tokens": self.tokens, "seconds": round(self.seconds, 1), **figures})
                left = self.seconds * max(0.0, 1 / self.progress - 1)
                line = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
                self.say(f"{self.progress:4.0%}  {line}  {self.tokens / self.seconds:,.0f} tokens/s  {left:.0f} s left")
                sums, shown = {}, now
            if now - saved > SAVE_SECONDS or self.progress >= 1:
                self.save()
                saved = now
        if self.crew > 1:
            torch.distributed.barrier()  # the others may read the saved file next
