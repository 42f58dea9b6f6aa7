"""Settings of a session: those that a run binds, and those that follow from its context tree."""

from __future__ import annotations

from dataclasses import dataclass

from mcframe.bounds import Count, NonNegative, NonNegativeInt, Seed
from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.runtime.covered_window import recent_focus


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """The size of a session's working context, and when it changes. `SessionDefaults` describes the attributes."""

    budget: int
    sink: int
    tail: int
    refocus_every: int
    refocus: bool
    hysteresis: float
    seed: int
    reach: int | None
    drop_gists: bool

    @property
    def target(self) -> int:
        """Entries of the context after a refocus: the tokens until the next one fit as well."""
        return self.budget - self.refocus_every

    def tree(self, tree: ContextTree) -> ContextTree:
        """Return the run's tree with this sink and tail."""
        size = tree.block_size
        window = max(tree.window, self.tail, size)
        return ContextTree(window, size, tree.levels, tree.slots, self.tail, self.sink, tree.horizon)

    def check(self, tree: ContextTree, levels: int) -> None:
        """Raise UserError unless the working context of a history of any length fits the budget.

        Args:
            tree: The run's context tree.
            levels: The highest LOD that is used; 0 without GistNet.
        """
        for name, least in (("budget", 1), ("sink", 0), ("tail", 1), ("refocus_every", 1)):
            value = getattr(self, name)
            if value < least:
                raise UserError(
                    f"session.{name}: expected {least} or more, got {value}",
                    remedy=f"Set session.{name} to {least} or more.",
                )
        fixed = self.sink * tree.block_size + self.tail + self.refocus_every
        if fixed >= self.budget:
            raise UserError(
                f"session.budget: expected more than {fixed} entries for a sink of {self.sink} block(s), a tail of "
                f"{self.tail} tokens and refocus_every = {self.refocus_every}, got {self.budget}",
                remedy=f"Raise the budget above {fixed}, or lower one of these.",
            )
        own = self.tree(tree)
        top = tree.span(tree.levels)
        for rest in range(0, top, max(1, top // 64)):  # every alignment of the history's end counts
            recent_focus(own, self.budget * top * 2 + rest, self.target, levels, self.reach)


@dataclass(frozen=True, kw_only=True)
class SessionDefaults:
    """Sessions of a trained run, and histories in `long_context` (gin: `session`).

    Attributes:
        budget: The most entries of the working context; None = T.
        sink: First blocks of the history that stay raw; None = `context.sink`, at least 1 with a budget of 8 blocks.
        tail: Recent tokens that stay raw; None = a quarter of the budget.
        refocus_every: R, tokens that are generated between two refocuses; None = 8 blocks, at most a quarter of the
            budget.
        refocus: Whether LensNet and the allocator choose the focus; otherwise recent tokens have the most detail.
        hysteresis: Raw blocks score this much more, and gists this much less, after the first refocus of a generation.
        seed: Seed of allocators that draw.
        reach: The most tokens that the context covers. None = no limit if `run.positions` bounds distances, otherwise
            T: a model does worse at distances that it was not trained on.
        drop_gists: The base model does not read gists: they only serve LensNet. They count towards the budget, and in
            reports.
    """

    budget: Count | None = None
    sink: NonNegativeInt | None = None
    tail: Count | None = None
    refocus_every: Count | None = None
    refocus: bool = True
    hysteresis: NonNegative = 0.05
    seed: Seed = 0
    reach: Count | None = None
    drop_gists: bool = False

    def config(self, tree: ContextTree, bounded: bool = True) -> SessionConfig:
        """Return the settings with those that are None derived from the run.

        Args:
            tree: The run's context tree.
            bounded: Whether its positions bound distances.
        """
        size, budget = tree.block_size, tree.window if self.budget is None else self.budget
        quarter = max(1, budget // 4 // size * size)
        sink = max(1, tree.sink) if budget >= 8 * size else tree.sink
        return SessionConfig(
            budget=budget,
            sink=sink if self.sink is None else self.sink,
            tail=quarter if self.tail is None else self.tail,
            refocus_every=min(8 * size, quarter) if self.refocus_every is None else self.refocus_every,
            refocus=self.refocus,
            hysteresis=self.hysteresis,
            seed=self.seed,
            reach=tree.window if self.reach is None and not bounded else self.reach,
            drop_gists=self.drop_gists,
        )
