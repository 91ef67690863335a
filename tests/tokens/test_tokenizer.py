from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yuegp.errors import ModelError, RequestError
from yuegp.tokens.tokenizer import ByteTokenizer, open_tokenizer
from yuegp.tokens.vocab import YUE_V1

SMALL = dataclasses.replace(YUE_V1, name="small", text_size=280)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of 280 pieces, of which `<SOA>` (id 3) is what a careless converter makes of markers:
    a piece that any text can produce. The folder has a space and an umlaut in its name."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["sing me a song about the sea"] * 20),
        model_writer=model,
        vocab_size=280,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<SOA>"],
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("mödel files") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_are_ids_and_nothing_is_added(text: str) -> None:
    ids = ByteTokenizer().encode(text)
    assert bytes(ids).decode() == text
    assert ByteTokenizer(offset=5).encode(text) == [i + 5 for i in ids]


def test_control_words_are_bytes_like_any_others() -> None:
    assert max(open_tokenizer("bytes").encode("<SOA></s><xcodec>")) < 256


def test_empty_text_has_no_ids_and_paths_may_hold_spaces_and_umlauts(small_model: Path) -> None:
    tokenizer = open_tokenizer("sentencepiece", small_model, SMALL)
    assert tokenizer.encode("") == []
    assert tokenizer.encode("sing") and tokenizer.encode("sing") != tokenizer.encode(" sing")


@pytest.mark.parametrize("name", ["Jürgen Müller", "音楽", "🎵", "100% #1", "it's [x]"])
def test_sentencepiece_is_never_given_a_path(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its own reader of files takes names in the system's code page on Windows, which has no such letters."""
    from sentencepiece import SentencePieceProcessor

    def narrow(self: object, path: object) -> None:
        raise OSError(f"Not found: {path!r}")

    monkeypatch.setattr(SentencePieceProcessor, "LoadFromFile", narrow)
    (tmp_path / name).mkdir()
    moved = tmp_path / name / "tokenizer.model"
    moved.write_bytes(small_model.read_bytes())
    there = open_tokenizer("sentencepiece", moved, SMALL)
    assert there.encode("the sea") == open_tokenizer("sentencepiece", small_model, SMALL).encode("the sea")


def test_an_id_outside_text_never_leaves_the_tokenizer(small_model: Path) -> None:
    """Inherited fault: `<SOA>` typed by a user becomes a control token. Here the file itself is at fault."""
    tokenizer = open_tokenizer("sentencepiece", small_model, dataclasses.replace(SMALL, text_size=3))
    with pytest.raises(ModelError, match=r"into id [0-9]+, but text ends at 2"):
        tokenizer.encode("<SOA>")


@pytest.mark.parametrize("data", [b"", b"words", b"version https://git-lfs.github.com/spec/v1\noid", bytes(999)])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"tokenizer\.model .* is not a SentencePiece model"):
        open_tokenizer("sentencepiece", path)


def test_a_truncated_model_is_refused(tmp_path: Path, small_model: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small_model.read_bytes()[:-9])
    with pytest.raises(ModelError, match="not a SentencePiece model"):
        open_tokenizer("sentencepiece", path)


def test_an_absent_file_and_a_small_vocabulary_are_refused(tmp_path: Path, small_model: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        open_tokenizer("sentencepiece", tmp_path / "tokenizer.model")
    with pytest.raises(ModelError, match=r"pieces, but this model needs at least 32,000"):
        open_tokenizer("sentencepiece", small_model)


def test_kinds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="kind 'words' and names no file"):
        open_tokenizer("words")
    with pytest.raises(ModelError, match="256 ids does not fit a vocabulary whose text ends at 100"):
        open_tokenizer("bytes", None, dataclasses.replace(YUE_V1, text_size=100))


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_half_a_surrogate_pair_is_the_users_to_mend(kind: str, small_model: Path) -> None:
    tokenizer = open_tokenizer(kind, small_model, SMALL)
    with pytest.raises(RequestError, match="position 2"):
        tokenizer.encode("ab\udcff")
