"""Turns the four waves of a song into two stems and a mix. Arrays in, arrays out; `files.py` reads and writes files.

Each track exists twice: at 16 kHz from the codec, with good lows and nothing above 8 kHz, and at 44.1 kHz from the
upsampler. Two crossovers join them:

    smooth   replaces the lows of each stem through one linear-phase filter and its exact complement, so what both
             waves share passes unchanged; the mix is the sum of the stems
    yue      the released program's: on the mix only, through a pair of filters that cancel each other at 5.5 kHz
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yuegp.errors import GenerationError

from .files import BLOCK, resample, sinc_resample

RATE = 44100
LOW_RATE = 16000

CROSSOVER_HZ = 5500.0
CROSSOVER_Q = 0.707
"""The released program's; 1/sqrt(2) would change the result by 1.2e-4."""

YUE_CEILING = 0.99
RMS_FLOOR = 1e-10
"""Added to both levels before dividing them, in mode `yue`."""

TRANSITION_HZ = 2000.0
"""Width of the smooth crossover: 4.5 to 6.5 kHz, clear of the 7.3 kHz where resampled 16 kHz sound begins to fall."""

STOPBAND_DB = 80.0

SILENCE = 1e-5
"""-100 dBFS: a low band quieter than this is not matched to anything."""

LARGEST_MATCH = 4.0
"""12 dB: largest level change when matching two renderings of the same codes."""

CEILING = 10 ** (-1 / 20)
"""-1 dB true peak, the usual margin for lossy encoders."""

OVERSAMPLING = 4
"""Oversampling for the true peak, as in ITU-R BS.1770 at 44.1 kHz."""


@dataclass(frozen=True)
class Mix:
    """Stems and mix, mono float32 at 44.1 kHz. `gain` is already applied to all three."""

    vocal: np.ndarray
    instrumental: np.ndarray
    mix: np.ndarray
    gain: float


def finish(
    vocal16: np.ndarray,
    vocal44: np.ndarray,
    instrumental16: np.ndarray,
    instrumental44: np.ndarray,
    crossover: str = "smooth",
) -> Mix:
    """Stems and mix of a song from both mono waves of both tracks, with a true peak of at most -1 dB.

    `crossover` is "smooth" (the mix is exactly the sum of the stems) or "yue". Raises GenerationError for waves of
    unrelated lengths or with NaN."""
    _check(vocal16, vocal44, instrumental16, instrumental44)
    if crossover == "smooth":
        vocal = exchange_lows(vocal16, vocal44)
        instrumental = exchange_lows(instrumental16, instrumental44)
        gain = safe_gain(vocal, instrumental, vocal + instrumental)
        vocal, instrumental = _scaled(vocal, gain), _scaled(instrumental, gain)
        return Mix(vocal, instrumental, vocal + instrumental, gain)
    if crossover == "yue":
        waves = yue_waves(vocal16, vocal44, instrumental16, instrumental44)
        gain = safe_gain(*waves)
        vocal, instrumental, mix = (_scaled(wave, gain) for wave in waves)
        return Mix(vocal, instrumental, mix, gain)
    raise GenerationError(f"There is no crossover called {crossover!r}.", "Use smooth or yue.")


def fade_join(left: np.ndarray, right: np.ndarray, overlap: int) -> np.ndarray:
    """Join `left` and `right` with an equal-power crossfade over `overlap` samples: the last of `left`, the first of
    `right`."""
    overlap = min(overlap, len(left), len(right))
    angle = (np.arange(overlap, dtype=np.float32) + 0.5) * np.float32(np.pi / 2 / max(overlap, 1))
    both = left[len(left) - overlap :] * np.cos(angle) + right[:overlap] * np.sin(angle)
    return np.concatenate([left[: len(left) - overlap], both, right[overlap:]])


