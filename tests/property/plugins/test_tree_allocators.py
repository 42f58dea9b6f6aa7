"""Allocators over all levels against a search of every focus, and the distributions of random ones."""

import math
from collections import Counter
from fractions import Fraction

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcframe.context.counter_rng import variant_seeds
from mcframe_plugins.allocator import (
    GreedyAllocator,
    HierarchicalAllocator,
    RandomAllocator,
    RecencyAllocator,
    StochasticGreedyAllocator,
    TopKAllocator,
)
from tests.support import oracle
from tests.support.allocations import allocate
from tests.support.generators import focus_tensor, focused_trees, geometry_of

FEW = settings(max_examples=30, deadline=None, derandomize=True)


def every_focus(tree, start=0):
    """Yield all valid focuses of the blocks from `start`."""
    if start == tree.blocks:
        yield []
        return
    for lod in range(tree.levels + 1):
        width = tree.block_size ** max(lod - 1, 0)
        if lod and (start % width or not oracle.node_is_free(tree, lod, start // width)):
            continue
        for rest in every_focus(tree, start + width):
            yield [lod] * width + rest


def entry_values(tree, focus, values):
    """Return the sum over the entries of a context of the mean value of their blocks, divided by K."""
    total = Fraction(0)
    for entry in oracle.build_context(tree, focus):
        first, last = entry.start // tree.block_size, (entry.end - 1) // tree.block_size
        covered = [values[b] if b < tree.blocks else Fraction(0) for b in range(first, last + 1)]
        total += sum(covered) / len(covered) / tree.block_size
    return total


def best(tree, focuses, budget, worth):
    """Return the focuses within the budget that are longest, and of those the most valuable."""
    fitting = [focus for focus in focuses if len(oracle.build_context(tree, focus)) <= budget]
    longest = max(len(oracle.build_context(tree, focus)) for focus in fitting)
    found = [focus for focus in fitting if len(oracle.build_context(tree, focus)) == longest]
    most = max(worth(focus) for focus in found)
    return [focus for focus in found if worth(focus) == most]


@st.composite
def small_cases(draw):
    """Draw a tree of at most nine blocks, a valid focus, a score of each block in eighths, and a budget."""
    tree, (focus, *_) = draw(focused_trees(max_rows=1, max_window=30).filter(lambda case: case[0].blocks <= 9))
    scores = draw(st.lists(st.integers(-8, 8), min_size=tree.blocks, max_size=tree.blocks))
    shortest = min(oracle.mixes(tree))
    return tree, focus, scores, draw(st.integers(shortest, tree.window))


def by_token(tree, focus, scores):
    """Return scores [1, T] that are equal within a node, and the score of each block as a fraction."""
    values = []
    for block, lod in enumerate(focus):
        width = tree.block_size ** max(lod - 1, 0)
        values.append(Fraction(scores[block - block % width], 8))
    tokens = torch.zeros(1, tree.window)
    for block, value in enumerate(values):
        tokens[0, block * tree.block_size : (block + 1) * tree.block_size] = float(value)
    scored = [value if is_scored(tree, block) else Fraction(0) for block, value in enumerate(values)]
    return tokens, scored


def is_scored(tree, block):
    """Return whether the block has a token before the cursor."""
    return block * tree.block_size < tree.cursor


DEEP = oracle.Tree(window=16, block_size=2, levels=3, slots=1, tail=0, sink=0)
WIDE = oracle.Tree(window=18, block_size=3, levels=2, slots=1, tail=0, sink=0)


@FEW
@example((WIDE, [2, 2, 2, 1, 1, 1], [4] * 6, 4), None)  # equal values: nothing changes
@example((WIDE, [1, 1, 1, 2, 2, 2], [4] * 6, 4), None)
@example((DEEP, [3] * 4 + [0, 1, 2, 2], [8, 0, 0, 0, 4, -8, 2, 0], 6), None)
@given(small_cases(), st.sampled_from([None, (1, 1, 1), (0.75, 0.25, 0.125), (0.5, 0.5, 0)]))
def test_hierarchical_equals_the_best_of_all_focuses(case, kept):
    tree, focus, scores, budget = case
    tokens, values = by_token(tree, focus, scores)
    kept = kept and kept[: tree.levels]

    def worth(of):
        if kept is None:
            return entry_values(tree, of, values)
        return sum((value * Fraction((1, *kept)[lod]) for value, lod in zip(values, of, strict=True)), Fraction(0))

    allowed = [
        of for of in every_focus(tree) if all(n >= o or v > 0 for n, o, v in zip(of, focus, values, strict=True))
    ]
    expected = best(tree, allowed, budget, worth)
    unchanged = max(sum(n == o for n, o in zip(of, focus, strict=True)) for of in expected)
    (found,) = allocate(HierarchicalAllocator(geometry_of(tree), kept=kept), tree, [focus], tokens, budget)
    assert found in expected
    assert sum(n == o for n, o in zip(found, focus, strict=True)) == unchanged


@FEW
@given(small_cases())
def test_recency_keeps_entries_nearest_to_the_cursor(case):
    tree, focus, scores, budget = case
    tokens, _ = by_token(tree, focus, scores)
    positions = [Fraction(block + 1) for block in range(tree.blocks)]
    allowed = [of for of in every_focus(tree) if all(n >= o for n, o in zip(of, focus, strict=True))]
    (found,) = allocate(RecencyAllocator(geometry_of(tree)), tree, [focus], tokens, budget)
    assert found in best(tree, allowed, budget, lambda of: entry_values(tree, of, positions))


def test_recency_collapses_the_oldest_text_for_any_scores():
    tree = oracle.Tree(window=48, block_size=4, levels=1, slots=1, tail=5, sink=1)
    for scores in (torch.zeros(1, 48), torch.linspace(1, -1, 48)[None]):
        (found,) = allocate(RecencyAllocator(geometry_of(tree)), tree, [[0] * 12], scores, 40)
        assert found == [0, 1, 1, 1] + [0] * 8
    deep = oracle.Tree(window=48, block_size=4, levels=2, slots=1, tail=4, sink=0)
    (found,) = allocate(RecencyAllocator(geometry_of(deep)), deep, [[0] * 12], torch.zeros(1, 48), 30)
    assert found == [2, 2, 2, 2, 1] + [0] * 7  # the oldest text the coarsest


@FEW
@given(focused_trees(max_window=60), st.integers(0, 2**32), st.floats(0, 1))
def test_hierarchical_at_one_level_equals_topk(case, seed, fraction):
    tree = case[0]._replace(levels=1)
    focuses = [[min(lod, 1) for lod in focus] for focus in case[1]]
    scores = torch.rand(len(focuses), tree.window, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    shortest = min(oracle.mixes(tree))
    budget = shortest + round(fraction * (tree.window - shortest))
    tree = geometry_of(tree)
    found = allocate(HierarchicalAllocator(tree), tree, focuses, scores, budget)
    assert found == allocate(TopKAllocator(tree), tree, focuses, scores, budget)


def test_hierarchical_uses_entries_that_greedy_leaves_unused():
    tree = oracle.Tree(window=50, block_size=5, levels=2, slots=2, tail=0, sink=0)
    raw, scores = [[0] * 10], -torch.linspace(0, 1, 50)[None]
    budget = 50 - 23  # exactly one node of LOD2
    (greedy,) = allocate(GreedyAllocator(geometry_of(tree)), tree, raw, scores, budget)
    (exact,) = allocate(HierarchicalAllocator(geometry_of(tree)), tree, raw, scores, budget)
    assert len(oracle.build_context(tree, greedy)) == 26
    assert exact == [0] * 5 + [2] * 5


def test_hierarchical_compresses_low_scores_further():
    """Greedy uses LOD2 only after LOD1; one gist of LOD2 may keep a block with a higher score raw."""
    tree = oracle.Tree(window=54, block_size=3, levels=2, slots=1, tail=0, sink=0)
    scores = torch.tensor([-0.2] * 3 + [-0.9] * 3 + [-0.3] + [0.5] * 11).repeat_interleave(3)[None]
    (greedy,) = allocate(GreedyAllocator(geometry_of(tree)), tree, [[0] * 18], scores, 54 - 8)
    (exact,) = allocate(HierarchicalAllocator(geometry_of(tree)), tree, [[0] * 18], scores, 54 - 8)
    (careful,) = allocate(HierarchicalAllocator(geometry_of(tree), kept=(0.5, 0)), tree, [[0] * 18], scores, 54 - 8)
    assert greedy == [0] * 3 + [1] * 4 + [0] * 11
    assert exact == [0] * 3 + [2] * 3 + [0] * 12
    assert careful == exact


def test_row_of_a_large_batch_equals_the_row_alone():
    """With the tree of run10 and LOD2, and the rows of an evaluation."""
    tree = oracle.Tree(window=2048, block_size=32, levels=2, slots=1, tail=128, sink=0)
    scores = torch.rand(8, 2048, generator=torch.Generator().manual_seed(0)) * 2 - 1
    allocator = HierarchicalAllocator(geometry_of(tree))
    every = allocate(allocator, tree, [[0] * 64] * 8, scores, 700)
    assert every[5] == allocate(allocator, tree, [[0] * 64], scores[5:6], 700)[0]
    assert {len(oracle.build_context(tree, focus)) for focus in every} == {2048 - 31 * 44}


# ---- random choices --------------------------------------------------------------------------------
FLAT = oracle.Tree(window=28, block_size=4, levels=1, slots=1, tail=4, sink=1)  # five free blocks


def draws(allocator, scores, count, budget):
    seeds = variant_seeds(3, torch.arange(count), 1)[:, 0]
    raw = [[0] * FLAT.blocks] * count
    return allocate(allocator, FLAT, raw, scores.expand(count, -1), budget, seeds=seeds)


def test_random_draws_all_sets_equally_often():
    found = draws(RandomAllocator(geometry_of(FLAT)), torch.linspace(-1, 1, 28)[None], 4000, 28 - 6)
    counts = Counter(map(tuple, found))
    assert len(counts) == math.comb(5, 2)
    assert sum((n - 400) ** 2 / 400 for n in counts.values()) < 28  # 9 degrees of freedom: 99.9 % lie below


def test_stochastic_greedy_draws_in_proportion_to_the_scores():
    """One of five blocks is collapsed: softmax of minus the scores over the temperature."""
    values = torch.tensor([0.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.0])
    scores = values.repeat_interleave(4)[None]
    found = draws(StochasticGreedyAllocator(geometry_of(FLAT), temperature=0.5), scores, 4000, 28 - 3)
    collapsed = Counter(focus.index(1) for focus in found)
    expected = 4000 * torch.softmax(-values[1:6] / 0.5, dim=0)
    chi_square = sum((collapsed[block + 1] - n) ** 2 / n for block, n in enumerate(expected.tolist()))
    assert chi_square < 18.5  # 4 degrees of freedom: 99.9 % lie below


def test_stochastic_greedy_draws_expansions_in_proportion():
    tree = FLAT
    focus = [0, 1, 1, 1, 1, 1, 0]
    values = torch.tensor([0.0, 0.75, 0.5, 0.5, 0.25, -0.5, 0.0])
    seeds = variant_seeds(4, torch.arange(4000), 1)[:, 0]
    allocator = StochasticGreedyAllocator(geometry_of(tree), temperature=0.25, replacements=1)
    scores = values.repeat_interleave(4).expand(4000, -1)
    found = allocate(allocator, tree, [focus] * 4000, scores, 28, seeds=seeds)
    expanded = Counter((focus_tensor([focus]) != focus_tensor(found)).int().argmax(dim=1).tolist())
    assert expanded[5] == 0  # its score is below the threshold
    expected = 4000 * torch.softmax(values[1:5] / 0.25, dim=0)
    assert sum((expanded[block + 1] - n) ** 2 / n for block, n in enumerate(expected.tolist())) < 16.3  # 3 degrees


def test_stochastic_greedy_without_temperature_equals_greedy():
    tree = oracle.Tree(window=60, block_size=3, levels=2, slots=1, tail=6, sink=0)
    scores = torch.rand(20, 60, generator=torch.Generator().manual_seed(1)) * 2 - 1
    raw = [[0] * 20] * 20
    exact = allocate(GreedyAllocator(geometry_of(tree)), tree, raw, scores, 30)
    assert allocate(StochasticGreedyAllocator(geometry_of(tree), temperature=0.0), tree, raw, scores, 30) == exact
    drawn = allocate(StochasticGreedyAllocator(geometry_of(tree)), tree, raw, scores, 30)
    assert drawn != exact
