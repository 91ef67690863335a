"""Runs ExLlamaV2's own converter on our rows of ids: the program of a process of its own.

    python -m quant.exl2_convert ROWS HELD -- arguments of the converter

The converter takes text only, and cuts it up with a tokenizer that does not know YuE's vocabulary. All it needs later
is a file of ids. So the module that reads text is taken by one that writes our rows, the tokenizer by nothing, and
weights are read by our reader (`exl2_weights`); everything else is the package's own. Source: exllamav2 0.3.2,
conversion/convert_exl2.py and tokenize.py.
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from pathlib import Path
from typing import Any

from yuegp.errors import YueGPError
from yuegp.lm.exl2.weights import replace_loader

CONVERTER = "exllamav2.conversion.convert_exl2"
READER = "exllamav2.conversion.tokenize"


def reader(rows: Path, held: Path) -> types.ModuleType:
    """The module in the place of the converter's own reader of text: `held` rows for measuring, `rows` for pressing."""
    import safetensors.torch

    def tokenize(job: dict[str, Any], save: Any, tokenizer: Any, measure: bool = False, noise_rows: Any = None) -> None:
        ids = safetensors.torch.load_file(held if measure else rows)["input_ids"]
        kind = "measurement_" if measure else ""
        job[f"{kind}length"] = ids.shape[1]
        job["measurement_rows" if measure else "dataset_rows"] = len(ids)
        path = os.path.join(job["out_dir"], "cal_data.safetensors")
        safetensors.torch.save_file({"input_ids": ids}, path)
        job["cal_filename"] = path

    module = types.ModuleType(READER)
    module.__dict__["tokenize"] = tokenize
    return module


class NoTokenizer:
    """Stands where the converter makes a tokenizer that nothing uses any more."""

    def __init__(self, config: object) -> None: ...


def main() -> None:
    rows, held, _, *arguments = sys.argv[1:]
    os.environ["EXLLAMA_NO_SDPA"] = "1"  # without flash-attn its other attention looks into the future
    import exllamav2
    from exllamav2 import config, stloader

    replace_loader(stloader, config)
    sys.modules[READER] = reader(Path(rows), Path(held))
    exllamav2.ExLlamaV2Tokenizer = NoTokenizer
    sys.argv = [CONVERTER, *arguments]
    try:
        runpy.run_module(CONVERTER, run_name="__main__")
    except YueGPError as exc:
        raise SystemExit(exc.what) from exc


if __name__ == "__main__":
    main()
