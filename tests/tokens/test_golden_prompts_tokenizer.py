"""Every text of the golden file becomes the ids the released program makes of it, except where it would have let the
text steer the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from yuegp.tokens.tokenizer import open_tokenizer
from yuegp.tokens.vocab import YUE_V1

CONTROL = """<CLS> <SEP> <EOD> <MASK> <SOA> <EOA> <SOV> <EOV> <SOI> <EOI> <s_local> <e_local> <s_global> <e_global>
<stage_1> <stage_2> <PAD> <s> </s>""".split()
"""What the released program cuts out of any text and turns into control ids. We do not: it is text."""

DIFFERENT_BY_DESIGN = {
    *("<SOA>", "x<EOA>y", "hi <SOA> there", "<EOD>", "<s>", "</s>", "<PAD>", "<CLS>", "<SEP>", "<MASK>"),
    *("<stage_1><stage_2>", "<s_local>"),
}


@pytest.fixture(scope="module")
def vectors(golden_prompts: Path) -> list[dict[str, Any]]:
    return json.loads(golden_prompts.read_text("utf-8"))["tokenize"]


def steers(vector: dict[str, Any]) -> bool:
    return any(literal in vector["text"] for literal in CONTROL)


def test_golden_prompts_tokenizer_plain_text(vectors: list[dict[str, Any]], yue_tokenizer: Path) -> None:
    tokenizer = open_tokenizer("sentencepiece", yue_tokenizer)
    plain = [vector for vector in vectors if not steers(vector)]
    assert [v["text"] for v in plain if tokenizer.encode(v["text"]) != v["ids"]] == []
    assert len(plain) > 20


def test_golden_prompts_tokenizer_control_literals_stay_text(
    vectors: list[dict[str, Any]], yue_tokenizer: Path
) -> None:
    """Inherited fault: `<SOA>` typed by a user becomes a control token."""
    from sentencepiece import SentencePieceProcessor

    tokenizer, pieces = open_tokenizer("sentencepiece", yue_tokenizer), SentencePieceProcessor()
    pieces.LoadFromSerializedProto(yue_tokenizer.read_bytes())
    for vector in filter(steers, vectors):
        ids = tokenizer.encode(vector["text"])
        assert ids != vector["ids"] and 3 <= min(ids) and max(ids) < YUE_V1.text_size, vector["text"]
        assert pieces.decode(ids) == vector["text"]


@pytest.mark.skipif("YUEGP_GOLDEN_PROMPTS" in os.environ, reason="the list is that of the shipped file")
def test_golden_prompts_tokenizer_differences_are_these(vectors: list[dict[str, Any]]) -> None:
    assert len(vectors) == 55
    assert {vector["text"] for vector in vectors if steers(vector)} == DIFFERENT_BY_DESIGN
