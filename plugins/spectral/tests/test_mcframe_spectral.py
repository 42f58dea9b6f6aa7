"""Tests of the two plug-ins beyond the requirements of their kinds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape, Sequences
from torch import Tensor

from mcframe_spectral import SpectralGistNet, StridedVariants, cosines

TREE = ContextTree(window=132, block_size=4, tail=4)  # 32 compressible blocks
SHAPE = ModelShape(width=16, tree=TREE)


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.data())
def test_coefficients_are_those_of_the_definition(signal: list[float], data: st.DataObject) -> None:
    count, frequencies = len(signal), data.draw(st.integers(1, len(signal)))
    expected = [
        math.sqrt((1 if f == 0 else 2) / count)
        * sum(x * math.cos(math.pi * f * (n + 0.5) / count) for n, x in enumerate(signal))
        for f in range(frequencies)
    ]
    values = torch.tensor(signal, dtype=torch.float64)
    found = cosines(count, frequencies, values) @ values
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_order_counts_from_the_second_frequency_on() -> None:
    children = torch.randn(2, 33, 4, 16)
    for frequencies, reads_order in ((1, False), (2, True)):
        gistnet = SpectralGistNet(SHAPE, frequencies=frequencies)
        same = torch.allclose(gistnet(children, 1), gistnet(children.flip(2), 1), atol=1e-5)
        assert same is not reads_order


def test_more_frequencies_than_children_are_rejected() -> None:
    with pytest.raises(UserError, match=r"gistnet\.spectral\.frequencies: expected 1 to 4, got 5"):
        SpectralGistNet(SHAPE, frequencies=5)


def collapsed(nodes: int, count: int) -> Tensor:
    """Return the blocks that variants of 200 sequences collapse to save `nodes` nodes: bool [200, count, 32]."""
    seeds = variant_seeds(0, torch.arange(200), count)
    sequences = Sequences(torch.zeros(200, TREE.window, dtype=torch.long), TREE)
    length = TREE.window - nodes * TREE.saving(1)
    return StridedVariants(TREE, count=count).propose(sequences, None, length, seeds)[..., :32] > 0


@pytest.mark.parametrize("nodes", [4, 8, 13])
def test_collapsed_blocks_are_spread_over_the_window(nodes: int) -> None:
    """By the three-gap theorem no gap between neighbours is longer than about 2.6 times the mean."""
    for chosen in collapsed(nodes, 1)[:, 0]:
        positions = chosen.nonzero().flatten()
        assert len(positions) == nodes
        gaps = torch.cat((positions, torch.tensor([32]))).diff()
        assert gaps.max() <= 3.0 * 32 / nodes


def test_variants_of_a_sequence_collapse_different_blocks() -> None:
    both = collapsed(8, 2)
    overlap = (both[:, 0] & both[:, 1]).sum(dim=-1).double().mean()
    assert overlap < 0.5  # of 8; random variants have 2 in common


def test_every_block_is_collapsed_by_some_variant() -> None:
    fraction = collapsed(8, 2).double().mean(dim=(0, 1))
    assert fraction.min() > 0.15
    assert fraction.max() < 0.35
