"""Interfaces of what chooses a focus: the allocator, and the strategy that proposes variants for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext


class Allocator(ABC):
    """Turns scores and a budget into the next working context. Factory: `factory(tree)`.

    One that never compresses, whatever the budget (an allocator must not, but it shows the form):

        class Raw(Allocator):
            def __init__(self, tree): ...

            def allocate(self, scores, context, budget, seeds):
                return torch.zeros_like(context.focus)
    """

    iterations: int = 1
    """How often the framework scores and allocates again before it takes the focus."""

    highest_lod: int | None = None
    """The highest level that it uses; None = every level of the tree."""

    fills_budget: bool = True
    """Whether from the raw context it reaches the largest length within the budget. False where thresholds, or a search
    that is not exact, may leave entries unused."""

    follows_scores: bool = True
    """Whether scores alone decide which blocks are compressed first. False where chance or places have a say."""

    @abstractmethod
    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """The next focus.

        scores [R, L] belong to the entries of `context` (those before the cursor); budget is the most entries that the
        whole window may have; seeds [R] int64 -> focus [R, blocks] int64.
        The focus is valid, of the largest reachable length within the budget unless the allocator's thresholds say
        less; protected blocks stay at LOD0; zero scores change nothing that fits; equal seeds give equal results.
        Another shape or dtype ends the run with a message that names the plug-in.
        """


@dataclass(frozen=True)
class Sequences:
    """What a variant strategy may look at: the tokens [B, T] and the tree."""

    tokens: Tensor
    tree: ContextTree


class VariantStrategy(ABC):
    """Proposes the alternative working contexts that training compares. Factory: `factory(tree)`.

    The first nodes behind the sink, as many as make the length, in every variant:

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
    """True where `propose` wants LensNet's scores of the uncompressed context."""

    @abstractmethod
    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses of the asked length.

        scores [B, T up to the cursor] or None; length is reachable (`ContextTree.reachable`); seeds [B, V] int64
        -> focus [B, V, blocks] int64, valid, each unrolling to exactly `length` entries, a function of its own
        sequence's seeds, distinct among a sequence's variants where possible.
        Another shape, dtype or length ends the run with a message that names the plug-in.
        """
