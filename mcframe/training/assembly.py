"""From a recipe to the parts of a run: geometry, tokenizer, the step module, each initialised from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from mcframe.context.geometry import Geometry
from mcframe.data.generated import GeneratedWindows, held_out
from mcframe.data.loader import WindowStream, open_training_stream, open_validation
from mcframe.errors import UserError
from mcframe.hookspecs import Allocator, ModelShape, Task, TextSource, Tokenizer
from mcframe.modeling.gpt import GPT, parameter_count
from mcframe.modeling.reconstruction import Reconstruction
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
    task: Task | None
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
    gistnet = lensnet = reconstruction = None
    if strategy.count:
        recipe.context.check_levels()
        if strategy.count == 1 and recipe.objectives.lens_objective in ("preference", "span_difference"):
            raise UserError(
                "objectives.lens_objective = 'preference' needs two variants or more; one makes no pair",
                remedy="raise the variant strategy's count, or set objectives.lens_objective = 'auto'",
            )
        if (build_gistnet := recipe.gistnet) is not None:
        if strategy.count == 1 and recipe.objectives.lens_shuffle:
            raise UserError(
                "objectives.lens_shuffle deals verdicts out among the variants of a sequence; there is only one",
                remedy="raise the variant strategy's count to 2 or more, or set objectives.lens_shuffle = False",
            )
            gistnet = seeded(recipe.seed, "gistnet", lambda: build_gistnet(shape))
            if recipe.objectives.reconstruction_weight:
                share = recipe.objectives.reconstruction_share
                reconstruction = seeded(
                    recipe.seed, "reconstruction", lambda: Reconstruction(gpt.width, geometry, share)
                )
        if (build_lensnet := recipe.lensnet) is not None and gistnet is not None:
            lensnet = seeded(recipe.seed, "lensnet", lambda: build_lensnet(shape))
    model = MegaContextStep(gpt, gistnet, lensnet, strategy, geometry, recipe.objectives, reconstruction)
    for part, modules in {"base": (gpt,), "gistnet": (gistnet, reconstruction), "lensnet": (lensnet,)}.items():
        for module in modules:
            if module is not None and part not in recipe.trainable:
                module.requires_grad_(False)
    return model


def assemble(recipe: Recipe) -> Assembly:
    """Build every part of a run. Raises UserError where parts do not fit each other."""
    tokenizer = recipe.tokenizer()
    model = build_model(recipe, tokenizer.vocab_size)
    geometry = recipe.context.geometry
    task = recipe.task(geometry) if recipe.task is not None else None
    if task is not None and task.vocab_size > model.gpt.vocab_size:
        raise UserError(
            f"the task uses {task.vocab_size:,} token ids and the model has {model.gpt.vocab_size:,}",
            remedy=f"set gpt.vocab_size = {task.vocab_size} or more, or lower the task's vocabulary",
        )
    return Assembly(recipe, geometry, recipe.text(), tokenizer, task, model, recipe.allocator(geometry))


def training_stream(assembly: Assembly, rank: int, world_size: int) -> WindowStream:
    """The training sequences: of the task where there is one, else of the text."""
    recipe = assembly.recipe
    if assembly.task is not None:
        return GeneratedWindows(assembly.task, recipe.context.window, recipe.seed)
    return open_training_stream(
        assembly.text, assembly.tokenizer, recipe.context.window, recipe.seed, recipe.data.validation_share,
        rank=rank, world_size=world_size,
    )  # fmt: skip


def validation_windows(assembly: Assembly) -> tuple[Tensor, Tensor | None]:
    """Held-out windows [n, T + 1] and which of their targets count [n, T] (None: all)."""
    recipe = assembly.recipe
    if assembly.task is not None:
        batch = held_out(assembly.task, recipe.data.validation_windows)
        return batch.tokens, batch.scored
    return open_validation(
        assembly.text, assembly.tokenizer, recipe.context.window, recipe.data.validation_share,
        recipe.data.validation_windows,
    ), None  # fmt: skip


def parameter_counts(model: MegaContextStep) -> dict[str, int]:
    """Parameters of base model, GistNet and LensNet; parts that are not built are left out."""
    parts: dict[str, nn.Module | None] = {
        "base model": model.gpt,
        "GistNet": model.gistnet,
        "LensNet": model.lensnet,
    }
    return {name: parameter_count(part) for name, part in parts.items() if part is not None}
