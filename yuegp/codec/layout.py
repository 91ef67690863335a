"""The tensors of the released codec and upsampler files: every name, and its shape at any width.

The check before loading, the loader and the writers of small model sets share this description. Reads no files and
needs no torch. Source: `xcodec_state_dict.json` and `vocos_decoder_state_dict.json` (530 and 81 tensors), which the
tests compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yuegp.tokens.vocab import YUE_V1

RATIOS = (8, 5, 4, 2)
"""Strides of the acoustic encoder and decoder, both in this order."""

SAMPLE_RATE = 16000
FRAME_SIZE = 320
"""Samples per frame at 16 kHz: the product of `RATIOS`."""

UPSAMPLED_RATE = 44100
UPSAMPLED_FRAME = 882
"""Samples per frame at 44.1 kHz."""

DECODE_CODEBOOKS = YUE_V1.codebooks
"""Codebooks of a song; the released file has four more, for encoding at 6 kbps only."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class CodecWidths:
    """The widths in which codecs of this design differ. Defaults: the released one."""

    acoustic: int = 256
    semantic: int = 768
    encoder: int = 64
    decoder: int = 1024
    codebooks: int = 12
    codebook_size: int = 1024

    @property
    def embedding(self) -> int:
        return self.acoustic + self.semantic

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> CodecWidths:
        """Derive the widths from the shapes in a codec file. Raises KeyError with the name of a missing tensor."""
        codebook_size, embedding = shapes[codebook_name(0)]
        acoustic = shapes["fc_post2.weight"][0]
        encoder = shapes.get("encoder.block.0.weight_v", (0,))[0]
        stored = 0
        while codebook_name(stored) in shapes:
            stored += 1
        decoder = shapes["decoder_2.model.0.weight_v"][0]
        return cls(acoustic, embedding - acoustic, encoder, decoder, stored, codebook_size)


@dataclass(frozen=True)
class UpsamplerWidths:
    """The widths in which upsamplers differ. Defaults: the released pair."""

    embedding: int = 1024
    dim: int = 512
    inner: int = 1536
    layers: int = 8
    window: int = 3528

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> UpsamplerWidths:
        """Derive the widths from the shapes in an upsampler file. Raises KeyError with the name of a missing tensor."""
        dim, embedding, _ = shapes["backbone.embed.weight"]
        layers = 0
        while f"backbone.convnext.{layers}.gamma" in shapes:
            layers += 1
        inner = shapes["backbone.convnext.0.pwconv1.weight"][0]
        return cls(embedding, dim, inner, layers, shapes["head.istft.window"][0])


def codebook_name(index: int) -> str:
    return f"quantizer.vq.layers.{index}._codebook.embed"


def decode_shapes(widths: CodecWidths, codebooks: int = DECODE_CODEBOOKS) -> Shapes:
    """Shapes of the tensors for decoding: 129 with eight codebooks."""
    shapes: Shapes = {codebook_name(q): (widths.codebook_size, widths.embedding) for q in range(codebooks)}
    shapes |= _linear("fc_post2", widths.embedding, widths.acoustic)
    shapes |= _normed("decoder_2.model.0", widths.acoustic, widths.decoder, 7)
    width = widths.decoder
    for i, stride in enumerate(RATIOS, start=1):
        block, half = f"decoder_2.model.{i}.block", width // 2
        shapes[f"{block}.0.alpha"] = (1, width, 1)
        shapes[f"{block}.1.bias"] = (half,)
        shapes[f"{block}.1.weight_g"] = (width, 1, 1)
        shapes[f"{block}.1.weight_v"] = (width, half, 2 * stride)  # transposed convolution: inputs come first
        for j in (2, 3, 4):
            shapes |= _residual_unit(f"{block}.{j}", half)
        width = half
    shapes[f"decoder_2.model.{len(RATIOS) + 1}.alpha"] = (1, width, 1)
    return shapes | _normed(f"decoder_2.model.{len(RATIOS) + 2}", width, 1, 7)


