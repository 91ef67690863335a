"""Errors as sentences: whatever other programs and files have to say, it reaches the screen as plain text."""

from __future__ import annotations

import pytest

from yuegp.errors import ModelError, one_line, said

TORCH = (
    "Weights only load failed. This file can still be loaded, to do so you have two options, \x1b[1mdo those steps "
    "only if you trust the source of the checkpoint\x1b[0m. \n\t(1) In PyTorch 2.6, we changed the default value of "
    "the `weights_only` argument in `torch.load` from `False` to `True`."
)
CUDA = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API "
    "call, so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b[1;31mred\x1b[0m text", "red text"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1b]8;;https://x\x1b\\link", "link"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("a\r\nb\tc\x00d\x9be", "a b c d e"),
        ("left\u202eright\u2066", "left right"),
        ("\x1b", ""),
        ("Jürgen’s 歌 👩\u200d🎤  two spaces", "Jürgen’s 歌 👩\u200d🎤  two spaces"),
    ],
)
def test_what_is_no_text_is_taken_out(text: str, plain: str) -> None:
    assert one_line(text) == plain
    error = ModelError(f"{text} is bad.", f"Do this.\nAnd {text}")
    assert error.what == one_line(f"{text} is bad.") and "\x1b" not in str(error)
    assert error.hint.startswith("Do this.\nAnd")


@pytest.mark.parametrize("message", [TORCH, CUDA, TORCH * 20])
def test_a_long_message_ends_with_a_sentence_or_says_that_it_goes_on(message: str) -> None:
    text = said(RuntimeError(message))
    assert text.isprintable() and len(text) <= 202
    assert text.endswith(" …") or one_line(message).replace("  ", " ").find(text + ".") >= 0


def test_short_messages_stay_as_they_are() -> None:
    assert said(ValueError("it has no head.")) == "it has no head"
    assert said(RuntimeError()) == "RuntimeError"
    assert said("x" * 500) == "x" * 200 + " …"
