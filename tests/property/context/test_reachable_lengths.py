import time
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context import reachable_lengths
from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import compressible_nodes
from mcframe.context.working_context import build_context
from mcframe.errors import UserError
from tests.support import oracle
from tests.support.generators import MANY, geometry_of, trees


@MANY
@given(trees(max_window=60), st.integers(-2, 2))
def test_the_largest_reachable_length_and_all_its_mixes(tree, beyond):
    tree, known = geometry_of(tree), oracle.mixes(tree)
    shortest = min(known)
    assert tree.minimum_length == shortest
    for target in range(max(0, shortest - 3), tree.window + 3 + beyond):
        fitting = [length for length in known if length <= target]
        if not fitting:
            with pytest.raises(UserError, match=rf"\b{shortest}\b"):
                tree.reachable(target)
            continue
        length, found = tree.reachable(target)
        assert length == max(fitting)
        assert len(found) == len(set(found))
        assert set(found) == known[length]


@MANY
@given(trees(max_window=60), st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_usable_levels_are_the_most_nodes_of_any_mix(tree, fractions):
    tree, known = geometry_of(tree), oracle.mixes(tree)
    shortest = min(known)
    low, high = (shortest + round(fraction * (tree.window - shortest)) for fraction in fractions)
    reached = {max(length for length in known if length <= target) for target in range(low, high + 1)}
    within = [mix for length in reached for mix in known[length]]
    assert tree.usable_levels(low, high) == {lod: max(m[lod - 1] for m in within) for lod in range(1, tree.levels + 1)}


@MANY
@given(trees(max_window=60), st.integers(1, 12))
def test_an_even_choice_of_mixes_has_the_length(tree, limit):
    tree, known = geometry_of(tree), oracle.mixes(tree)
    with patch.object(reachable_lengths, "MOST_MIXES", limit):
        for length, every in known.items():
            chosen = reachable_lengths.mixes(tree, tree.window - length)
            assert chosen
            assert set(chosen) <= every
            assert len(chosen) == len(set(chosen))


def test_large_trees_take_no_time():
    tree = ContextTree(1_000_000, 8, levels=5, slots=1, tail=128)
    started = time.process_time()
    assert tree.reachable_length(750_000) == 749_995
    assert tree.usable_levels(750_000, 900_000)[5] == 7
    assert 1 <= len(tree.reachable(750_000)[1]) <= reachable_lengths.MOST_MIXES
    assert time.process_time() - started < 1


@MANY
@given(trees())
def test_nodes_offsets_and_protection(tree):
    tree, rows = geometry_of(tree), oracle.table_rows(tree)
    for lod in range(1, tree.levels + 1):
        nodes = tree.window // tree.block_size**lod
        assert tree.nodes(lod) == nodes
        if nodes:
            assert tree.offset(lod) == rows[lod, 0, 0]
        free = [oracle.node_is_free(tree, lod, node) for node in range(nodes)]
        assert list(tree.compressible[lod - 1]) == free
        assert tree.compressible_nodes(lod) == sum(free)
        assert compressible_nodes(tree, lod, torch.device("cpu")).tolist() == free


def test_the_first_variants_of_run10_have_1831_entries_with_7_gists():
    tree = ContextTree(2048, 32, levels=1, slots=1, tail=128)
    target = int(0.9 * 2048)
    assert target == 1843
    assert tree.reachable(target) == (1831, ((7,),))
    focus = torch.zeros(1, 64, dtype=torch.long)
    focus[0, [1, 5, 6, 20, 33, 50, 59]] = 1
    context = build_context(focus, tree, 1831)
    assert int((context.lod == 1).sum()) == 7
    assert int(context.valid.sum()) == 1831
    assert int(context.predicts.sum()) == 1831


def test_33_gists_of_lod1_save_what_one_of_lod2_saves():
    tree = ContextTree(4096, 32, levels=2, tail=128)
    assert tree.reachable(4096 - 1023) == (4096 - 1023, ((33, 0), (0, 1)))


def test_an_impossible_target_names_the_minimum():
    tree = ContextTree(2048, 32, tail=128)
    shortest = 2048 - 60 * 31
    assert tree.minimum_length == shortest
    assert tree.reachable(shortest)[0] == shortest
    with pytest.raises(UserError, match=str(shortest)):
        tree.reachable(shortest - 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"block_size": 1}, "block_size"),
        ({"window": 7}, "window"),
        ({"slots": 0}, "slots"),
        ({"slots": 8}, "slots"),
        ({"levels": 0}, "levels"),
        ({"tail": -1}, "tail"),
        ({"tail": 65}, "tail"),
        ({"sink": -1}, "sink"),
    ],
)
def test_an_impossible_tree_is_refused(change, named):
    with pytest.raises(UserError, match=named):
        ContextTree(**{"window": 64, "block_size": 8, "tail": 8} | change)
