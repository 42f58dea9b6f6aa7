"""From a recipe to the parts of a run: geometry, tokenizer, the step module, each initialised from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from mcframe.context.geometry import Geometry
from mcframe.data.generated import GeneratedWindows, held_out
from mcframe.data.loader import WindowStream, open_training_stream, open_validation
from mcframe.errors import UserError
from mcframe.evaluation.asking import check_names
from mcframe.hookspecs import (
    Allocator,
    Evaluation,
    HeadShape,
    ModelShape,
    Objective,
    Positions,
    Task,
    TextSource,
    Tokenizer,
)
from mcframe.modeling.added_objectives import AddedObjectives
from mcframe.modeling.gpt import GPT, parameter_count
from mcframe.modeling.reconstruction import Reconstruction
from mcframe.modeling.rope import GaussianRope
from mcframe.modeling.step import MegaContextStep
from mcframe.training.cost import Costs
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
    costs: Costs
    allocator: Allocator
    evaluations: Sequence[Evaluation]


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
    gpt = _build_gpt(recipe, vocab_size)
    shape = ModelShape(gpt.width, geometry)
    gistnet = lensnet = reconstruction = None
    if strategy.count:
        recipe.context.check_levels()
        if strategy.count == 1 and recipe.objectives.lens_objective in ("preference", "span_difference"):
            raise UserError(
                f"objectives.lens_objective = {recipe.objectives.lens_objective!r} needs two variants or more; one "
                "makes no pair",
                remedy="raise the variant strategy's count, or set objectives.lens_objective = 'auto'",
            )
        if strategy.count == 1 and recipe.objectives.attribution_weight:
            raise UserError(
                f"objectives.attribution_weight = {recipe.objectives.attribution_weight} needs two variants or more; "
                "one makes no pair",
                remedy="raise the variant strategy's count, or set objectives.attribution_weight = 0.0",
            )
        if strategy.count == 1 and recipe.objectives.lens_shuffle:
            raise UserError(
                "objectives.lens_shuffle deals verdicts out among the variants of a sequence; there is only one",
                remedy="raise the variant strategy's count to 2 or more, or set objectives.lens_shuffle = False",
            )
        if (build_gistnet := recipe.gistnet) is not None:
            gistnet = seeded(recipe.seed, "gistnet", lambda: build_gistnet(shape))
            if recipe.objectives.reconstruction_weight:
                share = recipe.objectives.reconstruction_share
                reconstruction = seeded(
                    recipe.seed, "reconstruction", lambda: Reconstruction(gpt.width, geometry, share)
                )
        if (build_lensnet := recipe.lensnet) is not None and gistnet is not None:
            lensnet = seeded(recipe.seed, "lensnet", lambda: build_lensnet(shape))
    there = {"baseline": True, "variants": strategy.count, "gists": gistnet, "scores": lensnet}
    added = AddedObjectives(_build_objectives(recipe, shape), {need for need, part in there.items() if not part})
    model = MegaContextStep(gpt, gistnet, lensnet, strategy, geometry, recipe.objectives, reconstruction, added)
    _check_parts(model)
    for part, modules in {"base": (gpt,), "gistnet": (gistnet, reconstruction), "lensnet": (lensnet,)}.items():
        for module in modules:
            if module is not None and part not in recipe.trainable:
                module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"run.trainable is {recipe.trainable!r}, and this run has no such part: nothing would learn",
            remedy="name a part that is built: base, gistnet or lensnet",
        )
    return model


def _build_gpt(recipe: Recipe, vocab_size: int) -> GPT:
    build = recipe.positions or GaussianRope

    def positions(shape: HeadShape) -> Positions:
        return seeded(recipe.seed, "positions", lambda: build(shape))

    return seeded(recipe.seed, "gpt", lambda: recipe.gpt(recipe.context.geometry, vocab_size, positions))


def _build_objectives(recipe: Recipe, shape: ModelShape) -> list[Objective]:
    return [
        seeded(recipe.seed, f"objective {number}", lambda build=build: build(shape))  # type: ignore[misc]
        for number, build in enumerate(recipe.added_objectives)
    ]


def _check_parts(model: MegaContextStep) -> None:
    """Raises UserError where parts want of each other what is not there."""
    depth, geometry = model.gpt.depth, model.geometry
    if model.gistnet is not None and not 0 <= model.gistnet.reads_layer <= depth:
        raise UserError(
            f"the GistNet reads states after {model.gistnet.reads_layer} layers, and the base model has {depth}",
            remedy=f"set its layer to a number from 0 to {depth}, or raise gpt.depth",
        )
    most = max(model.objectives.reconstruction_blocks)
    if model.reconstruction is not None and most > geometry.nodes(1):
        raise UserError(
            f"objectives.reconstruction_blocks asks for {most} neighbouring blocks, and a window has "
            f"{geometry.nodes(1)}",
            remedy=f"set objectives.reconstruction_blocks to numbers from 1 to {geometry.nodes(1)}",
        )
    if model.strategy.needs_scores and model.lensnet is None:
        raise UserError(
            f"the variants ({type(model.strategy).__name__}) are chosen by LensNet's scores, and there is no LensNet",
            remedy="set run.lensnet and run.gistnet, or another run.variants, such as @variants.random_collapse",
        )


def assemble(recipe: Recipe) -> Assembly:
    """Build every part of a run. Raises UserError where parts do not fit each other."""
    tokenizer = recipe.tokenizer()
    model = build_model(recipe, tokenizer.vocab_size)
    geometry = recipe.context.geometry
    task = build_task(recipe, model)
    evaluations = build_evaluations(recipe)
    allocator = recipe.allocator(geometry)
    return Assembly(
        recipe, geometry, recipe.text(), tokenizer, task, model, Costs(model), allocator, evaluations
    )  # fmt: skip


def build_evaluations(recipe: Recipe) -> list[Evaluation]:
    """What the model will be asked. Raises UserError where two evaluations have one name."""
    evaluations = [build() for build in recipe.evaluations or ()]
    check_names(evaluations)
    return evaluations


def build_task(recipe: Recipe, model: MegaContextStep) -> Task | None:
    """The task that is trained on instead of text, if any. Raises UserError where the model has too few token ids."""
    if recipe.task is None:
        return None
    task = recipe.task(recipe.context.geometry)
    if task.vocab_size > model.gpt.vocab_size:
        raise UserError(
            f"the task uses {task.vocab_size:,} token ids and the model has {model.gpt.vocab_size:,}",
            remedy=f"set gpt.vocab_size = {task.vocab_size} or more, or lower the task's vocabulary",
        )
    return task


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
    """Parameters of base model, GistNet, LensNet and objectives; parts that are not built are left out."""
    parts: dict[str, nn.Module | None] = {
        "base model": model.gpt,
        "GistNet": model.gistnet,
        "LensNet": model.lensnet,
        **{f"objective {name}": objective for name, objective in model.added.named_children()},
    }
    return {name: parameter_count(part) for name, part in parts.items() if part is not None}
