"""The distribution and the rule of each variant strategy."""

import math
import random
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mcframe.context.counter_rng import variant_seeds
from mcframe_plugins.variants.contiguous import run_starts
from tests.support import oracle
from tests.support.generators import SOME, geometry_of, trees
from tests.support.proposals import propose, random_scores

TREE = oracle.Tree(window=48, block_size=4, levels=1, slots=1, tail=5, sink=1)  # 9 free blocks, 1 to 9
DEEP = oracle.Tree(window=64, block_size=4, levels=2, slots=1, tail=8, sink=0)


def collapsed_nodes(tree, focus):
    """Return the compressed nodes of a focus as (LOD, node)."""
    return {(lod, block // tree.block_size ** (lod - 1)) for block, lod in enumerate(focus) if lod}


def some_length(tree, fraction):
    """Return a reachable length at which something is collapsed."""
    lengths = sorted(oracle.mixes(tree))[:-1]
    assume(lengths)
    return lengths[round(fraction * (len(lengths) - 1))]


# ---- aggressive ------------------------------------------------------------------------------------
@SOME
@given(trees(), st.floats(0, 1), st.integers(0, 2**32))
def test_aggressive_has_most_nodes_of_the_highest_levels(tree, fraction, seed):
    length = some_length(tree, fraction)
    coarsest = max(oracle.mixes(tree)[length], key=lambda counts: counts[::-1])
    for (focus,) in propose("aggressive", tree, length, variant_seeds(seed, torch.arange(3), 1)).tolist():
        levels = Counter(lod for lod, _ in collapsed_nodes(tree, focus))
        assert tuple(levels[lod] for lod in range(1, tree.levels + 1)) == coarsest


def test_aggressive_uses_the_next_coarsest_mix_if_the_first_has_one_focus():
    found = propose("aggressive", DEEP, 64 - 45, variant_seeds(0, torch.arange(100), 3))
    coarse = (found == 2).sum(dim=2) // 4
    assert (coarse[:, 0] == 3).all()  # all three nodes: the only focus of this mix
    assert (coarse[:, 1:] == 2).double().mean() > 0.95
    assert all(len({tuple(focus) for focus in of_sequence}) == 3 for of_sequence in found.tolist())


# ---- contiguous ------------------------------------------------------------------------------------
@SOME
@given(trees(), st.floats(0, 1), st.integers(0, 2**32))
def test_contiguous_is_one_run(tree, fraction, seed):
    for of_sequence in propose(
        "contiguous", tree, some_length(tree, fraction), variant_seeds(seed, torch.arange(3), 2)
    ).tolist():
        for focus in of_sequence:
            collapsed = [block for block, lod in enumerate(focus) if lod]
            assert collapsed == list(range(collapsed[0], collapsed[-1] + 1))


def test_all_positions_of_the_run_are_equally_likely():
    found = propose("contiguous", TREE, 48 - 3 * 3, variant_seeds(3, torch.arange(7000), 1))[:, 0]
    counts = Counter((found > 0).int().argmax(dim=1).tolist())
    assert sorted(counts) == list(range(1, 8))
    chi_square = sum((n - 1000) ** 2 / 1000 for n in counts.values())
    assert chi_square < 22  # 6 degrees of freedom: mean 6, standard deviation 3.5


def fits(tree, counts, run):
    """Return whether `counts` complete nodes fit into the run of blocks, by search from the highest level."""
    if not counts:
        return True
    lod, width = len(counts), tree.block_size ** (len(counts) - 1)
    nodes = [n for n in range(tree.blocks // width) if set(oracle.node_blocks(tree, lod, n)) <= run]
    nodes = [n for n in nodes if oracle.node_is_free(tree, lod, n)]
    return any(
        fits(tree, counts[:-1], run - {b for n in chosen for b in oracle.node_blocks(tree, lod, n)})
        for chosen in combinations(nodes, counts[-1])
    )


THREE = oracle.Tree(window=33, block_size=2, levels=3, slots=1, tail=2, sink=1)


@SOME
@given(trees(max_window=40))
@example(THREE)  # a node of LOD3 fits at many positions of a run, another of LOD2 at fewer
def test_run_may_start_wherever_its_nodes_fit(tree):
    every = sorted(counts for of_length in oracle.mixes(tree).values() for counts in of_length if any(counts))
    for counts in random.Random(0).sample(every, min(40, len(every))):
        size = sum(n * tree.block_size**level for level, n in enumerate(counts))
        expected = [
            start + size <= tree.blocks
            and not any(oracle.is_protected(tree, b) for b in range(start, start + size))
            and fits(tree, counts, set(range(start, start + size)))
            for start in range(tree.blocks)
        ]
        assert run_starts(torch.tensor(counts), geometry_of(tree)).tolist() == expected
        assert any(expected)  # every mix that exists fits somewhere


# ---- single_span -----------------------------------------------------------------------------------
@SOME
@given(trees(), st.floats(0, 1), st.integers(0, 2**32), st.integers(2, 4))
def test_single_spans_differ_in_one_collapsed_node_each(tree, fraction, seed, count):
    found = propose("single_span", tree, some_length(tree, fraction), variant_seeds(seed, torch.arange(3), count))
    for of_sequence in found.tolist():
        nodes = [collapsed_nodes(tree, focus) for focus in of_sequence]
        shared = set.intersection(*nodes)
        assert all(len(of_variant - shared) <= 1 for of_variant in nodes)
        assert len({lod for of_variant in nodes for lod, _ in of_variant - shared}) <= 1


@SOME
@given(trees(max_levels=1), st.floats(0, 1), st.integers(0, 2**32), st.integers(1, 5))
def test_number_of_distinct_single_spans(tree, fraction, seed, count):
    length = some_length(tree, fraction)
    ((collapsed,),) = oracle.mixes(tree)[length]
    free = sum(not oracle.is_protected(tree, b) for b in range(tree.blocks))
    for of_sequence in propose("single_span", tree, length, variant_seeds(seed, torch.arange(3), count)).tolist():
        assert len({tuple(focus) for focus in of_sequence}) == min(count, free - collapsed + 1)


def test_single_spans_swap_nodes_of_every_level():
    # one LOD2 node and five gists, or ten gists, or two nodes of LOD2, of which one cannot always be swapped
    found = propose("single_span", DEEP, 64 - 30, variant_seeds(5, torch.arange(400), 2))
    swapped = Counter()
    for first, second in found.tolist():
        (node,) = collapsed_nodes(DEEP, first) - collapsed_nodes(DEEP, second)
        swapped[node[0]] += 1
    assert min(swapped[1], swapped[2]) > 40


def test_focus_without_spans_to_swap_is_drawn_again():
    # Only a focus that leaves six blocks for five gists has something to swap.
    seeds = variant_seeds(1, torch.arange(200), 2)

    def same(attempts):
        found = propose("single_span", DEEP, 64 - 45, seeds, attempts=attempts)
        return (found[:, 0] == found[:, 1]).all(dim=1).double().mean()

    assert same(1) > 0.1
    assert same(6) < same(1) / 4


# ---- lens_guided -----------------------------------------------------------------------------------
EXACT = {"temperature": 0.0, "random_fraction": 0.0}


@SOME
@given(trees(), st.floats(0, 1), st.integers(0, 2**32))
def test_lowest_scores_collapse_without_noise(tree, fraction, seed):
    """Level by level from the top: no node that stayed above it scores below one that collapsed."""
    scores = random_scores(3, tree, seed)
    seeds = variant_seeds(seed, torch.arange(3), 1)
    found = propose("lens_guided", tree, some_length(tree, fraction), seeds, scores, **EXACT)
    raw = [oracle.Entry(t, t + 1, 0, 0, 1) for t in range(tree.cursor)]
    for row, (focus,) in enumerate(found.tolist()):
        block_means = oracle.block_means(tree, raw, scores[row].tolist())
        for lod in range(1, tree.levels + 1):
            taken, left = [], []
            for node in range(tree.window // tree.block_size**lod):
                blocks = oracle.node_blocks(tree, lod, node)
                lods = {focus[b] for b in blocks}
                if oracle.node_is_free(tree, lod, node) and max(lods) <= lod:
                    (taken if lods == {lod} else left).append(oracle.mean([block_means[b] for b in blocks]))
            assert not taken or not left or max(taken) <= min(left) + 1e-6


def test_frequency_of_a_block_follows_score_and_temperature():
    """One block of nine: the softmax of -score / temperature, as with Gumbel noise."""
    scores = torch.linspace(-1, 1, TREE.cursor).expand(8000, -1)
    seeds = variant_seeds(8, torch.arange(8000), 1)
    found = propose("lens_guided", TREE, 48 - 3, seeds, scores, temperature=0.5, random_fraction=0.0)[:, 0]
    counts = Counter(found.argmax(dim=1).tolist())
    means = [scores[0, 4 * b : 4 * b + 4].mean().item() for b in range(1, 10)]
    weights = [math.exp(-mean / 0.5) for mean in means]
    expected = [8000 * weight / sum(weights) for weight in weights]
    chi_square = sum((counts[b + 1] - n) ** 2 / n for b, n in enumerate(expected))
    assert chi_square < 27  # 8 degrees of freedom: mean 8, standard deviation 4


def test_higher_temperature_reduces_agreement_with_the_scores():
    scores = random_scores(500, TREE)
    seeds = variant_seeds(8, torch.arange(500), 1)
    exact = propose("lens_guided", TREE, 36, seeds, scores, **EXACT)
    agreement = [
        (propose("lens_guided", TREE, 36, seeds, scores, temperature=t, random_fraction=0.0) == exact).double().mean()
        for t in (0.0, 0.05, 0.5, 50.0)
    ]
    assert agreement[0] == 1
    assert agreement == sorted(agreement, reverse=True)
    assert agreement[3] < 0.7  # random would agree on 0.63: 12 blocks, 3 protected, 4 of 9 collapsed


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_random_fraction_ignores_the_scores(fraction):
    seeds = variant_seeds(8, torch.arange(2000), 1)
    one = random_scores(2000, TREE, 1)
    options = {"temperature": 0.01, "random_fraction": fraction}
    found, other = (propose("lens_guided", TREE, 36, seeds, scores, **options) for scores in (one, -one))
    assert (found == other).all(dim=2).double().mean().item() == pytest.approx(fraction, abs=0.04)


def test_focus_depends_on_the_scores_of_its_sequence_without_a_gradient():
    scores = random_scores(6, TREE).requires_grad_()
    seeds = variant_seeds(3, torch.arange(6), 2)
    found = propose("lens_guided", TREE, 36, seeds, scores)
    assert not found.requires_grad
    other = scores.detach().clone()
    other[2] = -other[2]
    moved = (
        propose("lens_guided", TREE, 36, seeds, other, **EXACT)
        != propose("lens_guided", TREE, 36, seeds, scores, **EXACT)
    ).any(dim=2)
    assert moved[:, 0].tolist() == [False, False, True, False, False, False]
    assert not moved[[0, 1, 3, 4, 5]].any()


def test_variants_differ_without_temperature():
    scores = random_scores(100, TREE)
    found = propose("lens_guided", TREE, 36, variant_seeds(3, torch.arange(100), 2), scores, **EXACT)
    assert (found[:, 0] != found[:, 1]).any(dim=1).double().mean() > 0.95
