"""Write a model set with random weights, in the released layouts, at any size.

    python tools/make_set.py FOLDER [--size tiny|demo|bench] [--seed N] [--pth]

The folder then holds everything `yuegp make --model FOLDER` needs: a Stage-1 and a Stage-2 Hugging Face folder, the
codec and upsampler folder, and `set.json`. Names, shapes and file layout are those of YuE v1 (checked in the tests
against the released lists); widths are parameters. The same size and seed give the same bytes.

Training is not done here: the set in `yuegp/assets/demo` is made by `tools/demo/train.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from yuegp.checkpoints.config import parse_config
from yuegp.codec.layout import (
    RATIOS,
    CodecWidths,
    UpsamplerWidths,
    decode_shapes,
    encode_shapes,
    upsampler_shapes,
)
from yuegp.tokens.vocab import YUE_V1, VocabLayout

CODEBOOKS, CODES = 12, 1024
N_FFT, HOP = 3528, 882
HUBERT_KERNELS = (10, 3, 3, 3, 3, 2, 2)
HUBERT_STRIDES = (5, 2, 2, 2, 2, 2, 2)
SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}
DECODERS = {"decoder_131000": "vocal", "decoder_151000": "instrumental"}


@dataclass(frozen=True)
class LM:
    """Widths of one language model; `shards` is the number of weight files."""

    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    shards: int = 1


@dataclass(frozen=True)
class Codec:
    """Widths of codec and upsampler. Codewords are `acoustic + semantic` wide."""

    acoustic: int
    semantic: int
    encoder: int
    decoder: int
    hubert_conv: int
    hubert_ffn: int
    hubert_layers: int
    hubert_heads: int
    pos_kernel: int
    pos_groups: int
    upsampler: int
    upsampler_ffn: int
    upsampler_layers: int = 8

    @property
    def width(self) -> int:
        return self.acoustic + self.semantic


@dataclass(frozen=True)
class Size:
    layout: VocabLayout
    stage1: LM
    stage2: LM
    codec: Codec
    section_seconds: float


BYTES = VocabLayout(
    name="bytes-v1", soa=256, eoa=257, codec=258, stage_1=259, stage_2=260, code_start=264, text_size=256
)
"""Text as UTF-8 bytes, then the markers, then the codes."""

_TINY = Codec(4, 4, 2, 16, 4, 16, 2, 2, 16, 2, 8, 16, 2)
SIZES = {
    "tiny": Size(
        BYTES, LM(1344, 16, 32, 2, 4, 2, 4096, shards=2), LM(8512, 8, 16, 2, 2, 2, 4096), _TINY, section_seconds=6
    ),
    "demo": Size(
        BYTES,
        LM(1344, 64, 128, 2, 4, 2, 16384, shards=2),
        LM(8512, 32, 64, 2, 4, 4, 8192),
        Codec(8, 8, 4, 64, 8, 32, 2, 2, 16, 4, 16, 48),
        section_seconds=6,
    ),
    "bench": Size(
        YUE_V1,
        LM(83968, 256, 704, 6, 4, 2, 16384, shards=3),
        LM(83840, 256, 704, 6, 4, 4, 8192),
        replace(_TINY, decoder=32),
        section_seconds=30,
    ),
    "released": Size(
        YUE_V1,
        LM(83968, 4096, 11008, 32, 32, 4, 16384, shards=3),
        LM(83840, 2048, 5504, 32, 16, 16, 8192),
        Codec(256, 768, 64, 1024, 512, 3072, 12, 12, 128, 16, 512, 1536),
        section_seconds=30,
    ),
}
"""`released` states YuE's own widths: its shapes are checked against the released lists, its weights are 15 GB of
noise. Of its Stage-2 head count and context only the product of the first with the head width is known."""


class Normal(NamedTuple):
    """A tensor to be drawn from a normal distribution."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


Spec = dict[str, Normal | np.ndarray]


