"""Sound files: what is read, what is refused before any model loads, and what is written or not written at all."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from yuegp.audio import files
from yuegp.cli.wording import sentence
from yuegp.errors import GenerationError, LibraryError, RequestError
from yuegp.song.schema import Reference

RATE = 44100


def tone(seconds: float, rate: int = RATE, hz: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def save(path: Path, wave: np.ndarray, rate: int = RATE) -> str:
    soundfile.write(path, wave, rate, subtype="FLOAT", format="WAV")
    return str(path)


# Reading and resampling


def test_probe_and_read_agree(tmp_path: Path) -> None:
    wave = np.stack([tone(0.5), tone(0.5, hz=660)], axis=1)
    path = save(tmp_path / "a song with spaces é.wav", wave)
    assert files.probe(path) == files.AudioInfo(22050, RATE, 2, 0.5, "WAV")
    got, rate = files.read(path)
    assert rate == RATE and got.dtype == np.float32
    np.testing.assert_array_equal(got, wave)


@pytest.mark.parametrize("name", ["Jürgen Müller", "音楽", "🎵", "100% #1", "it's [x]"])
def test_windows_opens_sound_by_its_wide_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """libsndfile's narrow function takes names in the system's code page there, which has no such letters. soundfile
    uses the wide one for text, which is all we give it: under Windows' rule here, where the narrow one takes none."""
    real = soundfile._snd

    class Windows:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def sf_open(self, file: bytes, *more: object) -> object:
            raise AssertionError(f"the narrow function was given {file!r}")

        def sf_wchar_open(self, file: str, *more: object) -> object:
            return real.sf_open(file.encode(), *more)

    monkeypatch.setattr(soundfile, "_snd", Windows())
    monkeypatch.setattr(soundfile, "_sys", SimpleNamespace(platform="win32"))
    (folder := tmp_path / name).mkdir()
    files.write(folder / f"{name}.flac", wave := tone(0.5), RATE)
    got, _ = files.read(folder / f"{name}.flac")
    assert files.probe(str(folder / f"{name}.flac")).frames == len(wave) and np.allclose(got[:, 0], wave, atol=1e-6)


def slow_sinc(wave: np.ndarray, source: int, target: int) -> np.ndarray:
    """The windowed sinc written down as the formula says, one output sample at a time."""
    divisor = np.gcd(source, target)
    o, n = source // divisor, target // divisor
    b = 0.99 * min(o, n)
    w = int(np.ceil(6 * o / b))
    padded = np.pad(wave.astype(np.float64), (w, w + o))
    out = []
    for k in range(-(-n * len(wave) // o)):
        frame, j = divmod(k, n)
        i = np.arange(-w, w + o)
        t = np.clip((i / o - float(np.float32(j) / np.float32(n))) * b, -6, 6)
        h = (b / o) * np.sinc(t) * np.cos(np.pi * t / 12) ** 2
        out.append(h @ padded[frame * o : frame * o + len(i)])
    return np.array(out)


@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 44100), (48000, 16000), (11025, 16000), (22050, 16000)])
@pytest.mark.parametrize("samples", [1, 700, 1501])
def test_sinc_resampling_is_the_formula(rates: tuple[int, int], samples: int) -> None:
    wave = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    np.testing.assert_allclose(files.sinc_resample(wave, *rates), slow_sinc(wave, *rates), rtol=0, atol=1e-6)


def test_sinc_resampling_in_blocks_is_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    whole = files.sinc_resample(wave, 44100, 16000)
    monkeypatch.setattr(files, "BLOCK", 97)
    np.testing.assert_array_equal(files.sinc_resample(wave, 44100, 16000), whole)


def test_an_odd_sample_rate_costs_no_huge_table() -> None:
    """44,099 and 16,000 share no factor: the full kernel of every phase would take 5.6 GB."""
    wave = tone(0.5, 44099)
    got = files.mono16k(wave[:, None], 44099)
    assert np.abs(got[200:7800] - tone(0.5, 16000)[200:7800]).max() < 1e-3


