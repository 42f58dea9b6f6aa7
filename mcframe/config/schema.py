"""The settings of a run as frozen dataclasses. The gin name of each is in its docstring."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError, require
from mcframe.hookspecs import (
    Allocator,
    Callback,
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
    """The context tree, and the lengths of its working contexts (gin: `context`).

    Attributes:
        window: T, tokens of one sequence; a multiple of block_size.
        block_size: K, children that one gist summarises; 2 or more.
        levels: Highest LOD; a node at LOD l spans K^l tokens.
        slots: G, embeddings of a gist; 1 to K - 1.
        tail: Recent tokens that stay raw; the cursor is before them.
        sink: First blocks that stay raw.
        horizon: H, tokens after a span in which `mc/lod_delta` and `mc/pref_score_corr` measure; 0 stands for K.
        length_start: Target length of the first variants, as a fraction of T.
        length_end: Target length of the last variants, as a fraction of T; also the allocator's budget.
        length_anneal: Fraction of training over which the target moves from length_start to length_end.
        length_mixed: Draw every step's target between the annealed one and length_start, so that the model is trained
            on all lengths until the end.
        allow_unused_levels: Accept levels that no target length can ever use.
    """

    window: int
    block_size: int = 32
    levels: int = 1
    slots: int = 1
    tail: int = 128
    sink: int = 0
    horizon: int = 0
    length_start: float = 0.9
    length_end: float = 0.75
    length_anneal: float = 1.0
    length_mixed: bool = False
    allow_unused_levels: bool = False

    def __post_init__(self) -> None:
        for name in ("length_start", "length_end", "length_anneal"):
            value = getattr(self, name)
            require(0 < value <= 1, f"context.{name}", value, "a fraction above 0 and up to 1")
        if self.window % self.block_size:
            fits = self.window // self.block_size * self.block_size or self.block_size
            raise UserError(
                f"context.window: expected a multiple of context.block_size = {self.block_size}, got {self.window}",
                remedy=f"Set context.window to a multiple of {self.block_size}, for example {fits}.",
                binding="context.window",
            )
        _ = self.tree  # errors of the tree are raised here, so that they get a file and line

    @property
    def tree(self) -> ContextTree:
        """The tree."""
        return ContextTree(self.window, self.block_size, self.levels, self.slots, self.tail, self.sink, self.horizon)

    def target(self, fraction: float) -> int:
        """Return the target length in entries after this fraction of training (0 to 1)."""
        progress = min(1.0, fraction / self.length_anneal)
        length = self.length_start + (self.length_end - self.length_start) * progress
        # 0.9 * 2048 is 1843.1999...: rounding must not cost an entry.
        return int(length * self.window + 1e-9)

    @property
    def targets(self) -> list[int]:
        """The extreme target lengths; lengths are monotonic between them."""
        return sorted({self.target(0.0), self.target(1.0)})

    def check_levels(self) -> dict[int, int]:
        """Return the most nodes of each LOD that any target length can hold.

        Raises:
            UserError: A level can never occur and `allow_unused_levels` is False.
        """
        low, high = self.targets[0], self.targets[-1]
        usable = self.tree.usable_levels(list(range(low, high + 1)))
        unused = [lod for lod, most in usable.items() if most == 0]
        if unused and not self.allow_unused_levels:
            best = max((lod for lod, most in usable.items() if most), default=1)
            raise UserError(
                f"context.levels = {self.levels}, but LOD {', '.join(map(str, unused))} can never be used: working "
                f"contexts of {low} to {high} entries cannot hold a node of {self.tree.span(unused[0])} tokens",
                remedy=f"Set context.levels = {best}, lower context.length_end or context.block_size, or accept it "
                "with context.allow_unused_levels = True.",
                binding="context.levels",
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
    lr_scale           factors on the learning rates of parts: {'base': 0.1, 'gistnet': 1.0, 'lensnet': 1.0}
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    betas: Sequence[float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    gradient_clipping: float | None = None
    lr_scale: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "eps"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name}", value, "above 0")
        for part, scale in self.lr_scale.items():
            parts = ("base", "gistnet", "lensnet")
            require(part in parts, "optimizer.lr_scale", part, f"parts of {', '.join(parts)}")
            require(scale >= 0, "optimizer.lr_scale", scale, "factors of 0 or above")
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
    """The learning rate over training, as a fraction of its peak (gin: `schedule`).

    Attributes:
        warmup_ratio: Fraction of training over which the rate rises linearly from 0.
        warmdown_ratio: Fraction of training over which it falls linearly to `final_lr_ratio`.
        final_lr_ratio: Fraction of the peak at the end.
    """

    warmup_ratio: float = 0.02
    warmdown_ratio: float = 0.2
    final_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup_ratio", "warmdown_ratio", "final_lr_ratio"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"schedule.{name}", value, "a fraction from 0 to 1")

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor on the peak learning rate in optimizer step `step` (from 0)."""
        up, down = self.warmup_ratio * total_steps, self.warmdown_ratio * total_steps
        rise = min(1.0, (step + 1) / up) if up > 0 else 1.0
        fall = min(1.0, (total_steps - step) / down) if down > 0 else 1.0
        return min(rise, self.final_lr_ratio + (1 - self.final_lr_ratio) * fall)


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """DeepSpeed (gin: `deepspeed`).

    Attributes:
        zero_stage: 0 to 3.
        precision: fp32, or bf16 with fp32 master weights, which needs ZeRO 1 or higher.
        offload_optimizer: Keep the optimizer's state in the CPU's memory; needs ZeRO 1 or higher.
        offload_parameters: Keep parameters in the CPU's memory; needs ZeRO 3.
        settings: Any keys of DeepSpeed's JSON; they override those that mcframe sets.
    """

    zero_stage: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.zero_stage in (0, 1, 2, 3), "deepspeed.zero_stage", self.zero_stage, "0, 1, 2 or 3")
        # At ZeRO 0 DeepSpeed keeps no float32 master weights: small updates of bf16 weights are lost to rounding.
        for needs, name, least in (
            (self.precision == "bf16", "precision", 1),
            (self.offload_optimizer, "offload_optimizer", 1),
            (self.offload_parameters, "offload_parameters", 3),
        ):
            if needs and self.zero_stage < least:
                raise UserError(
                    f"deepspeed.{name} = {getattr(self, name)!r}: expected deepspeed.zero_stage of {least} or higher, "
                    f"got {self.zero_stage}",
                    remedy=f"Set deepspeed.zero_stage = {least}, on a single rank too.",
                    binding=f"deepspeed.{name}",
                )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The split of the text (gin: `data`).

    Attributes:
        validation_share: Fraction of documents held out for validation.
    """

    validation_share: float = 0.02


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation on held-out text (gin: `validation`).

    Attributes:
        every: Dataset tokens between validations; 0 for the first and the last only.
        windows: Sequences that a validation reads.
    """

    every: int = 10_000_000
    windows: int = 64

    def __post_init__(self) -> None:
        require_interval("validation", self.every)
        require(self.windows >= 1, "validation.windows", self.windows, "1 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The evaluations of `run.evaluations` while training (gin: `evaluation`).

    Attributes:
        every: Dataset tokens between evaluations, which cost far more than a validation; 0 for never.
    """

    every: int = 0

    def __post_init__(self) -> None:
        require_interval("evaluation", self.every)


@dataclass(frozen=True, kw_only=True)
class FiguresConfig:
    """Figures of a run (gin: `figures`).

    Attributes:
        every: Dataset tokens between figures, which show the data recorded with every log; 0 for never.
    """

    every: int = 50_000_000

    def __post_init__(self) -> None:
        require_interval("figures", self.every)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints (gin: `checkpoint`).

    Attributes:
        every: Dataset tokens between checkpoints; 0 for the last only.
        keep: Newest checkpoints that stay on disk.
    """

    every: int = 50_000_000
    keep: int = 2

    def __post_init__(self) -> None:
        require_interval("checkpoint", self.every)
        require(self.keep >= 1, "checkpoint.keep", self.keep, "1 or more")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Continuations that are printed while training (gin: `sampling`).

    Attributes:
        every: Dataset tokens between samples; 0 for never.
        prompts: Texts to continue.
        length: Tokens of a continuation.
        temperature: 0 takes the likeliest token each time.
    """

    every: int = 10_000_000
    prompts: Sequence[str] = ("def ", "The ")
    length: int = 64
    temperature: float = 0.8

    def __post_init__(self) -> None:
        require_interval("sampling", self.every)
        require(self.length >= 1, "sampling.length", self.length, "1 or more")
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "0 or above")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Log lines, and loggers next to metrics.jsonl (gin: `logging`).

    Attributes:
        every: Dataset tokens between log lines; 0 for the last only.
        tensorboard: Write event files to `RUN/tensorboard`.
        wandb: auto stands for `WANDB_MODE`; without it for online if a login exists, else offline.
    """

    every: int = 1_000_000
    tensorboard: bool = True
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"

    def __post_init__(self) -> None:
        require_interval("logging", self.every)


def require_interval(group: str, every: int) -> None:
    """Raise UserError unless `every` is an interval in tokens."""
    require(every >= 0, f"{group}.every", every, "a number of tokens, or 0 for never")


MULTI_KINDS: Mapping[str, str] = {
    "evaluation": "evaluations",
    "loss": "losses",
    "logger": "loggers",
    "callback": "callbacks",
}
"""Kinds of which a run may have any number, and what `run` calls them; of others it has one, under the kind's name."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run (gin: `run`).

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
        loggers: Loggers in addition to those that `logging` switches, for example `@logger.prometheus`.
        callbacks: Act after backward passes and steps, for example `@callback.early_stopping`.
        start_from: A run directory or checkpoint of another run whose weights are loaded, part by part, where they fit.
        trainable: The parts that are trained: base, gistnet, lensnet.
        total_tokens: Dataset tokens of the run, rounded down to complete steps. Set this or total_steps.
        total_steps: Optimizer steps of the run. Set this or total_tokens.
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
    callbacks: Sequence[Callable[[], Callback]] = ()
    total_tokens: int | None = None
    total_steps: int | None = None
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
    data: DataConfig
    validation: ValidationConfig
    evaluation: EvaluationConfig
    sampling: SamplingConfig
    figures: FiguresConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig

    def __post_init__(self) -> None:
        if self.batch_tokens < 1 or self.batch_tokens % self.context.window:
            near = max(1, round(self.batch_tokens / self.context.window)) * self.context.window
            raise UserError(
                f"run.batch_tokens: expected a multiple of context.window = {self.context.window}, "
                f"got {self.batch_tokens}",
                remedy=f"Set run.batch_tokens = {near}.",
                binding="run.batch_tokens",
            )
        self._check_length()
        require(self.micro_batch >= 1, "run.micro_batch", self.micro_batch, "1 or more")
        require(0 <= self.seed < 2**63, "run.seed", self.seed, "from 0 to 2**63 - 1")

    def _check_length(self) -> None:
        if (self.total_tokens is None) == (self.total_steps is None):
            raise UserError(
                f"run: expected either total_tokens or total_steps, got {'both' if self.total_steps else 'neither'}",
                remedy="Bind one of run.total_tokens and run.total_steps, and set the other to None.",
                binding="run.total_steps",
            )
        if self.total_steps is not None:
            require(self.total_steps >= 1, "run.total_steps", self.total_steps, "1 or more")
        elif self.steps < 1:
            raise UserError(
                f"run.total_tokens: expected at least one step of run.batch_tokens = {self.batch_tokens}, "
                f"got {self.total_tokens}",
                remedy="Raise run.total_tokens or lower run.batch_tokens.",
                binding="run.total_tokens",
            )

    @property
    def sequences(self) -> int:
        """Sequences of one optimizer step over all ranks."""
        return self.batch_tokens // self.context.window

    def progress(self, step: int) -> float:
        """Return the fraction of training done before optimizer step `step`: 0 at the first, 1 at the last."""
        return step / max(1, self.steps - 1)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.total_steps or (self.total_tokens or 0) // self.batch_tokens

    @property
    def extreme_lengths(self) -> tuple[int, int]:
        """Entries of a variant at the first target and at the last."""
        context = self.context
        first, last = (context.tree.reachable(context.target(fraction))[0] for fraction in (0.0, 1.0))
        return first, last

    def variant_length(self, step: int) -> int:
        """Entries of each variant in optimizer step `step`: the largest reachable under the step's target."""
        target = self.context.target(self.progress(step))
        if self.context.length_mixed:
            first = self.context.target(0.0)
            low, high = min(first, target), max(first, target)
            # A function of seed and step alone: the same on every rank and after resuming.
            target = low + random.Random(f"length/{self.seed}/{step}").randrange(high - low + 1)
        return self.context.tree.reachable(target)[0]
