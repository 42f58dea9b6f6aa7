"""Previews of working contexts, for strategies that need scores."""

import torch

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import BaseShape, ModelShape, VariantStrategy
from mcframe.modeling.gpt import GPT
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.rope import GaussianRope
from mcframe.training.sampling import focuses
from mcframe_plugins.allocator.greedy import GreedyAllocator
from mcframe_plugins.gistnet.mean import MeanGistNet
from mcframe_plugins.lensnet.recency import RecencyLensNet
from mcframe_plugins.variants.random_collapse import RandomCollapse

GEOMETRY = ContextTree(32, 4, 1, 1, 8)


class Guided(VariantStrategy):
    """Requires LensNet's scores."""

    count = 2
    needs_scores = True

    def __init__(self, tree):
        self.random = RandomCollapse(tree)
        self.shapes = []

    def propose(self, sequences, scores, length, seeds):
        assert scores is not None
        self.shapes.append(tuple(scores.shape))
        return self.random.propose(sequences, None, length, seeds)


def test_a_strategy_that_needs_scores_gets_them():
    strategy, shape = Guided(GEOMETRY), ModelShape(16, GEOMETRY)
    gpt = GPT(BaseShape(GEOMETRY, 20, GaussianRope), depth=1, width=16, heads=2)
    model = MegaContextModel(gpt, MeanGistNet(shape), RecencyLensNet(shape), strategy, GEOMETRY)
    windows = torch.randint(20, (3, 33))
    cpu = torch.device("cpu")
    chosen, proposed, rounds = focuses(model, GreedyAllocator(GEOMETRY), windows, 24, 0, 2, cpu)
    assert strategy.shapes == [(1, 24)]
    assert (tuple(chosen.shape), tuple(proposed.shape)) == ((3, 8), (1, 8))
    assert all(row.sum() == 3 for row in (*chosen, *proposed))  # 32 - 3 * 3 = 23 entries
    assert rounds >= 1
    for batch in (1, 3):  # independent of the batch size
        again = focuses(model, GreedyAllocator(GEOMETRY), windows, 24, 0, batch, cpu)
        assert torch.equal(again[0], chosen)
        assert (torch.equal(again[1], proposed), again[2]) == (True, rounds)
