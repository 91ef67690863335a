"""YuE's released repositories in their own layout, with its vocabularies and tiny widths, for the tests of models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from tools.make_set import LM, SIZES, write_codec, write_lm

STAGE1, STAGE2, SOUND = "YuE-s1-7B-anneal-en-cot", "YuE-s2-1B-general", "xcodec_mini_infer"


def write_released(folder: Path, pth: bool = False) -> Path:
    """The three repositories of English without reference, in `folder`. With `pth` the codec as released (torch)."""
    write_lm(folder / STAGE1, LM(83968, 8, 16, 2, 4, 2, 16384, shards=3), seed=0)
    write_lm(folder / STAGE2, LM(83840, 8, 16, 2, 2, 2, 8192), seed=1)
    write_codec(folder / SOUND, replace(SIZES["tiny"].codec), seed=2, pth=pth)
    for name in (STAGE1, STAGE2):
        (folder / name / "tokenizer.model").write_bytes(b"not a real one")
    return folder


def pretend_exl2(source: Path, target: Path, bits: float) -> Path:
    """A folder as ExLlamaV2's converter leaves it: `output.safetensors` in its names, the original's index beside it.
    The words are zeros: good for names and shapes."""
    import numpy as np
    from safetensors.numpy import save_file

    from yuegp.verify import safetensors_header, weight_files

    tensors = {}
    for path in weight_files(source):
        for name, tensor in safetensors_header(path).items():
            stem = name.removesuffix(".weight")
            if len(tensor.shape) == 1 or "embed" in name:
                tensors[name] = np.zeros(tensor.shape, np.float16)
                continue
            out, width = tensor.shape
            tensors |= {
                f"{stem}.q_weight": np.zeros((max(1, int(width * bits / 32)), out), np.int32),
                f"{stem}.q_scale": np.zeros((1, max(1, out // 8)), np.int32),
                f"{stem}.q_scale_max": np.zeros(1, np.float16),
                f"{stem}.q_groups": np.zeros(2, np.int16),
                f"{stem}.q_invperm": np.zeros(width, np.int16),
            }
    target.mkdir(parents=True)
    save_file(tensors, target / "output.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "exl2", "version": "0.3.2", "bits": bits, "head_bits": 8}
    (target / "config.json").write_text(json.dumps(config))
    if (index := source / "model.safetensors.index.json").is_file():
        shutil.copy(index, target)
    return target
