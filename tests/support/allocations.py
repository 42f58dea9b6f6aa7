"""Calls of first-party allocators for tests."""

from dataclasses import replace
from functools import partial

import torch

from mcframe.context.working_context import build_context
from mcframe_plugins.allocator import (
    GreedyAllocator,
    HierarchicalAllocator,
    RandomAllocator,
    RecencyAllocator,
    StochasticGreedyAllocator,
    SwapAllocator,
    TopKAllocator,
)
from tests.support.generators import focus_tensor, geometry_of

KINDS = {
    "greedy": GreedyAllocator,
    "greedy, level by level": partial(GreedyAllocator, keep_expanded=False),
    "hierarchical": HierarchicalAllocator,
    "random": RandomAllocator,
    "recency": RecencyAllocator,
    "stochastic_greedy": StochasticGreedyAllocator,
    "swap": SwapAllocator,
    "topk": TopKAllocator,
}


def allocate(allocator, tree, focuses, scores, budget, age=None, seeds=None):
    """Return the next focuses as lists; scores [R, T] by the first token of an entry."""
    context = replace(build_context(focus_tensor(focuses), geometry_of(tree)), age=age).before_cursor()
    of_entries = scores.gather(1, context.token)
    seeds = torch.arange(len(focuses)) if seeds is None else seeds
    found = allocator.allocate(of_entries, context, budget, seeds)
    assert found.dtype == torch.long
    assert torch.equal(found, allocator.allocate(of_entries, context, budget, seeds))
    return found.tolist()


def random_scores(tree, rows, seed):
    return torch.rand(rows, tree.window, generator=torch.Generator().manual_seed(seed)) * 2 - 1
