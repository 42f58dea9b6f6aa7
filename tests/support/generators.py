"""Random trees and random valid focuses for hypothesis, and the bridge from the oracle's types to tensors."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import PairedNLL, pair_nll
from mcframe.context.working_context import build_context
from tests.support import oracle
from tests.support.oracle import Focus, Tree, random_focus

MANY = settings(max_examples=30, deadline=None, derandomize=True)
SOME = settings(max_examples=20, deadline=None, derandomize=True)


def geometry_of(tree: Tree) -> ContextTree:
    return ContextTree(tree.window, tree.block_size, tree.levels, tree.slots, tree.tail, tree.sink, tree.horizon)


def focus_tensor(focuses: Sequence[Focus]) -> torch.Tensor:
    return torch.tensor(focuses, dtype=torch.long).view(len(focuses), -1)


@st.composite
def trees(draw, max_window: int = 90, max_levels: int = 3) -> Tree:
    """T need not be a multiple of K; the top level need not fit."""
    block_size = draw(st.integers(2, 5))
    window = draw(st.integers(block_size, max_window))
    tail = draw(st.one_of(st.integers(0, min(window, 8)), st.integers(0, window)))
    return Tree(
        window=window,
        block_size=block_size,
        levels=draw(st.integers(1, max_levels)),
        slots=draw(st.integers(1, block_size - 1)),
        tail=tail,
        sink=draw(st.integers(0, 2)),
        horizon=draw(st.sampled_from((0, 1, 3, 2 * block_size, window))),
    )


@st.composite
def focused_trees(draw, max_rows: int = 4, max_window: int = 90) -> tuple[Tree, list[list[int]]]:
    """A tree and one or more valid focuses of it, from nothing compressed to everything."""
    tree = draw(trees(max_window=max_window))
    rng = random.Random(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(1, max_rows))
    return tree, [random_focus(tree, rng, rng.choice((0.0, 0.2, 0.5, 0.8, 1.0))) for _ in range(rows)]


def random_pairs(tree: oracle.Tree, focuses: list[list[int]], variants: int, seed: int) -> tuple[PairedNLL, list]:
    """Return random losses of focuses, `variants` a sequence, paired by the code and by the oracle."""
    generator = torch.Generator().manual_seed(seed)
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    baseline = torch.rand(len(focuses) // variants, tree.window, generator=generator)
    nll = torch.rand(len(focuses), context.length, generator=generator) * 2
    rows = []
    for row, focus in enumerate(focuses):
        entries = oracle.build_context(tree, focus)
        losses = nll[row, : len(entries)].tolist()
        rows.append((entries, oracle.pair_nll(entries, losses, baseline[row // variants].tolist())))
    return pair_nll(context, nll, baseline), rows


def several(case: tuple, variants: int) -> tuple[oracle.Tree, list[list[int]]]:
    tree, focuses = case
    """Return the case with `variants` different focuses of each sequence next to each other."""
    return tree, [focuses[(i + j) % len(focuses)] for i in range(len(focuses)) for j in range(variants)]
