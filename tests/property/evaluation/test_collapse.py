"""Focuses that evaluations impose, against plain Python."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.errors import UserError
from mcframe.evaluation.collapse import collapse_lowest, entries, nodes_to_collapse, random_focus
from tests.support import oracle
from tests.support.generators import MANY, geometry_of, trees


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
