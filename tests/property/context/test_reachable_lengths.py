import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
@given(trees(max_window=60))
def test_usable_levels_are_the_most_nodes_of_any_mix(tree):
    tree, known = geometry_of(tree), oracle.mixes(tree)
    lengths = sorted(known)
    for low, high in {(lengths[0], lengths[-1]), (lengths[-1] // 2 + lengths[0] // 2 + 1, lengths[-1] - 1)}:
        if low > high:
            continue
        reached = [max(length for length in lengths if length <= target) for target in range(low, high + 1)]
        mixes = [mix for length in reached for mix in known[length]]
        most = {lod: max(mix[lod - 1] for mix in mixes) for lod in range(1, tree.levels + 1)}
        assert tree.usable_levels(low, high) == most


@MANY
@given(trees(max_window=60), st.integers(1, 5))
def test_of_many_mixes_some_are_drawn(tree, limit):
    tree, known = geometry_of(tree), oracle.mixes(tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mcframe.context.level_mixes.MOST_MIXES", limit)
        for length, mixes in known.items():
            found = tree.level_mixes.mixes(tree.window - length)
            assert set(found) <= mixes
            assert len(found) == len(mixes) if len(mixes) <= limit else 1 <= len(found) <= limit
            assert found[-1] == max(mixes, key=lambda mix: mix[::-1])


def test_a_million_tokens_and_five_levels_take_less_than_a_second():
    tree = ContextTree(1_000_000, 8, levels=5, tail=128)
    before = time.process_time()
    low, high = tree.minimum_length, 900_000
    assert tree.usable_levels(low, high).keys() == {1, 2, 3, 4, 5}
    for target in (low, high):
        length, mixes = tree.reachable(target)
        assert all(tree.length(mix) == length for mix in mixes)
    assert len(mixes) > 100
    assert time.process_time() - before < 1.0


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
