"""The table of plug-in kinds of the conformance kit, the matrix and `mcframe new-plugin`."""

from __future__ import annotations

from collections.abc import Mapping

from mcframe.hookspecs import INTERFACES

NETWORKS = ("gistnet", "lensnet")
MODEL_PARTS = (*NETWORKS, "allocator", "variants")
"""The kinds that a model consists of; their factories take a shape or a tree."""

CALLED_IN_STEPS = (*MODEL_PARTS, "base", "positions", "loss")
"""The kinds that a training step calls, so that rows and devices concern them."""

LIMITED_BY_ZERO = (*CALLED_IN_STEPS, "optimizer")
"""The kinds that may support some ZeRO stages only."""

BUILT_BY_KIT = (
    *CALLED_IN_STEPS,
    "text",
    "tokenizer",
    "task",
    "evaluation",
    "logger",
    "callback",
    "optimizer",
    "schedule",
)
"""The kinds whose factories the kit can call. Only real runs build the others."""

NOUNS: Mapping[str, str] = {
    "base": "a base model",
    "gistnet": "a GistNet",
    "lensnet": "a LensNet",
    "allocator": "an allocator",
    "variants": "a variant strategy",
    "positions": "positions",
    "text": "a text source",
    "tokenizer": "a tokenizer",
    "task": "a synthetic task",
    "loss": "a loss",
    "evaluation": "an evaluation",
    "logger": "a metric logger",
    "callback": "a callback",
    "optimizer": "an optimizer",
    "schedule": "a schedule",
}
"""The kind in running text, with its article."""


def noun(kind: str) -> str:
    """Return the kind in running text, with its article."""
    return NOUNS.get(kind, f"a {kind}")


def class_suffix(kind: str) -> str:
    """Return the name of the kind in class names: `GistNet`, `Allocator`."""
    return {"base": "BaseModel", "gistnet": "GistNet", "lensnet": "LensNet"}.get(kind, kind.title())


def suite_name(kind: str) -> str:
    """Return the name of the requirement suite of the kind: `GistNetSuite`."""
    return f"{class_suffix(kind)}Suite"


SUITES: Mapping[str, str] = {suite_name(kind): kind for kind in INTERFACES}
"""The kind that each requirement suite checks, by the name of the suite."""