def make_set(
    folder: Path | str,
    size: str | Size = "tiny",
    seed: int = 0,
    *,
    pth: bool = False,
    transformers5: bool = False,
    title: str = "Random weights",
    note: str = "A tiny model for trying the program. It has not been trained: the sound is noise.",
    **overrides: Any,
) -> Path:
    """Write a set into `folder` (new or empty) and return it.

    `overrides` replace fields of the size; a dict replaces fields inside one: `stage1={"layers": 3}`. `pth` stores
    codec and upsamplers as the released pickles (needs torch) instead of safetensors; `transformers5` writes the
    language models' configuration in the newer spelling."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; a set is only written into a new folder")
    widths = SIZES[size] if isinstance(size, str) else size
    nested = {k: replace(getattr(widths, k), **v) if isinstance(v, dict) else v for k, v in overrides.items()}
    widths = replace(widths, **nested)

    write_lm(folder / "stage1", widths.stage1, seed, transformers5)
    write_lm(folder / "stage2", widths.stage2, seed + 1, transformers5)
    write_codec(folder / "codec", widths.codec, seed + 2, pth)
    _write_json(
        folder / "set.json",
        {
            "format": 1,
            "title": title,
            "language": "any",
            "mode": "both",
            "licence": "Apache-2.0",
            "note": note,
            "layout": "yue-v1" if widths.layout == YUE_V1 else asdict(widths.layout),
            "tokenizer": {"kind": "bytes"},
            "stage1": "stage1",
            "stage2": "stage2",
            "codec": "codec",
            "vocabularies": [widths.stage1.vocab, widths.stage2.vocab],
            "defaults": {"section_seconds": widths.section_seconds},
        },
    )
    return folder


# Language models


def lm_config(lm: LM, transformers5: bool = False) -> dict[str, Any]:
    """`config.json` of a Stage-1 or Stage-2 folder."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": lm.hidden // lm.heads,
        "hidden_act": "silu",
        "hidden_size": lm.hidden,
        "initializer_range": 0.02,
        "intermediate_size": lm.ffn,
        "max_position_embeddings": lm.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": lm.heads,
        "num_hidden_layers": lm.layers,
        "num_key_value_heads": lm.kv_heads,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": lm.vocab,
    }
    if transformers5:
        rope = {"rope_theta": 10000.0, "rope_type": "default"}
        return config | {"rope_parameters": rope, "dtype": "bfloat16", "transformers_version": "5.0.0"}
    older = {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "bfloat16", "transformers_version": "4.42.0"}
    return config | older


def lm_tensors(lm: LM) -> Spec:
    """Weights that keep the scale of their input, with logits of standard deviation 2: a model that neither repeats
    itself nor draws evenly from everything."""
    spec: Spec = {}
    for name, shape in parse_config(lm_config(lm)).tensors().items():
        if len(shape) == 1:
            spec[name] = Normal(shape, 0.05, 1.0)
        elif name == "model.embed_tokens.weight":
            spec[name] = Normal(shape, 1.0)
        else:
            spec[name] = Normal(shape, (2.0 if name == "lm_head.weight" else 1.0) / math.sqrt(shape[1]))
    return spec


