"""The codec folder on disk: where its files are, whether they are whole, and their tensors in float32.

The layout is the released one (`xcodec_mini_infer`), with safetensors accepted beside each `.pth`:

    final_ckpt/   config.yaml   ckpt_00360000 (.pth: the entry `codec_model` of it)
    decoders/     config.yaml   decoder_131000 (vocal)   decoder_151000 (instrumental)
    semantic_ckpts/hf_1_325000/config.json   only needed to encode

`check_codec` reads headers only and does not import torch, so that a broken download is named at once. What the
tensors mean is in `layout.py`; networks are in `xcodec.py` and `upsampler.py`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..checked import Between, Fault, build, object_of
from ..disk import read_bytes, read_json
from ..errors import ModelError
from ..models import safetensors_header
from ..song import Track
from . import layout
from .layout import CodecWidths, Shapes, UpsamplerWidths

if TYPE_CHECKING:
    from torch import Tensor

CODEC = "final_ckpt/ckpt_00360000"
CODEC_ENTRY = "codec_model"
UPSAMPLERS = {Track.VOCAL: "decoders/decoder_131000", Track.INSTRUMENTAL: "decoders/decoder_151000"}
HUBERT = "semantic_ckpts/hf_1_325000/config.json"

LARGEST_YAML = 1 << 18
"""Bytes of a configuration; the released ones have a few thousand."""

AGAIN = "Download the sound model again; this file is not usable as it is."

Expected = Callable[[Mapping[str, tuple[int, ...]]], Shapes]
"""From the shapes a file has to the shapes of the tensors wanted from it. KeyError names a missing tensor."""


def check_codec(folder: Path | str, encode: bool = False) -> None:
    """Raise ModelError unless everything needed to decode (and to encode) is there and whole.

    Safetensors files are checked tensor by tensor from their headers; a `.pth` only as a whole file, its tensors
    when it is loaded. Costs milliseconds."""
    folder = Path(folder)
    check_upsampler_config(folder)
    files = [
        (CODEC, codec_expectation(folder, encode)),
        *((UPSAMPLERS[track], upsampler_expectation) for track in Track),
    ]
    for name, wanted in files:
        path = codec_file(folder, name)
        if path.suffix == ".safetensors":
            compare(path, header_shapes(path), wanted)
        else:
            _check_zip(path)


def codec_file(folder: Path, name: str) -> Path:
    """The file called `name` in the codec folder; weights are named without ending, and safetensors come first."""
    names = [name] if Path(name).suffix else [f"{name}.safetensors", f"{name}.pth"]
    for path in (folder / name for name in names):
        if path.is_file():
            return path
    state = f"has no {' or '.join(names)}" if folder.is_dir() else "does not exist"
    raise ModelError(
        f"The sound model folder {folder} {state}.", "Download the sound model again (xcodec_mini_infer, all of it)."
    )


def codec_expectation(folder: Path, encode: bool) -> Expected:
    """What the codec file must hold. Reads and checks the configurations on the way."""
    path = codec_file(folder, "final_ckpt/config.yaml")
    config = _entry(path, _yaml(path), "generator", "config")
    for key, ours in (("ratios", list(layout.RATIOS)), ("sample_rate", layout.SAMPLE_RATE)):
        if config.get(key) != ours:
            raise ModelError(
                f"{path} says {key} is {config.get(key)}; this program knows the codec with {ours}.",
                "Use the codec that was released with YuE v1 (xcodec_mini_infer).",
            )
    hubert = hubert_config(folder) if encode else None

    def expected(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
        widths = CodecWidths.of(shapes)
        wanted = layout.decode_shapes(widths)
        return wanted | layout.encode_shapes(widths, hubert) if hubert else wanted

    return expected


def upsampler_expectation(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """What an upsampler file must hold."""
    return layout.upsampler_shapes(UpsamplerWidths.of(shapes))


def check_upsampler_config(folder: Path) -> None:
    """Raise ModelError unless `decoders/config.yaml` describes 882 samples per frame, cut at both ends."""
    path = codec_file(folder, "decoders/config.yaml")
    head = _entry(path, _yaml(path), "head", "init_args")
    for key, ours in (("hop_length", layout.UPSAMPLED_FRAME), ("padding", "same")):
        if head.get(key) != ours:
            raise ModelError(
                f"{path} says {key} is {head.get(key)}; this program knows the upsampler with {ours}.",
                "Use the upsamplers that were released with YuE v1 (xcodec_mini_infer/decoders).",
            )


def hubert_config(folder: Path) -> dict[str, Any]:
    """What of HuBERT's `config.json` gives the network its shape, checked."""
    path = codec_file(folder, HUBERT)
    try:
        config = object_of(read_json(path))
        config = {field.name: config[field.name] for field in fields(_Hubert) if field.name in config}
        build(_Hubert, config).check()
        layout.encode_shapes(CodecWidths(), config)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as exc:
        raise ModelError(f"{path} is not a HuBERT configuration: {exc}.", AGAIN) from exc
    return config


_Width = Annotated[int, Between(1, 1 << 14)]


