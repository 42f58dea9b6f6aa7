"""From a run configuration to its components: tree, tokenizer, model, losses, each initialised from the seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mcframe.config.schema import ContextConfig, RunConfig
from mcframe.context.context_tree import ContextTree
from mcframe.data.loader import open_training_stream, open_validation
from mcframe.data.synthetic_stream import GeneratedWindows, held_out
from mcframe.data.window_stream import WindowStream
from mcframe.errors import UserError, require
from mcframe.evaluation.runner import check_names
from mcframe.hookspecs import (
    Allocator,
    BaseModel,
    BaseShape,
    Callback,
    Evaluation,
    HeadShape,
    Loss,
    ModelShape,
    Optimizer,
    Positions,
    Schedule,
    SyntheticTask,
    TextSource,
    Tokenizer,
)
from mcframe.interfaces.base_model import parameter_count
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.rope import GaussianRope
from mcframe.registry.checks import raise_contract_error
from mcframe.training.engine_config import check_engine_config
from mcframe.training.flops import StepFlops
from mcframe.training.random_states import seed_random_states, unchanged_host_states
from mcframe.training.train_step import TrainStep

Built = TypeVar("Built")
_CHECKED_STEPS = 1000


@dataclass(frozen=True)
class Components:
    """The components of a run, before any engine.

    Attributes:
        run_config: The configuration that they are built from.
        tree: The context tree.
        text: The text source.
        tokenizer: The tokenizer.
        task: The synthetic task that replaces the text, if any.
        step: The module that is trained; `step.model` is the model.
        flops: FLOPs of any step.
        allocator: The allocator.
        evaluations: The evaluations of `run.evaluations`.
        callbacks: The callbacks of `run.callbacks`.
        optimizer: The optimizer plug-in.
        schedule: The learning-rate schedule.
    """

    run_config: RunConfig
    tree: ContextTree
    text: TextSource
    tokenizer: Tokenizer
    task: SyntheticTask | None
    step: TrainStep
    flops: StepFlops
    allocator: Allocator
    evaluations: Sequence[Evaluation]
    callbacks: Sequence[Callback]
    optimizer: Optimizer
    schedule: Schedule

    @property
    def model(self) -> MegaContextModel:
        """The model."""
        return self.step.model


def seeded(seed: int, name: str, build: Callable[[], Built]) -> Built:
    """Return `build()`, run under a random state of its own.

    The initialisation of one module does not depend on another: a baseline without GistNet and LensNet starts from the
    same base model.
    """
    with torch.random.fork_rng(devices=[]), unchanged_host_states():
        seed_random_states(seed, name)
        return build()


def build_components(run_config: RunConfig) -> Components:
    """Build every component of a run.

    Raises:
        UserError: Components do not fit each other.
    """
    tokenizer = run_config.tokenizer()
    step = build_step(run_config, tokenizer.vocab_size, tokenizer.separator)
    tree = run_config.context.tree
    return Components(
        run_config=run_config,
        tree=tree,
        text=run_config.text(),
        tokenizer=tokenizer,
        task=build_task(run_config, step.model),
        step=step,
        flops=StepFlops(step),
        allocator=run_config.allocator(tree),
        evaluations=build_evaluations(run_config),
        callbacks=[build() for build in run_config.callbacks],
        optimizer=build_optimizer(run_config),
        schedule=build_schedule(run_config),
    )


def build_optimizer(run_config: RunConfig) -> Optimizer:
    """Build the optimizer plug-in.

    Raises:
        UserError: It does not support the ZeRO stage or the clipping of gradients, or DeepSpeed refuses the settings.
    """
    assert run_config.optimizer is not None  # load_run_config fills in the default
    optimizer = run_config.optimizer()
    name, stage = f"optimizer.{plugin_name(run_config.optimizer)}", run_config.deepspeed.zero_stage
    _check_stage(name, optimizer.max_zero_stage, stage, "select another run.optimizer")
    if optimizer.replaces_gradients and run_config.optimizer_config.gradient_clipping:
        raise UserError(
            f"gradient clipping cannot be combined with @{name}: it would clip the optimizer's update in place of the "
            "gradient",
            binding="optimizer.gradient_clipping",
            remedy="Remove optimizer.gradient_clipping.",
        )
    check_engine_config(run_config, optimizer)
    return optimizer


def build_schedule(run_config: RunConfig) -> Schedule:
    """Build the learning-rate schedule.

    Raises:
        ContractError: Its factor is not a number of 0 or above in one of up to a thousand steps, evenly spaced.
    """
    assert run_config.schedule is not None  # load_run_config fills in the default
    schedule, steps = run_config.schedule(), run_config.steps
    for step in {*range(0, steps, max(1, steps // _CHECKED_STEPS)), max(0, steps - 1), steps}:
        lr_factor(schedule, step, steps)
    return schedule


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the schedule's factor on the peak learning rate, checked."""
    factor: object = schedule.factor(step, steps)
    if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
        got = factor if isinstance(factor, int | float) else f"a value of type {type(factor).__name__}"
        raise_contract_error(schedule, "factor", f"expected a factor of 0 or above, got {got} in step {step}")
    return factor


