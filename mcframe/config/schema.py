"""Everything that a gin file sets, as frozen dataclasses. The gin name of each is in its docstring."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError, require
from mcframe.hookspecs import (
    Allocator,
    Evaluation,
    GistNet,
    HeadShape,
    LensNet,
    Loss,
    MetricLogger,
    ModelShape,
    Positions,
    RunStart,
    SyntheticTask,
    TextSource,
    Tokenizer,
    VariantStrategy,
)
from mcframe.losses.lens_targets import LensTargetsConfig
from mcframe.modeling.gpt import GPT


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """The tree and the length of its working contexts (gin: `context`).

    window, block_size, levels, slots, tail, sink, horizon   see `mcframe.context.tree.ContextTree`
    start_length      target length of the first variants, as a fraction of the window
    train_wc_length   target length of the last ones, likewise; also the budget of the allocator
    anneal            fraction of training over which the target moves from one to the other
    mixed_lengths     every step draws its target between the annealed one and start_length, so that the model knows
                      all of them at the end; without, it has seen only the last one lately
    allow_unused_levels   accept levels that no target length can ever use
    """

    window: int
    block_size: int = 32
    levels: int = 1
    slots: int = 1
    tail: int = 128
    sink: int = 0
    horizon: int = 0
    start_length: float = 0.9
    train_wc_length: float = 0.75
    anneal: float = 1.0
    mixed_lengths: bool = False
    allow_unused_levels: bool = False

    def __post_init__(self) -> None:
        for name in ("start_length", "train_wc_length", "anneal"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(
                    f"context.{name} is {getattr(self, name)}; it is a fraction above 0 and up to 1",
                    remedy=f"set context.{name} to a fraction, for example 0.75",
                )
        if self.window % self.block_size:
            fits = self.window // self.block_size * self.block_size or self.block_size
            raise UserError(
                f"context.window = {self.window} is not a whole number of blocks of context.block_size = "
                f"{self.block_size} tokens",
                remedy=f"set context.window to a multiple of {self.block_size}, for example {fits}",
            )
        _ = self.tree  # what is wrong with the tree is told here, where gin's file and line are known

    @property
    def tree(self) -> ContextTree:
        """The tree."""
        return ContextTree(self.window, self.block_size, self.levels, self.slots, self.tail, self.sink, self.horizon)

    def target(self, share: float) -> int:
        """Target length, in entries, after this share of training (0 to 1)."""
        progress = min(1.0, share / self.anneal)
        fraction = self.start_length + (self.train_wc_length - self.start_length) * progress
        # 0.9 * 2048 is 1843.1999...: a hair of rounding must not cost an entry.
        return int(fraction * self.window + 1e-9)

    @property
    def targets(self) -> list[int]:
        """The extreme target lengths: lengths are monotonic between them."""
        return sorted({self.target(0.0), self.target(1.0)})

    def check_levels(self) -> dict[int, int]:
        """The most nodes of each LOD that any target length can hold; refuses levels that never occur."""
        low, high = self.targets[0], self.targets[-1]
        usable = self.tree.usable_levels(list(range(low, high + 1)))
        unused = [lod for lod, most in usable.items() if most == 0]
        if unused and not self.allow_unused_levels:
            best = max((lod for lod, most in usable.items() if most), default=1)
            raise UserError(
                f"context.levels = {self.levels}, but LOD {', '.join(map(str, unused))} can never be used: no working "
                f"context of {low} to {high} entries holds a node of {self.tree.span(unused[0])} tokens",
                remedy=f"set context.levels = {best}, lower context.train_wc_length or context.block_size, or accept "
                "it with context.allow_unused_levels = True",
            )
        return usable


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer (gin: `optimizer`).

    name               adamw, or muon: Muon for matrices and AdamW for embeddings, heads and thin maps
    lr, betas, eps, weight_decay   of AdamW; weight_decay also of Muon
    muon_lr, muon_momentum         of Muon
    gradient_clipping  largest gradient norm; None = 1.0 for adamw and none for muon, whose update is orthogonalised
                       (clipping would act on that update, at some ZeRO stages and not at others)
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    betas: Sequence[float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    gradient_clipping: float | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "eps"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name}", value, "above 0")
        clipping = self.gradient_clipping
        require(clipping is None or clipping >= 0, "optimizer.gradient_clipping", clipping, "0 (none) or above")
        if self.name == "muon" and self.gradient_clipping:
            raise UserError(
                "gradient clipping cannot be combined with Muon: it would clip the orthogonalised update, at ZeRO 1 "
                "to 3 and not at 0, and shrink every step without a word",
                remedy="remove optimizer.gradient_clipping; Muon's update has a fixed size whatever the gradient's",
            )

    @property
    def clipping(self) -> float:
        """The gradient norm to clip at; 0 for none."""
        if self.gradient_clipping is None:
            return 1.0 if self.name == "adamw" else 0.0
        return self.gradient_clipping


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over training, as a share of its peak (gin: `schedule`).

    warm_up, warm_down   fractions of training over which it rises from 0 and falls to `final`, linearly
    """

    warm_up: float = 0.02
    warm_down: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warm_up", "warm_down", "final"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"schedule.{name}", value, "a fraction from 0 to 1")

    def factor(self, step: int, total_steps: int) -> float:
        """The factor on the peak learning rate in optimizer step `step` (from 0)."""
        up, down = self.warm_up * total_steps, self.warm_down * total_steps
        rise = min(1.0, (step + 1) / up) if up > 0 else 1.0
        fall = min(1.0, (total_steps - step) / down) if down > 0 else 1.0
        return min(rise, self.final + (1 - self.final) * fall)


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """DeepSpeed (gin: `deepspeed`). `settings` may hold any key of its JSON and wins over what mcframe would set.

    zero_stage          0 to 3
    precision           fp32 or bf16 (with fp32 master weights; ZeRO 1-3)
    offload_optimizer, offload_parameters   keep them in the CPU's memory (ZeRO 1-3; parameters: ZeRO 3)
    """

    zero_stage: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise UserError(
                f"deepspeed.zero_stage is {self.zero_stage}", remedy="set deepspeed.zero_stage to 0, 1, 2 or 3"
            )
        if self.precision == "bf16" and self.zero_stage == 0:
            raise UserError(
                "deepspeed.precision = 'bf16' needs ZeRO 1, 2 or 3: at ZeRO 0 DeepSpeed keeps no float32 master "
                "weights, and small updates are lost to rounding",
                remedy="set deepspeed.zero_stage = 1, on a single rank too",
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise UserError(
                "deepspeed.offload_optimizer needs ZeRO 1, 2 or 3", remedy="set deepspeed.zero_stage = 1 or higher"
            )
        if self.offload_parameters and self.zero_stage != 3:
            raise UserError("deepspeed.offload_parameters needs ZeRO 3", remedy="set deepspeed.zero_stage = 3")


@dataclass(frozen=True, kw_only=True)
class CadenceConfig:
    """When things happen, in dataset tokens; 0 = never (gin: `cadence`). `keep` newest checkpoints stay.

    eval_tokens is for plain validation, evaluate_tokens for `run.evaluations`, which cost far more; picture_tokens for
    drawing what is recorded with every log.
    """

    log_tokens: int = 1_000_000
    eval_tokens: int = 10_000_000
    evaluate_tokens: int = 0
    sample_tokens: int = 10_000_000
    picture_tokens: int = 50_000_000
    checkpoint_tokens: int = 50_000_000
    keep: int = 2

    def __post_init__(self) -> None:
        for event in ("log", "eval", "evaluate", "sample", "picture", "checkpoint"):
            value = getattr(self, f"{event}_tokens")
            require(value >= 0, f"cadence.{event}_tokens", value, "a number of tokens, or 0 for never")
        require(self.keep >= 1, "cadence.keep", self.keep, "1 or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The split (gin: `data`): share of documents held out, and windows of it that a validation reads."""

    validation_share: float = 0.02
    validation_windows: int = 64

    def __post_init__(self) -> None:
        require(self.validation_windows >= 1, "data.validation_windows", self.validation_windows, "1 or more")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Continuations that are printed while training (gin: `sampling`); lengths in tokens."""

    prompts: Sequence[str] = ("def ", "The ")
    length: int = 64
    temperature: float = 0.8

    def __post_init__(self) -> None:
        require(self.length >= 1, "sampling.length", self.length, "1 or more")
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "0 (the likeliest token) or above")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where metrics go besides metrics.jsonl (gin: `telemetry`); wandb: auto, online, offline or disabled."""

    tensorboard: bool = True
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"


MULTI_KINDS: Mapping[str, str] = {"evaluation": "evaluations", "loss": "losses", "logger": "loggers"}
"""Kinds of which a run may have any number, and what `run` calls them; of others it has one, under the kind's name."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run (gin: `run`).

    Attributes:
        gistnet: GistNet, for example `@gistnet.transformer`. None drops collapsed blocks: the drop baseline.
        lensnet: LensNet; None trains none.
        allocator: Turns scores and a budget into a focus.
        variants: Proposes the working contexts that training compares; `@variants.none` is the plain baseline.
        text: Text source.
        tokenizer: Tokenizer.
        task: Synthetic task that replaces the text, for example `@task.recall`.
        evaluations: Evaluations of a trained model; None is `@evaluation.gist_quality` and `@evaluation.focus_quality`.
        positions: Positions of the base model; None is `@positions.gaussian_rope`.
        losses: Terms of the loss, in order. None is next_token, variants, delta_penalty, preference and balance.
        extra_losses: Losses in addition to `losses`.
        loggers: Loggers in addition to those that `telemetry` switches, for example `@logger.prometheus`.
        start_from: A run directory or checkpoint of another run whose weights are loaded, part by part, where they fit.
        trainable: The parts that are trained: base, gistnet, lensnet.
        total_tokens: Dataset tokens of the run, rounded down to complete steps.
        batch_tokens: Dataset tokens of an optimizer step over all ranks; a multiple of `context.window`.
        micro_batch: The most sequences of a forward pass on a rank; the largest divisor up to it is used.
        seed: Determines data order, variants and initialisation.
    """

    gistnet: Callable[[ModelShape], GistNet] | None
    lensnet: Callable[[ModelShape], LensNet] | None
    allocator: Callable[[ContextTree], Allocator]
    variants: Callable[[ContextTree], VariantStrategy]
    text: Callable[[], TextSource]
    tokenizer: Callable[[], Tokenizer]
    task: Callable[[ContextTree], SyntheticTask] | None = None
    evaluations: Sequence[Callable[[], Evaluation]] | None = None
    positions: Callable[[HeadShape], Positions] | None = None
    losses: Sequence[Callable[[ModelShape], Loss]] | None = None
    extra_losses: Sequence[Callable[[ModelShape], Loss]] = ()
    loggers: Sequence[Callable[[RunStart], MetricLogger]] = ()
    total_tokens: int
    batch_tokens: int
    micro_batch: int = 8
    seed: int = 0
    start_from: str | None = None
    trainable: Sequence[Literal["base", "gistnet", "lensnet"]] = ("base", "gistnet", "lensnet")
    gpt: Callable[[ContextTree, int, Callable[[HeadShape], Positions]], GPT]
    context: ContextConfig
    lens_targets: LensTargetsConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    deepspeed: DeepSpeedConfig
    cadence: CadenceConfig
    data: DataConfig
    sampling: SamplingConfig
    telemetry: LoggingConfig

    def __post_init__(self) -> None:
        if self.batch_tokens < 1 or self.batch_tokens % self.context.window:
            near = max(1, round(self.batch_tokens / self.context.window)) * self.context.window
            raise UserError(
                f"run.batch_tokens = {self.batch_tokens} is not a whole number of windows of context.window = "
                f"{self.context.window} tokens",
                remedy=f"set run.batch_tokens = {near}",
            )
        if self.total_tokens < self.batch_tokens:
            raise UserError(
                f"run.total_tokens = {self.total_tokens} is less than one step of run.batch_tokens = "
                f"{self.batch_tokens}",
                remedy="raise run.total_tokens or lower run.batch_tokens",
            )
        require(self.micro_batch >= 1, "run.micro_batch", self.micro_batch, "1 or more")
        require(0 <= self.seed < 2**63, "run.seed", self.seed, "from 0 to 2**63 - 1")

    @property
    def sequences(self) -> int:
        """Sequences of one optimizer step over all ranks."""
        return self.batch_tokens // self.context.window

    def progress(self, step: int) -> float:
        """Return the fraction of training done before optimizer step `step`: 0 at the first, 1 at the last."""
        return step / max(1, self.steps - 1)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.total_tokens // self.batch_tokens

    @property
    def extreme_lengths(self) -> tuple[int, int]:
        """Entries of a variant at the first target and at the last."""
        context = self.context
        first, last = (context.tree.reachable(context.target(share))[0] for share in (0.0, 1.0))
        return first, last

    def variant_length(self, step: int) -> int:
        """Entries of each variant in optimizer step `step`: the largest reachable under the step's target."""
        target = self.context.target(self.progress(step))
        if self.context.mixed_lengths:
            first = self.context.target(0.0)
            low, high = min(first, target), max(first, target)
            # A function of seed and step alone: the same on every rank and after a resumption.
            target = low + random.Random(f"length/{self.seed}/{step}").randrange(high - low + 1)
        return self.context.tree.reachable(target)[0]
