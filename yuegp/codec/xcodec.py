"""X-Codec: codes to 16 kHz sound and back, on transformers' `XcodecModel` with the released weights.

The network is the library's (4.57 or newer; 5.23 tested); this file maps released tensor names to its names, loads the
decoder alone, and decodes exactly in chunks. Always float32: bfloat16 leaves 32 dB of signal to noise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yuegp.errors import GenerationError, RequestError
from yuegp.progress import Progress, quiet

from . import files
from .chunks import in_chunks, memory_named
from .layout import FRAME_SIZE, RATIOS, SAMPLE_RATE, CodecWidths

CHUNK = 120
"""Frames decoded at once: about 0.6 s of work on one core at the released widths, so that Stop acts soon. Twice as many
are a fifth faster, more are not."""

CONTEXT = 10
"""Frames of context the decoder needs on each side, derived from its kernels and confirmed by perturbation in
float64."""

SHORTEST = 312
"""Samples below which the encoder's kernels no longer fit."""

NEVER_USED = ("decoder_semantic", "fc1")
ENCODE_ONLY = ("acoustic_encoder", "encoder_semantic", "semantic_model", "fc")
"""Parts of the library's network that decode-only loading removes."""


def transformers_name(name: str) -> str:
    """Name in `XcodecModel` of a released tensor; a pair `weight_g`, `weight_v` of the acoustic coder maps to the one
    `weight` it folds into."""
    head, _, rest = name.partition(".")
    if head in ("encoder", "decoder_2"):
        return _acoustic_name(rest, decoder=head == "decoder_2")
    if head in ("encoder_semantic", "decoder_semantic"):
        return re.sub(r"\.(conv[12]?)\.conv\.", r".\1.", name)
    if head == "quantizer":
        return name.replace(".vq.layers.", ".quantizers.").replace("._codebook.", ".codebook.")
    if head == "semantic_model":
        return name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        )
    return name.replace("fc_prior", "fc").replace("fc_post", "fc")


def _acoustic_name(rest: str, decoder: bool) -> str:
    """Name of an acoustic tensor; `rest` lacks the released prefix, as in `block.3.block.2.block.1.weight_g`."""
    *numbers, leaf = re.sub(r"(block|model)\.", "", rest).split(".")
    index = [int(n) for n in numbers]
    parts = ["acoustic_decoder" if decoder else "acoustic_encoder"]
    if len(index) == 1:
        parts.append({0: "conv1", len(RATIOS) + 1: "snake1", len(RATIOS) + 2: "conv2"}[index[0]])
    else:
        parts.append(f"block.{index[0] - 1}")
        # The decoder's blocks begin with their snake and transposed convolution, the encoder's end with theirs.
        outer, first_unit = ({0: "snake1", 1: "conv_t1"}, 2) if decoder else ({3: "snake1", 4: "conv1"}, 0)
        if len(index) == 2:
            parts.append(outer[index[1]])
        else:
            parts.append(f"res_unit{index[1] - first_unit + 1}")
            parts.append(("snake1", "conv1", "snake2", "conv2")[index[2]])
    return ".".join([*parts, "weight" if leaf.startswith("weight") else leaf])


