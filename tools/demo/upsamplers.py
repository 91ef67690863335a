"""Training of the demo set's two upsamplers: from the codec's embedding of a stem to the stem at 44.1 kHz.

The network is that of `yuegp/codec/upsampler.py`, run on batches. It learns from composed songs: their codes from the
shipped encoder, and their sound at 44.1 kHz.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from yuegp.codec import load_codec
from yuegp.codec.files import UPSAMPLERS
from yuegp.codec.layout import (
    DECODE_CODEBOOKS,
    SAMPLE_RATE,
    UPSAMPLED_FRAME,
    UPSAMPLED_RATE,
    UpsamplerWidths,
)
from yuegp.codec.upsampler import LARGEST_MAGNITUDE, Block, Upsampler
from yuegp.codec.xcodec import XCodec
from yuegp.song.schema import Track

from .codec import SEED, WIDTHS, slim
from .render import render
from .songs import make_song

Log = Callable[[str], None]

NET = UpsamplerWidths(embedding=WIDTHS.embedding, dim=96, inner=288, layers=4, window=1764)
STEPS, BATCH, CROP, SONGS = 2000, 8, 40, 48
"""Steps, clips in a batch, frames in a clip, and songs to take them from."""

LEARNING_RATE = 2e-3
SPECTRA = (512, 2048)
"""Window lengths of the spectra that are compared, one in each step, in turn."""

SECOND_POOL = 10_000
"""Seeds after the codec's first at which the upsamplers' songs begin."""


def train(
    folder: Path, codec_folder: Path, steps: int = STEPS, log: Log = print, device: str = "cpu", songs: int = SONGS
) -> Path:
    """Write both upsamplers and their configuration into the codec folder `folder`, keeping existing ones."""
    _write_config(folder)
    for track, name in UPSAMPLERS.items():
        path = folder / f"{name}.safetensors"
        if path.exists():
            log(f"upsamplers: {path} is there already")
            continue
        network = _train_one(track, codec_folder, steps, songs, device, log)
        state = {
            name: tensor.detach().cpu().to(torch.float32 if name == "head.istft.window" else torch.float16).contiguous()
            for name, tensor in network.state_dict().items()
        }
        temporary = path.with_suffix(".part")
        temporary.write_bytes(save(state))
        temporary.replace(path)
        log(f"upsamplers: {path.name}, {path.stat().st_size / 1e6:.2f} MB")
    return folder


def _write_config(folder: Path) -> None:
    path = folder / "decoders" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "backbone:\n  class_path: vocos.models.VocosBackbone\n  init_args:\n"
        f"    input_channels: {NET.embedding}\n    dim: {NET.dim}\n"
        f"    intermediate_dim: {NET.inner}\n    num_layers: {NET.layers}\n"
        "head:\n  class_path: vocos.heads.ISTFTHead\n  init_args:\n"
        f"    dim: {NET.dim}\n    n_fft: {NET.window}\n    hop_length: {UPSAMPLED_FRAME}\n    padding: same\n",
        encoding="utf-8",
    )


def stems(codec: XCodec, track: Track, seed: int) -> tuple[Tensor, np.ndarray]:
    """A composed song's stem as input of the upsampler, (width, frames), and its target sound at 44.1 kHz."""
    song = make_song(seed)
    number = list(Track).index(track)
    codes = codec.encode(render(song, SAMPLE_RATE)[number], DECODE_CODEBOOKS)
    return codec.embed(codes)[0], render(song, UPSAMPLED_RATE)[number]


