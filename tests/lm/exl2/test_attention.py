"""Our paged attention against one that follows tables and lengths position by position."""

from __future__ import annotations

import pytest
import torch
from fake_exllamav2 import flash

from yuegp.lm.exl2.attention import BLOCK, PagedAttention, sight
from yuegp.lm.exl2.pages import Pages

Given = dict[str, torch.Tensor]


def case(lengths: list[int], n: int, heads: int, kv_heads: int, page: int = 16) -> tuple[Pages, Given]:
    torch.manual_seed(1)
    pages = Pages([length + n + 5 for length in lengths], page)
    pages.lengths = list(lengths)
    pool = (pages.positions // page, page, kv_heads, 8)
    tensors = {"q": torch.randn(len(lengths), n, heads, 8)}
    tensors |= {name: torch.randn(len(lengths), n, kv_heads, 8) for name in "kv"}
    tensors |= {name: torch.randn(pool) for name in ("k_cache", "v_cache")}
    return pages, tensors


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (4, 1)])
@pytest.mark.parametrize(("lengths", "n"), [([37, 3], 1), ([0], 1), ([0, 50, 17], 3), ([5], 2 * BLOCK + 9), ([40], 30)])
def test_like_following_the_pages(lengths: list[int], n: int, heads: int, kv_heads: int, exact: bool) -> None:
    pages, given = case(lengths, n, heads, kv_heads)
    ours, theirs = ({name: value.clone() for name, value in given.items()} for _ in range(2))
    rows = range(len(lengths))
    starts = [pages.start(row) for row in rows]
    device_lengths = torch.tensor(lengths, dtype=torch.int32)
    widths = [length + n if exact else pages.counts[row] * pages.page for row, length in enumerate(lengths)]
    attention = PagedAttention()
    attention.sight = sight(starts, device_lengths, n, widths, exact, torch.tensor(starts))
    got = attention(**ours, cache_seqlens=device_lengths, causal=True, softmax_scale=8**-0.5)
    wanted = flash(
        **theirs, cache_seqlens=device_lengths, block_table=torch.tensor(pages.table(rows), dtype=torch.int32),
        causal=True, softmax_scale=8**-0.5,
    )  # fmt: skip
    assert float((got - wanted).abs().max()) < 1e-5
    for name in ("k_cache", "v_cache"):
        assert torch.equal(ours[name], theirs[name]), "new keys and values lie elsewhere"
    if n > 1:
        unmasked = flash(**{k: v.clone() for k, v in given.items()}, cache_seqlens=device_lengths, faulty=True,
                         block_table=torch.tensor(pages.table(rows)), causal=True, softmax_scale=8**-0.5)  # fmt: skip
        assert float((got - unmasked).abs().max()) > 0.1, "this case cannot tell a missing mask"


def test_keys_that_are_in_place_already_are_not_written_again() -> None:
    _, given = case([20], 6, 4, 2)
    lengths = torch.tensor([20], dtype=torch.int32)
    for name in "kv":
        given[f"{name}_cache"].flatten(0, 1)[20:26] = given[name][0]
    attention = PagedAttention()
    attention.sight = sight([0], lengths, 6, [26], True, torch.tensor([0]))
    before = given["k_cache"].clone()
    apart = attention(**given, causal=True, softmax_scale=1.0)
    in_place = attention(**{**given, "k": None, "v": None}, causal=True, softmax_scale=1.0)
    assert torch.equal(apart, in_place) and torch.equal(before, given["k_cache"])


def test_it_is_not_called_outside_of_a_pass_nor_for_what_it_does_not_know() -> None:
    _, given = case([3], 1, 2, 2)
    with pytest.raises(RuntimeError, match="outside of a pass"):
        PagedAttention()(**given, causal=True, softmax_scale=1.0)
    with pytest.raises(TypeError, match="window_size"):
        PagedAttention()(**given, causal=True, softmax_scale=1.0, window_size=(4, 4))  # type: ignore[call-arg]