def write_lm(folder: Path, lm: LM, seed: int, transformers5: bool = False) -> None:
    """A released Hugging Face folder in bfloat16. Only one tensor is in memory at a time."""
    _write_json(folder / "config.json", lm_config(lm, transformers5))
    version = "5.0.0" if transformers5 else "4.42.0"
    _write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": version},
    )
    spec = lm_tensors(lm)
    if lm.shards == 1:
        _save(folder / "model.safetensors", spec, seed, "bfloat16")
        return
    weight_map: dict[str, str] = {}
    for number, part in enumerate(_split(spec, lm.shards), start=1):
        file = f"model-{number:05}-of-{lm.shards:05}.safetensors"
        _save(folder / file, part, seed, "bfloat16")
        weight_map |= dict.fromkeys(part, file)
    total = 2 * sum(math.prod(t.shape) for t in spec.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(spec: Spec, parts: int) -> Iterator[Spec]:
    """Split a spec, in order, into `parts` runs of about equal size, none empty."""
    names = list(spec)
    ends = np.cumsum([math.prod(spec[n].shape) for n in names])
    start = 0
    for part in range(1, parts + 1):
        stop = len(names) if part == parts else int(np.searchsorted(ends, ends[-1] * part / parts, side="right"))
        stop = min(max(stop, start + 1), len(names) - (parts - part))
        yield {n: spec[n] for n in names[start:stop]}
        start = stop


# Codec and upsampler


def codec_tensors(codec: Codec) -> Spec:
    """The released `codec_model`, including the unused training state: 530 tensors at HuBERT base size.

    `embed_avg` is zero, so that reading it in place of `embed` gives silence."""
    widths = CodecWidths(codec.acoustic, codec.semantic, codec.encoder, codec.decoder, CODEBOOKS, CODES)
    shapes = encode_shapes(widths, hubert_config(codec)) | decode_shapes(widths)
    spec: Spec = {name: _codec_scale(name, shape) for name, shape in shapes.items()}
    for name in [name for name in shapes if name.startswith("encoder_semantic.")]:
        twin = name.replace("encoder_semantic.conv.", "encoder_semantic.conv1.").replace("encoder_", "decoder_")
        spec[twin] = spec[name]
    spec["decoder_semantic.conv2.conv.weight"] = spec["encoder_semantic.conv.conv.weight"]
    spec["fc_post1.weight"] = _codec_scale("fc_post1.weight", (codec.semantic, codec.width))
    spec["fc_post1.bias"] = _codec_scale("fc_post1.bias", (codec.semantic,))
    spec["semantic_model.masked_spec_embed"] = Normal((codec.semantic,), 0.5)
    for k in range(CODEBOOKS):
        book = f"quantizer.vq.layers.{k}._codebook"
        spec[f"{book}.embed"] = Normal((CODES, codec.width), 0.75**k)
        spec[f"{book}.embed_avg"] = np.zeros((CODES, codec.width), np.float32)
        spec[f"{book}.cluster_size"] = np.ones(CODES, np.float32)
        spec[f"{book}.inited"] = np.ones(1, np.float32)
    return spec


def _codec_scale(name: str, shape: tuple[int, ...]) -> Normal:
    """How to draw one tensor: every layer keeps the signal near unit scale, residual branches add a little, and the
    last convolution brings the wave down to the level of speech."""
    if name.endswith(".weight_g"):
        gain = 1.0
        if name.startswith("encoder.block.0."):
            gain = 4.0
        elif name.startswith("decoder_2.model.6."):
            gain = 0.035
        elif "pos_conv_embed" in name:
            gain = 0.5
        elif stage := re.match(r"decoder_2\.model\.(\d)\.block\.1\.", name):
            gain = math.sqrt(RATIOS[int(stage[1]) - 1] / 2)
        elif name.endswith(".block.3.weight_g"):
            gain = 0.3
        return Normal(shape, 0.1 * gain, gain)
    return _scale(name, shape)


def _scale(name: str, shape: tuple[int, ...]) -> Normal:
    """Small biases; norms and Snake slopes about one; matrices and kernels that keep the variance of their input."""
    if name.endswith(".bias"):
        return Normal(shape, 0.05)
    if len(shape) == 1 or name.endswith(".alpha"):
        return Normal(shape, 0.1, 1.0)
    return Normal(shape, 1 / math.sqrt(math.prod(shape[1:])))


def upsampler_tensors(codec: Codec) -> Spec:
    """One released `decoder_*`: 81 tensors at 8 layers. The output layer's bias gives the noise a falling spectrum,
    which is kinder to the ear than white noise."""
    dim, bins = codec.upsampler, N_FFT // 2 + 1
    shapes = upsampler_shapes(UpsamplerWidths(codec.width, dim, codec.upsampler_ffn, codec.upsampler_layers, N_FFT))
    spec: Spec = {name: _scale(name, shape) for name, shape in shapes.items()}
    for i in range(codec.upsampler_layers):
        spec[f"backbone.convnext.{i}.gamma"] = Normal((dim,), 0.05, 0.3)
    magnitude = 3.3 - np.log1p(np.arange(bins) / 20)
    phase = math.pi / bins * np.arange(bins) ** 2 % math.tau  # a sweep: spreads each frame over its whole window
    spec["head.out.bias"] = np.concatenate([magnitude, phase]).astype(np.float32)
    spec["head.istft.window"] = (0.5 - 0.5 * np.cos(math.tau * np.arange(N_FFT) / N_FFT)).astype(np.float32)
    return spec


def write_codec(folder: Path, codec: Codec, seed: int, pth: bool = False) -> None:
    """The released `xcodec_mini_infer` folder. Float16 safetensors, or float32 pickles under the released names."""
    kinds = "final_ckpt", "decoders", "semantic_ckpts/hf_1_325000"
    final, decoders, semantic = (folder / kind for kind in kinds)
    _write_json(semantic / "config.json", hubert_config(codec))
    ratios = "".join(f"    - {ratio}\n" for ratio in RATIOS)
    _write(
        final / "config.yaml",
        f"generator:\n  name: SoundStream\n  config:\n    n_filters: 32\n    D: {codec.acoustic}\n"
        "    target_bandwidths:\n    - 0.5\n    - 1\n    - 1.5\n    - 2\n    - 4\n    - 6\n"
        f"    ratios:\n{ratios}    sample_rate: 16000\n    bins: {CODES}\n",
    )
    _write(
        decoders / "config.yaml",
        "backbone:\n  class_path: vocos.models.VocosBackbone\n  init_args:\n"
        f"    input_channels: {codec.width}\n    dim: {codec.upsampler}\n"
        f"    intermediate_dim: {codec.upsampler_ffn}\n    num_layers: {codec.upsampler_layers}\n"
        "head:\n  class_path: vocos.heads.ISTFTHead\n  init_args:\n"
        f"    dim: {codec.upsampler}\n    n_fft: {N_FFT}\n    hop_length: {HOP}\n    padding: same\n",
    )
    parts = [(final / "ckpt_00360000", codec_tensors(codec), seed)]
    parts += [(decoders / name, upsampler_tensors(codec), seed + n) for n, name in enumerate(DECODERS, start=1)]
    for path, spec, own_seed in parts:
        if not pth:
            _save(path.with_suffix(".safetensors"), spec, own_seed, "float16", exact=("head.istft.window",))
            continue
        import torch

        state = {name: torch.from_numpy(_draw(name, tensor, own_seed)) for name, tensor in spec.items()}
        torch.save({"codec_model": state} if path.parent == final else state, path.with_suffix(".pth"))


def hubert_config(codec: Codec) -> dict[str, Any]:
    """`config.json` of the semantic model (HuBERT base, at these widths)."""
    layers = len(HUBERT_KERNELS)
    return {
        "architectures": ["HubertModel"],
        "conv_bias": False,
        "conv_dim": [codec.hubert_conv] * layers,
        "conv_kernel": list(HUBERT_KERNELS),
        "conv_stride": list(HUBERT_STRIDES),
        "do_stable_layer_norm": False,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "group",
        "feat_proj_layer_norm": True,
        "hidden_act": "gelu",
        "hidden_size": codec.semantic,
        "intermediate_size": codec.hubert_ffn,
        "layer_norm_eps": 1e-05,
        "model_type": "hubert",
        "num_attention_heads": codec.hubert_heads,
        "num_conv_pos_embedding_groups": codec.pos_groups,
        "num_conv_pos_embeddings": codec.pos_kernel,
        "num_feat_extract_layers": layers,
        "num_hidden_layers": codec.hubert_layers,
        "torch_dtype": "float32",
        "transformers_version": "4.27.3",
        "vocab_size": 32,
    }


# Files


def _draw(name: str, tensor: Normal | np.ndarray, seed: int) -> np.ndarray:
    """Float32 values that depend on the seed and the tensor's name alone, so that adding a tensor moves no other."""
    if isinstance(tensor, np.ndarray):
        return tensor
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.standard_normal(tensor.shape, np.float32) * np.float32(tensor.std) + np.float32(tensor.mean)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 bit patterns, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _save(path: Path, spec: Spec, seed: int, dtype: str, exact: tuple[str, ...] = ()) -> None:
    """A safetensors file in `dtype`; tensors named in `exact` stay float32. Written by hand because numpy, and with
    it `safetensors.numpy`, has no bfloat16. Format: length of the header (u64), header as JSON, raw values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name in spec:
        kind = "float32" if name in exact else dtype
        start, stop = stop, stop + math.prod(spec[name].shape) * WIDTH[kind]
        header[name] = {"dtype": SHORT[kind], "shape": list(spec[name].shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in spec.items():
            values = _draw(name, tensor, seed)
            kind = "float32" if name in exact else dtype
            file.write((_bfloat16(values) if kind == "bfloat16" else values.astype(kind)).tobytes())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def _write_json(path: Path, data: dict[str, Any]) -> None:
    _write(path, json.dumps(data, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model set with random weights in the released layouts.")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--title", default="Demo")
    parser.add_argument("--pth", action="store_true", help="codec as the released .pth pickles (needs torch)")
    args = parser.parse_args()
    folder = make_set(args.folder, args.size, args.seed, pth=args.pth, title=args.title)
    written = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder}: {written:,} bytes")


if __name__ == "__main__":
    main()