def safe_gain(*waves: np.ndarray) -> float:
    """Common gain, at most 1, that keeps every wave's true peak below `CEILING`. One for all, so sums stay sums."""
    peak = np.max([true_peak(wave) for wave in waves], initial=0.0)  # unlike max(), keeps a NaN
    if not np.isfinite(peak):
        raise GenerationError("The sound holds samples that are not numbers.")
    return float(min(1.0, CEILING / peak)) if peak > 0 else 1.0


def true_peak(wave: np.ndarray) -> float:
    """Largest absolute value on and between the samples, by fourfold oversampling, in bounded memory."""
    import soxr

    stream = soxr.ResampleStream(RATE, RATE * OVERSAMPLING, 1, dtype="float32")
    peak = float(np.abs(wave).max(initial=0.0))
    for start in range(0, len(wave), BLOCK):
        block = np.ascontiguousarray(wave[start : start + BLOCK], dtype=np.float32)
        between = stream.resample_chunk(block, last=start + BLOCK >= len(wave))
        peak = max(peak, float(np.abs(between).max(initial=0.0)))
    return peak


def exchange_lows(wave16: np.ndarray, wave44: np.ndarray) -> np.ndarray:
    """`wave44` with its band below 5.5 kHz replaced by that of `wave16`, matched in level. Float32, as long as
    `wave44`.

    The same filter removes the old low band and adds the new one: equal bands give back `wave44`, without a notch. If
    either low band is silent, `wave44` is returned unchanged."""
    wave44 = np.asarray(wave44, dtype=np.float32)
    new = _lowpass(_fit(resample(wave16, LOW_RATE, RATE), len(wave44)))
    old = _lowpass(wave44)
    have, want = _rms(new), _rms(old)
    if min(have, want) < SILENCE:
        return wave44.copy()
    new *= np.float32(np.clip(want / have, 1 / LARGEST_MATCH, LARGEST_MATCH))
    new -= old
    new += wave44
    return new