@dataclass(frozen=True)
class _Hubert:
    """The entries of HuBERT's configuration that the network is built from."""

    hidden_size: _Width
    intermediate_size: _Width
    num_hidden_layers: Annotated[int, Between(1, 256)]
    conv_dim: tuple[_Width, ...]
    conv_kernel: tuple[Annotated[int, Between(1, 64)], ...]
    num_conv_pos_embeddings: Annotated[int, Between(1, 4096)]
    num_conv_pos_embedding_groups: Annotated[int, Between(1, 4096)]
    conv_stride: tuple[Annotated[int, Between(1, 64)], ...] = ()
    num_attention_heads: Annotated[int, Between(1, 256)] = 1
    layer_norm_eps: Annotated[float, Between(0, 1)] = 1e-5
    hidden_act: str = "gelu"
    feat_extract_activation: str = "gelu"
    feat_extract_norm: str = "group"
    feat_proj_layer_norm: bool = True
    do_stable_layer_norm: bool = False
    conv_bias: bool = False
    conv_pos_batch_norm: bool = False

    def check(self) -> None:
        """Fault unless the sizes fit together."""
        width, convs = self.hidden_size, len(self.conv_dim)
        if not 1 <= convs == len(self.conv_kernel) <= 32 or len(self.conv_stride or self.conv_dim) != convs:
            raise Fault(f"it has {convs} convolutions, and other numbers of kernels or strides")
        if (self.hidden_act, self.feat_extract_activation, self.feat_extract_norm) != ("gelu", "gelu", "group"):
            raise Fault("its activations or its first norm are not those of the released one")
        if width % self.num_attention_heads or width % self.num_conv_pos_embedding_groups:
            raise Fault(f"its hidden_size {width} cannot be divided among its heads or groups")


def header_shapes(path: Path) -> Shapes:
    """Names and shapes in a safetensors file, from its header, after checking that all its bytes are there."""
    return {name: tensor.shape for name, tensor in safetensors_header(path).items()}


def compare(path: Path, have: Mapping[str, tuple[int, ...]], expected: Expected) -> Shapes:
    """The shapes wanted from a file; ModelError names what is missing from it or has another shape."""
    try:
        wanted = expected(have)
    except KeyError as exc:
        raise ModelError(f"{path} has no tensor {exc.args[0]} ({len(have)} others).", AGAIN) from exc
    except (ValueError, IndexError) as exc:
        raise ModelError(f"{path} holds tensors of unexpected shapes: {exc}.", AGAIN) from exc
    missing = [name for name in wanted if name not in have]
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} tensors: {_first_five(missing)}.", AGAIN)
    wrong = [f"{name} is {have[name]}, not {shape}" for name, shape in wanted.items() if have[name] != shape]
    if wrong:
        raise ModelError(f"{path} has {len(wrong)} tensors of the wrong shape: {_first_five(wrong)}.", AGAIN)
    return wanted


def read_tensors(path: Path, expected: Expected, entry: str | None = None) -> dict[str, Tensor]:
    """The wanted tensors as float32 copies on the CPU, all finite. `entry` is the key of the state in a `.pth`.

    Only the wanted tensors are read; the training state in the same file never leaves the disk."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        wanted = compare(path, header_shapes(path), expected)
        try:
            with safe_open(path, "pt") as file:
                raw = {name: file.get_tensor(name) for name in wanted}
        except (SafetensorError, OSError) as exc:
            raise ModelError(f"{path} cannot be read: {exc}.", AGAIN) from exc
    else:
        raw = _read_pth(path, expected, entry)
    tensors: dict[str, Tensor] = {}
    for name in list(raw):
        tensor = raw.pop(name)
        if not tensor.is_floating_point():
            raise ModelError(f"{name} in {path} holds {tensor.dtype}, not sound weights.", AGAIN)
        tensors[name] = tensor.to(torch.float32, copy=True)
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{name} in {path} holds values that are not numbers (NaN or infinity).", AGAIN)
    return tensors


def _read_pth(path: Path, expected: Expected, entry: str | None) -> dict[str, Tensor]:
    state = read_state(path, entry)
    wanted = compare(path, {name: tuple(value.shape) for name, value in state.items()}, expected)
    return {name: state[name] for name in wanted}


def read_state(path: Path, entry: str | None) -> dict[str, Tensor]:
    """The table of tensors in a `.pth`, or in its entry of that name. Through torch's restricted unpickler only: a
    `.pth` can never run code here. ModelError when it tries, or holds anything else."""
    import pickle

    import torch

    _check_zip(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as exc:
        reason = str(exc).partition("\n")[0]
        raise ModelError(f"{path} cannot be read as plain tensors: {reason}", AGAIN) from exc
    if entry is not None:
        if not isinstance(state, dict) or entry not in state:
            raise ModelError(f"{path} has no entry {entry}.", AGAIN)
        state = state[entry]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds something else than a table of tensors.", AGAIN)
    return state


def _check_zip(path: Path) -> None:
    """A `.pth` saved by torch since version 1.6 is a zip file, whose directory stands at its very end."""
    if zipfile.is_zipfile(path):
        return
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(19) == b"version https://git":
            raise ModelError(
                f"{path} is a git-lfs pointer of {size} bytes, not the file itself.",
                "Run `git lfs pull` in that folder, or download the sound model again.",
            )
    raise ModelError(f"{path} ({size:,} bytes) is no torch file, or only the beginning of one.", AGAIN)


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(read_bytes(path, LARGEST_YAML).decode())
    except (yaml.YAMLError, ValueError, OSError, OverflowError, RecursionError) as exc:
        raise ModelError(f"{path} cannot be read: {str(exc).partition(chr(10))[0]}.", AGAIN) from exc


def _entry(path: Path, data: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        raise ModelError(f"{path} has no entry {'.'.join(keys)}.", AGAIN)
    return data


def _first_five(items: list[str]) -> str:
    return ", ".join(items[:5]) + (", …" if len(items) > 5 else "")
