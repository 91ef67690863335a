"""What is published, what users add, and what a name says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yuegp.checkpoints import registry, sets
from yuegp.checkpoints.registry import CHECKPOINTS, STORED, Checkpoint, read_name
from yuegp.errors import ModelError, RequestError


def test_the_published_checkpoints_are_there_and_complete() -> None:
    originals = [c for c in CHECKPOINTS.values() if c.repo.startswith("m-a-p/YuE-s1")]
    assert {(c.language, c.mode) for c in originals} == {(a, b) for a in ("en", "zh", "jp-kr") for b in ("cot", "icl")}
    assert all(c.bytes == 2 * 6_224_613_376 and c.licence == "Apache-2.0" for c in originals)
    for checkpoint in CHECKPOINTS.values():
        assert checkpoint.role in sets.ROLES and checkpoint.stored in STORED and checkpoint.good_for
        assert checkpoint.repo.count("/") == 1


def test_ids_and_folders_are_unlike_one_another() -> None:
    assert len({c.folder.lower() for c in CHECKPOINTS.values()}) == len(CHECKPOINTS)
    assert all(id == c.id for id, c in CHECKPOINTS.items())


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=lambda c: c.id)
def test_the_name_of_a_published_repository_says_what_it_holds(checkpoint: Checkpoint) -> None:
    said = read_name(f"{checkpoint.repo.rpartition('/')[2]}-{checkpoint.revision or ''}")
    assert all(getattr(checkpoint, key) == value for key, value in said.items()), said
    assert said["role"] == checkpoint.role


def test_a_name_that_says_nothing_is_not_guessed_at() -> None:
    for name in ("my-model", "english-cotton", "genius1", "s10", "kent-icles", "brass2"):
        assert read_name(name) == {}


def test_computed_sizes_agree_with_the_published_ones() -> None:
    """Source: sizes that the hub lists for the 4-bit copy and users for EXL2 at 8 bits (5.7 to 6.1 GiB)."""
    nf4 = CHECKPOINTS["s1-en-cot-nf4"]
    computed = registry.replace(nf4, bytes=None).about
    assert computed == pytest.approx(4.23e9, rel=0.05)
    assert 5.7 * 2**30 <= CHECKPOINTS["s1-en-cot-exl2-8.0"].about <= 6.2 * 2**30


def test_only_what_is_loaded_is_downloaded() -> None:
    entry = CHECKPOINTS["s1-en-cot-nf4"]
    listed = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "run.py", "sub/other.safetensors"]
    assert entry.wanted([*listed, "tokenizer.model"]) == ["config.json", "model.safetensors", "tokenizer.model"]
    for checkpoint in CHECKPOINTS.values():
        assert not [name for name in checkpoint.files or () if name.endswith((".py", ".bin", ".pt"))]


def test_a_checkpoint_is_found_by_id_repository_or_folder() -> None:
    for name in ("s1-zh-icl", "m-a-p/YuE-s1-7B-anneal-zh-icl", "yue-s1-7b-anneal-zh-icl"):
        assert registry.named(name).id == "s1-zh-icl"
    assert registry.named("YuE-s2-1B-general-exl2-8.0bpw-h8").revision == "8.0bpw-h8"


def test_a_name_nobody_knows_is_answered_with_those_like_it() -> None:
    with pytest.raises(ModelError, match="no checkpoint called 's1-en-cott'") as caught:
        registry.named("s1-en-cott")
    assert "s1-en-cot" in caught.value.hint


# The user's own


def test_a_repository_of_ones_own_is_kept_and_forgotten() -> None:
    entry = registry.own("me/My-YuE-s1-finetune@v2", None, {"language": "en", "mode": "cot"})
    assert (entry.id, entry.repo, entry.revision, entry.role) == ("my-yue-s1-finetune-v2", *entry.repo.split("@"), "v2", "stage1")  # fmt: skip # noqa: E501
    registry.add(entry)
    assert registry.named(entry.id) == entry and entry.id in sets.names()
    registry.forget(entry.id)
    assert entry.id not in registry.known()


def test_what_the_name_says_needs_not_be_told() -> None:
    entry = registry.own("other/YuE-s1-7B-anneal-jp-kr-icl-exl2-5.0bpw", None, {})
    assert (entry.language, entry.mode, entry.stored, entry.bits) == ("jp-kr", "icl", "exl2", 5.0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("me/tune", "does not say what the model is for"),
        ("me/yue-s1-tune", "does not say what the model is for"),
        ("tune", "neither a folder here nor the name of a repository"),
        ("https://huggingface.co/me/s2", "neither a folder here"),
        ("a/b/c", "neither a folder here"),
    ],
)
def test_what_cannot_be_added_is_refused(source: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        registry.own(source, None, {})
    assert caught.value.hint


def test_published_names_cannot_be_taken() -> None:
    with pytest.raises(ModelError, match="is the name of a published checkpoint"):
        registry.add(registry.own("me/s2", "s2", {}))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 9, "checkpoints": [], "places": {}, "sets": {}}',
        '{"format": 1, "checkpoints": [{"colour": 1}], "places": {}, "sets": {}}',
    ],
)
def test_damaged_notes_are_refused_and_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "home" / "models.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ModelError) as caught:
        registry.known()
    assert "models.json" in caught.value.what and caught.value.hint and path.read_text() == text


def test_notes_are_written_whole(tmp_path: Path) -> None:
    registry.remember({"s2": "/there"}, {"yue-en-cot": ["s1-en-cot-nf4", "s2", "codec"]})
    registry.remember({"s2": None, "codec": "/here"})
    data = json.loads((tmp_path / "home" / "models.json").read_text())
    assert data["places"] == {"codec": "/here"} and data["sets"]["yue-en-cot"][0] == "s1-en-cot-nf4"