def yue_waves(
    vocal16: np.ndarray,
    vocal44: np.ndarray,
    instrumental16: np.ndarray,
    instrumental44: np.ndarray,
    rescale: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vocal, instrumental and mix as the released program makes them, without its MP3 files in between.

    `rescale` is its option to limit by scaling instead of clipping, which it does not apply to the 16 kHz stems. The
    stems keep their own lows, so they do not sum to the mix, and the mix can exceed 1."""
    low = limit(instrumental16) + limit(vocal16)
    high = limit(instrumental44 + vocal44, rescale)
    return limit(vocal44, rescale), limit(instrumental44, rescale), yue_exchange_lows(low, high)


def yue_exchange_lows(mix16: np.ndarray, mix44: np.ndarray) -> np.ndarray:
    """The released program's low-band replacement: the lows of `mix16`, at the level of those of `mix44`, plus the
    highs of `mix44`. Float32, not limited. What both share is lost at 5.5 kHz and dulled from 3 to 9.5 kHz."""
    low, high = _band_filters()
    a = biquad(_fit(sinc_resample(mix16, LOW_RATE, RATE), len(mix44)), *low)
    b = biquad(mix44, *low)
    a *= (_rms(b) + RMS_FLOOR) / (_rms(a) + RMS_FLOOR)
    del b
    a += biquad(mix44, *high)
    return a.astype(np.float32)


def limit(wave: np.ndarray, rescale: bool = False) -> np.ndarray:
    """The released program's limiter: clip at 0.99, or scale so that the peak is at most that."""
    if not rescale:
        return np.clip(wave, -YUE_CEILING, YUE_CEILING)
    peak = float(np.abs(wave).max(initial=0.0))
    return wave * np.float32(min(YUE_CEILING / peak, 1.0)) if peak > 0 else wave


def biquad(wave: np.ndarray, b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Apply a second-order filter once from silence and clip the output to [-1, 1] as the released program does.

    The poles lie at 0.58, so the impulse response falls below 1e-18 within 80 samples: a short convolution gives the
    recursion's result to the last bits of float64, hundreds of times faster in numpy. The clipping is not fed back."""
    a, b = a / a[0], b / a[0]
    radius = np.abs(np.roots(a)).max()
    taps = int(np.ceil(np.log(1e-18) / np.log(radius))) + len(b)
    response = np.zeros(taps)
    response[: len(b)] = b
    for i in range(1, taps):
        response[i] -= a[1] * response[i - 1] + (a[2] * response[i - 2] if i > 1 else 0.0)
    filtered = _convolve(np.asarray(wave), response, 0)
    return np.clip(filtered, -1.0, 1.0, out=filtered)


def _band_filters() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Low-pass and high-pass (b, a) at the crossover: the Audio EQ Cookbook's formulas."""
    w = 2 * np.pi * CROSSOVER_HZ / RATE
    alpha, cos = np.sin(w) / (2 * CROSSOVER_Q), np.cos(w)
    a = np.array([1 + alpha, -2 * cos, 1 - alpha])
    low = np.array([(1 - cos) / 2, 1 - cos, (1 - cos) / 2])
    high = np.array([(1 + cos) / 2, -(1 + cos), (1 + cos) / 2])
    return (low, a), (high, a)


def _lowpass(wave: np.ndarray) -> np.ndarray:
    """The band below the crossover, linear phase, no delay: a Kaiser-windowed sinc (Kaiser's formulas for length and
    shape at 80 dB)."""
    half = int(np.ceil((STOPBAND_DB - 7.95) / (2.285 * 2 * np.pi * TRANSITION_HZ / RATE) / 2))
    n = np.arange(-half, half + 1)
    taps = np.sinc(2 * CROSSOVER_HZ / RATE * n) * np.kaiser(len(n), 0.1102 * (STOPBAND_DB - 8.7))
    return _convolve(wave, (taps / taps.sum()).astype(np.float32), half)


def _convolve(wave: np.ndarray, taps: np.ndarray, delay: int) -> np.ndarray:
    """`wave` convolved with `taps` and advanced by `delay` samples, as long as `wave`, in the taps' precision. Works
    block by block, so memory is that of the result."""
    out = np.empty(len(wave), dtype=taps.dtype)
    padded_front = len(taps) - 1 - delay
    for start in range(0, len(wave), BLOCK):
        stop = min(start + BLOCK, len(wave))
        first, last = start - padded_front, stop + delay
        piece = np.asarray(wave[max(first, 0) : last], dtype=taps.dtype)
        piece = np.pad(piece, (max(-first, 0), max(last - len(wave), 0)))
        out[start:stop] = np.convolve(piece, taps, mode="valid")
    return out


def _rms(wave: np.ndarray) -> float:
    """Root mean square, summed in float64 without a float64 copy of the wave."""
    total = sum(float(np.square(wave[i : i + BLOCK], dtype=np.float64).sum()) for i in range(0, len(wave), BLOCK))
    return float(np.sqrt(total / len(wave))) if len(wave) else 0.0


def _fit(wave: np.ndarray, length: int) -> np.ndarray:
    """`wave` cut or zero-padded to `length`, because resamplers round lengths differently."""
    return wave[:length] if len(wave) >= length else np.pad(wave, (0, length - len(wave)))


def _scaled(wave: np.ndarray, gain: float) -> np.ndarray:
    return (wave * np.float32(gain)).astype(np.float32, copy=False)


def _check(vocal16: np.ndarray, vocal44: np.ndarray, instrumental16: np.ndarray, instrumental44: np.ndarray) -> None:
    lengths = [len(wave) for wave in (vocal16, vocal44, instrumental16, instrumental44)]
    if lengths[0] != lengths[2] or lengths[1] != lengths[3] or abs(lengths[0] * RATE / LOW_RATE - lengths[1]) >= 1:
        raise GenerationError(
            f"The tracks do not fit together: {lengths[0]} and {lengths[2]} samples at 16 kHz, "
            f"{lengths[1]} and {lengths[3]} at 44.1 kHz."
        )
