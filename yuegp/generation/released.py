"""The sizes of YuE v1's released models, known without having them, and of any codec like theirs."""

from __future__ import annotations

import math

from offload.sizes import Shapes, Sound
from yuegp.checkpoints.config import LlamaConfig
from yuegp.codec.layout import CodecWidths, UpsamplerWidths, decode_shapes, upsampler_shapes

DECODE_SCRATCH = 824_000_000 // (250 * 1024)
"""Bytes per frame and unit of decoder width that decoding 250 frames takes beside the weights: measured at the released
width on a CPU, 824 MB at most. On a card not measured yet."""

UPSAMPLE_SCRATCH = 144_000_000 // (500 * 1536)
"""The same of the upsampler, per frame and unit of its inner width: 144 MB for 500 frames on a CPU."""


def sound(codec: CodecWidths, upsampler: UpsamplerWidths) -> Sound:
    """The codec and one upsampler, in float32, and the larger of their scratch memories."""
    tensors = (*decode_shapes(codec).values(), *upsampler_shapes(upsampler).values())
    scratch = max(250 * codec.decoder * DECODE_SCRATCH, 500 * upsampler.inner * UPSAMPLE_SCRATCH)
    return Sound(4 * sum(math.prod(shape) for shape in tensors), scratch)


STAGE1 = LlamaConfig(83968, 4096, 11008, 32, 32, 4, 128, 16384)
STAGE2 = LlamaConfig(83840, 2048, 5504, 32, 16, 16, 128, 8192)

RELEASED_STAGE1, RELEASED_STAGE2 = Shapes(STAGE1, 1025), Shapes(STAGE2, 7168)
RELEASED_SOUND = sound(CodecWidths(), UpsamplerWidths())
