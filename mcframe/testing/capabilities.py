"""What a plug-in declares of itself, which decides what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Capability:
    """Something that some plug-ins can do.

    declared   where its author says so
    otherwise  why clauses that need it are skipped for the others
    has        looks at a plug-in, built with the default tree
    """

    declared: str
    otherwise: str
    has: Callable[[Any], bool]


def _parameters(part: Any) -> bool:
    return next(iter(part.parameters()), None) is not None


CAPABILITIES: Mapping[str, Capability] = {
    "parameters": Capability("it has parameters", "it has no parameters", _parameters),
    "isolated or windowed": Capability(
        "`context_blocks` is a number", "`context_blocks` is None: it may read all to its left",
        lambda part: part.context_blocks is not None,
    ),
    "reads to its left": Capability(
        "`context_blocks` is not 0 and `reads_layer` is 0", "each node is read for itself",
        lambda part: part.context_blocks != 0 and not part.reads_layer,
    ),
    "fills the budget": Capability(
        "`fills_budget`", "it declares that it may leave entries of the budget unused", lambda part: part.fills_budget
    ),
    "follows scores": Capability(
        "`follows_scores`", "it declares that something else than scores decides", lambda part: part.follows_scores
    ),
    "variants": Capability("`count` is not 0", "it proposes no variants", lambda part: part.count != 0),
    "pairs of variants": Capability("`count` is 2 or more", "it proposes less than two", lambda part: part.count > 1),
}  # fmt: skip
"""By the name that clauses use."""
