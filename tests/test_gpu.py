"""The same engine and the same song on a CUDA card. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_lm import save_llama, some_ids

from tools.make_set import make_set
from yuegp import library, pipeline
from yuegp.lm.torch_lm import TorchLM
from yuegp.song import Section, SongRequest, Stage, TakeInfo

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_logits_on_the_card_equal_those_of_the_processor(tmp_path: Path, kv_heads: int) -> None:
    save_llama(tmp_path, kv_heads)
    ids = some_ids(60)
    logits = []
    for device in ("cpu", "cuda"):
        with TorchLM.load(tmp_path, device=device).open([80, 40]) as lm:
            lm.prefill(0, ids[:50]), lm.prefill(1, ids[:3])
            for t in range(50, 60):
                last = lm.step(torch.tensor([ids[t], ids[t]]))
            logits.append(last.cpu())
    assert float((logits[0] - logits[1]).abs().max()) < 1e-3


def test_a_song_on_the_card_is_the_same_every_time(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", "tiny")
    request = SongRequest((Section("verse", "one two"), Section("outro", "three")), "pop piano", model=str(folder),
                          section_seconds=1.5)  # fmt: skip
    codes = []
    for _ in range(2):
        plan = pipeline.plan(request)
        song = library.create(plan.request, tmp_path / "songs")
        take = song.new_take(TakeInfo(number=0, request=song.request))
        pipeline.run(replace(plan, request=song.request), take, device="cuda")
        assert take.info.stage is Stage.RENDERED and take.info.made_with is not None
        assert take.info.made_with.device == "cuda"
        codes.append(take.load_stage2())
    assert (codes[0][0] == codes[1][0]).all()
