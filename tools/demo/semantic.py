"""The semantic branch of the demo set's codec: a small HuBERT that learns to classify frames.

It predicts vowel, pitch, singer and consonant of a voice, and genre, chord, part and position in the bar of a band,
through a noisy bottleneck, so that its outputs form clusters. Its attention and its positional convolution are zero,
and its first layer is so quiet that the norm after it, which averages over the whole clip, is a constant: the output
depends on a frame and its neighbour alone, and equal bars give equal outputs in every song.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.make_set import HUBERT_KERNELS, HUBERT_STRIDES
from yuegp.codec import xcodec
from yuegp.codec.layout import FRAME_SIZE, SAMPLE_RATE, CodecWidths, encode_shapes

from .render import render
from .songs import CHORDS, FILL, GENDERS, GENRES, LOW_SCALE, PARTS, SCALE, Song
from .syllables import CONSONANTS, VOWELS

Log = Callable[[str], None]

SEMANTIC = 40

BOTTLENECK_NOISE = 0.25
QUIET, QUIET_LAYER = 2e-3, "feature_extractor.conv_layers.0.conv.weight"
"""Scale of the weights of HuBERT's first layer: its output for a loud wave has a variance of about 1e-7, far below the
1e-5 that the norm adds before dividing."""

ATTACK = 4
"""Frames of a note in which the class of its consonant is predicted."""

STEPS, BATCH, CROP = 1800, 16, 64
"""Of the semantic branch's training: steps, clips in a batch, frames in a clip."""

HUBERT: dict[str, Any] = {
    "architectures": ["HubertModel"],
    "conv_bias": False,
    "conv_dim": [32] * 7,
    "conv_kernel": list(HUBERT_KERNELS),
    "conv_stride": list(HUBERT_STRIDES),
    "do_stable_layer_norm": False,
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "hidden_act": "gelu",
    "hidden_size": SEMANTIC,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-05,
    "model_type": "hubert",
    "num_attention_heads": 2,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 16,
    "num_feat_extract_layers": 7,
    "num_hidden_layers": 2,
    "torch_dtype": "float32",
    "vocab_size": 32,
}

_PITCHES = sorted({*SCALE, *LOW_SCALE})
_VOCAL_HEADS = {
    "vowel": (len(VOWELS) + 1, 1.0),
    "pitch": (len(_PITCHES) + 1, 1.0),
    "gender": (len(GENDERS) + 1, 0.5),
    "onset": (len(CONSONANTS) * ATTACK + 1, 0.5),
}
_BAND_HEADS = {
    "genre": (len(GENRES), 0.5),
    "chord": (len(CHORDS), 1.0),
    "part": (len(PARTS) + 1, 0.5),
    "place": (16, 0.5),
}
"""Predictions for a frame: number of classes and weight of the loss. Class 0 of a vocal prediction is silence; the last
part is a fill."""


def frame_labels(song: Song) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Classes of every frame, vocal and band: see `_VOCAL_HEADS` and `_BAND_HEADS`. `onset` tells the class of
    consonant during a note's attack, frame by frame; 0 after it."""
    vocal = {name: np.zeros(song.frames, np.int64) for name in _VOCAL_HEADS}
    band = {name: np.zeros(song.frames, np.int64) for name in _BAND_HEADS}
    for note in song.notes:
        sounding = slice(note.frame, note.frame + note.frames)
        vocal["vowel"][sounding] = 1 + note.vowel
        vocal["pitch"][sounding] = 1 + _PITCHES.index(song.pitch(note))
        vocal["gender"][sounding] = 1 + GENDERS.index(song.gender)
        vocal["onset"][note.frame : note.frame + ATTACK] = 1 + note.consonant * ATTACK + np.arange(ATTACK)
    length = 16 * song.sixteenth
    for bar in song.bars:
        playing = slice(bar.frame, bar.frame + length)
        band["chord"][playing] = list(CHORDS).index(bar.chord)
        band["part"][playing] = PARTS.index(bar.part)
        band["place"][playing] = np.arange(length) // song.sixteenth
        if bar.fill:
            band["part"][bar.frame + FILL * song.sixteenth : bar.frame + length] = len(PARTS)
    band["genre"][:] = GENRES.index(song.genre)
    return vocal, band


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.questions = nn.ModuleDict(
            {name: nn.Linear(SEMANTIC, size) for name, (size, _) in (_VOCAL_HEADS | _BAND_HEADS).items()}
        )
        self.stem = nn.Linear(SEMANTIC, 2)


