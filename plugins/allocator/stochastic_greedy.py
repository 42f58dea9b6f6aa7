"""Greedy allocator with random choices.

With a deterministic choice, a block whose score is slightly too low is collapsed in every round and every context.
"""

from __future__ import annotations

from torch import Tensor

from mcframe.bounds import AnyNumber, NonNegative, NonNegativeInt, Repeats
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import gumbel, hash_combine, random_keys
from mcframe_plugins.allocator.greedy import GreedyAllocator

_NOISE = 1 << 35
"""Salt of the noise, different from those of variant strategies."""


class StochasticGreedyAllocator(GreedyAllocator):
    """`greedy` whose choices are drawn in proportion to exp(score / temperature), reproducibly from the seeds.

    Thresholds and the budget decide how many nodes, from the scores themselves; the draw decides which. A draw depends
    on the row's seed alone and is the same in every round, so that rounds settle.

    Source:
        Nexus Sampling (arXiv 2606.23961, 2026): weighted sampling instead of top-k; Gumbel top-k (Kool et al., 2019).

    Args:
        temperature: Scale of the Gumbel noise on scores in [-1, 1]; 0 = `greedy`.
        expand_threshold, collapse_threshold, replacements, iterations, cooldown, protected_tail: As in `greedy`.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        temperature: NonNegative = 0.25,
        expand_threshold: AnyNumber = 0.0,
        collapse_threshold: AnyNumber = 1.0,
        replacements: NonNegativeInt | None = None,
        iterations: Repeats = 2,
        cooldown: NonNegativeInt = 0,
        protected_tail: NonNegativeInt = 0,
    ) -> None:
        super().__init__(
            tree,
            keep_expanded=temperature == 0,  # otherwise chance decides, not the side of the threshold
            expand_threshold=expand_threshold,
            collapse_threshold=collapse_threshold,
            replacements=replacements,
            iterations=iterations,
            cooldown=cooldown,
            protected_tail=protected_tail,
        )
        self.temperature, self.follows_scores = temperature, temperature == 0

    def noise(self, seeds: Tensor, nodes: int, lod: int) -> Tensor | float:
        """Return Gumbel noise [R, nodes] of a level; LOD 0 stands for expansion."""
        return self.temperature * gumbel(random_keys(hash_combine(seeds, _NOISE + lod), nodes))