def test_mono16k_averages_channels_and_keeps_16k_as_it_is() -> None:
    wave = np.stack([tone(0.1, 16000), 3 * tone(0.1, 16000)], axis=1)
    np.testing.assert_allclose(files.mono16k(wave, 16000), 2 * tone(0.1, 16000), atol=1e-6)


def test_resample_keeps_time_and_level() -> None:
    got = files.resample(tone(1, 16000), 16000, RATE)
    assert got.shape == (RATE,) and got.dtype == np.float32
    assert np.abs(got[2000:-2000] - tone(1)[2000:-2000]).max() < 1e-3


# References


def refused(reference: Reference, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        files.check_reference(reference)
    assert caught.value.hint


def test_a_good_reference_passes_without_notes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(3))
    assert files.check_reference(Reference(mix=path, end=3)) == ()
    assert files.check_reference(Reference(vocal=path, instrumental=path, start=0.25, end=2)) == ()


def test_files_that_are_no_sound_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "words.mp3"
    text.write_text("not a sound")
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    refused(Reference(mix=str(tmp_path / "no.wav")), "does not exist")
    refused(Reference(mix=str(tmp_path)), "does not exist")
    refused(Reference(mix=str(text)), "cannot be read as sound")
    refused(Reference(mix=str(empty)), "cannot be read as sound")


def test_the_two_ways_to_give_a_reference_exclude_each_other(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(2))
    refused(Reference(mix=path, vocal=path), "together")
    refused(Reference(mix=path, vocal=path, instrumental=path), "together")
    refused(Reference(vocal=path), "Only the vocal")
    refused(Reference(instrumental=path), "Only the instrumental")
    refused(Reference(), "names no file")


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        (-1, 5, "-1 s to 5 s"),
        (3, 3, "3 s to 3 s"),
        (3, 2, "3 s to 2 s"),
        (float("nan"), 2, "nan"),
        (0, float("inf"), "inf"),
        (5, 9, "lasts 5.00 s"),
        (100, 130, "lasts 5.00 s"),
        (0, 0.5, "less than 1 s"),
        (4.5, 30, "From 4.5 s to 5 s"),
    ],
)
def test_windows_outside_the_file_or_too_short_are_refused(
    tmp_path: Path, start: float, end: float, words: str
) -> None:
    refused(Reference(mix=save(tmp_path / "a.wav", tone(5)), start=start, end=end), words)


def test_a_file_under_one_second_is_refused(tmp_path: Path) -> None:
    refused(Reference(mix=save(tmp_path / "a.wav", tone(0.9))), "lasts 0.90 s")


def test_a_window_longer_than_the_file_ends_with_it(tmp_path: Path) -> None:
    notes = files.check_reference(Reference(mix=save(tmp_path / "a.wav", tone(5)), start=2))
    assert len(notes) == 1 and "ends at 5.0 s" in sentence(notes[0])


def test_silence_is_refused_where_it_is_used(tmp_path: Path) -> None:
    quiet = np.concatenate([tone(2), np.zeros(3 * RATE, np.float32), tone(2)])
    path = save(tmp_path / "a.wav", quiet)
    refused(Reference(mix=path, start=2, end=5), "silent from 2 s to 5 s")
    refused(Reference(mix=save(tmp_path / "noise.wav", tone(5, level=0.0009)), end=5), "silent")
    assert files.check_reference(Reference(mix=path, start=1, end=5)) == ()


def test_channels_that_cancel_are_silent_too(tmp_path: Path) -> None:
    refused(Reference(mix=save(tmp_path / "a.wav", np.stack([tone(2), -tone(2)], axis=1)), end=2), "averaged")


def test_samples_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    wave = tone(2)
    wave[5000] = np.nan
    refused(Reference(mix=save(tmp_path / "a.wav", wave), end=2), "not numbers")


