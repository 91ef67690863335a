"""The seam to language models: `open_engine`, and what an engine offers (`engine.py`)."""

from __future__ import annotations

from pathlib import Path

from yuegp.checkpoints.formats import stored_as as stored_as
from yuegp.progress import Progress

from .engine import EngineConfig as EngineConfig
from .engine import LMEngine as LMEngine
from .engine import LMSession as LMSession


def open_engine(folder: Path, setup: EngineConfig, progress: Progress | None = None) -> LMEngine:
    """Load the model in `folder` (a released Hugging Face folder, or an EXL2, int8, nf4 or 8-bit one) as `setup` says.

    ModelError names what is wrong with the folder, DeviceError what the machine lacks. `progress` counts bytes."""
    if setup.engine == "exl2":
        from .exl2.engine import Exl2LM

        return Exl2LM.load(folder, setup, progress)
    if setup.engine == "torch":
        from .llama.engine import TorchLM

        return TorchLM.load(folder, setup, progress)
    raise ValueError(f"there is no engine called {setup.engine!r}")
