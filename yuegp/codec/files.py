"""The codec folder on disk: where its files are, whether they are whole, and their tensors in float32.

The layout is the released one (`xcodec_mini_infer`), with safetensors accepted beside each `.pth`:

    final_ckpt/   config.yaml   ckpt_00360000 (.pth: the entry `codec_model` of it)
    decoders/     config.yaml   decoder_131000 (vocal)   decoder_151000 (instrumental)
    semantic_ckpts/hf_1_325000/config.json   only needed to encode

`check_codec` reads headers and pickles only, without torch, so that it names a broken download at once. `torchfile`
reads the pickles and runs nothing in them. `layout.py` says which tensors there must be; the networks are in
`xcodec.py` and `upsampler.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from yuegp.checked import Between, Fault, build, object_of
from yuegp.checkpoints.safetensors import WIDTHS, not_numbers
from yuegp.checkpoints.sets import SCAN_LIMIT, StoredTensor, safetensors_header
from yuegp.checkpoints.torchfile import INSTEAD, TorchTensor, read_bits, read_table
from yuegp.errors import ModelError, said
from yuegp.files import read_bytes, read_json
from yuegp.progress import Progress
from yuegp.song.schema import Track

from . import layout
from .layout import CodecWidths, Shapes, UpsamplerWidths

if TYPE_CHECKING:
    from torch import Tensor

CODEC = "final_ckpt/ckpt_00360000"
UPSAMPLERS = {Track.VOCAL: "decoders/decoder_131000", Track.INSTRUMENTAL: "decoders/decoder_151000"}
ENTRIES = {CODEC: "codec_model"}
"""Key of the tensor table in a `.pth`; a file without one is the table itself."""
HUBERT = "semantic_ckpts/hf_1_325000/config.json"

LARGEST_YAML = 1 << 18
"""Most bytes of a configuration; the released ones have a few thousand."""

AGAIN = f"This file is not usable as it is. {INSTEAD}"

Stored = StoredTensor | TorchTensor
"""Where a tensor lies, in either kind of file."""

Expected = Callable[[Mapping[str, tuple[int, ...]]], Shapes]
"""Maps the shapes in a file to those of the tensors wanted from it. Raises KeyError with the name of a missing
tensor."""


def check_codec(folder: Path | str, encode: bool = False, scan: Progress | None = None) -> None:
    """Raise ModelError unless everything needed to decode (and to encode) is there, whole, and made of floats.

    Reads the headers of safetensors and the pickles of `.pth` files in at most a tenth of a second. Searches small
    `.pth` files for NaN, and all of them when `scan` is given, which receives progress (safetensors:
    `checkpoints.sets.scan_sound`)."""
    folder = Path(folder)
    check_upsampler_config(folder)
    expectations = {CODEC: codec_expectation(folder, encode)} | {UPSAMPLERS[t]: upsampler_expectation for t in Track}
    for name, expected in expectations.items():
        path, entry = codec_file(folder, name), ENTRIES.get(name)
        compare(path, header(path, entry), expected)
        if path.suffix == ".pth" and (scan or path.stat().st_size <= SCAN_LIMIT):
            _scan(path, read_table(path, entry), scan)


def _scan(path: Path, tensors: Mapping[str, TorchTensor], progress: Progress | None) -> None:
    """Raise ModelError for NaN or infinite weights in a `.pth`, ignoring its training state."""
    sizes = {name: tensor.span * WIDTHS[tensor.dtype] for name, tensor in tensors.items()}
    total, done = sum(sizes.values()), 0
    for name, tensor in tensors.items():
        if not_numbers(read_bits(path, tensor), tensor.dtype):
            raise ModelError(f"{path} holds weights that are not numbers (NaN or infinite): {name}.", AGAIN)
        done += sizes[name]
        if progress:
            progress(path.name, done, total)


def codec_file(folder: Path, name: str) -> Path:
    """Path of the file `name` in the codec folder; weights are named without ending, safetensors preferred."""
    names = [name] if Path(name).suffix else [f"{name}.safetensors", f"{name}.pth"]
    for path in (folder / name for name in names):
        if path.is_file():
            return path
    state = f"has no {' or '.join(names)}" if folder.is_dir() else "does not exist"
    raise ModelError(
        f"The sound model folder {folder} {state}.", "Download the sound model again (xcodec_mini_infer, all of it)."
    )


def codec_expectation(folder: Path, encode: bool) -> Expected:
    """The tensors a codec file must hold. Reads and checks the configurations on the way."""
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
    """The tensors an upsampler file must hold."""
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
    """The entries of HuBERT's `config.json` that shape the network, checked. Raises ModelError."""
    path = codec_file(folder, HUBERT)
    try:
        config = object_of(read_json(path))
        config = {field.name: config[field.name] for field in fields(_Hubert) if field.name in config}
        build(_Hubert, config).check()
        layout.encode_shapes(CodecWidths(), config)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as exc:
        raise ModelError(f"{path} is not a HuBERT configuration: {said(exc)}.", AGAIN) from exc
    return config


