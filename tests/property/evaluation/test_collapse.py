"""Focuses that evaluations impose, against plain Python."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.errors import UserError
from mcframe.evaluation.collapse import (
    collapse_as_many,
    collapse_lowest,
    entries,
    nodes_to_collapse,
    random_focus,
    shuffle_nodes,
)
from tests.support import oracle
from tests.support.generators import MANY, focus_tensor, focused_trees, geometry_of, trees


@MANY
@given(trees(), st.integers(0, 2**20), st.data())
def test_the_lowest_are_collapsed(tree, seed, data):
    rng = random.Random(seed)
    lod = data.draw(st.integers(1, tree.levels))
    nodes = tree.window // tree.block_size**lod
    free = [node for node in range(nodes) if oracle.node_is_free(tree, lod, node)]
    count = data.draw(st.integers(0, len(free)))
    values = [[float(rng.randrange(4)) for _ in range(nodes)] for _ in range(2)]
    found = collapse_lowest(torch.tensor(values).view(2, nodes), geometry_of(tree), lod, count)
    for row in range(2):
        expected = [0] * tree.blocks
        for node in sorted(free, key=lambda node, row=row: (values[row][node], node))[:count]:
            for block in oracle.node_blocks(tree, lod, node):
                expected[block] = lod
        assert found[row].tolist() == expected


@MANY
@given(trees(max_levels=1), st.floats(0.05, 1.0))
def test_the_number_of_nodes_reaches_the_target_length(tree, fraction):
    tree = geometry_of(tree)
    target = entries(tree, fraction)
    count = nodes_to_collapse(tree, 1, target)
    try:
        length, mixes = tree.reachable(target)
    except UserError:
        assert count > tree.compressible_nodes(1)
        return
    assert mixes == ((count,),)
    assert length == tree.window - count * (tree.block_size - tree.slots)


def test_random_focuses_are_valid_and_equally_likely():
    tree = geometry_of(oracle.Tree(window=24, block_size=4, levels=2, slots=1, tail=4, sink=0))
    focus = random_focus(variant_seeds(0, torch.arange(3000), 1)[:, 0], tree, 1, 2)
    assert bool(is_valid(focus, tree).all())
    assert set(lengths(focus, tree).tolist()) == {24 - 2 * 3}
    counts = torch.unique(focus, dim=0, return_counts=True)[1]
    assert len(counts) == 10  # two of five free blocks
    assert 230 < counts.min() <= counts.max() < 370


def test_entries_are_exact_despite_rounding():
    tree = geometry_of(oracle.Tree(window=100, block_size=4, levels=1, slots=1, tail=4, sink=0))
    assert entries(tree, 0.29) == 29  # 0.29 * 100 is 28.999999999999996


def nodes_of(tree, focus, lod):
    """Return the nodes that a focus collapses to a level."""
    nodes = range(tree.window // tree.block_size**lod)
    return [n for n in nodes if all(focus[b] == lod for b in oracle.node_blocks(tree, lod, n))]


@MANY
@given(focused_trees(), st.integers(0, 2**20))
def test_as_many_nodes_of_each_level_are_collapsed_where_values_are_lowest(drawn, seed):
    tree, focuses = drawn
    values = torch.rand(len(focuses), tree.blocks, generator=torch.Generator().manual_seed(seed))
    found = collapse_as_many(values, focus_tensor(focuses), geometry_of(tree))
    for row, focus in enumerate(focuses):
        expected = [0] * tree.blocks
        for lod in range(tree.levels, 0, -1):
            free = [
                node for node in range(tree.window // tree.block_size**lod)
                if oracle.node_is_free(tree, lod, node)
                and not any(expected[block] for block in oracle.node_blocks(tree, lod, node))
            ]  # fmt: skip
            value = {n: oracle.mean([values[row, b].item() for b in oracle.node_blocks(tree, lod, n)]) for n in free}
            for node in sorted(free, key=value.get)[: len(nodes_of(tree, focus, lod))]:
                for block in oracle.node_blocks(tree, lod, node):
                    expected[block] = lod
        assert found[row].tolist() == expected


@MANY
@given(focused_trees(), st.integers(0, 2**20))
def test_shuffled_focuses_have_the_same_nodes(drawn, seed):
    tree, focuses = drawn
    seeds = variant_seeds(seed, torch.arange(len(focuses)), 3)
    found = shuffle_nodes(focus_tensor(focuses), seeds, geometry_of(tree))
    assert bool(is_valid(found.flatten(0, 1), geometry_of(tree)).all())
    for focus, several in zip(focuses, found.tolist(), strict=True):
        for other in several:
            for lod in range(1, tree.levels + 1):
                assert len(nodes_of(tree, other, lod)) == len(nodes_of(tree, focus, lod))


def test_nodes_are_shuffled_with_what_they_contain():
    """Block 0 is protected, so that blocks 1 and 2 are in no node of LOD2 that may be collapsed, as is block 9."""
    tree = geometry_of(oracle.Tree(window=33, block_size=3, levels=2, slots=1, tail=3, sink=1))
    focus = torch.tensor([[0, 1, 0, 2, 2, 2, 1, 0, 1, 0, 0]])
    found = shuffle_nodes(focus.expand(6000, -1), variant_seeds(0, torch.arange(6000), 1), tree)[:, 0]
    outside, inside = torch.unique(found[:, [1, 2, 9]], dim=0), torch.unique(found[:, 3:9], dim=0, return_counts=True)
    assert outside.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    raw = [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    assert sorted(inside[0].tolist()) == sorted([[*pair, 2, 2, 2] for pair in raw] + [[2, 2, 2, *pair] for pair in raw])
    assert 880 < inside[1].min() <= inside[1].max() < 1120
    assert bool((found[:, [0, 10]] == 0).all())


@MANY
@given(trees(max_levels=1), st.integers(0, 2**20))
def test_at_one_level_a_shuffled_focus_is_a_random_one(tree, seed):
    tree, seeds = geometry_of(tree), variant_seeds(seed, torch.arange(2), 3)
    count = tree.compressible_nodes(1) // 2
    focus = collapse_lowest(torch.arange(float(tree.blocks)).expand(2, -1), tree, 1, count)
    assert torch.equal(shuffle_nodes(focus, seeds, tree), random_focus(seeds, tree, 1, count))
