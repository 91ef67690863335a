"""Pressing: rows of real audio tokens, folders in fewer bits, and figures that tell better from worse."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quant import calibrate, calibration_songs, evaluate, exl2, quantize, rows
from yuegp.__main__ import main
from yuegp.checkpoints import sets
from yuegp.checkpoints.sets import ModelSet
from yuegp.errors import Cancelled, DeviceError, LibraryError, ModelError, RequestError
from yuegp.library import catalog
from yuegp.lm import EngineConfig, open_engine, stored_as

SHORT = (
    ("verse", "lala moona silo nema\nbela rona lumi soma\nlala moona silo"),
    ("chorus", "hola mira luna sola\nhola mira luna sola\nmira hola"),
)


@pytest.fixture(scope="module")
def demo() -> ModelSet:
    return sets.find("demo")


@pytest.fixture(scope="module")
def collected(demo: ModelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of three sampled songs of two short sections, in a folder."""
    folder = tmp_path_factory.mktemp("calibration")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_songs, "LYRICS", {"en": SHORT})
        patch.setattr(rows, "LENGTH", 512)
        takes = list(calibrate.sample(demo, folder, 3, 7))
        calibrate.collect(demo, takes, folder, "recipe", 7)
    return folder


def held(folder: Path, demo: ModelSet, stage: int, count: int = 3) -> np.ndarray:
    return rows.load(folder / f"held-stage{stage}.safetensors", demo.layout)[:count]


# Rows


def test_rows_are_songs_as_stage_1_reads_them(collected: Path, demo: ModelSet) -> None:
    read = rows.load(collected / "stage1.safetensors", demo.layout)
    assert read.shape[1] == 512 and read.dtype == np.int64
    ids = read.reshape(-1)
    audio = np.isin(ids, list(demo.layout.codes_of(0)))
    assert 0.5 < audio.mean() < 1, "music, with prompts between"
    assert (ids == demo.layout.eoa).sum() >= 2 and (ids == demo.layout.codec).any()


def test_a_stage_2_row_is_what_refining_feeds(demo: ModelSet) -> None:
    layout, codes = demo.layout, np.arange(8 * 3).reshape(8, 3)
    ids = rows.window_ids(layout, codes)
    first = [layout.code_start + c for c in codes[0]]
    assert ids[:6] == [layout.soa, layout.stage_1, *first, layout.stage_2]
    assert ids[6:14] == [layout.codes_of(k).start + int(codes[k, 0]) for k in range(8)]
    assert len(ids) == 3 + 9 * 3


def test_a_broken_off_collection_makes_no_song_twice(
    demo: ModelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_songs, "LYRICS", {"en": SHORT[:1]})
    count = 0

    def stop(event: object) -> None:
        nonlocal count
        count += 1
        if count == 40:
            raise Cancelled

    with pytest.raises(Cancelled):
        list(calibrate.sample(demo, tmp_path, 2, 1, watch=stop))
    takes = list(calibrate.sample(demo, tmp_path, 2, 1))
    assert len(catalog.entries(tmp_path / "songs")) == 2 == len(takes)
    again = list(calibrate.sample(demo, tmp_path, 2, 1, watch=stop))
    assert [take.folder for take in again] == [take.folder for take in takes]


def test_a_recipe_speaks_the_languages_of_its_model(demo: ModelSet) -> None:
    from dataclasses import replace

    japanese = replace(demo, language="jp-kr")
    first, second = (calibration_songs.request(japanese, n) for n in (0, 1))
    assert "夜明け" in first.sections[0].words and "골목" in second.sections[0].words
    assert (
        calibration_songs.request(demo, 3) == calibration_songs.request(demo, 3)
        and calibration_songs.request(demo, 3).seed == calibration_songs.SEED + 3
    )


def test_rows_of_another_vocabulary_are_refused(collected: Path) -> None:
    from yuegp.tokens.vocab import YUE_V1

    with pytest.raises(RequestError, match="made for the vocabulary"):
        rows.load(collected / "stage1.safetensors", YUE_V1)
    with pytest.raises(RequestError, match="does not exist"):
        rows.load(collected / "nothing.safetensors", YUE_V1)


