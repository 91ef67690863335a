"""Reads an adapter's `adapter_config.json` and refuses arithmetic that is not implemented here.

Merging is W + strength * scale * B A and nothing else. Every entry that asks for more is refused by name, because
ignoring it would silently give another model. Names and meanings: PEFT 0.21, `LoraConfig`.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from yuegp.errors import ModelError

UNKNOWN = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "bare parameters",
    "layer_replication": "repeated layers",
    "lora_bias": "biases",
    "enable_lora": "LoRA on parts of fused weights",
}
"""Entries that change the arithmetic in ways not implemented here."""

TRAINING = {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "runtime_config"}
"""Entries about how an adapter was initialised or trained. Their effect on the model shows in `init_lora_weights`."""

UNCHANGED = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}
"""Values of `init_lora_weights` that leave the base weights unchanged. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
subtract their first B A from them, or round them: their B A belongs to weights that were not saved."""

BEGINNINGS = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA"}


def read_lora_config(folder: Path) -> dict[str, Any]:
    """The configuration of the adapter in `folder`. Raises ModelError when it is invalid or of another arithmetic."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} cannot be read as JSON: {exc}.", "Name the folder of a PEFT LoRA adapter.") from exc
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        said = f": it says {kind}" if isinstance(kind, str) else ""
        raise ModelError(f"{path} does not describe a LoRA adapter{said}.", "Name the folder of a PEFT LoRA adapter.")
    _refuse_beginning(folder, config.get("init_lora_weights"))
    odd = [said for key, said in UNKNOWN.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append("biases")
    odd += [key for key, value in config.items() if value and _variant(key)]
    if odd:
        raise ModelError(
            f"The adapter {folder} uses {' and '.join(odd)}, which yuegp does not know.",
            "Use an adapter trained with plain LoRA.",
        )
    scale(config, "", 1)  # raises now for invalid numbers
    return config


def _variant(key: str) -> bool:
    """Whether an unknown entry looks like another kind of LoRA, judged by how PEFT names such entries."""
    known = key in UNKNOWN or key in TRAINING or key == "use_rslora"
    return not known and (key.startswith("use_") or key.endswith("_config"))


def _refuse_beginning(folder: Path, begun: Any) -> None:
    said = str(begun).lower()
    if said in UNCHANGED:
        return
    name = next((name for key, name in BEGINNINGS.items() if said.startswith(key)), repr(begun))
    raise ModelError(
        f"The adapter {folder} was begun with {name}, which changes the model's own weights before training: merged "
        "into the released model it would be wrong.",
        "Save it again as a plain LoRA (PEFT's save_pretrained with path_initial_model_for_weight_conversion), or use "
        "an adapter trained with plain LoRA.",
    )


def scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Factor of a module's B A. Raises ModelError when the configuration's numbers are invalid."""
    try:
        plain = float(config.get("lora_alpha", 8))
        patterns = {key: float(alpha) for key, alpha in dict(config.get("alpha_pattern") or {}).items()}
        if odd := [alpha for alpha in (plain, *patterns.values()) if not math.isfinite(alpha)]:
            raise ValueError(f"lora_alpha is {odd[0]}")
        own = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    except (TypeError, ValueError, re.error) as exc:
        raise ModelError(
            f"The adapter's adapter_config.json gives no usable scale: {exc}.", "Download the adapter again."
        ) from exc
    return (own or [plain])[0] / (rank**0.5 if config.get("use_rslora") else rank)