def test_ten_channels_are_refused(tmp_path: Path) -> None:
    refused(Reference(mix=save(tmp_path / "a.wav", np.tile(tone(2)[:, None], 10))), "10 channels")


def test_8_khz_is_accepted_with_a_note(tmp_path: Path) -> None:
    (note,) = files.check_reference(Reference(mix=save(tmp_path / "a.wav", tone(2, 8000), 8000), end=2))
    assert "8000 Hz" in sentence(note)


def test_of_unequal_files_the_shorter_rules(tmp_path: Path) -> None:
    long, short = save(tmp_path / "v.wav", tone(9)), save(tmp_path / "i.wav", tone(4))
    notes = files.check_reference(Reference(vocal=long, instrumental=short, end=4))
    assert len(notes) == 1 and "9.0 s and 4.0 s" in sentence(notes[0])
    refused(Reference(vocal=long, instrumental=short, start=5, end=9), "i.wav lasts 4.00 s")


# Writing


@pytest.mark.parametrize("kind", files.FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_keeps_length_and_place(tmp_path: Path, kind: str, channels: int) -> None:
    wave = tone(2.5)[:, None].repeat(channels, axis=1)  # more than one block
    path = tmp_path / "out put.bin"
    files.write(path, wave[:, 0] if channels == 1 else wave, RATE, kind)
    info = files.probe(path)
    assert (info.frames, info.rate, info.channels) == (len(wave), RATE, channels)
    error = np.abs(files.read(path)[0] - wave).max()
    assert error <= {"float": 0, "wav24": 2e-7, "flac24": 2e-7, "mp3": 0.02}.get(kind, 2**-15)
    assert [p.name for p in tmp_path.iterdir()] == ["out put.bin"]


def test_mp3_is_320_kilobits_per_second(tmp_path: Path) -> None:
    files.write(tmp_path / "a.mp3", tone(10), RATE, "mp3")
    assert (tmp_path / "a.mp3").stat().st_size * 8 / 10 == pytest.approx(320_000, rel=0.02)


@pytest.mark.parametrize("kind", ["wav16", "wav24", "flac16", "flac24", "mp3"])
def test_what_would_clip_is_refused_and_the_old_file_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.x"
    path.write_bytes(b"old")
    with pytest.raises(GenerationError, match=r"reaches 1\.5"):
        files.write(path, np.array([0.0, -1.5], np.float32), RATE, kind)
    with pytest.raises(GenerationError, match="nan"):
        files.write(path, np.array([0.0, np.nan], np.float32), RATE, "float")
    assert path.read_bytes() == b"old"
    files.write(path, np.array([1.0, -1.0], np.float32), RATE, kind)
    files.write(path, np.array([0.0, -1.5], np.float32), RATE, "float")


def test_an_unwritable_folder_is_named_and_the_error_not_hidden_by_its_own_clean_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(LibraryError, match="could not be written") as caught:
            files.write(folder / "a.wav", tone(0.1), RATE, "wav16")
        assert caught.value.hint and str(folder / "a.wav") in caught.value.what


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a Unix matter")
@pytest.mark.parametrize("kind", files.FORMATS)
def test_a_full_disk_leaves_the_old_file_and_no_debris(tmp_path: Path, kind: str) -> None:
    resource = importlib.import_module("resource")
    path = tmp_path / "a.x"
    files.write(path, tone(0.1), RATE, kind)
    before, noise = path.read_bytes(), np.random.default_rng(0).uniform(-0.5, 0.5, 300_000).astype(np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(LibraryError, match=r"\d [GM]B are free there"):
            files.write(path, noise, RATE, kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_checking_a_reference_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, soxr=None); from yuegp.audio import files, mix; "
        "from yuegp.song.schema import Reference; files.check_reference(Reference(mix=sys.argv[1], end=2.0))"
    )
    root = Path(__file__).resolve().parents[2]
    path = save(tmp_path / "a.wav", tone(2))
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
