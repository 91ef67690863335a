"""Builds the demo set's codec: X-Codec weights under the released names, mostly computed instead of trained.

Encoder and decoder of the acoustic branch are one linear transform each: a lapped transform of one frame (320 samples,
of which 80 overlap the frame before), its spectrum evened out, its first `ACOUSTIC` principal components. The
network's strided convolutions pass samples on as channels, its last one is the transform; residual branches are zero.

The semantic branch is trained, in `semantic.py`. Like the acoustic one it sees only a frame and its neighbour.

Codebook 0 are means of [acoustic, semantic] frames, `VOCAL_CODES` for voices and the rest for bands; codebooks 1 to 11
are means of what remains of the acoustic part.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from yuegp.codec import files, load_codec, xcodec
from yuegp.codec.layout import FRAME_SIZE, RATIOS, SAMPLE_RATE, CodecWidths, codebook_name, decode_shapes, encode_shapes

from . import semantic
from .render import render
from .semantic import HUBERT, SEMANTIC
from .songs import Song, make_song

Log = Callable[[str], None]

CHECKPOINT = f"{files.CODEC}.safetensors"
ACOUSTIC = 176
WIDTHS = CodecWidths(acoustic=ACOUSTIC, semantic=SEMANTIC, encoder=20, decoder=176)
"""The encoder's last stage has 16 * 20 = 320 channels: a frame's samples. The decoder needs 40 after its first."""

VOCAL_CODES = 450
"""Codes of codebook 0 for voices: 0 to 449. The band has 450 to 1023."""

DRAWABLE = (tuple(range(VOCAL_CODES)), tuple(range(VOCAL_CODES, WIDTHS.codebook_size)))

OVERLAP = 80
"""Samples a frame's transform shares with the frame before."""

EVENING = 0.35
"""Each band is divided by its RMS to this power before principal components: between loud bands only (0) and all
bands alike (1)."""

SEMANTIC_WEIGHT = 2.7
"""RMS of the semantic part in codebook 0, relative to the acoustic part's. More makes the codes distinguish vowels,
pitches and chords more purely, but ignore phase: at 9, half of the band's frames repeat the previous code, and the
language models have to count. Measured between 1.3 and 9."""

STEM_STRETCH = 5.0
"""Stretch of the direction that separates voice and band, so that each uses its own codes."""

ALPHA = 2.0**-20
"""Slope of every Snake: x + ALPHA * x² is x to 120 dB, and training can still move it."""

SEED = 3_000_000
"""First seed of the songs a codec is built from; no other split has them."""