def convert(released: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Released tensors under the library's names, weight norm folded.

    Folding in float32 by torch's own kernel gives bit-identical results to the released program; float64 would move the
    waveform by 2e-6."""
    converted = {}
    for name, tensor in released.items():
        new = transformers_name(name)
        if name.endswith("weight_v") and new.endswith(".weight"):
            tensor = torch._weight_norm(tensor, released[f"{name[:-1]}g"], 0)
        elif name.endswith("weight_g") and new.endswith(".weight"):
            continue
        converted[new] = tensor
    return converted


class XCodec:
    """A loaded codec. Codes are int16 (codebook, frame); waves are mono float32 at 16 kHz.

    `codebooks` is the number of levels it can decode: eight, or all stored ones (twelve) when loaded to encode."""

    sample_rate = SAMPLE_RATE
    frame_size = FRAME_SIZE
    frame_rate = SAMPLE_RATE // FRAME_SIZE

    def __init__(self, model: Any, codebooks: int, codebook_size: int, can_encode: bool) -> None:
        self._model = model
        self.codebooks = codebooks
        self.codebook_size = codebook_size
        self.can_encode = can_encode

    @property
    def device(self) -> torch.device:
        return self._model.fc2.weight.device

    def to(self, device: str | torch.device) -> XCodec:
        """Move the weights; returns itself."""
        with memory_named("codec"):
            self._model.to(device)
        return self

    @torch.inference_mode()
    def embed(self, codes: np.ndarray) -> torch.Tensor:
        """Sum of the codebook entries of `codes` (n, frames): (1, width, frames) on the codec's device.

        `n` may be less than `codebooks`: the lower levels alone already sound."""
        self._check(codes)
        return self._model.quantizer.decode(self._indices(codes))

    @torch.inference_mode()
    def decode(self, codes: np.ndarray, progress: Progress = quiet) -> np.ndarray:
        """Decode `codes` (n, frames) to 320 samples per frame, not limited: peaks above 1 occur."""
        self._check(codes)

        def run(first: int, last: int) -> torch.Tensor:
            indices = self._indices(codes[:, first:last]).transpose(0, 1)
            return self._model.decode(indices, return_dict=False)[0, 0]

        return in_chunks(run, codes.shape[1], FRAME_SIZE, CHUNK, CONTEXT, "codec", progress)

    @torch.inference_mode()
    def encode(self, wave: np.ndarray, codebooks: int = 1) -> np.ndarray:
        """Encode a mono 16 kHz wave, without changing its level, to codes (codebooks, floor((samples + 240) / 320)).

        Encodes the whole clip at once: HuBERT attends to all of it, so chunks would give other codes."""
        if not self.can_encode:
            raise GenerationError("This codec was loaded for decoding only.", "Load it with encode=True.")
        if not 1 <= codebooks <= self.codebooks:
            raise GenerationError(f"{codebooks} codebooks were asked for; this codec has {self.codebooks}.")
        wave = np.asarray(wave, dtype=np.float32)
        if wave.ndim != 1:
            raise GenerationError(f"The codec encodes one channel; the wave has the shape {wave.shape}.")
        if len(wave) < SHORTEST:
            raise RequestError(
                f"The sound is too short to encode: {len(wave)} samples at 16 kHz, at least {SHORTEST} are needed.",
                "Use a reference of a second or more.",
            )
        with memory_named("codec"):
            batch = torch.from_numpy(wave).to(self.device)[None, None]
            indices = self._model.encode(batch, self._model.config.target_bandwidths[codebooks - 1], return_dict=False)
        return indices[0].cpu().numpy().astype(np.int16)

    def _indices(self, codes: np.ndarray) -> torch.Tensor:
        """Codes as (n, 1, frames), the quantizer's shape."""
        return torch.from_numpy(codes.astype(np.int64)).to(self.device)[:, None]

    def _check(self, codes: np.ndarray) -> None:
        if codes.ndim != 2 or not 1 <= codes.shape[0] <= self.codebooks:
            raise GenerationError(f"Codes of shape (1 to {self.codebooks}, frames) were expected, not {codes.shape}.")
        if codes.size and not (0 <= codes.min() and codes.max() < self.codebook_size):
            raise GenerationError(
                f"The codes {codes.min()} to {codes.max()} reach outside 0 to {self.codebook_size - 1}."
            )


def load(folder: Path, device: str = "cpu", encode: bool = False) -> XCodec:
    """Load the codec from `folder`. Without `encode` it reads only the decoder's tensors (129, 115 MB as released) and
    never builds HuBERT. Raises ModelError."""
    path = files.codec_file(folder, files.CODEC)
    released = files.read_tensors(path, files.codec_expectation(folder, encode), files.ENTRIES[files.CODEC])
    widths = CodecWidths.of({name: tuple(tensor.shape) for name, tensor in released.items()})
    hubert = files.hubert_config(folder) if encode else None
    model = _build(widths, hubert)
    with memory_named("codec"):
        tensors = {name: tensor.to(device) for name, tensor in convert(released).items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not empty, f"layout.py and XcodecModel disagree: {empty[:5]}"
    return XCodec(model.eval().requires_grad_(False), widths.codebooks, widths.codebook_size, encode)


def _build(widths: CodecWidths, hubert: dict[str, Any] | None) -> Any:
    """Build `XcodecModel` of these widths on the meta device, without unused parts.

    Without a HuBERT configuration, the library's default stands in at the right width and is removed again."""
    from transformers import DacConfig, HubertConfig, XcodecConfig, XcodecModel

    if hubert is None:
        semantic = HubertConfig(hidden_size=widths.semantic, num_attention_heads=1, num_conv_pos_embedding_groups=1)
    else:
        # Masking belongs to training; without it there is no mask embedding to load.
        semantic = HubertConfig(**hubert | {"mask_time_prob": 0.0, "mask_feature_prob": 0.0})
    acoustic = DacConfig(
        encoder_hidden_size=widths.encoder or 1,
        decoder_hidden_size=widths.decoder,
        hidden_size=widths.acoustic,
        downsampling_ratios=list(RATIOS),
        upsampling_ratios=list(RATIOS),
        sampling_rate=SAMPLE_RATE,
    )
    # The library computes codebooks as floor(bandwidth / bandwidth of one): half a codebook is added against rounding.
    one = (SAMPLE_RATE // FRAME_SIZE) * (widths.codebook_size - 1).bit_length() / 1000
    config = XcodecConfig(
        target_bandwidths=[one * (n + 0.5) for n in range(1, widths.codebooks + 1)],
        sample_rate=SAMPLE_RATE,
        codebook_size=widths.codebook_size,
        codebook_dim=widths.embedding,
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
    )
    with torch.device("meta"):
        model = XcodecModel(config)
    for part in NEVER_USED if hubert else (*NEVER_USED, *ENCODE_ONLY):
        delattr(model, part)
    for quantizer in model.quantizer.quantizers:
        for statistic in ("inited", "cluster_size", "embed_avg"):
            delattr(quantizer.codebook, statistic)
    return model
