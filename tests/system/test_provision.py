"""Choosing for a card, getting a whole set from the stand-in hub or from other programs, judging, removing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from released import SOUND, STAGE1, STAGE2, pretend_exl2, write_released
from safetensors.torch import save_file

from offload.device import GIB, imagined
from yuegp import paths
from yuegp.checkpoints import locate, pins, registry, sets
from yuegp.checkpoints.registry import CHECKPOINTS
from yuegp.codec.convert import source_of
from yuegp.codec.files import read_state
from yuegp.errors import Cancelled, ModelError, RequestError
from yuegp.system import provision

SET = [CHECKPOINTS[name] for name in ("s1-en-cot", "s2", "codec")]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def stocked(hub: Hub, originals: Path) -> Hub:
    """The hub, with the three repositories of English without reference."""
    shutil.copytree(originals, hub.root / "m-a-p")
    return hub


# Choosing


def test_more_memory_never_chooses_fewer_bits() -> None:
    for exl2 in (True, False):
        chosen = [provision.choose("en", "cot", imagined(gb * GIB), exl2).checkpoints[0] for gb in (6, 8, 12, 24, 80)]
        bits = [min(c.bits, 8) for c in chosen]
        assert bits == sorted(bits) and chosen[-1].id == ("s1-en-cot-exl2-8.0" if exl2 else "s1-en-cot")
        assert exl2 or not any(c.stored == "exl2" for c in chosen)


def test_the_original_is_chosen_where_it_fits() -> None:
    choice = provision.choose("zh", "icl", imagined(24 * GIB), exl2=False)
    assert [c.id for c in choice.checkpoints] == ["s1-zh-icl", "s2", "codec"] and choice.name == "yue-zh-icl"
    assert "24 GB" in choice.reason


def test_a_card_too_small_for_anything_is_told_so() -> None:
    choice = provision.choose("en", "cot", imagined(GIB), exl2=False)
    assert choice.checkpoints[0].id == "s1-en-cot-nf4" and "too large" in choice.reason


def test_a_language_without_a_model_is_refused() -> None:
    with pytest.raises(RequestError, match="no YuE model for language 'fr'") as caught:
        provision.choose("fr", "cot")
    assert "jp-kr" in caught.value.hint


# Getting


def test_a_whole_set_comes_from_the_hub_and_is_usable(stocked: Hub, yue_tokenizer: Path) -> None:
    shutil.copy(yue_tokenizer, stocked.root / "m-a-p" / STAGE1 / "tokenizer.model")
    order = provision.order(SET)
    assert order.here == () and len(order.plans) == 3
    assert order.missing == sum(plan.total for plan in order.plans)
    seen: list[tuple[str, str, int, int]] = []
    folders = provision.execute(order, lambda *report: seen.append(report))
    assert [folder.name for folder in folders] == [STAGE1, STAGE2, SOUND]
    assert {doing for doing, *_ in seen} == {"download", "convert"}
    assert source_of(folders[2] / "final_ckpt" / "ckpt_00360000.safetensors")
    found = sets.find("yue-en-cot")
    sets.check(found)
    assert found.stage1 == folders[0]
    again = provision.order(SET)
    assert again.plans == () and [folder for _, folder in again.here] == folders


def test_stopping_and_going_on(stocked: Hub) -> None:
    def stop(doing: str, what: str, done: int, total: int) -> None:
        if done > 1_000_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        provision.execute(provision.order(SET), stop)
    with pytest.raises(ModelError, match=r"download of s1-en-cot, .* was not finished"):
        sets.find("yue-en-cot")
    order = provision.order(SET)
    assert order.missing < sum(plan.total for plan in order.plans)
    provision.execute(order)
    assert locate.locate(SET[0]) is not None


def test_what_other_programs_have_is_used_and_not_downloaded(stocked: Hub, originals: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "nobody" / "YuE" / "inference"
    for name in (STAGE2, SOUND):
        shutil.copytree(originals / name, theirs / name)
    before = {path: path.stat().st_mtime_ns for path in theirs.rglob("*")}
    order = provision.order(SET)
    assert [plan.checkpoint.id for plan in order.plans] == ["s1-en-cot"]
    assert dict((c.id, folder) for c, folder in order.here) == {"s2": theirs / STAGE2, "codec": theirs / SOUND}
    provision.execute(order)
    assert sets.find("yue-en-cot").stage2 == theirs / STAGE2
    assert before == {path: path.stat().st_mtime_ns for path in theirs.rglob("*")}


def test_a_complete_set_needs_no_network(stocked: Hub, originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(originals, paths.models_dir())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert provision.order(SET).plans == () and stocked.log == []


def test_another_programs_damaged_copy_is_left_and_downloaded_instead(
    stocked: Hub, originals: Path, tmp_path: Path
) -> None:
    theirs = Path(shutil.copytree(originals / STAGE2, tmp_path / "cut"))
    data = (theirs / "model.safetensors").read_bytes()[:-100]
    (theirs / "model.safetensors").write_bytes(data)
    registry.remember({"s2": str(theirs)})
    provision.execute(provision.order([SET[1]]))
    assert locate.locate(SET[1]) == paths.models_dir() / STAGE2
    assert (theirs / "model.safetensors").read_bytes() == data


def test_a_set_without_a_tokenizer_gets_one_by_itself(stocked: Hub, originals: Path) -> None:
    """Pressed copies on the hub often leave tokenizer.model out."""
    (stocked.root / "m-a-p" / STAGE2 / "tokenizer.model").unlink()
    stage2 = registry.replace(SET[1], files=("config.json", "model.safetensors"))
    shutil.copytree(originals / STAGE1, stocked.root / "me" / STAGE1)
    (stocked.root / "me" / STAGE1 / "tokenizer.model").unlink()
    order = provision.order([registry.own(f"me/{STAGE1}", "mine", {}), stage2, SET[2]])
    assert order.plans[-1].checkpoint.id == "tokenizer"
    folders = provision.execute(order)
    assert sets.tokenizer_of(folders) == folders[-1] / "tokenizer.model"


def test_the_codec_without_pickles_serves_where_it_is_here(stocked: Hub, tmp_path: Path) -> None:
    safe = write_released(tmp_path / "safe", pth=False) / SOUND
    shutil.copytree(safe, paths.models_dir() / "xcodec-mini-infer")
    order = provision.order(SET[2:])
    assert order.plans == () and order.here[0][0].id == "codec-safetensors"


def test_who_asks_for_the_copy_without_pickles_gets_it_and_sets_use_it(
    stocked: Hub, originals: Path, tmp_path: Path
) -> None:
    """It is the next step that is named where the original cannot be read."""
    safe = write_released(tmp_path / "safe", pth=False) / SOUND
    shutil.copytree(safe, stocked.root / "SceneWorks" / "xcodec-mini-infer")
    provision.add_folder(originals)
    provision.remember_choice(provision.Choice("yue-en-cot", tuple(SET), ""), provision.DownloadPlan((), (), 0))
    assert sets.find("yue-en-cot").codec == originals / SOUND
    (folder,) = provision.execute(provision.order([CHECKPOINTS["codec-safetensors"]]))
    assert sets.find("yue-en-cot").codec == folder == paths.models_dir() / "xcodec-mini-infer"


def test_the_copy_without_pickles_is_chosen_once_it_is_pinned(originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.is_pinned(CHECKPOINTS["codec"]) and registry.sound_model().id == "codec"
    copy = CHECKPOINTS["codec-safetensors"]
    sums = {name: pins.Pinned("0" * 64) for name in copy.files or () if name.endswith(".safetensors")}
    monkeypatch.setitem(pins.FILES, copy.repo, sums)
    choice = provision.choose("en", "cot", imagined(80 * GIB), exl2=False)
    assert choice.checkpoints[2] == copy
    provision.add_folder(originals)
    order = provision.order(choice.checkpoints)  # the original is here, and holds the same numbers
    assert order.plans == () and order.here[2] == (CHECKPOINTS["codec"], originals / SOUND)
    sums[next(iter(sums))] = pins.Pinned("0123456789abcdef")
    assert registry.sound_model().id == "codec"


def test_pickles_that_are_in_our_folder_already_are_converted(stocked: Hub, originals: Path) -> None:
    ours = shutil.copytree(originals / SOUND, paths.models_dir() / SOUND)
    provision.execute(provision.order(SET[2:]))
    assert len(list(ours.rglob("*.safetensors"))) == 3 and stocked.log == []
    seen: list[str] = []
    provision.execute(provision.order(SET[2:]), lambda doing, *rest: seen.append(doing))
    assert seen == []  # 1.4 GB are not read again


def test_no_room_beside_the_pickles_stops_nothing(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if str(target).endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    (folder,) = provision.execute(provision.order(SET[2:]))
    assert not list(folder.rglob("*.safetensors")) and not list(folder.rglob("*.tmp"))
    provision.examine(SET[2], folder)


@pytest.mark.parametrize("pth", [True, False])
def test_every_weight_of_the_sound_model_is_read_before_it_is_used(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pth: bool
) -> None:
    """However large its file is: it is loaded last, after hours of work."""
    monkeypatch.setattr("yuegp.codec.files.SCAN_LIMIT", 1000)
    monkeypatch.setattr("yuegp.checkpoints.sets.SCAN_LIMIT", 1000)
    folder = Path(shutil.copytree(originals / SOUND, tmp_path / SOUND))
    path = folder / "final_ckpt" / "ckpt_00360000.pth"
    state = read_state(path, "codec_model")
    state["fc_post2.weight"][-1, -1] = float("inf")
    torch.save({"codec_model": state}, path)
    if not pth:
        save_file(state, path.with_suffix(".safetensors"))
    with pytest.raises(ModelError, match=r"not numbers.*fc_post2\.weight"):
        provision.add_folder(folder)


# Judging


@pytest.mark.parametrize(("damage", "words"), [("nan", "not numbers"), ("bit", "not the file that was downloaded")])
def test_reading_everything_finds_what_headers_do_not_show(stocked: Hub, damage: str, words: str) -> None:
    (folder,) = provision.execute(provision.order([SET[1]]))
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2:] = b"\x80\x7f" if damage == "nan" else bytes([data[-2] ^ 1, data[-1]])
    path.write_bytes(data)
    if damage == "nan":  # as if it had come like that
        pin = locate.read_pin(SET[1])
        assert pin is not None
        pin.files = {}
        locate.write_pin(SET[1], pin)
    provision.examine(SET[1], folder) if damage == "bit" else None
    with pytest.raises(ModelError, match=words):
        provision.examine(SET[1], folder, lambda *report: None)


def test_a_stage_2_model_under_a_stage_1_name_is_refused_after_download(stocked: Hub, originals: Path) -> None:
    shutil.rmtree(stocked.root / "m-a-p" / STAGE1)
    shutil.copytree(originals / STAGE2, stocked.root / "me" / STAGE1)
    entry = registry.own(f"me/{STAGE1}", "mine", {})
    with pytest.raises(ModelError, match="holds a Stage-2 model"):
        provision.execute(provision.order([entry]))


def test_a_model_for_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from tools.make_set import LM, write_lm

    write_lm(tmp_path / "llama", LM(32000, 8, 16, 1, 2, 2, 2048), seed=0)
    with pytest.raises(ModelError, match="a vocabulary of 32,000; Stage 1 of this set needs at least"):
        provision.examine(CHECKPOINTS["s1-en-cot"], tmp_path / "llama")


def test_another_way_of_storing_than_promised_is_refused(originals: Path) -> None:
    with pytest.raises(ModelError, match="holds bfloat16 weights, not nf4 as s1-en-cot-nf4 should"):
        provision.examine(CHECKPOINTS["s1-en-cot-nf4"], originals / STAGE1)


def test_a_clone_switched_to_another_branch_is_found_out(originals: Path, tmp_path: Path) -> None:
    folder = pretend_exl2(originals / STAGE1, tmp_path / f"{STAGE1}-exl2", 8.0)
    provision.examine(CHECKPOINTS["s1-en-cot-exl2-8.0bpw-h8"], folder)
    with pytest.raises(ModelError, match=r"revision with 8 bits, not the one with 4\.25") as caught:
        provision.examine(CHECKPOINTS["s1-en-cot-exl2-4.25bpw-h6"], folder)
    assert "branch 4.25bpw-h6" in caught.value.hint


# Adding and removing


def test_a_folder_of_models_is_added_at_once(originals: Path) -> None:
    added = provision.add_folder(originals)
    assert {c.id for c, _ in added} == {"s1-en-cot", "s2", "codec"}
    assert sets.find("yue-en-cot").codec == originals / SOUND


def test_a_model_of_ones_own_becomes_a_set_of_its_own(originals: Path, tmp_path: Path) -> None:
    provision.add_folder(originals)
    mine = Path(shutil.copytree(originals / STAGE1, tmp_path / "sea shanties"))
    with pytest.raises(RequestError, match="does not say what the model is for"):
        provision.add_folder(mine)
    ((checkpoint, _),) = provision.add_folder(mine, "shanties", {"language": "en", "mode": "cot"})
    found = sets.find("shanties")
    assert checkpoint.id == "shanties" and found.stage1 == mine and found.mode == "cot" and "shanties" in sets.names()


def test_a_folder_that_cannot_be_noted_is_refused(originals: Path, tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    shutil.copytree(os.fsencode(originals / STAGE2), folder)
    with pytest.raises(ModelError, match="is no text"):
        provision.add_folder(Path(os.fsdecode(folder)))


def test_why_nothing_was_added_is_said(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / STAGE2, tmp_path / "a" / STAGE2)
    (tmp_path / "a" / STAGE2 / "config.json").unlink()
    with pytest.raises(RequestError, match=r"No YuE model was found .* has no config\.json"):
        provision.add_folder(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No YuE model was found"):
        provision.add_folder(tmp_path)


def test_removing_deletes_ours_and_forgets_theirs(stocked: Hub, originals: Path, tmp_path: Path) -> None:
    (ours,) = provision.execute(provision.order([SET[1]]))
    size = sum(path.stat().st_size for path in ours.rglob("*") if path.is_file())
    assert provision.remove(SET[1]) == size and not ours.exists()
    theirs = Path(shutil.copytree(originals / STAGE2, tmp_path / STAGE2))
    registry.remember({"s2": str(theirs)})
    assert provision.remove(SET[1]) == 0 and theirs.is_dir() and locate.locate(SET[1]) is None


def test_removing_what_links_to_another_programs_file_leaves_that(
    stocked: Hub, originals: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "nobody" / "ComfyUI" / "models" / "yue"
    theirs.mkdir(parents=True)
    shutil.copy(originals / STAGE2 / "model.safetensors", theirs)
    provision.execute(provision.order([SET[1]]))
    provision.remove(SET[1])
    assert (theirs / "model.safetensors").read_bytes() == (originals / STAGE2 / "model.safetensors").read_bytes()
