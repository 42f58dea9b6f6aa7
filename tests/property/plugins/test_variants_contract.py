"""First-party variant strategies: valid focuses of the right length, distinct, and equally likely."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
from mcframe.hookspecs import Sequences
from mcframe_plugins.variants import NoVariants
from tests.support import oracle
from tests.support.generators import SOME, geometry_of, trees
from tests.support.proposals import KINDS, propose

TREE = oracle.Tree(window=48, block_size=4, levels=1, slots=1, tail=5, sink=1)  # 9 free blocks
DEEP = oracle.Tree(window=64, block_size=4, levels=2, slots=1, tail=8, sink=0)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@SOME
@given(trees(), st.integers(0, 2**32), st.integers(1, 3))
def test_focuses_are_valid_and_of_the_requested_length(kind, tree, seed, count):
    lengths = sorted(oracle.mixes(tree))
    for length in {lengths[0], lengths[seed % len(lengths)], lengths[-1]}:
        for of_sequence in propose(kind, tree, length, variant_seeds(seed, torch.arange(3), count)).tolist():
            for focus in of_sequence:
                assert oracle.is_valid(tree, focus)
                assert len(oracle.build_context(tree, focus)) == length


@every_kind
def test_unreachable_length_is_an_error(kind):
    with pytest.raises(ValueError, match="exactly 41"):
        propose(kind, TREE, 41, torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(UserError, match=str(min(oracle.mixes(TREE)))):
        propose(kind, TREE, 3, torch.zeros(1, 1, dtype=torch.long))


@every_kind
def test_variants_of_a_sequence_are_distinct(kind):
    # 36 focuses (8 in one run): without drawing again, 3 variants would coincide in many of these sequences
    length = 48 - 2 * 3
    seeds = variant_seeds(2, torch.arange(300), 3)
    for of_sequence in propose(kind, TREE, length, seeds).tolist():
        assert len({tuple(focus) for focus in of_sequence}) == 3
    once = propose(kind, TREE, length, seeds, attempts=1).tolist()
    coincide = any(len({tuple(focus) for focus in of_sequence}) < 3 for of_sequence in once)
    assert coincide == (kind != "single_span")  # its variants differ by construction


@every_kind
def test_all_variants_are_equal_if_only_one_focus_exists(kind):
    for length in (min(oracle.mixes(TREE)), TREE.window):
        found = propose(kind, TREE, length, variant_seeds(0, torch.arange(4), 2))
        assert found.unique(dim=0).shape[0] == 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [("random_collapse", {}), ("aggressive", {}), ("single_span", {}), ("lens_guided", {"random_fraction": 1.0})],
)
@pytest.mark.parametrize("variant", [0, 1])
def test_all_sets_of_blocks_are_equally_likely(kind, options, variant):
    found = propose(kind, TREE, 48 - 2 * 3, variant_seeds(4, torch.arange(9000), 2), **options)
    counts = Counter(tuple(focus) for focus in found[:, variant].tolist())
    assert len(counts) == math.comb(9, 2)
    expected = 9000 / len(counts)
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 80  # 35 degrees of freedom: mean 35, standard deviation 8.4


@pytest.mark.parametrize("kind", ["random_collapse", "lens_guided", "contiguous", "single_span"])
def test_every_usable_level_occurs(kind):
    # 15 entries are saved by one LOD2 node or by five gists of LOD1
    found = propose(kind, DEEP, 64 - 15, variant_seeds(6, torch.arange(2000), 1))[:, 0]
    coarse = (found == 2).any(dim=1)
    assert 0.4 < coarse.double().mean() < 0.6
    assert ((found == 1).sum(dim=1)[~coarse] == 5).all()
    nodes = Counter((row == 2).nonzero()[0].item() // 4 for row in found[coarse])
    assert sorted(nodes) == [0, 1, 2]  # the fourth would reach into the tail
    if kind != "lens_guided":  # its scores favour some
        assert min(nodes.values()) > 0.8 * max(nodes.values())
    # 64 - 30: none, one or two LOD2 nodes
    mixed = propose(kind, DEEP, 64 - 30, variant_seeds(7, torch.arange(2000), 1))[:, 0]
    assert Counter(((mixed == 2).sum(dim=1) // 4).tolist()).keys() == {0, 1, 2}


def test_no_variants():
    tree = geometry_of(TREE)
    strategy = NoVariants(tree)
    assert strategy.count == 0
    sequences = Sequences(torch.zeros(3, TREE.window, dtype=torch.long), tree)
    focus = strategy.propose(sequences, None, TREE.window, torch.zeros(3, 0, dtype=torch.long))
    assert focus.shape == (3, 0, TREE.blocks)
