"""The table of fields: that it is complete, and that requests survive the way to the page and back."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.pages.create import fields as create_fields
from ui.texts import Texts
from yuegp.errors import RequestError
from yuegp.song.schema import PRESETS, Sampling, Section, SongRequest

T = Texts("en")
BASE = Sampling(guidance=1.0, guidance_later=1.0, repetition_penalty=1.0)
"""How some model likes to be sampled."""
PARTS = {"sections": (Section("verse", "la"),), "tags": "pop", "model": "demo", "reference": None}
EMPTY = {field.name: field.empty for field in create_fields.FIELDS}


def test_every_setting_of_a_song_has_a_row_or_an_editor() -> None:
    """A field that a page forgets is a field that copying a song's settings loses."""
    paths = {field.path for field in create_fields.FIELDS}
    own_editors = {"sections", "tags", "reference", "sampling"}
    derived = {"keep_crossing", "minimum"}  # come with the preset and the model
    assert {f.name for f in fields(SongRequest)} - own_editors <= paths
    assert {f"sampling.{f.name}" for f in fields(Sampling) if f.name not in derived} <= paths


@pytest.mark.parametrize("field", create_fields.FIELDS, ids=lambda field: field.name)
def test_every_field_has_its_texts_and_a_component(field: create_fields.Field) -> None:
    options = {} if field.choices or field.kind != "choice" else {"choices": [("a", "")]}
    part = create_fields.component(field.name, T, **options)
    assert part.label == T(f"create.{field.name}.label") and T(f"create.{field.name}.info")
    assert part.elem_id == f"create-{field.name.replace('_', '-')}"


def test_nothing_chosen_is_what_the_model_advises() -> None:
    assert create_fields.request({**EMPTY, "seed": 5}, BASE, **PARTS) == SongRequest(**PARTS, seed=5, sampling=BASE)


def test_without_a_seed_every_song_gets_another() -> None:
    seeds = {create_fields.request(EMPTY, BASE, **PARTS).seed for _ in range(20)}
    assert len(seeds) == 20 and all(0 <= seed < 2**32 for seed in seeds)


def test_zero_is_a_value_and_not_nothing() -> None:
    asked = create_fields.request({**EMPTY, "seed": 0, "top_k": 0, "temperature": 0, "guidance": 0}, BASE, **PARTS)
    assert (asked.seed, asked.sampling.top_k, asked.sampling.temperature, asked.sampling.guidance) == (0, 0, 0, 0)


def test_a_preset_replaces_what_the_model_advises_and_own_values_replace_the_preset() -> None:
    asked = create_fields.request({**EMPTY, "preset": "exl2", "top_p": 0.8}, BASE, **PARTS)
    assert asked.sampling == replace(PRESETS["exl2"], top_p=0.8)


@pytest.mark.parametrize(
    ("name", "value", "span"),
    [("temperature", 77, "0 to 5"), ("takes", 9, "1 to 8"), ("top_p", 0, "0.001 to 1"), ("seed", -1, "0 to"),
     ("section_seconds", float("nan"), "1 to 60"), ("first_sections", 0, "1 or more")],
)  # fmt: skip
def test_numbers_out_of_range_are_named_with_their_range(name: str, value: float, span: str) -> None:
    with pytest.raises(RequestError) as caught:
        create_fields.request({**EMPTY, name: value}, BASE, **PARTS)
    assert all(part in caught.value.what for part in (f"{value:g}", span, name.replace("_", " ")))


@given(
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0, 5),
        top_k=st.integers(0, 1025),
        top_p=st.floats(0.01, 1),
        repetition_penalty=st.floats(0.5, 3),
        guidance=st.floats(0, 10),
        guidance_later=st.floats(0, 10),
        exact=st.booleans(),
        penalize_end=st.booleans(),
    ),
    seed=st.integers(0, 2**53),
    seconds=st.none() | st.floats(1, 60),
    first=st.none() | st.integers(1, 9),
    instrumental=st.booleans(),
    crossover=st.sampled_from(["smooth", "yue"]),
)
def test_a_request_survives_the_way_to_the_page_and_back(
    sampling: Sampling, seed: int, seconds: float | None, first: int | None, instrumental: bool, crossover: str
) -> None:
    asked = SongRequest(
        **PARTS, title="A", seed=seed, instrumental=instrumental, sampling=sampling,
        section_seconds=seconds, first_sections=first, crossover=crossover,
    )  # fmt: skip
    base = replace(BASE, exact=False)
    assert create_fields.request(create_fields.values(asked, base), base, **PARTS) == asked


def test_a_preset_survives_it_too() -> None:
    asked = SongRequest(**PARTS, seed=1, sampling=replace(PRESETS["exl2"], temperature=0.7))
    assert create_fields.request(create_fields.values(asked, BASE), BASE, **PARTS) == asked
