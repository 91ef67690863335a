"""The user's choice of engine, weights and KV cache for the language models.

It belongs to a machine and not to a song: it travels with a job, never into song.json. `memory` decides what is
possible with the models and the card. "auto" is what suits this machine best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from yuegp.errors import RequestError

AUTO: Final = "auto"

Engine = Literal["auto", "torch", "exl2"]

Weights = Literal["auto", "float", "int8", "nf4", "exl2"]
"""`float` keeps the bits the model was trained with."""

Cache = Literal["auto", "fp16", "q8", "q6", "q4"]
"""`fp16` means not quantized, in the type the engine computes in."""

ENGINES: tuple[Engine, ...] = get_args(Engine)
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
CACHES: tuple[Cache, ...] = get_args(Cache)


@dataclass(frozen=True)
class ModelOptions:
    """Options for Stage 1, the large model; Stage 2 uses the same engine where its files allow it.

    Raises RequestError for unknown values and impossible combinations."""

    engine: Engine = AUTO
    weights: Weights = AUTO
    kv: Cache = AUTO

    def __post_init__(self) -> None:
        for name, value, known in (
            ("engine", self.engine, ENGINES),
            ("quantization", self.weights, WEIGHTS),
            ("KV cache", self.kv, CACHES),
        ):
            if value not in known:
                raise RequestError(f"There is no {name} called {value!r}.", f"There are: {', '.join(known)}.")
        exl2, torch = self._asking(exl2=True), self._asking(exl2=False)
        if exl2 and torch:
            raise RequestError(
                f"T{torch[0][1:]} and {exl2[0]} cannot go together: only the engine exl2 reads EXL2 models and has "
                "quantized KV caches, and it has no other weights.",
                "Leave one of them on auto.",
            )

    def _asking(self, exl2: bool) -> list[str]:
        """The options that require the engine exl2, or with `exl2` False the engine torch."""
        said = (
            (f"the engine {self.engine}", self.engine != AUTO, self.engine == "exl2"),
            (f"the quantization {self.weights}", self.weights != AUTO, self.weights == "exl2"),
            (f"the KV cache {self.kv}", self.kv not in (AUTO, "fp16"), True),
        )
        return [text for text, asked, fast in said if asked and fast == exl2]

    @property
    def fast(self) -> bool:
        """Whether only the engine exl2 satisfies them."""
        return bool(self._asking(exl2=True))


ANY = ModelOptions()
"""Everything `auto`."""