def _check_stage(name: str, highest: int, stage: int, otherwise: str) -> None:
    """Raise UserError if a plug-in does not support the ZeRO stage of the run."""
    remedy = f"Set deepspeed.zero_stage to {highest} or lower, or {otherwise}."
    require(stage <= highest, name, stage, f"ZeRO stage {highest} or lower", remedy)


def build_step(run_config: RunConfig, vocab_size: int, separator: int = 0) -> TrainStep:
    """Build model and losses for a tokenizer of `vocab_size` entries, on the default device; see `build_model`."""
    model = build_model(run_config, vocab_size, separator)
    losses = _build_losses(run_config, ModelShape(model.gpt.width, model.tree))
    stage = run_config.deepspeed.zero_stage
    for loss in losses:
        _check_stage(f"loss.{loss.name}", loss.max_zero_stage, stage, f"remove @loss.{loss.name} from run.losses")
    baseline_window, baseline_every = _checked_baseline(run_config.context, model)
    variants_every = run_config.context.variants_every if model.strategy.count else 1
    step = TrainStep(model, losses, run_config.lens_targets, baseline_window, baseline_every, variants_every)
    weights = {f"loss.{loss.name}": loss.weight for loss in step.losses.each()}
    weighted = any(not isinstance(weight, int | float) or weight for weight in weights.values())
    require(weighted, "run.losses", weights, "a loss with a weight above 0 that this run computes")
    shuffled = run_config.lens_targets.shuffle and model.strategy.count == 1
    remedy = "Raise the count of run.variants, or set lens_targets.shuffle = False."
    require(not shuffled, "lens_targets.shuffle", 1, "two or more variants a sequence", remedy)
    _freeze(step, run_config.trainable)
    return step


def build_model(run_config: RunConfig, vocab_size: int, separator: int = 0) -> MegaContextModel:
    """Build the model for a tokenizer of `vocab_size` entries, on the default device.

    `separator` is the tokenizer's, which `data.document_mask` reads; any number if only shapes matter.
    """
    tree, seed = run_config.context.tree, run_config.seed
    strategy = run_config.variants(tree)
    gpt = _build_base(run_config, vocab_size)
    shape = ModelShape(gpt.width, tree, gpt.neutral_embedding())
    gistnet = lensnet = None
    if strategy.count:
        run_config.context.check_levels()
        if (build_gistnet := run_config.gistnet) is not None:
            gistnet = seeded(seed, "gistnet", lambda: build_gistnet(shape))
        if (build_lensnet := run_config.lensnet) is not None and gistnet is not None:
            lensnet = seeded(seed, "lensnet", lambda: build_lensnet(shape))
    masked = run_config.data.document_mask
    model = MegaContextModel(gpt, gistnet, lensnet, strategy, tree, separator if masked else None)
    _check_model(model)
    if masked:
        _check_document_mask(run_config, model)
    return model


def _build_base(run_config: RunConfig, vocab_size: int) -> BaseModel:
    build, base = run_config.positions or GaussianRope, run_config.base
    assert base is not None  # load_run_config fills in the default

    def positions(shape: HeadShape) -> Positions:
        return seeded(run_config.seed, "positions", lambda: build(shape))

    shape = BaseShape(run_config.context.tree, vocab_size, positions)
    return seeded(run_config.seed, "gpt", lambda: base(shape))


def _build_losses(run_config: RunConfig, shape: ModelShape) -> list[Loss]:
    """Build the losses. The seed of a loss is its name in gin, so that the order of the list changes no weight."""
    factories = [*(run_config.losses or ()), *run_config.extra_losses]
    return [
        seeded(run_config.seed, plugin_name(factory), lambda factory=factory: factory(shape))  # type: ignore[misc]
        for factory in factories
    ]


def plugin_name(factory: Callable[..., Any] | None) -> str:
    """Return the name of a plug-in in gin; empty for a factory that is not registered."""
    return str(getattr(getattr(factory, "entry", factory), "name", ""))


def _check_model(model: MegaContextModel) -> None:
    """Raise UserError if the parts of a model do not fit each other."""
    depth = model.gpt.depth
    layer = model.gistnet.reads_layer if model.gistnet is not None else 0
    remedy = f"Set the layer of the GistNet to a number from 0 to {depth}, or raise gpt.depth."
    require(0 <= layer <= depth, "run.gistnet", layer, f"a layer from 0 to {depth} whose states GistNet reads", remedy)
    if model.strategy.needs_scores and model.lensnet is None:
        raise UserError(
            f"run.variants: {type(model.strategy).__name__} selects variants by LensNet's scores, and the run has no "
            "LensNet",
            binding="run.variants",
            remedy="set run.lensnet and run.gistnet, or another run.variants, such as @variants.random_collapse",
        )


