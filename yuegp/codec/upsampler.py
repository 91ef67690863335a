"""The upsampler turns the codec's embedding into a 44.1 kHz stem. A Vocos network: ConvNeXt blocks and an inverse
Fourier transform; one set of weights per track. Its input is `XCodec.embed`, not the decoded 16 kHz wave.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yuegp.progress import Progress, quiet
from yuegp.song.schema import Track

from . import files
from .chunks import in_chunks, memory_named
from .layout import UPSAMPLED_FRAME, UPSAMPLED_RATE, UpsamplerWidths
from .xcodec import XCodec

CHUNK = 500
"""Frames rendered at once (10 s)."""

EPS = 1e-6
"""Epsilon of every layer norm here."""

LARGEST_MAGNITUDE = 100.0
"""Magnitudes are clipped here, as in training."""


class Block(nn.Module):
    """Depthwise convolution over time, then a two-layer perceptron per frame, scaled and added to the input."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, EPS)
        self.pwconv1 = nn.Linear(dim, inner)
        self.pwconv2 = nn.Linear(inner, dim)
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(1, dim, frames) to (1, dim, frames)."""
        y = self.norm(self.dwconv(x).transpose(1, 2))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.transpose(1, 2)


class Backbone(nn.Module):
    """(1, embedding, frames) to (1, frames, dim)."""

    def __init__(self, widths: UpsamplerWidths) -> None:
        super().__init__()
        self.embed = nn.Conv1d(widths.embedding, widths.dim, 7, padding=3)
        self.norm = nn.LayerNorm(widths.dim, EPS)
        self.convnext = nn.ModuleList(Block(widths.dim, widths.inner) for _ in range(widths.layers))
        self.final_layer_norm = nn.LayerNorm(widths.dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))


class InverseTransform(nn.Module):
    """Spectra to sound: windowed overlap-add, divided by the overlap-added squared window."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = nn.Buffer(torch.empty(window))

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (bins, frames) to (882 * frames,), without the first and last half window."""
        size, frames = len(self.window), spectrum.shape[1]
        pieces = torch.fft.irfft(spectrum, n=size, dim=0) * self.window[:, None]
        weights = (self.window.square()[:, None]).expand(size, frames)
        total = (frames - 1) * UPSAMPLED_FRAME + size
        sound, weight = (
            F.fold(x[None], (1, total), (1, size), stride=(1, UPSAMPLED_FRAME)).flatten() for x in (pieces, weights)
        )
        cut = (size - UPSAMPLED_FRAME) // 2
        return sound[cut : total - cut] / weight[cut : total - cut]


class Head(nn.Module):
    """(1, frames, dim) to (882 * frames,): magnitude and phase per bin, then the inverse transform."""

    def __init__(self, widths: UpsamplerWidths) -> None:
        super().__init__()
        self.out = nn.Linear(widths.dim, widths.window + 2)
        self.istft = InverseTransform(widths.window)

    def forward(self, x: Tensor) -> Tensor:
        magnitude, phase = self.out(x)[0].transpose(0, 1).chunk(2)
        return self.istft(torch.polar(magnitude.exp().clamp(max=LARGEST_MAGNITUDE), phase))


class Upsampler(nn.Module):
    """A loaded upsampler of one track."""

    sample_rate = UPSAMPLED_RATE
    hop = UPSAMPLED_FRAME

    def __init__(self, widths: UpsamplerWidths) -> None:
        super().__init__()
        self.backbone = Backbone(widths)
        self.head = Head(widths)
        # Three frames per convolution, plus those the window reaches beyond its own frame.
        self.context = 3 * (1 + widths.layers) + -(-(widths.window - UPSAMPLED_FRAME) // (2 * UPSAMPLED_FRAME))

    def forward(self, embedding: Tensor) -> Tensor:
        """(1, width, frames) to (882 * frames,), not limited."""
        return self.head(self.backbone(embedding))

    @torch.inference_mode()
    def decode(self, codes: np.ndarray, codec: XCodec, progress: Progress = quiet) -> np.ndarray:
        """The 44.1 kHz sound of `codes` (n, frames): 882 float32 samples per frame."""
        device = self.head.out.weight.device

        def run(first: int, last: int) -> Tensor:
            return self(codec.embed(codes[:, first:last]).to(device))

        return in_chunks(run, codes.shape[1], UPSAMPLED_FRAME, CHUNK, self.context, "upsampler", progress)


def load(folder: Path, track: Track, device: str = "cpu") -> Upsampler:
    """Load the upsampler of `track` from `folder`. Raises ModelError."""
    files.check_upsampler_config(folder)
    tensors = files.read_tensors(files.codec_file(folder, files.UPSAMPLERS[track]), files.upsampler_expectation)
    with torch.device("meta"):
        upsampler = Upsampler(UpsamplerWidths.of({name: tuple(t.shape) for name, t in tensors.items()}))
    upsampler.load_state_dict(tensors, assign=True)
    with memory_named("upsampler"):
        return upsampler.eval().requires_grad_(False).to(device)
