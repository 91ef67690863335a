"""The border to `offload`: its errors become ours, and its plans say how engines are opened."""

from __future__ import annotations

from fractions import Fraction

import pytest

from offload import errors, planner
from offload.device import GIB, imagined
from offload.sizes import WeightFormat
from yuegp.errors import DeviceError, RequestError, YueGPError
from yuegp.generation import choice, memory
from yuegp.lm import EngineConfig
from yuegp.shortage import shortage

BFLOAT16 = WeightFormat("torch", "bfloat16", Fraction(16))
EXL2 = WeightFormat("exl2", "exl2", Fraction(6), "q8")


@pytest.mark.parametrize(
    ("refused", "ours"),
    [
        (errors.NoSuchSize("'x' is no amount of memory.", "Write it like 10GB."), RequestError),
        (errors.NoSuchDevice("No CUDA card can be used here.", "Use --device cpu."), DeviceError),
        (errors.NothingSmaller("Memory ran out in Stage 1.", "Close other programs."), DeviceError),
        (errors.DoesNotFit("1 GB is missing.", "Close other programs.", GIB, None), memory.DoesNotFit),
    ],
)
def test_what_offload_refuses_is_our_error_with_the_same_sentences(
    refused: errors.OffloadError, ours: type[YueGPError]
) -> None:
    with pytest.raises(YueGPError) as caught, memory.memory_errors():
        raise refused
    assert type(caught.value) is ours and caught.value.exit_code == (2 if ours is RequestError else 4)
    assert (caught.value.what, caught.value.hint) == (refused.what, refused.hint)
    assert not shortage(caught.value), "a refusal is not taken for memory that ran out, which would be tried again"


def test_every_error_of_offload_has_one_of_ours() -> None:
    """`memory_errors` knows each kind by its name or by what they have in common."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 5 and all(issubclass(kind, errors.OffloadError) for kind in kinds)


def test_a_song_that_does_not_fit_names_the_nearest_that_does() -> None:
    request = choice.usual([BFLOAT16], [BFLOAT16])
    with pytest.raises(memory.DoesNotFit, match="are missing") as caught:
        memory.plan_memory(request, None, GIB, [])
    assert isinstance(caught.value.__cause__, errors.DoesNotFit) and caught.value.nearest is None


def test_engines_are_opened_as_the_plan_says() -> None:
    held = planner.plan(choice.usual([EXL2], [BFLOAT16]), imagined(24 * GIB), 64 * GIB)
    assert memory.engine_config(held, 1) == EngineConfig("exl2", "cuda", "exl2", "q8")
    assert memory.engine_config(held, 2) == EngineConfig("torch", "cuda", "bfloat16")
    streamed = planner.plan(choice.usual([BFLOAT16], [BFLOAT16]), imagined(10 * GIB), 64 * GIB)
    config = memory.engine_config(streamed, 1)
    assert config.resident == streamed.resident is not None and memory.engine_config(streamed, 2).resident is None