def test_equal_songs_are_told_apart_by_their_place(
    collected: Path, demo: ModelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have copied a song's folder: comparing its windows of codes says nothing useful."""
    monkeypatch.setattr(rows, "LENGTH", 512)
    (entry, *_) = catalog.entries(collected / "songs")
    shutil.copytree(entry.folder, tmp_path / "one" / "a")
    shutil.copytree(entry.folder, tmp_path / "one" / "b")
    found = calibrate.collect(demo, calibrate.own_songs(tmp_path / "one"), tmp_path / "rows", "own songs")
    assert found.songs == 2 and found.rows["held-stage1"] and found.rows["stage1"]


def test_too_few_songs_are_refused_with_a_next_step(demo: ModelSet, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="two finished songs") as caught:
        calibrate.collect(demo, [], tmp_path, "nothing")
    assert "Make songs" in caught.value.hint


# Figures


@pytest.mark.parametrize("stage", [1, 2])
def test_fewer_bits_never_measure_better(collected: Path, demo: ModelSet, stage: int) -> None:
    source = demo.stage1 if stage == 1 else demo.stage2
    read = held(collected, demo, stage)
    original = evaluate.predict(source, EngineConfig(), demo.layout, stage, read)
    same, eight, four = (
        evaluate.compare(original, evaluate.predict(source, EngineConfig(weights=kind), demo.layout, stage, read))
        for kind in ("float32", "int8", "nf4")
    )
    assert same.divergence == 0 == same.rise and same.agreement == 1
    assert 0 < eight.divergence < four.divergence
    assert same.agreement >= eight.agreement > four.agreement
    assert same.weight_bytes > eight.weight_bytes > four.weight_bytes
    assert abs(eight.rise) < 0.05, "eight bits cost next to nothing"
    if stage == 2:
        assert same.flips == 0 and eight.flips is not None and four.flips is not None
        assert eight.flips < four.flips
    else:
        assert same.flips is None


def test_the_original_is_what_generation_would_hear(collected: Path, demo: ModelSet) -> None:
    """A trained model foretells held-out songs of its own far better than chance, log(1,025)."""
    original = evaluate.predict(demo.stage1, EngineConfig(), demo.layout, 1, held(collected, demo, 1))
    nats = -original.logs[np.arange(len(original.came)), original.came].mean()
    assert nats < 2
    np.testing.assert_allclose(np.exp(original.logs).sum(1), 1, atol=1e-4)


# Folders


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_pressed_folder_is_a_complete_model(demo: ModelSet, tmp_path: Path, kind: str) -> None:
    folder = quantize.quantize(demo.stage1, tmp_path / kind, kind, "Somebody")
    assert stored_as(folder) == kind
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "README.md", "model.safetensors.index.json"} <= names and quantize.NOTE not in names
    assert "Somebody" in (folder / "README.md").read_text()
    ids = list(range(100, 160))
    answers = []
    for where in (folder, demo.stage1):
        with open_engine(where, EngineConfig(weights=kind)).open([100]) as session:
            answers.append(session.prefill(0, ids))
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)
    assert (
        sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        < 0.8 * (demo.stage1 / "model.safetensors").stat().st_size
    )


