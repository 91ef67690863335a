"""Sound files: check a reference, read, resample, write.

Waves are float32; a file's are (frames, channels), ours are mono (frames,). Mixing is in `mix.py`, codes in `codec/`.
Needs no torch; soundfile and soxr are loaded when first used.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yuegp import files
from yuegp.errors import GenerationError, LibraryError, RequestError
from yuegp.song.notes import Note, NoteCode, note
from yuegp.song.schema import Reference
from yuegp.units import file_size

CODEC_RATE = 16000

SHORTEST_REFERENCE = 1.0
"""Shortest usable reference, in seconds."""

SILENCE_RMS = 10 ** (-60 / 20)
"""-60 dBFS, over the window with channels averaged: a quieter reference counts as silent."""

DULL_RATE = 16000
"""Hz; a reference sampled below the codec's rate lacks treble: accepted, with a note."""

UNEQUAL_LENGTHS = 1.0
"""Seconds by which the two files of a pair may differ in length without a note."""

RATES = (1000, 768_000)
MOST_CHANNELS = 64
"""Most channels a file may declare."""

LONGEST_FRAMES = 2**30
"""Six hours at 48 kHz. Silence compresses so well that a small file could keep a decoder busy for days."""

BLOCK = 65536
"""Frames handled at once. One write of three million crashes libsndfile 1.2.2 (measured, Ogg Vorbis)."""

FORMATS: dict[str, dict[str, Any]] = {
    "wav16": {"format": "WAV", "subtype": "PCM_16"},
    "wav24": {"format": "WAV", "subtype": "PCM_24"},
    "float": {"format": "WAV", "subtype": "FLOAT"},
    "flac16": {"format": "FLAC", "subtype": "PCM_16"},
    "flac24": {"format": "FLAC", "subtype": "PCM_24"},
    # Level 0.0 at a constant rate is exactly 320 kb/s at 44.1 kHz, gapless; measured.
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.0},
}
"""Formats of `write`; the caller chooses the file name's suffix."""

LOWPASS_ZEROS = 6
ROLLOFF = 0.99
"""Torchaudio's resampler defaults, which the released program used for references and for its low band."""


@dataclass(frozen=True)
class AudioInfo:
    """Length, rate and channels of a sound file."""

    frames: int
    rate: int
    channels: int
    seconds: float
    format: str


def probe(path: Path | str) -> AudioInfo:
    """Length, rate and channels of a sound file. Headers can be wrong about the length (often in MP3), so it is found
    by decoding the file once. Raises RequestError if the file is missing, not sound, or cut short."""
    try:
        state = os.stat(path)
    except (OSError, ValueError) as exc:
        raise _absent(path) from exc
    return _probe(str(path), state.st_mtime_ns, state.st_size)


@functools.lru_cache(64)
def _probe(path: str, changed: int, size: int) -> AudioInfo:
    """`probe`, cached for a file of this size and time of change."""
    with _open(path) as file:
        frames = sum(len(block) for block in _blocks(file, path))
        if file.format != "MP3" and frames < file.frames <= LONGEST_FRAMES:
            raise _cut_short(path, frames / file.samplerate)
        return AudioInfo(frames, file.samplerate, file.channels, frames / file.samplerate, file.format)


def read(path: Path | str, start: float = 0.0, end: float = math.inf) -> tuple[np.ndarray, int]:
    """Read the sound from second `start` to `end`: float32 (frames, channels), and its rate. Raises RequestError."""
    with _open(path) as file:
        rate, at, blocks = file.samplerate, 0, []
        first, stop = int(start * rate), end * rate
        for block in _blocks(file, str(path)):
            if at + len(block) > first:
                blocks.append(block[max(0, first - at) : max(0, math.ceil(min(stop, at + len(block))) - at)])
            at += len(block)
            if at >= stop:
                break
        return np.concatenate([np.zeros((0, file.channels), np.float32), *blocks]), rate