def build(folder: Path, log: Log = print, device: str = "cpu", steps: int = semantic.STEPS, songs: int = 160) -> Path:
    """Write the codec (not the upsamplers) into `folder` as released, unless it exists. Returns `folder`.

    `drawable.json` beside the folder lists the codes of codebook 0 of each track, vocal first."""
    path = folder / CHECKPOINT
    if path.exists():
        log(f"codec: {path} is there already")
        return folder
    start = time.monotonic()
    material = [make_song(SEED + n) for n in range(songs)]
    waves = np.concatenate([np.concatenate(render(song, SAMPLE_RATE)) for song in material[: songs // 2]])
    analysis, synthesis = transforms(waves)
    log(f"codec: transform from {len(waves) // SAMPLE_RATE} s of sound, {time.monotonic() - start:.0f} s")
    tensors = _empty() | _acoustic(analysis, synthesis)
    heard = semantic.train(WIDTHS, material[: songs // 2], steps, SEED, device, log)
    tensors |= heard.tensors
    gain = SEMANTIC_WEIGHT * float(np.sqrt(np.mean(np.sum((_frames(waves) @ analysis.T) ** 2, 1)))) / heard.loudness
    stretched = torch.eye(SEMANTIC) + (STEM_STRETCH - 1) * torch.outer(heard.band_ward, heard.band_ward)
    tensors["fc_prior.weight"] = torch.block_diag(torch.eye(ACOUSTIC), gain * stretched)
    with tempfile.TemporaryDirectory() as draft:
        _write(Path(draft), tensors)
        vocal, band = _distinct_embeddings(Path(draft), material, device)
    took = time.monotonic() - start
    log(f"codec: {len(vocal[0])} different vocal frames and {len(band[0])} of the band, {took:.0f} s")
    for q, book in enumerate(_codebooks(vocal, band, log)):
        tensors[codebook_name(q)] = book.cpu()
    _write(folder, tensors)
    (folder.parent / "drawable.json").write_text(json.dumps(DRAWABLE), encoding="utf-8")
    log(f"codec: {path.stat().st_size / 1e6:.2f} MB, {time.monotonic() - start:.0f} s")
    return folder


def _write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the released folder: two configurations, then the weights in float16."""
    config = folder / "semantic_ckpts" / "hf_1_325000" / "config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(HUBERT, indent=2) + "\n", encoding="utf-8")
    ratios = "".join(f"    - {ratio}\n" for ratio in RATIOS)
    final = folder / "final_ckpt" / "config.yaml"
    final.parent.mkdir(parents=True, exist_ok=True)
    final.write_text(
        f"generator:\n  name: SoundStream\n  config:\n    n_filters: 32\n    D: {ACOUSTIC}\n"
        "    target_bandwidths:\n    - 0.5\n    - 1\n    - 1.5\n    - 2\n    - 4\n    - 6\n"
        f"    ratios:\n{ratios}    sample_rate: {SAMPLE_RATE}\n    bins: {WIDTHS.codebook_size}\n",
        encoding="utf-8",
    )
    path = folder / CHECKPOINT
    temporary = path.with_suffix(".part")
    temporary.write_bytes(save({name: t.detach().cpu().to(torch.float16).contiguous() for name, t in tensors.items()}))
    temporary.replace(path)


# Acoustic branch


def lapped_basis() -> np.ndarray:
    """(320, 400): a cosine transform whose windows overlap by 80 samples and are orthonormal to their neighbours.

    Row products with samples -80 to 320 of a frame; overlap-adding the transpose gives the wave back."""
    n, size = np.arange(FRAME_SIZE + OVERLAP), FRAME_SIZE
    slope = np.sin(np.pi / 2 * (np.arange(OVERLAP) + 0.5) / OVERLAP)
    window = np.concatenate([slope, np.ones(size - OVERLAP), slope[::-1]])
    # Time is counted from the point about which the first overlap is mirrored, its middle.
    phase = np.pi / size * (n[None] - OVERLAP / 2 + 0.5 + size) * (np.arange(size)[:, None] + 0.5)
    return np.sqrt(2 / size) * np.cos(phase) * window


def _frames(wave: np.ndarray) -> np.ndarray:
    """(frames, 400): every frame with the 80 samples before it."""
    padded = np.concatenate([np.zeros(OVERLAP, wave.dtype), wave])
    return np.lib.stride_tricks.sliding_window_view(padded, FRAME_SIZE + OVERLAP)[::FRAME_SIZE]


def transforms(waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Analysis (176, 400) and synthesis (400, 176) matrices that suit these 16 kHz waves."""
    basis = lapped_basis()
    spectra = _frames(waves) @ basis.T
    weight = (np.sqrt(np.mean(spectra**2, 0)) + 1e-4) ** -EVENING
    weight /= np.sqrt(np.mean(weight**2))
    covariance = (spectra * weight).T @ (spectra * weight)
    components = np.linalg.eigh(covariance)[1][:, ::-1][:, :ACOUSTIC]
    return (components.T * weight) @ basis, basis.T @ (components / weight[:, None])


def _empty() -> dict[str, Tensor]:
    """Every tensor of the file, zero; of a weight-normed pair only the length is, since the direction must not be."""
    shapes = encode_shapes(WIDTHS, HUBERT) | decode_shapes(WIDTHS)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if name.endswith("alpha"):
            tensor.fill_(ALPHA)
        elif name.endswith("weight_v"):
            tensor[..., 0] = 1.0
    return tensors


def _normed(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A kernel as direction and length; rows of zeros get any direction and no length."""
    length = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
    direction = torch.where(length > 0, weight / length.clamp(min=1e-12), torch.zeros(()))
    direction[length.flatten() == 0, ..., 0] = 1.0
    return {f"{name}.weight_g": length, f"{name}.weight_v": direction}


def _acoustic(analysis: np.ndarray, synthesis: np.ndarray) -> dict[str, Tensor]:
    """Kernels of encoder, decoder and the linear layer between, from the two transforms."""
    tensors: dict[str, Tensor] = {}
    kernel = torch.zeros(WIDTHS.encoder, 1, 7)
    kernel[0, 0, 3] = 1
    tensors |= _normed("encoder.block.0", kernel)
    used, width = 1, WIDTHS.encoder
    for i, stride in enumerate(RATIOS, start=1):
        kernel = torch.zeros(2 * width, width, 2 * stride)
        for phase in range(stride):
            for channel in range(used):
                kernel[phase * used + channel, channel, phase + (stride + 1) // 2] = 1
        tensors |= _normed(f"encoder.block.{i}.block.4", kernel)
        used, width = used * stride, 2 * width
    kernel = torch.zeros(ACOUSTIC, width, 3)
    matrix = torch.from_numpy(analysis).float()
    kernel[:, -OVERLAP + used : used, 0] = matrix[:, :OVERLAP]
    kernel[:, :used, 1] = matrix[:, OVERLAP:]
    tensors |= _normed(f"encoder.block.{len(RATIOS) + 2}", kernel)

    tensors["fc_post2.weight"] = torch.eye(ACOUSTIC, WIDTHS.embedding)
    width = WIDTHS.decoder
    kernel = torch.zeros(width, ACOUSTIC, 7)
    kernel[:ACOUSTIC, :, 3] = torch.eye(ACOUSTIC)
    tensors |= _normed("decoder_2.model.0", kernel)
    channels = FRAME_SIZE
    for i, stride in enumerate(RATIOS, start=1):
        kernel = torch.zeros(width, width // 2, 2 * stride)
        channels //= stride
        if i == 1:
            # The wave of a frame, cut into pieces of 40 samples: pieces are time, the place in a piece is a channel.
            pieces = torch.from_numpy(synthesis.T).float().reshape(ACOUSTIC, -1, channels)
            early = OVERLAP // channels
            first = (stride + 1) // 2 - early
            kernel[:ACOUSTIC, :channels, first : first + pieces.shape[1]] = pieces.transpose(1, 2)
        else:
            for phase in range(stride):
                for channel in range(channels):
                    kernel[phase * channels + channel, channel, phase + (stride + 1) // 2] = 1
        tensors |= _normed(f"decoder_2.model.{i}.block.1", kernel)
        width //= 2
    kernel = torch.zeros(1, width, 7)
    kernel[0, 0, 3] = 1
    return tensors | _normed(f"decoder_2.model.{len(RATIOS) + 2}", kernel)


# Codebooks


def embeddings(codec: xcodec.XCodec, wave: np.ndarray) -> Tensor:
    """Input of the quantizer, (frames, 216), for a wave of whole frames."""
    model = codec._model
    with torch.inference_mode():
        batch = torch.from_numpy(wave).to(codec.device)[None, None]
        semantic = model.encoder_semantic(model._extract_semantic_features(batch).transpose(1, 2))
        return model.fc(torch.cat([model.acoustic_encoder(batch), semantic], 1).transpose(1, 2))[0]


def slim(codec: xcodec.XCodec) -> xcodec.XCodec:
    """The codec without the residual units and channels of its acoustic encoder that are always zero. Gives the same
    codes, several times faster."""
    encoder = codec._model.acoustic_encoder
    kept = _keep_alive(encoder.conv1, slice(None))
    for block in encoder.block:
        for name in ("res_unit1", "res_unit2", "res_unit3"):
            last = getattr(block, name).conv2
            assert not last.weight.any() and not last.bias.any(), "this encoder is no closed form"
            setattr(block, name, nn.Identity())
        block.snake1.alpha = nn.Parameter(block.snake1.alpha[:, kept], requires_grad=False)
        kept = _keep_alive(block.conv1, kept)
    encoder.snake1.alpha = nn.Parameter(encoder.snake1.alpha[:, kept], requires_grad=False)
    encoder.conv2.weight = nn.Parameter(encoder.conv2.weight[:, kept], requires_grad=False)
    return codec


def _keep_alive(conv: nn.Conv1d, inputs: slice | Tensor) -> Tensor:
    """Reduce a convolution to the given inputs and to the outputs that can differ from zero. Returns those outputs."""
    assert conv.bias is not None
    outputs = (conv.weight.flatten(1).any(1) | conv.bias.bool()).nonzero().flatten()
    conv.weight = nn.Parameter(conv.weight[:, inputs][outputs], requires_grad=False)
    conv.bias = nn.Parameter(conv.bias[outputs], requires_grad=False)
    return outputs


Points = tuple[Tensor, Tensor]
"""Distinct frames (n, 216), and the weight of each."""


def _distinct_embeddings(folder: Path, songs: Iterable[Song], device: str) -> tuple[Points, Points]:
    codec = slim(load_codec(folder, device, encode=True))
    stems: tuple[list[Tensor], list[Tensor]] = ([], [])
    for song in songs:
        for stem, wave in zip(stems, render(song, SAMPLE_RATE), strict=True):
            stem.append(embeddings(codec, wave))
    vocal, band = (_distinct(torch.cat(stem)) for stem in stems)
    return vocal, band


def _distinct(frames: Tensor) -> Points:
    """Distinct frames, weighted by the square root of their count; semantic parts are means over equal frames."""
    sound = frames[:, :ACOUSTIC]
    keys = (sound / sound.std() * 10).round().to(torch.int64).cpu().numpy()
    mixed = keys @ np.random.default_rng(0).integers(1, 2**40, keys.shape[1])
    _, group, counts = np.unique(mixed, return_inverse=True, return_counts=True)
    count = torch.from_numpy(counts).to(frames)
    total = frames.new_zeros(len(counts), frames.shape[1]).index_add_(
        0, torch.from_numpy(group).to(frames.device), frames
    )
    return total / count[:, None], count.sqrt()


def _codebooks(vocal: Points, band: Points, log: Log) -> Iterator[Tensor]:
    tracks = (vocal, band)
    books = [_means(*points, len(codes)) for points, codes in zip(tracks, DRAWABLE, strict=True)]
    yield torch.cat(books)
    rest = torch.cat([points - book[_nearest(points, book)] for (points, _), book in zip(tracks, books, strict=True)])
    rest[:, ACOUSTIC:] = 0
    weight = torch.cat([weight for _, weight in tracks])
    whole = sum(_power(*points) for points in tracks)
    for q in range(1, WIDTHS.codebooks):
        log(f"codec: {10 * np.log10(whole / max(_power(rest, weight), 1e-9)):.1f} dB with {q} codebooks")
        book = _means(rest, weight, WIDTHS.codebook_size)
        rest = rest - book[_nearest(rest, book)]
        yield book


def si_sdr(wanted: np.ndarray, made: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB."""
    part = wanted * (float(wanted @ made) / float(wanted @ wanted))
    return 10 * float(np.log10((part @ part) / np.sum((made - part) ** 2, dtype=np.float64)))


def _power(points: Tensor, weight: Tensor) -> float:
    return float((points[:, :ACOUSTIC].square().sum(1) * weight).sum())


def _nearest(points: Tensor, book: Tensor) -> Tensor:
    return torch.cat([(book.square().sum(1) - 2 * piece @ book.T).argmin(1) for piece in points.split(8192)])


def _means(points: Tensor, weight: Tensor, count: int, rounds: int = 20) -> Tensor:
    """`count` means of weighted points (Lloyd's algorithm); a mean without points restarts at the worst-fitted
    point."""
    if len(points) <= count:
        return torch.cat([points, points.new_zeros(count - len(points), points.shape[1])])
    generator = torch.Generator().manual_seed(SEED)
    book = points[torch.randperm(len(points), generator=generator)[:count].to(points.device)].clone()
    for _ in range(rounds):
        nearest = _nearest(points, book)
        mass = torch.zeros(count, device=points.device).index_add_(0, nearest, weight)
        total = torch.zeros_like(book).index_add_(0, nearest, points * weight[:, None])
        book = torch.where(mass[:, None] > 0, total / mass[:, None].clamp(min=1e-9), book)
        idle = (mass == 0).nonzero().flatten()
        if len(idle):
            far = ((points - book[nearest]).square().sum(1) * weight).topk(len(idle)).indices
            book[idle] = points[far]
    return book
