"""Calls of first-party allocators for tests."""

from dataclasses import replace
from functools import partial

import torch

from mcframe.context.working_context import build_context
from mcframe_plugins import allocator as allocators
from mcframe_plugins.folder import plugins_in
from tests.support import oracle
from tests.support.generators import focus_tensor, geometry_of

KINDS = {
    **plugins_in(allocators.__name__, allocators.__path__),
    "greedy, level by level": partial(allocators.GreedyAllocator, keep_expanded=False),
}
"""Every allocator of mcframe with its defaults, and greedy in another form."""


def allocate(allocator, tree, focuses, scores, budget, age=None, seeds=None):
    """Return the next focuses as lists; scores [R, T] by the first token of an entry."""
    context = replace(build_context(focus_tensor(focuses), geometry_of(tree)), age=age).before_cursor()
    of_entries = scores.gather(1, context.token)
    seeds = torch.arange(len(focuses)) if seeds is None else seeds
    found = allocator.allocate(of_entries, context, budget, seeds)
    assert found.dtype == torch.long
    assert torch.equal(found, allocator.allocate(of_entries, context, budget, seeds))
    return found.tolist()


TREE = oracle.Tree(window=44, block_size=3, levels=2, slots=1, tail=8, sink=0)  # 14 blocks, 12 of them free


def by_block(values):
    """Return scores [1, T] of `TREE` from a mapping of blocks to values; 0 elsewhere."""
    scores = torch.zeros(1, TREE.window)
    for block, value in values.items():
        scores[0, 3 * block : 3 * block + 3] = value
    return scores


def random_scores(tree, rows, seed):
    return torch.rand(rows, tree.window, generator=torch.Generator().manual_seed(seed)) * 2 - 1