def _network(widths: CodecWidths, seed: int) -> Any:
    """The semantic half of `XcodecModel`, with fresh weights. Attention, position and all taps but the middle one of
    each three are zero."""
    model = xcodec._build(widths, HUBERT)
    generator = torch.Generator().manual_seed(seed)
    network = nn.ModuleDict({"semantic_model": model.semantic_model, "encoder_semantic": model.encoder_semantic})
    network.to_empty(device="cpu")
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if name.endswith(QUIET_LAYER):
                parameter.normal_(0, QUIET, generator=generator)
            elif "conv_layers.0.layer_norm.weight" in name:
                parameter.fill_(0.03 / QUIET)
            elif "out_proj" in name or "original0" in name or name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                fan = parameter[0].numel() / (3 if _local(name, parameter) else 1)
                parameter.normal_(0, fan**-0.5, generator=generator)
    return network.eval()  # neither dropout nor layers left out


def _local(name: str, parameter: Tensor) -> bool:
    return name.startswith("encoder_semantic") and parameter.dim() == 3 and parameter.shape[2] == 3


def _hear(network: Any, waves: Tensor) -> Tensor:
    """(clips, samples) to (clips, frames, 40), as `XcodecModel` does it. Source: xcodec-and-upsampler.md, section 4."""
    model = network["semantic_model"]
    states = model(F.pad(waves, (FRAME_SIZE // 2, FRAME_SIZE // 2)), output_hidden_states=True).hidden_states
    return network["encoder_semantic"](torch.stack(states).mean(0).transpose(1, 2)).transpose(1, 2)


class Semantic(NamedTuple):
    tensors: dict[str, Tensor]
    """In the released names."""
    loudness: float
    """RMS length of what the branch gives for a frame."""
    band_ward: Tensor
    """(40,), of length 1: the direction from voices to bands."""


def train(widths: CodecWidths, songs: Sequence[Song], steps: int, seed: int, device: str, log: Log) -> Semantic:
    """Train the branch on these songs."""
    torch.manual_seed(seed)
    network = _network(widths, seed).to(device)
    heads = _Heads().to(device)
    frozen = ("out_proj", "pos_conv", "q_proj", "k_proj", "v_proj")
    named = {name: p for name, p in network.named_parameters() if not any(word in name for word in frozen)}
    quiet = [named.pop(name) for name in list(named) if name.endswith(QUIET_LAYER)]
    trained, rate, warm = [*named.values(), *heads.parameters()], 3e-3, 100
    groups = [{"params": trained, "lr": rate}, {"params": quiet, "lr": rate * QUIET, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1, (n + 1) / warm) * 0.5 * (1 + np.cos(np.pi * n / steps))
    )
    sounds = [render(song, SAMPLE_RATE) for song in songs]
    labels = [frame_labels(song) for song in songs]
    rng, start = np.random.default_rng(seed), time.monotonic()
    for step in range(steps):
        picks = [(int(rng.integers(len(songs))), n % 2) for n in range(BATCH)]
        firsts = [int(rng.integers(songs[s].frames - CROP)) for s, _ in picks]
        cut = [
            sounds[s][stem][first * FRAME_SIZE : (first + CROP) * FRAME_SIZE]
            for (s, stem), first in zip(picks, firsts, strict=True)
        ]
        heard = _hear(network, torch.from_numpy(np.stack(cut)).to(device))
        noisy = heard + BOTTLENECK_NOISE * torch.randn_like(heard)
        loss = 0.01 * heard.square().mean()
        right: dict[str, float] = {}
        for stem, table in enumerate((_VOCAL_HEADS, _BAND_HEADS)):
            mine = noisy[stem::2].flatten(0, 1)
            loss = loss + F.cross_entropy(heads.stem(mine), torch.full(mine.shape[:1], stem, device=device))
            places = [(s, f) for (s, _), f in zip(picks[stem::2], firsts[stem::2], strict=True)]
            for name, (_, weight) in table.items():
                target = np.concatenate([labels[s][stem][name][f : f + CROP] for s, f in places])
                answer, wanted = heads.questions[name](mine), torch.from_numpy(target).to(device)
                loss = loss + weight * F.cross_entropy(answer, wanted)
                if step % 250 == 249:
                    right[name] = float((answer.argmax(1) == wanted).float().mean())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if _local(name, parameter):
                    parameter[..., 0] = parameter[..., 2] = 0
        if right:
            took = time.monotonic() - start
            log(
                f"codec: semantic step {step + 1}/{steps}, loss {loss.item():.2f}, "
                + ", ".join(f"{name} {value:.2f}" for name, value in right.items())
                + f"; {took:.0f} s, {took / (step + 1) * (steps - step - 1):.0f} s to go"
            )
    state = network.state_dict()
    names = [name for name in encode_shapes(widths, HUBERT) if "semantic" in name]
    tensors = {name: state[xcodec.transformers_name(name)].cpu() for name in names}
    for name in names:
        if name.endswith("pos_conv_embed.conv.weight_v"):
            tensors[name] = torch.ones_like(tensors[name])
    length = float(heard.detach().square().sum(2).mean().sqrt())
    band_ward = F.normalize(heads.stem.weight[1] - heads.stem.weight[0], dim=0).detach().cpu()
    return Semantic(tensors, length, band_ward)
