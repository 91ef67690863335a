"""Stems and mix: the crossover is flat, stems sum to the mix, nothing passes the ceiling. Recorded values of mode
`yue` are judged in test_golden_codec."""

from __future__ import annotations

import numpy as np
import pytest

from yuegp.audio import mix
from yuegp.audio.files import resample
from yuegp.errors import GenerationError

SECONDS = 4


def noise(seed: int, seconds: float = SECONDS, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * mix.RATE))).astype(np.float32)


def branches(wave: np.ndarray, low_gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The same sound as both branches would give it, were they perfect: at 16 kHz (and `low_gain`) and 44.1 kHz."""
    return np.float32(low_gain) * resample(wave, mix.RATE, mix.LOW_RATE), wave


def response_db(out: np.ndarray, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and gain in dB of a linear process, averaged over short spectra."""
    size = 4096
    window = np.hanning(size)

    def spectra(x: np.ndarray) -> np.ndarray:
        pieces = x[: len(x) // size * size].reshape(-1, size)[1:-1]
        return np.fft.rfft(pieces * window)

    source = spectra(wave)
    gain = (spectra(out) * source.conj()).sum(axis=0) / (np.abs(source) ** 2).sum(axis=0)
    return np.fft.rfftfreq(size, 1 / mix.RATE), 20 * np.log10(np.abs(gain))


def naive_biquad(wave: np.ndarray, b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The difference equation, sample by sample; the output is clipped, the memory is not."""
    out, x1, x2, y1, y2 = np.zeros(len(wave)), 0.0, 0.0, 0.0, 0.0
    for n, x in enumerate(wave.astype(np.float64)):
        y = (b[0] * x + b[1] * x1 + b[2] * x2 - a[1] * y1 - a[2] * y2) / a[0]
        x1, x2, y1, y2 = x, x1, y, y1
        out[n] = min(max(y, -1.0), 1.0)
    return out


# Crossover


def test_the_inherited_fault_a_crossover_that_notches_5_5_khz() -> None:
    wave = noise(1)
    inside = slice(2000, -2000)
    frequencies, gain = response_db(mix.exchange_lows(*branches(wave))[inside], wave[inside])
    band = (frequencies >= 3000) & (frequencies <= 9000)
    assert np.abs(gain[band]).max() < 0.1
    assert np.abs(gain[frequencies < 20000]).max() < 0.1

    frequencies, gain = response_db(mix.yue_exchange_lows(*branches(wave))[inside], wave[inside])
    assert gain[np.argmin(np.abs(frequencies - 5500))] < -30  # the released program's, which mode yue keeps
    assert gain[np.argmin(np.abs(frequencies - 4000))] == pytest.approx(-7, abs=1)


def test_equal_branches_pass_unchanged_sample_by_sample() -> None:
    wave = noise(2)
    out = mix.exchange_lows(*branches(wave))
    assert out.dtype == np.float32
    assert np.sqrt(np.mean((out - wave)[2000:-2000] ** 2)) < 1e-4  # 60 dB under the sound


def test_lows_come_from_the_one_and_highs_from_the_other() -> None:
    low, high = noise(3), noise(4)
    out = mix.exchange_lows(resample(low, mix.RATE, mix.LOW_RATE), high)
    for source, keep, lose in ((low, (100, 4400), (6600, 20000)), (high, (6600, 20000), (100, 4400))):
        frequencies, gain = response_db(out, source)
        level = {name: gain[(frequencies > f[0]) & (frequencies < f[1])] for name, f in (("k", keep), ("l", lose))}
        assert np.median(level["k"]) == pytest.approx(0, abs=0.3)
        assert np.median(level["l"]) < -12  # two noises are not quite independent in four seconds


def test_the_lows_are_brought_to_the_level_of_the_upsampled_sound() -> None:
    wave = noise(5)
    assert np.abs(mix.exchange_lows(*branches(wave, low_gain=0.4)) - wave)[2000:-2000].max() < 2e-3
    far_off = mix.exchange_lows(*branches(wave, low_gain=0.01))  # no further than 12 dB
    frequencies, gain = response_db(far_off, wave)
    assert np.median(gain[frequencies < 4000]) == pytest.approx(20 * np.log10(0.01 * mix.LARGEST_MATCH), abs=0.2)


def test_silent_stems_are_handled() -> None:
    wave, low = noise(6, 1), noise(6, 1)[: mix.LOW_RATE]
    nothing16, nothing44 = np.zeros(mix.LOW_RATE, np.float32), np.zeros(mix.RATE, np.float32)
    np.testing.assert_array_equal(mix.exchange_lows(nothing16, wave), wave)
    np.testing.assert_array_equal(mix.exchange_lows(low, nothing44), nothing44)
    for crossover in ("smooth", "yue"):
        finished = mix.finish(nothing16, nothing44, nothing16, nothing44, crossover)
        assert finished.gain == 1.0 and not finished.mix.any()


@pytest.mark.parametrize("frames", [1, 2, 50])
def test_the_shortest_songs_can_be_mixed(frames: int) -> None:
    low, high = noise(1)[: 320 * frames], noise(2)[: 882 * frames]
    for crossover in ("smooth", "yue"):
        assert len(mix.finish(low, high, low, high, crossover).mix) == 882 * frames


# Sum and level


@pytest.mark.parametrize("level", [0.02, 0.5])
def test_the_inherited_fault_stems_that_do_not_sum_to_the_mix(level: float) -> None:
    vocal, instrumental = branches(noise(7, level=level)), branches(noise(8, level=level))
    finished = mix.finish(*vocal, *instrumental)
    np.testing.assert_array_equal(finished.vocal + finished.instrumental, finished.mix)
    assert all(wave.dtype == np.float32 for wave in (finished.vocal, finished.instrumental, finished.mix))
    assert (finished.gain == 1.0) == (level == 0.02)


@pytest.mark.parametrize("crossover", ["smooth", "yue"])
def test_nothing_passes_the_ceiling(crossover: str) -> None:
    vocal, instrumental = branches(noise(9, level=0.8)), branches(noise(9, level=0.8))
    finished = mix.finish(*vocal, *instrumental, crossover)
    for wave in (finished.vocal, finished.instrumental, finished.mix):
        assert mix.true_peak(wave) <= mix.CEILING * 1.001


def test_peaks_between_samples_are_seen() -> None:
    """A sine at a quarter of the rate, sampled 45 degrees off its peaks, hides 3 dB from the samples."""
    wave = np.sin(np.pi / 2 * np.arange(44100) + np.pi / 4).astype(np.float32)
    wave *= np.hanning(44100).astype(np.float32)
    assert np.abs(wave).max() == pytest.approx(np.sqrt(0.5), abs=1e-3)
    assert mix.true_peak(wave) == pytest.approx(1.0, abs=0.01)
    assert mix.safe_gain(wave, wave / 2) == pytest.approx(mix.CEILING, abs=0.01)


def test_the_true_peak_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = noise(10, 1)
    whole = mix.true_peak(wave)
    monkeypatch.setattr(mix, "BLOCK", 1000)
    assert mix.true_peak(wave) == pytest.approx(whole, abs=1e-6)


def test_waves_that_do_not_belong_together_are_refused() -> None:
    low, high = np.zeros(3200, np.float32), np.zeros(8820, np.float32)
    with pytest.raises(GenerationError, match="3200 and 2880"):
        mix.finish(low, high, low[:-320], high)
    with pytest.raises(GenerationError, match=r"3200 .* 7938"):
        mix.finish(low, high[:-882], low, high[:-882])
    with pytest.raises(GenerationError, match="not numbers"):
        mix.finish(low, high, low, high + np.float32("nan"))
    with pytest.raises(GenerationError, match="'sharp'"):
        mix.finish(low, high, low, high, "sharp")


# Filters of mode yue


@pytest.mark.parametrize("level", [0.1, 3.0])
def test_the_fast_biquad_is_the_recursion(level: float) -> None:
    wave = noise(11, 0.5, level)
    for b, a in mix._band_filters():
        got = mix.biquad(wave, b, a)
        np.testing.assert_allclose(got, naive_biquad(wave, b, a), rtol=0, atol=1e-12)
        assert (np.abs(got) == 1.0).any() == (level > 1)


def test_the_filters_are_the_published_ones() -> None:
    (low, a), (high, _) = mix._band_filters()
    np.testing.assert_allclose(a / a[0], [1, -0.94500065, 0.33405896], atol=1e-8)
    np.testing.assert_allclose(low / a[0], [0.09726458, 0.19452916, 0.09726458], atol=1e-8)
    np.testing.assert_allclose(high / a[0], [0.56976490, -1.13952980, 0.56976490], atol=1e-8)


def test_filtering_in_blocks_is_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = noise(12, 0.2)
    whole = mix.exchange_lows(noise(13, 0.2)[:3200], wave), mix.biquad(wave, *mix._band_filters()[0])
    monkeypatch.setattr(mix, "BLOCK", 333)
    assert np.abs(mix.exchange_lows(noise(13, 0.2)[:3200], wave) - whole[0]).max() < 1e-6
    np.testing.assert_allclose(mix.biquad(wave, *mix._band_filters()[0]), whole[1], rtol=0, atol=1e-12)


def test_limiting_clips_or_scales() -> None:
    wave = np.array([0.5, -1.98, 1.0], np.float32)
    np.testing.assert_allclose(mix.limit(wave), [0.5, -0.99, 0.99])
    np.testing.assert_allclose(mix.limit(wave, rescale=True), [0.25, -0.99, 0.5])
    quiet = np.zeros(3, np.float32)
    assert not mix.limit(quiet, rescale=True).any()
