"""The focus that depends on the history's length alone: valid, within the budget, newest text in the most detail."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import is_valid
from mcframe.context.working_context import build_context, trim_padding
from mcframe.errors import UserError
from mcframe.runtime.covered_window import block_context, recent_focus


@st.composite
def trees(draw):
    block = draw(st.integers(2, 5))
    levels, slots = draw(st.integers(1, 3)), draw(st.integers(1, block - 1))
    return ContextTree(block, block, levels, slots, tail=0, sink=draw(st.integers(0, 3)))


@st.composite
def windows(draw):
    """A tree with a tail, a history's length, a budget that is enough for any length, and levels."""
    tree = draw(trees())
    tail = draw(st.integers(1, 12))
    tokens = draw(st.integers(1, 3 * tree.span(tree.levels) * draw(st.integers(1, 6))))
    levels = draw(st.integers(0, tree.levels))
    room = tree.levels * tree.slots * 2 * tree.block_size + tail + tree.block_size * (tree.sink + 1)
    budget = draw(st.integers(room, 3 * room))
    return replace(tree, window=max(tokens, tree.block_size), tail=min(tail, max(tokens, tree.block_size))), (
        tokens, budget, levels,
    )  # fmt: skip


@settings(max_examples=50, deadline=None, derandomize=True)
@given(windows())
def test_it_is_valid_and_within_the_budget(drawn):
    tree, (tokens, budget, levels) = drawn
    assume(tokens >= tree.block_size)
    window = recent_focus(tree, tokens, budget, levels)
    assert window.tokens == tokens
    assert window.entries <= budget
    assert bool(is_valid(window.focus, window.tree).all())
    assert (
        int(window.focus.max(initial=0) if False else window.focus.amax()) <= levels if window.focus.numel() else True
    )
    if tokens <= budget:
        assert window.dropped == 0
        assert not window.focus.any()
    focus = window.focus[0].tolist()
    # After the first complete node of the highest level in use, detail never falls towards the end.
    peak = max(range(len(focus)), key=lambda block: focus[block], default=0)
    assert all(a >= b for a, b in zip(focus[peak:], focus[peak + 1 :], strict=False))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(windows())
def test_its_entries_cover_every_token_that_is_not_dropped(drawn):
    tree, (tokens, budget, levels) = drawn
    assume(tokens >= tree.block_size)
    window = recent_focus(tree, tokens, budget, levels)
    context = window.with_tail(0)
    first = window.history_index(context.start)[0].tolist()
    span = context.span[0].tolist()
    covered = sorted({token for start, size in zip(first, span, strict=True) for token in range(start, start + size)})
    sink = tree.sink * tree.block_size
    assert covered == [t for t in range(tokens) if t < sink or t >= sink + window.dropped]
    assert all(start % size == 0 for start, size in zip(first, span, strict=True)), (
        "a node of the window is no node of the history"
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(windows(), st.integers(0, 7))
def test_block_context_equals_build_context(drawn, more):
    tree, (tokens, budget, levels) = drawn
    assume(tokens >= tree.block_size)
    window = recent_focus(tree, tokens, budget, levels)
    found = window.with_tail(more, more)
    expected = trim_padding(build_context(found.focus, found.tree))
    for name in ("token", "lod", "valid"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.tree.cursor == window.tree.window
    torch.testing.assert_close(block_context(found.focus, found.tree).token, found.token)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(windows(), st.integers(0, 7))
def test_without_gists_its_raw_entries_are_left(drawn, more):
    tree, (tokens, budget, levels) = drawn
    window = recent_focus(tree, tokens, budget, levels)
    complete, found = window.with_tail(more, more), window.with_tail(more, more, drop_gists=True)
    pairs = zip(complete.token[0].tolist(), complete.lod[0].tolist(), strict=True)
    assert found.token[0].tolist() == [token for token, lod in pairs if lod == 0]
    assert not found.lod.any()
    assert bool(found.valid.all())
    assert found.tree == complete.tree


@settings(max_examples=50, deadline=None, derandomize=True)
@given(windows(), st.integers(1, 200))
def test_no_more_than_the_reach_is_covered(drawn, reach):
    tree, (tokens, budget, levels) = drawn
    assume(tokens >= tree.block_size)
    window = recent_focus(tree, tokens, budget, levels, reach)
    least = tree.span(tree.levels) + tree.sink * tree.block_size + tree.tail + 1
    assert window.tree.window <= max(reach, least)
    assert window.tokens == tokens
    assert window.entries <= budget
    assert bool(is_valid(window.focus, window.tree).all())
    if tokens <= reach:
        assert torch.equal(window.focus, recent_focus(tree, tokens, budget, levels).focus)


def test_a_longer_history_drops_more_and_costs_as_much():
    tree = ContextTree(8, 8, 3, 1, tail=8, sink=1)
    sizes = {}
    for power in range(5, 32, 2):
        window = recent_focus(replace(tree, window=2**power), 2**power, 96, 3)
        sizes[power] = (window.entries, window.tree.window)
        assert window.entries <= 96
    assert sizes[31][1] < 40 * 512, sizes
    assert min(entries for power, (entries, _) in sizes.items() if power > 9) > 60, sizes


def test_a_budget_that_is_too_small_is_an_error():
    tree = ContextTree(10_000, 8, 2, 1, tail=32, sink=1)
    with pytest.raises(UserError, match=r"session\.budget: 40 entries are left for a context that has at least"):
        recent_focus(tree, 10_000, 40, 2)
    with pytest.raises(UserError, match="at least 48"):
        recent_focus(tree, 10_000, 40, 0)
