"""Allocators: maps of scores and a budget to the next focus."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.allocator.greedy import GreedyAllocator
from mcframe_plugins.allocator.hierarchical import HierarchicalAllocator
from mcframe_plugins.allocator.random import RandomAllocator
from mcframe_plugins.allocator.recency import RecencyAllocator
from mcframe_plugins.allocator.stochastic_greedy import StochasticGreedyAllocator
from mcframe_plugins.allocator.topk import TopKAllocator

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the allocators of this folder."""
    register("greedy", GreedyAllocator)
    register("hierarchical", HierarchicalAllocator)
    register("random", RandomAllocator)
    register("recency", RecencyAllocator)
    register("stochastic_greedy", StochasticGreedyAllocator)
    register("topk", TopKAllocator)