def test_bitsandbytes_reads_our_nf4(demo: ModelSet, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    name = "model.layers.0.mlp.up_proj.weight"
    folder = quantize.quantize(demo.stage1, tmp_path / "nf4", "nf4")
    (file,) = folder.glob("*.safetensors")
    stored = load_file(file)
    parts = {key.removeprefix(name + "."): value for key, value in stored.items() if key.startswith(name + ".")}
    state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
    theirs = functional.dequantize_4bit(stored[name], state)
    from yuegp.lm.weights.nf4 import Nf4

    original = load_file(demo.stage1 / "model.safetensors")[name]
    torch.testing.assert_close(
        theirs.float(), Nf4.quantize(original).floats(theirs.dtype).float(), rtol=1e-3, atol=1e-5
    )


def test_a_broken_off_press_goes_on_and_ends_the_same(
    demo: ModelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "SHARD_BYTES", 500_000)
    whole = quantize.quantize(demo.stage1, tmp_path / "whole", "int8")

    def stop(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise Cancelled

    broken = tmp_path / "broken"
    with pytest.raises(Cancelled):
        quantize.quantize(demo.stage1, broken, "int8", progress=stop)
    done = {path.name: path.stat().st_mtime_ns for path in broken.glob("*.safetensors")}
    assert len(done) > 1 and not (broken / "config.json").exists(), "not to be mistaken for a finished model"
    with pytest.raises(RequestError, match="another kind"):
        quantize.quantize(demo.stage1, broken, "nf4")
    with pytest.raises(RequestError, match="another source"):
        shutil.copytree(demo.stage1, tmp_path / "copy")
        quantize.quantize(tmp_path / "copy", broken, "int8")
    note = (broken / quantize.NOTE).read_bytes()
    (broken / quantize.NOTE).write_text("{")
    with pytest.raises(RequestError, match="does not say"):
        quantize.quantize(demo.stage1, broken, "int8")
    (broken / quantize.NOTE).write_bytes(note)
    quantize.quantize(demo.stage1, broken, "int8")
    for path in whole.glob("*.safetensors"):
        assert path.read_bytes() == (broken / path.name).read_bytes()
        assert done.get(path.name, 0) in (0, (broken / path.name).stat().st_mtime_ns), (
            "a finished shard was written again"
        )
    with pytest.raises(RequestError, match="already holds a model"):
        quantize.quantize(demo.stage1, broken, "int8")


def test_pressing_twice_and_pressing_nonsense_are_refused(demo: ModelSet, tmp_path: Path) -> None:
    folder = quantize.quantize(demo.stage1, tmp_path / "a", "int8")
    with pytest.raises(RequestError, match="pressed already"):
        quantize.quantize(folder, tmp_path / "b", "nf4")
    with pytest.raises(RequestError, match="no format"):
        quantize.quantize(demo.stage1, tmp_path / "c", "int3")
    assert not (tmp_path / "c").exists()


def test_a_full_disk_is_seen_before_anything_is_written(
    demo: ModelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
    with pytest.raises(LibraryError, match="are free"):
        quantize.quantize(demo.stage1, tmp_path / "a", "int8")
    assert not list((tmp_path / "a").glob("*.safetensors"))


def test_a_folder_in_use_is_left_alone(demo: ModelSet, tmp_path: Path) -> None:
    def second(what: str, done: int, total: int) -> None:
        with pytest.raises(LibraryError, match="Another program"):
            quantize.quantize(demo.stage1, tmp_path / "a", "int8")
        raise Cancelled

    with pytest.raises(Cancelled):
        quantize.quantize(demo.stage1, tmp_path / "a", "int8", progress=second)


# EXL2: the converter needs a card, so a stand-in with its command line proves how ours drives it.

CONVERTER = """
import json, os, sys, argparse
from exllamav2 import ExLlamaV2Tokenizer
from exllamav2.conversion.tokenize import tokenize
p = argparse.ArgumentParser()
for name in "i o b hb om m cf".split():
    p.add_argument("-" + name)
p.add_argument("-so", action="store_true")
a = p.parse_args()
assert os.environ["EXLLAMA_NO_SDPA"] == "1"
os.makedirs(a.o, exist_ok=True)
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(vars(a)) + "\\n")
if os.environ.get("FAKE_OOM"):
    sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB")
job = {"out_dir": a.o}
tokenize(job, None, ExLlamaV2Tokenizer(None), measure=bool(a.om))
print("[STATUS]" + json.dumps({"stage": "Measuring" if a.om else "Quantizing", "completion": 0.5}) + "[/STATUS]")
from safetensors.torch import load_file
ids = load_file(job["cal_filename"])["input_ids"]
if a.om:
    json.dump({"rows": len(ids)}, open(a.om, "w"))
else:
    assert os.path.exists(a.m)
    os.makedirs(a.cf)
    json.dump({"bits": a.b, "rows": len(ids), "length": job["length"]}, open(os.path.join(a.cf, "config.json"), "w"))
"""


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "fake" / "exllamav2"
    (package / "conversion").mkdir(parents=True)
    (package / "__init__.py").write_text("class ExLlamaV2Tokenizer: pass\n")
    for name in ("config", "stloader"):  # whose readers of weight files are replaced
        (package / f"{name}.py").write_text("class STFile: pass\n")
    (package / "conversion" / "__init__.py").write_text("")
    (package / "conversion" / "tokenize.py").write_text("raise ImportError('pandas is not installed')\n")
    (package / "conversion" / "convert_exl2.py").write_text(CONVERTER)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls"))
    monkeypatch.delenv("FAKE_OOM", raising=False)
    return tmp_path / "calls"


def job(demo: ModelSet, collected: Path, target: Path, bits: float = 6.0) -> exl2.ConversionJob:
    files = (collected / "stage1.safetensors", collected / "held-stage1.safetensors")
    return exl2.ConversionJob(demo.stage1, target, *files, bits)


def test_the_converter_reads_our_rows_and_measures_once_for_all_bitrates(
    demo: ModelSet, collected: Path, tmp_path: Path, converter: Path
) -> None:
    heard: list[str] = []
    for bits in (6.0, 4.0):
        target = tmp_path / "models" / f"{bits:g}bpw"
        exl2.convert(job(demo, collected, target, bits), "Somebody", lambda what, done, total: heard.append(what))
        made = json.loads((target / "config.json").read_text())
        assert made == {
            "bits": f"{bits:g}",
            "rows": len(rows.load(collected / "stage1.safetensors", demo.layout)),
            "length": 512,
        }
        assert "Somebody" in (target / "README.md").read_text()
    calls = [json.loads(line) for line in converter.read_text().splitlines()]
    assert [bool(call["om"]) for call in calls] == [True, False, False], "measured once"
    assert heard == ["measure: Measuring", "press: Quantizing", "press: Quantizing"]
    assert sorted(p.name for p in (tmp_path / "models").iterdir() if p.is_dir()) == ["4bpw", "6bpw"]


def test_a_card_that_is_too_full_is_named(demo: ModelSet, collected: Path, tmp_path: Path, converter: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_OOM", "1")
        with pytest.raises(DeviceError, match="memory ran out"):
            exl2.convert(job(demo, collected, tmp_path / "m"))
    exl2.convert(job(demo, collected, tmp_path / "m"))
    assert (tmp_path / "m" / "config.json").exists(), "the next run goes on"


def test_stopping_ends_the_converter_and_other_rows_may_not_take_over(
    demo: ModelSet, collected: Path, tmp_path: Path, converter: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        exl2.convert(job(demo, collected, tmp_path / "m"), progress=stop)
    other = exl2.ConversionJob(
        demo.stage1, tmp_path / "m", collected / "stage2.safetensors", collected / "held-stage1.safetensors", 6.0
    )
    with pytest.raises(RequestError, match="another rows"):
        exl2.convert(other)


def test_a_missing_package_is_a_sentence(
    demo: ModelSet, collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken" / "exllamav2"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no exllamav2_ext')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    with pytest.raises(ModelError, match="no exllamav2_ext"):
        exl2.convert(job(demo, collected, tmp_path / "m"))


@pytest.mark.parametrize(
    "bits, vram, words",
    [(9, 20 << 30, "outside 2 to 8"), (6, None, "needs an NVIDIA card"), (6, 4 << 30, "4.0 GB are free")],
)
def test_what_cannot_work_is_refused_first(
    demo: ModelSet, collected: Path, tmp_path: Path, bits: float, vram: int | None, words: str
) -> None:
    with pytest.raises((RequestError, DeviceError), match=words):
        exl2.check(job(demo, collected, tmp_path / "m", bits), vram)


# The command


def test_the_command_presses_and_judges(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YUEGP_HOME", str(tmp_path))
    folder = tmp_path / "small"
    assert main(["quant", "convert", "--stage", "2", "--to", "int8", "--folder", str(folder), "--json"]) == 0
    capsys.readouterr()
    asked = ["--rows", str(collected), "--count", "2", "--json"]
    assert main(["quant", "measure", "--stage", "2", str(folder), "nf4", *asked]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert list(figures) == ["float32", "small", "nf4"]
    assert figures["small"]["divergence"] < figures["nf4"]["divergence"]
    assert main(["quant", "convert", "--stage", "1", "--to", "exl2", "--rows", str(tmp_path)]) == 2
    assert "quant calibrate" in capsys.readouterr().err