def header(path: Path, entry: str | None = None) -> Mapping[str, Stored]:
    """The tensors listed in a weights file, after checking that all their bytes are there. `entry` is the key of the
    table in a `.pth`."""
    return safetensors_header(path) if path.suffix == ".safetensors" else read_table(path, entry)


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
        """Raise Fault unless the sizes fit together."""
        width, convs = self.hidden_size, len(self.conv_dim)
        if not 1 <= convs == len(self.conv_kernel) <= 32 or len(self.conv_stride or self.conv_dim) != convs:
            raise Fault(f"it has {convs} convolutions, and other numbers of kernels or strides")
        if (self.hidden_act, self.feat_extract_activation, self.feat_extract_norm) != ("gelu", "gelu", "group"):
            raise Fault("its activations or its first norm are not those of the released one")
        if width % self.num_attention_heads or width % self.num_conv_pos_embedding_groups:
            raise Fault(f"its hidden_size {width} cannot be divided among its heads or groups")


def shapes_of(tensors: Mapping[str, Stored]) -> Shapes:
    """The shapes of the tensors, by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def compare(path: Path, have: Mapping[str, Stored], expected: Expected) -> Shapes:
    """The shapes wanted from a file. Raises ModelError for a tensor that is missing, of another shape, or no float."""
    try:
        wanted = expected(shapes_of(have))
    except KeyError as exc:
        raise ModelError(f"{path} has no tensor {exc.args[0]} ({len(have)} others).", AGAIN) from exc
    except (ValueError, IndexError) as exc:
        raise ModelError(f"{path} holds tensors of unexpected shapes: {said(exc)}.", AGAIN) from exc
    missing = [name for name in wanted if name not in have]
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} tensors: {_first_five(missing)}.", AGAIN)
    shapes = [(name, have[name].shape, shape) for name, shape in wanted.items()]
    wrong = [f"{name} is {found}, not {shape}" for name, found, shape in shapes if found != shape]
    if wrong:
        raise ModelError(f"{path} has {len(wrong)} tensors of the wrong shape: {_first_five(wrong)}.", AGAIN)
    if empty := [name for name, found, _ in shapes if 0 in found]:
        raise ModelError(f"{path} has {len(empty)} tensors without values: {_first_five(empty)}.", AGAIN)
    if odd := [name for name in wanted if have[name].dtype not in _FLOATS]:
        dtype = _TORCH[have[odd[0]].dtype]
        raise ModelError(f"{odd[0]} in {path} holds torch.{dtype}, not sound weights.", AGAIN)
    return wanted


_FLOATS = ("F32", "F16", "BF16", "F64")
_TORCH = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8", "U8": "uint8",
    "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32", "I64": "int64", "U64": "uint64", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Types as safetensors writes them, and torch's names for them."""


def read_tensors(path: Path, expected: Expected, entry: str | None = None) -> dict[str, Tensor]:
    """The wanted tensors as float32 copies on the CPU, all finite. `entry` is the key of their table in a `.pth`.

    Reads only the wanted tensors, not the training state in the same file. Raises ModelError."""
    import torch

    have = header(path, entry)
    wanted = compare(path, have, expected)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                raw = {name: file.get_tensor(name) for name in wanted}
        except (SafetensorError, OSError) as exc:
            raise ModelError(f"{path} cannot be read: {said(exc)}.", AGAIN) from exc
    else:
        raw = read_state(path, entry, list(wanted))
    tensors: dict[str, Tensor] = {}
    for name in list(raw):
        tensors[name] = raw.pop(name).to(torch.float32, copy=True)
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{name} in {path} holds values that are not numbers (NaN or infinity).", AGAIN)
    return tensors


def read_state(path: Path, entry: str | None, names: list[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a `.pth` in their stored type, on the CPU: those in `names`, or all in its table."""
    import torch

    table = read_table(path, entry)
    state: dict[str, Tensor] = {}
    for name in table if names is None else names:
        bits, dtype = read_bits(path, table[name]), table[name].dtype
        signed = torch.from_numpy(bits.view(f"i{bits.itemsize}"))  # torch 2.9 supports few operations on unsigned types
        state[name] = signed.view(getattr(torch, _TORCH[dtype]))
    return state


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(read_bytes(path, LARGEST_YAML).decode())
    except (yaml.YAMLError, ValueError, OSError, OverflowError, RecursionError) as exc:
        raise ModelError(f"{path} cannot be read: {said(exc)}.", AGAIN) from exc


def _entry(path: Path, data: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        raise ModelError(f"{path} has no entry {'.'.join(keys)}.", AGAIN)
    return data


def _first_five(items: list[str]) -> str:
    return ", ".join(items[:5]) + (", …" if len(items) > 5 else "")
