"""Interfaces of the allocator and of the strategy that proposes variants for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext


class Allocator(ABC):
    """Turn scores and a budget into the next working context. Factory: `factory(tree)`.

    An allocator that never compresses; it shows the form, but exceeds the budget:

        class Raw(Allocator):
            def __init__(self, tree): ...

            def allocate(self, scores, context, budget, seeds):
                return torch.zeros_like(context.focus)
    """

    iterations: int = 1
    """Rounds of scoring and allocating until the focus is final."""

    highest_lod: int | None = None
    """The highest level in its focuses; None = every level of the tree."""

    fills_budget: bool = True
    """Whether from the raw context it reaches the largest length within the budget. False where thresholds, or a search
    that is not exact, may leave entries unused."""

    follows_scores: bool = True
    """Whether scores alone decide which blocks are compressed first. False where chance or positions matter, too."""

    @abstractmethod
    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Return the next focus.

        scores [R, L] belong to the entries of `context` (those before the cursor), whose `age` may be None; budget is
        the largest number of entries in the window; seeds [R] int64 -> focus [R, blocks] int64.
        The focus is valid, of the largest reachable length within the budget unless thresholds leave entries
        unused; protected blocks stay at LOD0; zero scores change nothing that fits; equal seeds lead to equal results.
        Another shape or dtype ends the run with a message that names the plug-in.
        """


@dataclass(frozen=True)
class Sequences:
    """Input of a variant strategy: the tokens [B, T] and the tree."""

    tokens: Tensor
    tree: ContextTree


class VariantStrategy(ABC):
    """Propose the alternative working contexts that training compares. Factory: `factory(tree)`.

    In every variant the first nodes after the sink, as many as the length requires:

        class Oldest(VariantStrategy):
            count = 1

            def __init__(self, tree): ...

            def propose(self, sequences, scores, length, seeds):
                tree = sequences.tree
                nodes = (tree.window - length) // tree.saving(1)
                block = torch.arange(tree.blocks, device=seeds.device)
                focus = ((block >= tree.sink) & (block < tree.sink + nodes)).long()
                return focus.expand(*seeds.shape, -1)
    """

    count: int
    """V, variants a sequence; 0 = none, plain training."""

    needs_scores: bool = False
    """True where `propose` needs LensNet's scores of the uncompressed context."""

    @abstractmethod
    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Return focuses of the requested length.

        scores [B, T up to the cursor] or None; length is reachable (`ContextTree.reachable`); seeds [B, V] int64
        -> focus [B, V, blocks] int64, valid, each unrolling to exactly `length` entries, a function of its own
        sequence's seeds, distinct among a sequence's variants where possible.
        Another shape, dtype or length ends the run with a message that names the plug-in.
        """
