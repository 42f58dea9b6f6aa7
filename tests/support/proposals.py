"""Calls of first-party variant strategies for tests."""

import torch

from mcframe.hookspecs import Sequences
from mcframe_plugins.variants import Aggressive, Contiguous, LensGuided, RandomCollapse, SingleSpan
from tests.support.generators import geometry_of

KINDS = {
    "aggressive": Aggressive,
    "contiguous": Contiguous,
    "lens_guided": LensGuided,
    "random_collapse": RandomCollapse,
    "single_span": SingleSpan,
}


def random_scores(rows, tree, seed=0):
    return torch.rand(rows, tree.cursor, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def propose(kind, tree, length, seeds, scores=None, **options):
    """Return focuses [B, V, blocks] for seeds [B, V]. Default of the scores, if they are needed: random ones."""
    tree = geometry_of(tree)
    strategy = KINDS[kind](tree, count=seeds.shape[1], **options)
    assert strategy.needs_scores == (kind == "lens_guided")
    if scores is None and strategy.needs_scores:
        scores = random_scores(len(seeds), tree)
    tokens = torch.zeros(len(seeds), tree.window, dtype=torch.long)
    focus = strategy.propose(Sequences(tokens, tree), scores, length, seeds)
    assert focus.shape == (*seeds.shape, tree.blocks)
    assert focus.dtype == torch.long
    return focus
