"""From a recipe to the parts of a run: geometry, tokenizer, the step module, each initialised from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from mcframe.context.geometry import Geometry
from mcframe.errors import UserError
from mcframe.hookspecs import Allocator, ModelShape, TextSource, Tokenizer
from mcframe.modeling.gpt import GPT, parameter_count
from mcframe.modeling.step import MegaContextStep
from mcframe.training.settings import Recipe

Built = TypeVar("Built")


@dataclass(frozen=True)
class Assembly:
    """The parts of a run, before any engine."""

    recipe: Recipe
    geometry: Geometry
    text: TextSource
    tokenizer: Tokenizer
    model: MegaContextStep
    allocator: Allocator


def seeded(seed: int, name: str, build: Callable[[], Built]) -> Built:
    """`build()` under a random state of its own, so that no module's initialisation depends on another's.

    A twin without GistNet and LensNet thus starts from the very same base model.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest, "big"))
        return build()


def build_model(recipe: Recipe, vocab_size: int) -> MegaContextStep:
    """The step module for a tokenizer of `vocab_size` entries, on the default device."""
    geometry = recipe.context.geometry
    strategy = recipe.variants(geometry)
    gpt: GPT = seeded(recipe.seed, "gpt", lambda: recipe.gpt(geometry, vocab_size))
    shape = ModelShape(gpt.width, geometry)
    gistnet = lensnet = None
    if strategy.count:
        recipe.context.check_levels()
        if strategy.count == 1 and recipe.objectives.lens_objective == "preference":
            raise UserError(
                "objectives.lens_objective = 'preference' needs two variants or more; one makes no pair",
                remedy="raise the variant strategy's count, or set objectives.lens_objective = 'auto'",
            )
        gistnet = seeded(recipe.seed, "gistnet", lambda: recipe.gistnet(shape))
        lensnet = seeded(recipe.seed, "lensnet", lambda: recipe.lensnet(shape))
    return MegaContextStep(gpt, gistnet, lensnet, strategy, geometry, recipe.objectives)


def assemble(recipe: Recipe) -> Assembly:
    """Build every part of a run. Raises UserError where parts do not fit each other."""
    tokenizer = recipe.tokenizer()
    model = build_model(recipe, tokenizer.vocab_size)
    allocator = recipe.allocator(recipe.context.geometry)
    return Assembly(recipe, recipe.context.geometry, recipe.text(), tokenizer, model, allocator)


def parameter_counts(model: MegaContextStep) -> dict[str, int]:
    """Parameters of base model, GistNet and LensNet; parts that are not built are left out."""
    parts: dict[str, nn.Module | None] = {
        "base model": model.gpt,
        "GistNet": model.gistnet,
        "LensNet": model.lensnet,
    }
    return {name: parameter_count(part) for name, part in parts.items() if part is not None}