def _check_document_mask(run_config: RunConfig, model: MegaContextModel) -> None:
    """Raise UserError if a part of the run reads across documents."""
    gistnet, lensnet = model.gistnet, model.lensnet
    masks = {f"run.base ({type(model.gpt).__name__})": model.gpt.masks_documents}
    if gistnet is not None:
        own = gistnet.masks_documents
        masks[f"run.gistnet ({type(gistnet).__name__})"] = gistnet.context_blocks == 0 if own is None else own
    if lensnet is not None:
        masks[f"run.lensnet ({type(lensnet).__name__})"] = lensnet.masks_documents
    across = [name for name, own in masks.items() if not own]
    if run_config.task is not None:
        across.append("run.task, which has no documents")
    if across:
        raise UserError(
            f"data.document_mask: expected parts that do not read across documents, got {' and '.join(across)}",
            binding="data.document_mask",
            remedy="Set data.document_mask = False, or select others, such as @gistnet.transformer and "
            "@lensnet.transformer.",
        )


def _checked_baseline(context: ContextConfig, model: MegaContextModel) -> tuple[int | None, int]:
    """Return the tokens of the uncompressed pass, None for T, and how many sequences share one such pass.

    Raises:
        UserError: GistNet or LensNet reads that pass at all tokens.
    """
    window = None if context.baseline_window == context.window else context.baseline_window
    every = context.baseline_every if model.strategy.count else 1  # the plain baseline has nothing else
    limits = {"context.baseline_window": (window, None), "context.baseline_every": (every, 1)}
    limited = {name: (value, free) for name, (value, free) in limits.items() if value != free}
    readers = {
        "run.gistnet": ("the states of the base model (reads_layer)", model.gistnet and model.gistnet.reads_layer),
        "run.lensnet": ("the uncompressed NLL (reads_nll)", model.lensnet and model.lensnet.reads_nll),
    }
    for name, (what, reads) in readers.items():
        for limit, (value, free) in limited.items() if reads else ():
            raise UserError(
                f"{name}: expected one that reads embeddings with {limit} = {value}, got one that reads {what} of all "
                f"{context.window} tokens of every sequence",
                binding=limit,
                remedy=f"Set {limit} = {free}, or select another {name}.",
            )
    return window, every


def _freeze(step: TrainStep, trainable: Sequence[str]) -> None:
    """Freeze the parts that `run.trainable` does not list, and the losses that belong to them."""
    for _, part, module in step.named_parts():
        if part is not None and part not in trainable:
            module.requires_grad_(False)
    trained = any(parameter.requires_grad for parameter in step.parameters())
    remedy = f"List one or more of: {', '.join(step.model.parts)}."
    require(trained, "run.trainable", tuple(trainable), "a part of this run", remedy)


def build_evaluations(run_config: RunConfig) -> list[Evaluation]:
    """Build the evaluations of `run.evaluations`.

    Raises:
        UserError: Two evaluations have one name.
    """
    evaluations = [build() for build in run_config.evaluations or ()]
    check_names(evaluations)
    return evaluations


def build_task(run_config: RunConfig, model: MegaContextModel) -> SyntheticTask | None:
    """Build the synthetic task that replaces the text, if any.

    Raises:
        UserError: The task uses more token ids than the model has.
    """
    if run_config.task is None:
        return None
    task = run_config.task(run_config.context.tree)
    needed, available = task.vocab_size, model.gpt.vocab_size
    remedy = f"Set gpt.vocab_size = {needed} or more, or lower the vocabulary of the task."
    require(needed <= available, "gpt.vocab_size", available, f"at least the {needed} token ids of the task", remedy)
    return task


def training_stream(components: Components, rank: int, world_size: int) -> WindowStream:
    """Open the training sequences: of the task if there is one, else of the text."""
    config = components.run_config
    if components.task is not None:
        return GeneratedWindows(components.task, config.context.window, config.seed)
    return open_training_stream(
        components.text, components.tokenizer, config.context.window, config.seed, config.data.validation_fraction,
        rank=rank, world_size=world_size,
    )  # fmt: skip


def validation_windows(components: Components) -> tuple[Tensor, Tensor | None]:
    """Return held-out windows [n, T + 1], and the targets that count [n, T] (None: all)."""
    config = components.run_config
    if components.task is not None:
        batch = held_out(components.task, config.validation.windows)
        return batch.tokens, batch.loss_mask
    return open_validation(
        components.text, components.tokenizer, config.context.window, config.data.validation_fraction,
        config.validation.windows,
    )  # fmt: skip


def parameter_counts(step: TrainStep) -> dict[str, int]:
    """Return the number of parameters of each part, and of each loss that has any."""
    titles = {"base": "base model", "gistnet": "GistNet", "lensnet": "LensNet"}
    counts = {titles.get(name, name): parameter_count(module) for name, _, module in step.named_parts()}
    return {name: count for name, count in counts.items() if count or name in titles.values()}
