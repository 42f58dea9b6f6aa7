"""Greedy whose choices are drawn: what asks least for its place is the likeliest to lose it, not certain to.

A score that is slightly too low would otherwise lose a block its place in every round and every context. Nexus Sampling
(arXiv 2606.23961, 2026) replaces the deterministic top-k of cache eviction by weighted sampling without replacement for
this reason. Here it is drawn by Gumbel noise (Kool et al., Stochastic Beams and Where to Find Them, 2019).
"""

from __future__ import annotations

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import gumbel, hash_combine, random_keys
from mcframe.errors import UserError
from mcframe_plugins.allocator.greedy import GreedyAllocator

_NOISE = 1 << 35
"""Salt of the noise, apart from those of variant strategies."""


class StochasticGreedyAllocator(GreedyAllocator):
    """`greedy`, with which nodes are collapsed or expanded drawn in proportion to exp(score / temperature).

    temperature  scale of the Gumbel noise against scores in [-1, 1]; 0 = greedy
    expand_threshold, collapse_threshold, replacements, iterations, cooldown, protected_tail: as in `greedy`

    Thresholds and the budget say how many, from the scores as they are; the draw says which. It is a function of the
    row's seed, the same in every round, so that rounds settle.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        temperature: float = 0.25,
        expand_threshold: float = 0.0,
        collapse_threshold: float = 1.0,
        replacements: int | None = None,
        iterations: int = 2,
        cooldown: int = 0,
        protected_tail: int = 0,
    ) -> None:
        super().__init__(
            tree,
            expand_threshold=expand_threshold,
            collapse_threshold=collapse_threshold,
            replacements=replacements,
            iterations=iterations,
            cooldown=cooldown,
            protected_tail=protected_tail,
        )
        if temperature < 0:
            raise UserError(
                f"allocator.stochastic_greedy.temperature is {temperature}; it cannot be negative",
                binding="allocator.stochastic_greedy.temperature",
                remedy="set it to 0 to follow the scores exactly, or above",
            )
        self.temperature, self.follows_scores = temperature, temperature == 0

    def noise(self, seeds: Tensor, nodes: int, lod: int) -> Tensor | float:
        """Gumbel noise [R, nodes] of a level; LOD 0 stands for expansion."""
        return self.temperature * gumbel(random_keys(hash_combine(seeds, _NOISE + lod), nodes))
