"""First-party allocators against independent oracles, and the rules of greedy and topk."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.focus_ops import block_means
from mcframe.context.working_context import raw_context
from mcframe.errors import UserError
from mcframe_plugins.allocator import GreedyAllocator, TopKAllocator
from tests.support import oracle
from tests.support.allocations import KINDS, TREE, allocate, by_block, random_scores
from tests.support.generators import SOME, focused_trees, geometry_of


@pytest.mark.parametrize("kind", KINDS)
@SOME
@given(case=focused_trees(), seed=st.integers(0, 2**32), fraction=st.floats(0, 1))
def test_focus_is_valid_and_within_the_budget(kind, case, seed, fraction):
    tree, focuses = case
    highest = KINDS[kind](geometry_of(tree)).highest_lod
    if highest is not None:
        tree = tree._replace(levels=min(highest, tree.levels))
        focuses = [[min(lod, highest) for lod in focus] for focus in focuses]
    shortest = min(oracle.mixes(tree))
    budget = shortest + round(fraction * (tree.window - shortest))
    allocator = KINDS[kind](geometry_of(tree))
    for focus in allocate(allocator, tree, focuses, random_scores(tree, len(focuses), seed), budget):
        assert oracle.is_valid(tree, focus)  # so that protected blocks are raw
        assert len(oracle.build_context(tree, focus)) <= budget


@pytest.mark.parametrize("kind", KINDS)
@SOME
@given(case=focused_trees(max_rows=1), seed=st.integers(0, 2**32), fraction=st.floats(0, 1))
def test_length_from_the_raw_context_is_the_largest_reachable(kind, case, seed, fraction):
    """As `fills_budget` declares; with one level for those that do not declare it for several."""
    tree, _ = case
    allocator = KINDS[kind](geometry_of(tree))
    levels = tree.levels if allocator.fills_budget else 1
    tree = tree._replace(levels=min(levels, allocator.highest_lod or levels))
    known = oracle.mixes(tree)
    budget = min(known) + round(fraction * (tree.window - min(known)))
    raw = [[0] * tree.blocks]
    (focus,) = allocate(KINDS[kind](geometry_of(tree)), tree, raw, random_scores(tree, 1, seed), budget)
    assert len(oracle.build_context(tree, focus)) == max(length for length in known if length <= budget)


# ---- topk ------------------------------------------------------------------------------------------
@SOME
@given(case=focused_trees(max_rows=2, max_window=36), seed=st.integers(0, 2**32), fraction=st.floats(0, 1))
def test_topk_equals_the_best_of_all_subsets(case, seed, fraction):
    """Brute force: of all sets of raw blocks that fit, the one with the highest sum; gists join only above 0."""
    tree, focuses = case
    tree = tree._replace(levels=1)
    focuses = [[min(lod, 1) for lod in focus] for focus in focuses]
    known = oracle.mixes(tree)
    budget = min(known) + round(fraction * (tree.window - min(known)))
    scores = random_scores(tree, len(focuses), seed)
    found = allocate(TopKAllocator(geometry_of(tree)), tree, focuses, scores, budget)
    free = [b for b in range(tree.blocks) if not oracle.is_protected(tree, b)]
    must = (tree.window - budget + tree.block_size - tree.slots - 1) // (tree.block_size - tree.slots)
    room = len(free) - max(0, must)  # raw blocks that the budget has room for
    for row, focus in enumerate(focuses):
        entries = [e for e in oracle.build_context(tree, focus) if e.end <= tree.cursor]
        values = oracle.block_means(tree, entries, [scores[row, e.start + e.slot].item() for e in entries])
        candidates = [b for b in free if focus[b] == 0 or values[b] > 0]
        size = min(room, len(candidates))
        best = max(sum(values[b] for b in subset) for subset in combinations(candidates, size))
        kept = [b for b in free if found[row][b] == 0]
        assert set(kept) <= set(candidates)
        assert len(kept) == size
        assert sum(values[b] for b in kept) == pytest.approx(best, abs=1e-5)


def test_topk_swaps_a_high_gist_for_a_low_block():
    tree = oracle.Tree(window=20, block_size=4, levels=1, slots=1, tail=4, sink=0)
    scores = torch.zeros(1, 20)
    scores[0, 4] = 0.9  # the gist of block 1, at its first token
    scores[0, 8:12] = -0.5
    assert allocate(TopKAllocator(geometry_of(tree)), tree, [[0, 1, 0, 0, 0]], scores, 17) == [[0, 0, 1, 0, 0]]


def test_topk_keeps_raw_blocks_at_equal_scores():
    tree = oracle.Tree(window=20, block_size=4, levels=1, slots=1, tail=4, sink=0)
    scores = torch.full((1, 20), 0.5)
    for focus in ([1, 0, 0, 0, 0], [0, 1, 0, 1, 0]):
        budget = len(oracle.build_context(tree, focus))
        assert allocate(TopKAllocator(geometry_of(tree)), tree, [focus], scores, budget) == [focus]


# ---- greedy ----------------------------------------------------------------------------------------
def greedy(values, focus, budget, age=None, **options):
    allocator = GreedyAllocator(geometry_of(TREE), **options)
    return allocate(allocator, TREE, [focus], by_block(values), budget, age)[0]


def test_greedy_collapses_the_lowest_scores():
    values = {b: 0.1 * b for b in range(14)} | {5: -0.9, 9: -0.8}
    assert [b for b, lod in enumerate(greedy(values, [0] * 14, 40)) if lod] == [5, 9]


def test_greedy_expands_one_level_above_the_threshold():
    focus = [1, 1, 0, 2, 2, 2] + [0] * 8
    values = {0: 0.4, 1: 0.6, 3: 0.9}
    assert greedy(values, focus, 44) == [0, 0, 0, 1, 1, 1] + [0] * 8
    assert greedy(values, focus, 44, expand_threshold=0.5) == [1, 0, 0, 1, 1, 1] + [0] * 8
    assert greedy(values, focus, 44, expand_threshold=0.95) == focus


def test_greedy_takes_entries_from_all_levels():
    """At equal lengths, an expanded block stays raw: a gist of a higher level takes its entries back."""
    values = dict.fromkeys(range(14), -0.1) | {4: 0.5, 6: -0.4, 7: -0.4, 8: -0.4}
    focus = [1] * 12 + [0] * 2
    assert greedy(values, focus, 20, keep_expanded=False) == focus
    assert greedy(values, focus, 20) == [1] * 4 + [0] + [1] + [2] * 3 + [1] * 3 + [0] * 2
    # Only if nothing else is left are blocks above the threshold collapsed.
    assert greedy(dict.fromkeys(range(14), 0.5), focus, 20) == focus


def test_greedy_expands_no_more_nodes_than_replacements():
    focus = [1, 1, 0, 2, 2, 2] + [0] * 8
    values = {0: 0.4, 1: 0.6, 3: 0.9}
    assert greedy(values, focus, 44, replacements=0) == focus
    assert greedy(values, focus, 44, replacements=1) == [1, 1, 0, 1, 1, 1] + [0] * 8
    assert greedy(values, focus, 44, replacements=2) == [1, 0, 0, 1, 1, 1] + [0] * 8


def test_greedy_collapses_below_the_threshold_within_the_budget():
    values = {1: -0.7, 4: -0.5, 7: -0.9}
    assert greedy(values, [0] * 14, 44) == [0] * 14
    collapsed = greedy(values, [0] * 14, 44, collapse_threshold=0.6)
    assert [b for b, lod in enumerate(collapsed) if lod] == [1, 7]


def test_greedy_merges_gists_with_low_scores():
    focus = [1] * 12 + [0, 0]
    values = dict.fromkeys(range(12), -0.1) | {6: -0.5, 7: -0.5, 8: -0.5}
    assert greedy(values, focus, 18) == [1] * 6 + [2] * 3 + [1] * 3 + [0, 0]


def test_greedy_does_not_expand_blocks_that_have_just_changed():
    focus = [1, 1] + [0] * 12
    age = torch.full((1, 14), 5)
    age[0, 0] = 0
    values = {0: 0.9, 1: 0.9}
    assert greedy(values, focus, 44, age, cooldown=1)[:2] == [1, 0]
    assert greedy(values, focus, 44, age)[:2] == [0, 0]
    age[0, 0] = 1
    assert greedy(values, focus, 44, age, cooldown=1)[:2] == [0, 0]
    # collapsed last, and within the budget all the same
    age[:] = 5
    age[0, 4] = 0
    raw = [0] * 14
    assert greedy({4: -0.9, 6: -0.1}, raw, 42, age, cooldown=1)[4] == 0
    assert greedy({4: -0.9, 6: -0.1}, raw, 42, age)[4] == 1
    shortest = min(oracle.mixes(TREE))
    assert len(oracle.build_context(TREE, greedy({4: -0.9}, raw, shortest, age, cooldown=1))) == shortest


def test_greedy_keeps_a_longer_tail_raw():
    focus = greedy(dict.fromkeys(range(14), -0.5), [0] * 14, 34, protected_tail=20)
    assert any(focus)
    assert not any(focus[8:])  # tokens from 24 on
    with pytest.raises(UserError):
        greedy({}, [0] * 14, 20, protected_tail=30)


@SOME
@given(case=focused_trees(max_rows=1), seed=st.integers(0, 2**32))
def test_greedy_keeps_the_highest_scores(case, seed):
    """At one level, no collapsed block scores above one that stayed raw."""
    tree = case[0]._replace(levels=1)
    known = sorted(oracle.mixes(tree))
    budget = known[len(known) // 2]
    scores = random_scores(tree, 1, seed)
    (focus,) = allocate(GreedyAllocator(geometry_of(tree)), tree, [[0] * tree.blocks], scores, budget)
    context = raw_context(geometry_of(tree), 1, torch.device("cpu")).before_cursor()
    value = block_means(scores[:, : tree.cursor], context)[0].tolist()
    free = [b for b in range(tree.blocks) if not oracle.is_protected(tree, b)]
    raw = [value[b] for b in free if focus[b] == 0]
    gists = [value[b] for b in free if focus[b]]
    assert not raw or not gists or max(gists) <= min(raw)
