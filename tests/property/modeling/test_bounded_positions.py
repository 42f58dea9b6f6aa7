"""Bounded positions against slow scalar formulas, entry by entry."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import build_context, raw_context
from mcframe.hookspecs import HeadShape
from mcframe.modeling.bounded_positions import ClampedPositions, EntryPositions, LogarithmicPositions
from mcframe.modeling.rope import GaussianRope
from tests.support.generators import SOME, focus_tensor, focused_trees, geometry_of

BASE, WIDTH = 30.0, 6
CONTEXTS = focused_trees(max_rows=2, max_window=60).map(
    lambda case: build_context(focus_tensor(case[1]), geometry_of(case[0]))
)
BOUNDED = {LogarithmicPositions: "near", ClampedPositions: "limit"}


def expected(kind, bound, context, row, column):
    """Return position and spread of an entry, counted from the cursor, in plain arithmetic."""
    tree, token, lod = context.tree, int(context.token[row, column]), int(context.lod[row, column])
    span = tree.block_size**lod
    width = span / (tree.slots if lod else 1)
    mean = token // span * span + token % span * width + (width - 1) / 2
    block = math.floor(mean / tree.block_size) * tree.block_size
    distance, slope = tree.cursor - block, 1.0
    if distance > bound:
        slope = bound / distance if kind is LogarithmicPositions else 0.0
        distance = bound * (1 + math.log(distance / bound)) if kind is LogarithmicPositions else bound
    return mean - block - distance, slope * math.sqrt(max(0.0, width**2 - 1) / 12)


@pytest.mark.parametrize("kind", BOUNDED)
@SOME
@given(CONTEXTS, st.sampled_from([1.0, 5.0, 17.5, 4096.0]))
def test_distances_are_the_scalar_formula(kind, context, bound):
    cosine, sine = kind(HeadShape(2, WIDTH, context.tree), base=BASE, **{BOUNDED[kind]: bound})(context)
    assert cosine.dtype == sine.dtype == torch.float32
    for row, column in context.valid.nonzero().tolist():
        mu, sigma = expected(kind, bound, context, row, column)
        for pair in range(WIDTH // 2):
            frequency = BASE ** (-2 * pair / WIDTH)
            damping = math.exp(-((sigma * frequency) ** 2) / 2)
            assert cosine[row, 0, column, pair].item() == pytest.approx(math.cos(frequency * mu) * damping, abs=1e-4)
            assert sine[row, 0, column, pair].item() == pytest.approx(math.sin(frequency * mu) * damping, abs=1e-4)


@SOME
@given(CONTEXTS)
def test_entry_positions_are_indices(context):
    factors = EntryPositions(HeadShape(2, WIDTH, context.tree), base=BASE)(context)
    angle = torch.arange(context.length)[:, None] * BASE ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    for factor, of_angle in zip(factors, (angle.cos(), angle.sin()), strict=True):
        torch.testing.assert_close(factor, of_angle.expand_as(factor))


@pytest.mark.parametrize("kind", BOUNDED)
def test_within_the_bound_attention_is_that_of_gaussian_rope(kind):
    """Products of rotations depend on distances alone, and those are equal."""
    tree = ContextTree(32, 4, levels=1, tail=4)
    focus = torch.tensor([[0, 1, 0, 1, 0, 0, 0, 0]])
    context, shape = build_context(focus, tree, 26), HeadShape(2, WIDTH, tree)
    bounded, plain = kind(shape, base=BASE, **{BOUNDED[kind]: 64.0})(context), GaussianRope(shape, base=BASE)(context)
    for one, other in zip(products(*bounded), products(*plain), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def products(cosine, sine):
    """Return the real and imaginary parts of all products of a rotation with another one's inverse."""
    rotation = torch.complex(cosine, sine)[0, 0]
    product = rotation[:, None] * rotation[None].conj()
    return product.real, product.imag


@pytest.mark.parametrize("kind", BOUNDED)
def test_positions_at_a_distance_of_a_billion_tokens(kind):
    """The order within a far block stays exact, where absolute positions in float32 would be 64 apart."""
    block = 8
    near = raw_context(ContextTree(64, block, tail=0), 1, torch.device("cpu"))
    far = 10**9
    tree = ContextTree(far, block, tail=0)
    moved = near.__class__(tree, near.focus, near.token, near.lod, near.valid, padded=False)
    cosine, sine = kind(HeadShape(1, WIDTH, tree), base=BASE, **{BOUNDED[kind]: 100.0})(moved)
    inside = products(cosine[:, :, :block], sine[:, :, :block])
    offsets = torch.arange(block)[:, None] - torch.arange(block)
    angle = offsets[..., None] * BASE ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    torch.testing.assert_close(inside[0], angle.cos(), atol=1e-3, rtol=0)
    torch.testing.assert_close(inside[1], angle.sin(), atol=1e-3, rtol=0)
    largest = {LogarithmicPositions: 100 * (1 + math.log(far / 100)), ClampedPositions: 100}[kind]
    assert largest < 1800