def encode_shapes(widths: CodecWidths, hubert: Mapping[str, Any]) -> Shapes:
    """Shapes of the tensors for encoding (356 at the released size, all twelve codebooks included).

    `hubert` is the content of `semantic_ckpts/*/config.json`."""
    shapes: Shapes = {codebook_name(q): (widths.codebook_size, widths.embedding) for q in range(widths.codebooks)}
    shapes |= _normed("encoder.block.0", 1, widths.encoder, 7)
    width = widths.encoder
    for i, stride in enumerate(RATIOS, start=1):
        block = f"encoder.block.{i}.block"
        for j in (0, 1, 2):
            shapes |= _residual_unit(f"{block}.{j}", width)
        shapes[f"{block}.3.alpha"] = (1, width, 1)
        shapes |= _normed(f"{block}.4", width, 2 * width, 2 * stride)
        width *= 2
    shapes[f"encoder.block.{len(RATIOS) + 1}.alpha"] = (1, width, 1)
    shapes |= _normed(f"encoder.block.{len(RATIOS) + 2}", width, widths.acoustic, 3)
    s = widths.semantic
    shapes["encoder_semantic.conv.conv.weight"] = (s, s, 3)
    for i in (0, 1):
        block = f"encoder_semantic.conv_blocks.{i}"
        for j in (0, 1):
            shapes[f"{block}.res_units.{j}.conv1.conv.weight"] = (s, s, 3)
            shapes[f"{block}.res_units.{j}.conv2.weight"] = (s, s, 1)
        shapes[f"{block}.conv.conv.weight"] = (s, s, 3)
        shapes[f"{block}.conv.conv.bias"] = (s,)
    shapes |= _linear("fc_prior", widths.embedding, widths.embedding)
    return shapes | _hubert_shapes(hubert)


def upsampler_shapes(widths: UpsamplerWidths) -> Shapes:
    """Shapes of every tensor of one upsampler: 81 with eight layers."""
    dim = widths.dim
    shapes: Shapes = {"backbone.embed.weight": (dim, widths.embedding, 7), "backbone.embed.bias": (dim,)}
    shapes |= _layer_norm("backbone.norm", dim)
    for i in range(widths.layers):
        block = f"backbone.convnext.{i}"
        shapes[f"{block}.gamma"] = (dim,)
        shapes[f"{block}.dwconv.weight"] = (dim, 1, 7)
        shapes[f"{block}.dwconv.bias"] = (dim,)
        shapes |= _layer_norm(f"{block}.norm", dim)
        shapes |= _linear(f"{block}.pwconv1", dim, widths.inner)
        shapes |= _linear(f"{block}.pwconv2", widths.inner, dim)
    shapes |= _layer_norm("backbone.final_layer_norm", dim)
    shapes |= _linear("head.out", dim, widths.window + 2)
    shapes["head.istft.window"] = (widths.window,)
    return shapes


def _hubert_shapes(hubert: Mapping[str, Any]) -> Shapes:
    s, inner = hubert["hidden_size"], hubert["intermediate_size"]
    convs, kernels = hubert["conv_dim"], hubert["conv_kernel"]
    shapes: Shapes = {}
    for i, (width, kernel) in enumerate(zip(convs, kernels, strict=True)):
        shapes[f"semantic_model.feature_extractor.conv_layers.{i}.conv.weight"] = (
            width,
            convs[i - 1] if i else 1,
            kernel,
        )
    shapes |= _layer_norm("semantic_model.feature_extractor.conv_layers.0.layer_norm", convs[0])
    shapes |= _layer_norm("semantic_model.feature_projection.layer_norm", convs[-1])
    shapes |= _linear("semantic_model.feature_projection.projection", convs[-1], s)
    position, taps = "semantic_model.encoder.pos_conv_embed.conv", hubert["num_conv_pos_embeddings"]
    shapes[f"{position}.bias"] = (s,)
    shapes[f"{position}.weight_g"] = (1, 1, taps)
    shapes[f"{position}.weight_v"] = (s, s // hubert["num_conv_pos_embedding_groups"], taps)
    shapes |= _layer_norm("semantic_model.encoder.layer_norm", s)
    for i in range(hubert["num_hidden_layers"]):
        layer = f"semantic_model.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.attention.{name}", s, s)
        shapes |= _linear(f"{layer}.feed_forward.intermediate_dense", s, inner)
        shapes |= _linear(f"{layer}.feed_forward.output_dense", inner, s)
        shapes |= _layer_norm(f"{layer}.layer_norm", s)
        shapes |= _layer_norm(f"{layer}.final_layer_norm", s)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _normed(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    """Shapes of a convolution stored with weight norm: direction `weight_v`, length `weight_g`."""
    return {
        f"{name}.bias": (outputs,),
        f"{name}.weight_g": (outputs, 1, 1),
        f"{name}.weight_v": (outputs, inputs, kernel),
    }


def _residual_unit(name: str, width: int) -> Shapes:
    shapes: Shapes = {f"{name}.block.0.alpha": (1, width, 1), f"{name}.block.2.alpha": (1, width, 1)}
    return shapes | _normed(f"{name}.block.1", width, width, 7) | _normed(f"{name}.block.3", width, width, 1)
