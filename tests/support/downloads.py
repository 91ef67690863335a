"""What tests of downloads share: a repository, and how a refusal is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from yuegp.checkpoints.registry import Checkpoint
from yuegp.errors import ModelError

SIZE = 70_000


ENTRY = Checkpoint("mine", "somebody/model", "stage1", "en", "cot")


def same(folder: Path, repo: Path) -> bool:
    return all((folder / n).read_bytes() == (repo / n).read_bytes() for n in ("model.safetensors", "config.json"))


def refusal(call: Callable[[], object], kind: type[ModelError] = ModelError) -> ModelError:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint and "\n" not in caught.value.what
    return caught.value