def _train_one(track: Track, codec_folder: Path, steps: int, songs: int, device: str, log: Log) -> Upsampler:
    codec = slim(load_codec(codec_folder, device, encode=True))
    material = [stems(codec, track, SEED + SECOND_POOL + n) for n in range(songs)]
    torch.manual_seed(SEED)
    network = _fresh(material).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1, (n + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * n / steps)))
    )
    rng, start, heard = np.random.default_rng(SEED), time.monotonic(), 0.0
    for step in range(steps):
        inputs: list[Tensor] = []
        targets: list[np.ndarray] = []
        while len(inputs) < BATCH:
            embedding, wave = material[int(rng.integers(songs))]
            first = int(rng.integers(embedding.shape[1] - CROP))
            target = wave[first * UPSAMPLED_FRAME : (first + CROP) * UPSAMPLED_FRAME]
            if np.abs(target).max() > 1e-3:
                inputs.append(embedding[:, first : first + CROP])
                targets.append(target)
        wanted = torch.from_numpy(np.stack(targets)).to(device)
        made = synthesize(network, torch.stack(inputs).clone())
        error = (made - wanted).square().mean(1) / (wanted.square().mean(1) + 1e-5)
        loss = torch.log(error + 1e-4).mean() + 2 * _spectral_distance(made, wanted, SPECTRA[step % len(SPECTRA)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        heard = 0.98 * heard + 0.02 * error.detach().log10().mean().item() if step else error.log10().mean().item()
        if (step + 1) % 250 == 0:
            took = time.monotonic() - start
            to_go = took / (step + 1) * (steps - step - 1)
            log(
                f"upsamplers: {track.name.lower()} step {step + 1}/{steps}, signal to error {-10 * heard:.1f} dB; "
                f"{1000 * took / (step + 1):.0f} ms a step, {to_go:.0f} s to go"
            )
    return network


def _fresh(material: list[tuple[Tensor, np.ndarray]]) -> Upsampler:
    """A network whose first layer expects embeddings of this size, and whose last one starts at the mean spectrum."""
    network = Upsampler(NET)
    size = NET.window
    n = np.arange(size)
    with torch.no_grad():
        network.head.istft.window.copy_(torch.from_numpy(0.5 - 0.5 * np.cos(2 * np.pi * n / size)).float())
        network.backbone.embed.weight /= float(torch.cat([embedding for embedding, _ in material], 1).std())
        for block in network.backbone.convnext:
            assert isinstance(block, Block)
            block.gamma.fill_(1 / NET.layers)
        waves = torch.from_numpy(np.concatenate([wave for _, wave in material[:8]]))
        spectrum = torch.stft(waves, size, UPSAMPLED_FRAME, window=network.head.istft.window, return_complex=True)
        network.head.out.weight *= 0.3
        network.head.out.bias.zero_()
        network.head.out.bias[: size // 2 + 1] = torch.log(spectrum.abs().mean(1) + 1e-4)
    return network


def synthesize(network: Upsampler, embeddings: Tensor) -> Tensor:
    """(clips, width, frames) to (clips, 882 * frames): the network's own forward, for several clips."""
    magnitude, phase = network.head.out(network.backbone(embeddings)).transpose(1, 2).chunk(2, 1)
    window = network.head.istft.window
    size, frames = len(window), embeddings.shape[2]
    pieces = torch.fft.irfft(torch.polar(magnitude.exp().clamp(max=LARGEST_MAGNITUDE), phase), n=size, dim=1)
    total, cut = (frames - 1) * UPSAMPLED_FRAME + size, (size - UPSAMPLED_FRAME) // 2
    weights = window.square()[None, :, None].expand(1, size, frames)
    sound, weight = (
        F.fold(x, (1, total), (1, size), stride=(1, UPSAMPLED_FRAME))[:, 0, 0]
        for x in (pieces * window[:, None], weights)
    )
    return (sound / weight.clamp(min=1e-8))[:, cut : total - cut]


def _spectral_distance(made: Tensor, wanted: Tensor, size: int) -> Tensor:
    """Mean difference of log magnitudes."""
    window = torch.hann_window(size, device=made.device)
    a, b = (
        torch.stft(wave, size, size // 4, window=window, return_complex=True).abs().clamp(min=1e-3).log()
        for wave in (made, wanted)
    )
    return (a - b).abs().mean()