def peaks(path: Path | str, points: int) -> np.ndarray:
    """Peak of each of at most `points` equal parts of a file, float64. Raises RequestError."""
    frames = probe(path).frames
    part, at, found = max(1, -(-frames // points)), 0, np.zeros(points)
    with _open(path) as file:
        for block in _blocks(file, str(path)):
            places = np.minimum((at + np.arange(len(block))) // part, points - 1)
            np.maximum.at(found, places, np.abs(block).max(axis=1))
            at += len(block)
    return found[: -(-frames // part)]


def _blocks(file: Any, path: str) -> Iterator[np.ndarray]:
    """Yield the rest of an open file as float32 (frames, channels), without trusting the length in its header. Raises
    RequestError where it cannot be decoded or exceeds `LONGEST_FRAMES`."""
    import soundfile

    done = 0
    while True:
        try:
            block = file.read(BLOCK, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, ValueError) as exc:
            raise _cut_short(path, done / file.samplerate) from exc
        if not len(block):
            return
        yield block
        done += len(block)
        if done > LONGEST_FRAMES:
            raise RequestError(
                f"{path} holds more than {LONGEST_FRAMES / file.samplerate / 3600:.1f} hours of sound.",
                "Cut out the passage that is meant.",
            )


def _cut_short(path: str, seconds: float) -> RequestError:
    return RequestError(
        f"{path} is damaged or cut short: nothing can be decoded after {seconds:.1f} s.",
        "Copy or export the file again, or cut out the part before.",
    )


def _absent(path: Path | str) -> RequestError:
    return RequestError(f"The sound file {path} does not exist.", "Check the path.")


def mono16k(wave: np.ndarray, rate: int) -> np.ndarray:
    """Convert a wave (frames, channels) at `rate` to the codec's input: float32 mono at 16 kHz, channels averaged.

    Follows the released program, so that equal references give equal codes."""
    return sinc_resample(wave.mean(axis=1, dtype=np.float32), rate, CODEC_RATE)


def resample(wave: np.ndarray, source: int, target: int) -> np.ndarray:
    """Resample a wave, (frames,) or (frames, channels), to float32 with soxr's high quality."""
    import soxr

    return soxr.resample(np.asarray(wave, dtype=np.float32), source, target)


def sinc_resample(wave: np.ndarray, source: int, target: int) -> np.ndarray:
    """Resample mono `wave` with a Hann-windowed sinc to ceil(len * target / source) float32 samples.

    Equals torchaudio's default resampler up to rounding. There are only `target / gcd` different sets of coefficients;
    beyond six zero crossings they are zero, so a few dozen taps suffice."""
    divisor = math.gcd(source, target)
    o, n = source // divisor, target // divisor
    if o == n:
        return np.asarray(wave, dtype=np.float32)
    band = ROLLOFF * min(o, n)
    reach = math.ceil(LOWPASS_ZEROS * o / band)
    # Output j of every n starts its taps `reach` samples before position j * o / n.
    phases = np.arange(n)
    first = phases * o // n - reach
    taps = first[:, None] + np.arange(2 * reach + 2)
    # torchaudio rounds the phase to single precision; without that the result moves by 1.7e-5.
    position = (phases.astype(np.float32) / np.float32(n)).astype(np.float64)
    t = np.clip((taps / o - position[:, None]) * band, -LOWPASS_ZEROS, LOWPASS_ZEROS)
    kernel = np.sinc(t) * np.cos(t * (np.pi / (2 * LOWPASS_ZEROS))) ** 2 * (band / o)

    length = -(-n * len(wave) // o)
    padded = np.pad(np.asarray(wave, dtype=np.float32), (reach, 2 * reach + o + 2))
    out = np.empty(length, dtype=np.float32)
    for start in range(0, length, BLOCK):
        index = np.arange(start, min(start + BLOCK, length))
        phase = index % n
        base = index // n * o + first[phase] + reach
        total = np.zeros(len(index))
        for tap in range(kernel.shape[1]):
            total += kernel[phase, tap] * padded[base + tap]
        out[index] = total
    return out


def check_reference(reference: Reference) -> tuple[Note, ...]:
    """Raise RequestError unless the reference can be learned from; notes on what to expect from it otherwise.

    Reads the window of each file once, block by block. An end beyond the file's end means the file's end."""
    paths = _reference_paths(reference)
    start, end = reference.start, reference.end
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise RequestError(
            f"The reference cannot run from {start:g} s to {end:g} s.",
            "Give a start of 0 or more and an end after it, in seconds.",
        )
    notes: list[Note] = []
    infos = {path: _judge(path, start, end, notes) for path in paths}
    lengths = [info.seconds for info in infos.values()]
    if max(lengths) - min(lengths) > UNEQUAL_LENGTHS:
        notes.append(note(NoteCode.REFERENCE_UNEQUAL, first=lengths[0], second=lengths[1]))
    if min(lengths) < end:
        notes.append(note(NoteCode.REFERENCE_ENDS, seconds=min(lengths), end=end))
    return tuple(notes)


def _reference_paths(reference: Reference) -> list[str]:
    if reference.mix and (reference.vocal or reference.instrumental):
        raise RequestError(
            "A reference mix and separate reference tracks were given together.",
            "Give either one mix, or a vocal and an instrumental.",
        )
    if reference.mix:
        return [reference.mix]
    if not (reference.vocal and reference.instrumental):
        given = "vocal" if reference.vocal else "instrumental" if reference.instrumental else ""
        raise RequestError(
            f"Only the {given} track of a reference was given." if given else "The reference names no file.",
            "Give both the vocal and the instrumental of the same passage, or one mix.",
        )
    return [reference.vocal, reference.instrumental]


def _judge(path: str, start: float, end: float, notes: list[Note]) -> AudioInfo:
    """Check one reference file, add to `notes`, and return its `AudioInfo`. Raises RequestError."""
    info = probe(path)
    if info.channels > 2:
        raise RequestError(f"{path} has {info.channels} channels.", "Give a mono or stereo file.")
    if info.seconds < SHORTEST_REFERENCE:
        raise RequestError(
            f"{path} lasts {info.seconds:.2f} s; a reference needs at least {SHORTEST_REFERENCE:g} s.",
            "Give a longer passage; about 30 s works best.",
        )
    if start >= info.seconds:
        raise RequestError(
            f"The reference is to start at {start:g} s, but {path} lasts {info.seconds:.2f} s.",
            "Choose a start inside the file.",
        )
    if min(end, info.seconds) - start < SHORTEST_REFERENCE:
        raise RequestError(
            f"From {start:g} s to {min(end, info.seconds):g} s, {path} gives less than {SHORTEST_REFERENCE:g} s.",
            "Choose a longer window; about 30 s works best.",
        )
    if _rms(path, start, end) < SILENCE_RMS:
        raise RequestError(
            f"{path} is silent from {start:g} s to {min(end, info.seconds):g} s (once its channels are averaged).",
            "Choose a window in which something sounds.",
        )
    if info.rate < DULL_RATE:
        notes.append(note(NoteCode.REFERENCE_DULL, path=path, rate=info.rate))
    return info


def _rms(path: str, start: float, end: float) -> float:
    """Root mean square of a window of a file, channels averaged first."""
    total, count = 0.0, 0
    with _open(path) as file:
        first, stop, at = round(start * file.samplerate), round(end * file.samplerate), 0
        for block in _blocks(file, path):
            mono = block[max(0, first - at) : max(0, stop - at)].mean(axis=1, dtype=np.float64)
            at += len(block)
            if not np.isfinite(mono).all():
                raise RequestError(f"{path} holds samples that are not numbers.", "Export the file again.")
            total += float(mono @ mono)
            count += len(mono)
            if at >= stop:
                break
    return math.sqrt(total / count) if count else 0.0


def _open(path: Path | str) -> Any:
    import soundfile

    if not Path(path).is_file():
        raise _absent(path)
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError, ValueError) as exc:
        raise RequestError(
            f"{path} cannot be read as sound: {exc}", "Give a WAV, FLAC, MP3 or Ogg file; convert others first."
        ) from exc
    if not (RATES[0] <= file.samplerate <= RATES[1] and 1 <= file.channels <= MOST_CHANNELS):
        file.close()
        raise RequestError(
            f"{path} says that it has {file.channels} channels at {file.samplerate} Hz.", "Export the file again."
        )
    return file


def write(path: Path | str, wave: np.ndarray, rate: int, kind: str = "flac24") -> None:
    """Write a float wave, (frames,) or (frames, channels), as one of `FORMATS`. The file appears whole or not at all.

    Raises GenerationError for samples above 1 except in "float" (apply `mix.safe_gain` first), LibraryError when the
    disk is full or the folder cannot be written."""
    import soundfile

    path, options = Path(path), FORMATS[kind]
    peak = float(np.abs(wave).max(initial=0.0))
    if not np.isfinite(peak) or (peak > 1.0 and kind != "float"):
        raise GenerationError(f"The wave for {path.name} reaches {peak:g}; at most 1 can be written as {kind}.")
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with soundfile.SoundFile(temporary, "w", samplerate=rate, channels=channels, **options) as file:
            for start in range(0, len(wave), BLOCK):
                file.write(wave[start : start + BLOCK])
        written = soundfile.info(str(temporary)).frames
        if written != len(wave):  # libsndfile does not report every short write
            raise OSError(f"only {written} of {len(wave)} frames were written")
        files.put(temporary, path)
    except (OSError, soundfile.LibsndfileError, AssertionError) as exc:  # soundfile asserts that writes are complete
        reason = str(exc).rstrip(".") or "the write was cut short"
        raise LibraryError(
            f"{path} could not be written: {reason}{_free(path.parent)}.", "Free some space, or choose another folder."
        ) from exc
    finally:
        files.discard(temporary)


def _free(folder: Path) -> str:
    free = files.free_bytes(folder)
    return "" if free is None else f" ({file_size(free)} are free there)"
