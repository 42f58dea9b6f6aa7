"""The allocator `swap` against a loop that expands one gist after the other."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.focus_ops import block_means
from mcframe.context.working_context import build_context
from mcframe_plugins.allocator import SwapAllocator
from tests.support import oracle
from tests.support.allocations import TREE, allocate, by_block, random_scores
from tests.support.generators import focus_tensor, focused_trees, geometry_of


def swap(values, focus, budget, age=None, **options):
    allocator = SwapAllocator(geometry_of(TREE), **options)
    return allocate(allocator, TREE, [focus], by_block(values), budget, age)[0]


def expanded(tree, focus, value, budget, threshold, fixed):
    """Return the first blocks of the gists that are expanded, highest scores first, while others pay for them."""
    width = {lod: tree.block_size ** (lod - 1) for lod in range(1, tree.levels + 1)}
    gists = [b for b, lod in enumerate(focus) if lod and b % width[lod] == 0 and value[b] > threshold]
    length = len(oracle.build_context(tree, focus))
    cost, found = 0, []
    for block in sorted(gists, key=lambda b: (-value[b], b)):
        cost += tree.slots * (tree.block_size - 1) if focus[block] > 1 else tree.block_size - tree.slots
        paid = 0
        for lod, size in width.items():
            for first in range(0, tree.blocks - size + 1, size):
                blocks = range(first, first + size)
                free = not any(oracle.is_protected(tree, b) for b in blocks)
                if free and all(focus[b] == lod - 1 and b not in fixed and value[b] < value[block] for b in blocks):
                    paid += tree.block_size * (tree.slots if lod > 1 else 1) - tree.slots
        if cost > max(0, budget - length) + paid:
            break
        found.append(block)
    return found


@settings(max_examples=50, deadline=None, derandomize=True)
@given(case=focused_trees(max_rows=1), seed=st.integers(0, 2**31), more=st.integers(0, 9), aged=st.booleans())
def test_the_highest_scores_are_expanded_while_lower_ones_pay(case, seed, more, aged):
    tree, (focus,) = case[0], case[1]
    generator = torch.Generator().manual_seed(seed)
    scores = (random_scores(tree, 1, seed) * 4).round() / 4  # equal scores are frequent
    budget = len(oracle.build_context(tree, focus)) + more
    age = torch.randint(0, 4, (1, tree.blocks), generator=generator) if aged else None
    allocator = SwapAllocator(geometry_of(tree), settled=2)
    context = replace(build_context(focus_tensor([focus]), geometry_of(tree)), age=age).before_cursor()
    value = block_means(scores.gather(1, context.token), context)
    fixed = {b for b, lod in enumerate(focus) if aged and lod == 0 and age[0, b] < 2}
    raised = torch.where(torch.tensor([b in fixed for b in range(tree.blocks)])[None], 9.0, value)
    chosen = allocator._affordable(context.focus, raised, budget, geometry_of(tree))[0]
    first = [b for b in range(tree.blocks) if chosen[b] and b % tree.block_size ** (focus[b] - 1) == 0]
    assert first == sorted(expanded(tree, focus, value[0].tolist(), budget, 0.0, fixed))
    (after,) = allocate(allocator, tree, [focus], scores, budget, age)
    assert len(oracle.build_context(tree, after)) <= budget
    for block in first:  # what was expanded stays so
        assert after[block] == focus[block] - 1


def test_detail_moves_from_low_scores_to_high_ones():
    focus = [1] * 6 + [2] * 3 + [1] * 3 + [0] * 2
    values = dict.fromkeys(range(12), 0.1) | {6: 0.5, 7: 0.5, 8: 0.5, 0: 0.3, 9: 0.3}
    length = len(oracle.build_context(TREE, focus))
    # The gist of LOD2 is expanded; blocks 3 to 5 pay, where every score is lower.
    assert swap(values, focus, length) == [1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0, 0]
    # Equal scores do not pay for each other, although all are above the threshold.
    assert swap(dict.fromkeys(range(12), 0.5), focus, length) == focus
    assert swap(values, focus, length, expand_threshold=0.6) == focus


def test_a_block_that_became_raw_stays_raw():
    focus = [0] + [1] * 11 + [0] * 2
    values = dict.fromkeys(range(12), 0.1) | {0: -0.5, 9: 0.5}
    age = torch.full((1, 14), 30)
    length = len(oracle.build_context(TREE, focus))
    assert swap(values, focus, length, age)[0] == 1
    age[0, 0] = 2
    found = swap(values, focus, length, age)
    assert found[0] == 0
    assert found[9] == 0
    assert swap(values, focus, length, age, settled=2)[0] == 1
    shortest = min(oracle.mixes(TREE))  # the budget holds all the same
    assert len(oracle.build_context(TREE, swap(values, focus, shortest, age))) <= shortest
