"""From a recipe to the parts of a run: tree, tokenizer, the step module, each initialised from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from mcframe.config.schema import RunConfig
from mcframe.context.context_tree import ContextTree
from mcframe.data.loader import WindowStream, open_training_stream, open_validation
from mcframe.data.synthetic_stream import GeneratedWindows, held_out
from mcframe.errors import UserError
from mcframe.evaluation.runner import check_names
from mcframe.hookspecs import (
    Allocator,
    Evaluation,
    HeadShape,
    Loss,
    ModelShape,
    Positions,
    SyntheticTask,
    TextSource,
    Tokenizer,
)
from mcframe.modeling.added_objectives import AddedObjectives
from mcframe.modeling.gpt import GPT, parameter_count
from mcframe.modeling.reconstruction import Reconstruction
from mcframe.modeling.rope import GaussianRope
from mcframe.modeling.step import MegaContextStep
from mcframe.training.flops import Costs

Built = TypeVar("Built")


@dataclass(frozen=True)
class Components:
    """The parts of a run, before any engine."""

    run_config: RunConfig
    tree: ContextTree
    text: TextSource
    tokenizer: Tokenizer
    task: SyntheticTask | None
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


def build_model(run_config: RunConfig, vocab_size: int) -> MegaContextStep:
    """The step module for a tokenizer of `vocab_size` entries, on the default device."""
    tree = run_config.context.tree
    strategy = run_config.variants(tree)
    gpt = _build_gpt(run_config, vocab_size)
    shape = ModelShape(gpt.width, tree)
    gistnet = lensnet = reconstruction = None
    if strategy.count:
        run_config.context.check_levels()
        if strategy.count == 1 and run_config.objectives.lens_objective in ("preference", "span_difference"):
            raise UserError(
                f"objectives.lens_objective = {run_config.objectives.lens_objective!r} needs two variants or more; one "
                "makes no pair",
                remedy="raise the variant strategy's count, or set objectives.lens_objective = 'auto'",
            )
        if strategy.count == 1 and run_config.objectives.attribution_weight:
            raise UserError(
                f"objectives.attribution_weight = {run_config.objectives.attribution_weight} needs two variants or more; "
                "one makes no pair",
                remedy="raise the variant strategy's count, or set objectives.attribution_weight = 0.0",
            )
        if strategy.count == 1 and run_config.objectives.lens_shuffle:
            raise UserError(
                "objectives.lens_shuffle deals verdicts out among the variants of a sequence; there is only one",
                remedy="raise the variant strategy's count to 2 or more, or set objectives.lens_shuffle = False",
            )
        if (build_gistnet := run_config.gistnet) is not None:
            gistnet = seeded(run_config.seed, "gistnet", lambda: build_gistnet(shape))
            if run_config.objectives.reconstruction_weight:
                share = run_config.objectives.reconstruction_share
                reconstruction = seeded(
                    run_config.seed, "reconstruction", lambda: Reconstruction(gpt.width, tree, share)
                )
        if (build_lensnet := run_config.lensnet) is not None and gistnet is not None:
            lensnet = seeded(run_config.seed, "lensnet", lambda: build_lensnet(shape))
    there = {"baseline": True, "variants": strategy.count, "gists": gistnet, "scores": lensnet}
    added = AddedObjectives(_build_objectives(run_config, shape), {need for need, part in there.items() if not part})
    model = MegaContextStep(gpt, gistnet, lensnet, strategy, tree, run_config.objectives, reconstruction, added)
    _check_parts(model)
    for part, modules in {"base": (gpt,), "gistnet": (gistnet, reconstruction), "lensnet": (lensnet,)}.items():
        for module in modules:
            if module is not None and part not in run_config.trainable:
                module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"run.trainable is {run_config.trainable!r}, and this run has no such part: nothing would learn",
            remedy="name a part that is built: base, gistnet or lensnet",
        )
    return model


def _build_gpt(run_config: RunConfig, vocab_size: int) -> GPT:
    build = run_config.positions or GaussianRope

    def positions(shape: HeadShape) -> Positions:
        return seeded(run_config.seed, "positions", lambda: build(shape))

    return seeded(run_config.seed, "gpt", lambda: run_config.gpt(run_config.context.tree, vocab_size, positions))


def _build_objectives(run_config: RunConfig, shape: ModelShape) -> list[Loss]:
    return [
        seeded(run_config.seed, f"objective {number}", lambda build=build: build(shape))  # type: ignore[misc]
        for number, build in enumerate(run_config.added_losses)
    ]


def _check_parts(model: MegaContextStep) -> None:
    """Raises UserError where parts want of each other what is not there."""
    depth, tree = model.gpt.depth, model.tree
    if model.gistnet is not None and not 0 <= model.gistnet.reads_layer <= depth:
        raise UserError(
            f"the GistNet reads states after {model.gistnet.reads_layer} layers, and the base model has {depth}",
            remedy=f"set its layer to a number from 0 to {depth}, or raise gpt.depth",
        )
    most = max(model.objectives.reconstruction_blocks)
    if model.reconstruction is not None and most > tree.nodes(1):
        raise UserError(
            f"objectives.reconstruction_blocks asks for {most} neighbouring blocks, and a window has {tree.nodes(1)}",
            remedy=f"set objectives.reconstruction_blocks to numbers from 1 to {tree.nodes(1)}",
        )
    if model.strategy.needs_scores and model.lensnet is None:
        raise UserError(
            f"the variants ({type(model.strategy).__name__}) are chosen by LensNet's scores, and there is no LensNet",
            remedy="set run.lensnet and run.gistnet, or another run.variants, such as @variants.random_collapse",
        )


def build_components(run_config: RunConfig) -> Components:
    """Build every part of a run. Raises UserError where parts do not fit each other."""
    tokenizer = run_config.tokenizer()
    model = build_model(run_config, tokenizer.vocab_size)
    tree = run_config.context.tree
    task = build_task(run_config, model)
    evaluations = build_evaluations(run_config)
    allocator = run_config.allocator(tree)
    return Components(
        run_config, tree, run_config.text(), tokenizer, task, model, Costs(model), allocator, evaluations
    )  # fmt: skip


def build_evaluations(run_config: RunConfig) -> list[Evaluation]:
    """What the model will be asked. Raises UserError where two evaluations have one name."""
    evaluations = [build() for build in run_config.evaluations or ()]
    check_names(evaluations)
    return evaluations


def build_task(run_config: RunConfig, model: MegaContextStep) -> SyntheticTask | None:
    """The task that is trained on instead of text, if any. Raises UserError where the model has too few token ids."""
    if run_config.task is None:
        return None
    task = run_config.task(run_config.context.tree)
    if task.vocab_size > model.gpt.vocab_size:
        raise UserError(
            f"the task uses {task.vocab_size:,} token ids and the model has {model.gpt.vocab_size:,}",
            remedy=f"set gpt.vocab_size = {task.vocab_size} or more, or lower the task's vocabulary",
        )
    return task


def training_stream(components: Components, rank: int, world_size: int) -> WindowStream:
    """The training sequences: of the task where there is one, else of the text."""
    run_config = components.run_config
    if components.task is not None:
        return GeneratedWindows(components.task, run_config.context.window, run_config.seed)
    return open_training_stream(
        components.text, components.tokenizer, run_config.context.window, run_config.seed, run_config.data.validation_share,
        rank=rank, world_size=world_size,
    )  # fmt: skip


def validation_windows(components: Components) -> tuple[Tensor, Tensor | None]:
    """Held-out windows [n, T + 1] and which of their targets count [n, T] (None: all)."""
    run_config = components.run_config
    if components.task is not None:
        batch = held_out(components.task, run_config.validation.windows)
        return batch.tokens, batch.loss_mask
    return open_validation(
        components.text, components.tokenizer, run_config.context.window, run_config.data.validation_share,
        run_config.validation.windows,
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
