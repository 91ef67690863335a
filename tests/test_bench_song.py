"""`bench song`: a song of noise through the whole program, and what is told of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from offload.sizes import RELEASED_SOUND, RELEASED_STAGE1
from yuegp import models
from yuegp.bench import song
from yuegp.codec import check_codec
from yuegp.codec.layout import CodecWidths, decode_shapes


def test_the_noise_is_a_set_like_any_other(tmp_path: Path) -> None:
    found = models.find(str(song.random_set(tmp_path / "set", "demo")))
    models.check(found)
    check_codec(found.codec)
    assert found.layout.name == "yue-v1"


def test_a_song_is_made_as_long_as_it_may_become_and_told_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    row = json.loads(song.run(song.Job("demo", "cpu", None, None, 2, 1.0), said.append))
    assert row["song_seconds"] == 2.0 and set(row["seconds"]) == {"stage1", "stage2", "sound", "all"}
    assert row["models_brought"] >= 2 and row["planned"] > 0 and row["notes"] == []
    assert any(line.startswith("peak ") for line in said)


def test_the_real_shapes_are_the_released_ones() -> None:
    parameters = sum(math.prod(shape) for shape in RELEASED_STAGE1.config.tensors().values())
    assert parameters == pytest.approx(6.224e9, rel=1e-3)
    assert RELEASED_SOUND.weights > 4 * sum(math.prod(shape) for shape in decode_shapes(CodecWidths()).values())
