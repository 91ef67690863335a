"""The table that ties a SongRequest to the components of the Create page: one row per field.

An empty field means "as the model advises", so untouched fields give the settings of the model's authors. Lyrics, tags
and reference have editors of their own and no row here.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import gradio as gr

from ui.texts import Texts
from yuegp.errors import RequestError
from yuegp.generation.options import AUTO, CACHES, ENGINES, WEIGHTS
from yuegp.generation.plan import CROSSOVERS
from yuegp.song.schema import PRESETS, Sampling, SongRequest

MOST_TAKES = 8
"""Most versions asked for at once."""

Kind = Literal["text", "number", "whole", "switch", "choice"]


@dataclass(frozen=True)
class Field:
    """One setting. Its texts are `create.<name>.label` and `.info`; `sampling.` in `path` leads into the sampling."""

    name: str
    kind: Kind
    path: str = ""
    """Where the value goes in a SongRequest; empty for a value that is no part of one."""
    low: float | None = None
    high: float | None = None
    step: float = 1
    choices: tuple[str, ...] = ()
    group: str = "advanced"
    empty: Any = None
    """What the component shows while nothing is chosen."""


FIELDS = (
    Field("title", "text", "title", group="simple", empty=""),
    Field("instrumental", "switch", "instrumental", group="simple", empty=False),
    Field("model", "choice", "model", group="model", empty=""),
    Field("takes", "whole", low=1, high=MOST_TAKES, empty=1),
    Field("seed", "whole", "seed", low=0, high=2**53),
    Field("section_seconds", "number", "section_seconds", low=1, high=60, step=0.5),
    Field("first_sections", "whole", "first_sections", low=1),
    Field("preset", "choice", "sampling.preset", choices=("", *PRESETS), empty=""),
    Field("temperature", "number", "sampling.temperature", low=0, high=5, step=0.05),
    Field("top_k", "whole", "sampling.top_k", low=0, high=1025),
    Field("top_p", "number", "sampling.top_p", low=0.001, high=1, step=0.01),
    Field("repetition_penalty", "number", "sampling.repetition_penalty", low=0.5, high=3, step=0.05),
    Field("guidance", "number", "sampling.guidance", low=0, high=10, step=0.1),
    Field("guidance_later", "number", "sampling.guidance_later", low=0, high=10, step=0.1),
    Field("exact", "switch", "sampling.exact", empty=False),
    Field("penalize_end", "switch", "sampling.penalize_end", empty=True),
    Field("crossover", "choice", "crossover", choices=CROSSOVERS, empty="smooth"),
    Field("device", "choice", choices=("auto", "cuda", "cpu"), empty="auto"),
    Field("engine", "choice", choices=ENGINES, empty=AUTO),
    Field("weights", "choice", choices=WEIGHTS, empty=AUTO),
    Field("kv", "choice", choices=CACHES, empty=AUTO),
)
BY_NAME = {field.name: field for field in FIELDS}


def component(name: str, t: Texts, **options: Any) -> Any:
    """The Gradio component of a field, with the element id `create-<name>`."""
    field = BY_NAME[name]
    common: dict[str, Any] = {
        "label": t(f"create.{name}.label"),
        "info": t(f"create.{name}.info"),
        "value": field.empty,
        "elem_id": f"create-{name.replace('_', '-')}",
        **options,
    }
    if field.kind == "text":
        return gr.Textbox(max_lines=1, **common)
    if field.kind == "switch":
        return gr.Checkbox(**common)
    if field.kind == "choice":
        common.setdefault("choices", [(t(f"create.{name}.{choice or 'empty'}"), choice) for choice in field.choices])
        return gr.Dropdown(**common)
    if field.empty is None:
        common["placeholder"] = t("create.advised")
    # Without bounds: Gradio would refuse numbers with its own notice. `check` has our sentences.
    return gr.Number(precision=0 if field.kind == "whole" else None, step=field.step, **common)


def check(values: Mapping[str, Any]) -> None:
    """RequestError for the first number that is out of its field's range."""
    for field in FIELDS:
        value = values.get(field.name)
        if field.kind not in ("number", "whole") or value is None:
            continue
        low, high = field.low, field.high
        if not (isinstance(value, int | float) and value == value) or not (
            (low is None or low <= value) and (high is None or value <= high)
        ):
            span = f"{low:g} to {high:g}" if high is not None else f"{low:g} or more"
            name = field.name.replace("_", " ")
            raise RequestError(f"The {name} is {value:g}; it can be {span}.", "Change it under Advanced, or empty it.")


def request(values: Mapping[str, Any], base: Sampling, **parts: Any) -> SongRequest:
    """The request that `values`, by field name, make. `base` is the chosen model's sampling; `parts` are fields of the
    request that have editors of their own (sections, tags, model, reference). A missing seed is drawn at random.

    RequestError when a number is out of range."""
    check(values)
    sampling = PRESETS[values["preset"]] if values.get("preset") else base
    plain: dict[str, Any] = {}
    inside: dict[str, Any] = {}
    for field in FIELDS:
        value = values.get(field.name)
        if not field.path or field.name in parts or value is None or value == "":
            continue
        if field.kind == "whole":
            value = int(value)
        if not field.path.startswith("sampling."):
            plain[field.path] = value
        elif field.name != "preset" and not (field.kind == "switch" and value == field.empty):
            inside[field.path.removeprefix("sampling.")] = value
    plain.setdefault("seed", secrets.randbelow(2**32))
    return SongRequest(**{**plain, **parts, "sampling": replace(sampling, **inside)})


def values(asked: SongRequest, base: Sampling) -> dict[str, Any]:
    """The inverse of `request`: what the components show for a request, by field name. Sampling values that equal those
    of the model or the preset are left empty."""
    own = asdict(asked.sampling)
    preset = asked.sampling.preset if asked.sampling.preset != base.preset else ""
    usual = asdict(PRESETS[preset] if preset else base)
    shown: dict[str, Any] = {}
    for field in FIELDS:
        key = field.path.removeprefix("sampling.")
        if not field.path:
            shown[field.name] = field.empty
        elif field.name == "preset":
            shown[field.name] = preset
        elif not field.path.startswith("sampling."):
            shown[field.name] = getattr(asked, key)
        else:
            shown[field.name] = own[key] if own[key] != usual[key] or field.kind == "switch" else field.empty
    return shown
