"""Settings of a session, with defaults that follow from the context tree of the run."""

from __future__ import annotations

from dataclasses import dataclass

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.runtime.covered_window import recent_focus


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """The size of a session's working context, and when it changes.

    Attributes:
        budget: The most entries of the working context.
        sink: First blocks of the history that stay in the context as tokens.
        tail: Recent tokens that stay raw.
        refocus_every: R, tokens that are generated between two refocuses; the context grows by them.
        refocus: Whether LensNet and the allocator choose the focus. False, or a run without LensNet: the most recent
            tokens have the most detail.
        hysteresis: Added to the scores of raw blocks and subtracted from those of gists after the first refocus of a
            generation, so that a block is exchanged only for one that scores higher by twice this.
        seed: Seed of allocators that draw.
    """

    budget: int
    sink: int
    tail: int
    refocus_every: int
    refocus: bool = True
    hysteresis: float = 0.05
    seed: int = 0

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
            recent_focus(own, self.budget * top * 2 + rest, self.target, levels)


def session_config(tree: ContextTree, **options: int | float | bool | None) -> SessionConfig:
    """Return the settings of a session, with the defaults of a tree for those that are missing or None.

    Args:
        tree: The run's context tree. The defaults are a budget of T entries, a sink of one block or the run's, a
            quarter of the budget for the tail, and a refocus every 8 blocks or a quarter of the budget.
        **options: Attributes of `SessionConfig`.
    """
    set_options = {name: value for name, value in options.items() if value is not None}
    budget = int(set_options.get("budget", tree.window))
    quarter = max(1, budget // 4 // tree.block_size * tree.block_size) if budget >= 4 * tree.block_size else 1
    defaults: dict[str, int | float | bool] = {
        "budget": budget,
        "sink": max(1, tree.sink) if budget >= 8 * tree.block_size else tree.sink,
        "tail": quarter,
        "refocus_every": min(8 * tree.block_size, quarter),
    }
    return SessionConfig(**(defaults | set_options))  # type: ignore[arg-type]
