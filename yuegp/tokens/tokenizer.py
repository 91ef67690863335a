"""Text to token ids. `vocab.py` says what the ids mean, `prompts.py` builds the model's input.

One call is one plain encoding: it trims, lower-cases and normalises nothing, adds no begin or end marker, and returns
no ids for empty text. Text only ever becomes text ids. The released program first splits its input at nineteen literals
such as `<SOA>` or `</s>` and turns those into control tokens; here they are ordinary words, because lyrics must not
steer the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from yuegp.errors import ModelError, RequestError

from .vocab import YUE_V1, VocabLayout

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


class Tokenizer(Protocol):
    """Turns text into ids below `size`."""

    size: int

    def encode(self, text: str) -> list[int]: ...


class ByteTokenizer:
    """One id per UTF-8 byte, from `offset` on. For small model sets."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.size = offset + 256

    def encode(self, text: str) -> list[int]:
        return [byte + self.offset for byte in _utf8(text)]


class SentencePieceTokenizer:
    """A SentencePiece model file, such as the released `tokenizer.model`, whose first `text_size` pieces are text. Each
    call adds the model's own dummy prefix (a space) in front."""

    def __init__(self, path: Path, text_size: int = YUE_V1.text_size) -> None:
        self.path = path
        self.size = text_size
        self._pieces = _read_pieces(path)
        if (found := self._pieces.get_piece_size()) < text_size:
            raise ModelError(
                f"The tokenizer {path} knows {found:,} pieces, but this model needs at least {text_size:,}.",
                "Use the tokenizer.model that came with the model.",
            )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._pieces.encode(_utf8(text).decode(), add_bos=False, add_eos=False)
        if ids and max(ids) >= self.size:
            raise ModelError(
                f"The tokenizer {self.path} turns plain text into id {max(ids)}, but text ends at {self.size - 1}.",
                "Use the tokenizer.model that came with the model; a converted copy can change how markers are read.",
            )
        return ids


def open_tokenizer(kind: str, path: Path | None = None, layout: VocabLayout = YUE_V1) -> Tokenizer:
    """Open the tokenizer of a model set: kind `sentencepiece` with the file at `path`, or `bytes`, which needs none.

    Raises ModelError when the file is absent or no SentencePiece model, or when its text does not fit `layout`."""
    if kind == "bytes":
        tokenizer: Tokenizer = ByteTokenizer()
    elif kind == "sentencepiece" and path is not None:
        tokenizer = SentencePieceTokenizer(path, layout.text_size)
    else:
        raise ModelError(
            f"The model set asks for a tokenizer of kind {kind!r}" + ("" if path else " and names no file") + ".",
            'Its set.json must say {"kind": "bytes"} or {"kind": "sentencepiece", "path": …}.',
        )
    if tokenizer.size > layout.text_size:
        raise ModelError(
            f"A tokenizer with {tokenizer.size} ids does not fit a vocabulary whose text ends at {layout.text_size}.",
            "Correct text_size or the tokenizer in the model set's set.json.",
        )
    return tokenizer


def _read_pieces(path: Path) -> SentencePieceProcessor:
    """Load the model from bytes, because SentencePiece's own file reader fails on some non-ASCII Windows paths."""
    from sentencepiece import SentencePieceProcessor

    again = "Download the model's tokenizer.model again."
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ModelError(f"The tokenizer {path} cannot be read: {exc.strerror or exc}.", again) from exc
    pieces = SentencePieceProcessor()
    try:
        if not data or not pieces.LoadFromSerializedProto(data):
            raise RuntimeError("no pieces")
    except RuntimeError as exc:
        raise ModelError(f"{path} ({len(data):,} bytes) is not a SentencePiece model.", again) from exc
    return pieces


def _utf8(text: str) -> bytes:
    """UTF-8 bytes of `text`. Raises RequestError for lone surrogates, which a command line can contain."""
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise RequestError(
            f"The text holds a character that is not valid Unicode, at position {exc.start}: {text[exc.start]!r}.",
            "Type that character again, or leave it out.",
        ) from exc
