"""The settings of a run as frozen dataclasses. The gin name of each is in its docstring."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from mcframe.bounds import Count, Decay, NonNegativeInt, Positive, PositiveFraction, Seed
from mcframe.config.batch_size import check_sequences
from mcframe.config.training_schema import (
    AnomalyConfig,
    CheckpointConfig,
    DeepSpeedConfig,
    EvaluationConfig,
    FiguresConfig,
    LoggingConfig,
    OptimizerConfig,
    SamplingConfig,
    ValidationConfig,
)
from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError, require
from mcframe.hookspecs import (
    Allocator,
    BaseModel,
    BaseShape,
    Callback,
    Evaluation,
    GistNet,
    HeadShape,
    LensNet,
    Loss,
    MetricLogger,
    ModelShape,
    Optimizer,
    Positions,
    RunStart,
    Schedule,
    SyntheticTask,
    TextSource,
    Tokenizer,
    VariantStrategy,
)
from mcframe.losses.lens_targets import LensTargetsConfig
from mcframe.runtime.session_config import SessionDefaults


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
        length_steps: Number of evenly spaced targets of which every step takes the nearest, if more lengths than that
            can occur. None = all lengths, or 8 with run.compile, which compiles a graph for each.
        allow_unused_levels: Accept levels that no target length can ever use.
        baseline_window: Tokens at the end of T that the uncompressed pass of a training step reads; None = T. Losses
            and metrics that compare with it count the targets after those tokens only.
        baseline_every: One of so many sequences has the uncompressed pass in a training step with variants; a divisor
            of the micro-batch. The others have the losses that compare with nothing, such as `@loss.variants`, alone.
        variants_every: One of so many sequences has variants in a training step; a divisor of the micro-batch. The
            others have the losses that require nothing, such as `@loss.next_token`, alone.
    """

    window: Count
    block_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    levels: Annotated[int, Field(ge=1, le=32)] = 1
    slots: Count = 1
    tail: NonNegativeInt = 128
    sink: NonNegativeInt = 0
    horizon: NonNegativeInt = 0
    length_start: PositiveFraction = 0.9
    length_end: PositiveFraction = 0.75
    length_anneal: PositiveFraction = 1.0
    length_mixed: bool = False
    length_steps: Count | None = None
    allow_unused_levels: bool = False
    baseline_window: Count | None = None
    baseline_every: Count = 1
    variants_every: Count = 1

    def __post_init__(self) -> None:
        if self.window % self.block_size:
            fits = self.window // self.block_size * self.block_size or self.block_size
            raise UserError(
                f"context.window: expected a multiple of context.block_size = {self.block_size}, got {self.window}",
                remedy=f"Set context.window to a multiple of {self.block_size}, for example {fits}.",
                binding="context.window",
            )
        _ = self.tree  # errors of the tree are raised here, so that they get a file and line
        least = min(self.tail + 1, self.window)
        require(
            self.baseline_window is None or least <= self.baseline_window <= self.window,
            "context.baseline_window",
            self.baseline_window,
            f"None or a number from {least}, the tail and the token before it, to context.window = {self.window}",
        )
        require(
            1 in (self.baseline_every, self.variants_every),
            "context.variants_every",
            self.variants_every,
            f"1 together with context.baseline_every = {self.baseline_every}",
            "Set one of them to 1: a sequence has the uncompressed pass, variants, or both.",
        )

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

    def rounded(self, target: int, steps: int) -> int:
        """Return the nearest of `steps` evenly spaced targets, or the target if no more lengths than that can occur."""
        low, high = self.targets[0], self.targets[-1]
        if self._occur_at_most(steps):
            return target
        if steps == 1:
            return high
        nearest = (2 * (target - low) * (steps - 1) + (high - low)) // (2 * (high - low))
        return low + (high - low) * nearest // (steps - 1)

    def _occur_at_most(self, count: int) -> bool:
        """Return whether the targets have at most so many reachable lengths."""
        low, high = (self.tree.reachable_length(each) for each in (self.targets[0], self.targets[-1]))
        for _ in range(count):
            if high <= low:
                return True
            high = self.tree.reachable_length(high - 1)
        return False

    @property
    def targets(self) -> list[int]:
        """The extreme target lengths; lengths are monotonic between them."""
        return sorted({self.target(0.0), self.target(1.0)})

    def check_levels(self) -> dict[int, int]:
        """Return the most nodes of each LOD that any target length can hold.

        Raises:
            UserError: No context is as short as a target, or a level can never occur and `allow_unused_levels` is
                False.
        """
        for name, fraction in (("length_start", 0.0), ("length_end", 1.0)):
            try:
                self.tree.reachable_length(self.target(fraction))
            except UserError as error:
                error.binding = f"context.{name}"
                raise
        low, high = self.targets[0], self.targets[-1]
        usable = self.tree.usable_levels(low, high)
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
class DataConfig:
    """The split of the text (gin: `data`).

    Attributes:
        validation_fraction: Fraction of documents held out for validation; near-duplicates are held out together.
        document_mask: Attention, gists and LensNet do not cross the documents of a window.
    """

    validation_fraction: Decay = 0.02
    document_mask: bool = False


GRAPHS = 8
"""Graphs that a compiled run may need, and lengths of variants where `context.length_steps` is None."""

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
        lensnet: LensNet; None trains none. Without a GistNet no LensNet is built.
        allocator: Turns scores and a budget into a focus.
        variants: Proposes the working contexts that training compares; `@variants.none` is the plain baseline.
        text: Text source.
        tokenizer: Tokenizer.
        task: Synthetic task that replaces the text, for example `@task.recall`.
        evaluations: Evaluations of a trained model; None is `@evaluation.gist_quality` and `@evaluation.focus_quality`.
        base: Base model; None is `@base.gpt`, whose settings are `gpt.*`.
        positions: Positions of the base model; None is `@positions.gaussian_rope`.
        losses: Terms of the loss, in order. None is next_token, variants, delta_penalty, preference and balance.
        extra_losses: Losses in addition to `losses`.
        loggers: Loggers in addition to those that `logging` switches, for example `@logger.prometheus`.
        optimizer: Optimizer; None is `@optimizer.adamw`.
        schedule: Learning-rate schedule; None is `@schedule.trapezoid`.
        callbacks: Act after backward passes and steps, for example `@callback.early_stopping`.
        hooks: Installed plug-ins or packages whose life-cycle hooks act, each with the settings that they read, for
            example `{'mylab': {'channel': 'runs'}}`. Hooks of `--plugin` always act.
        start_from: A run directory or checkpoint of another run. Base model, GistNet and LensNet start with its
            weights, each where all of the part fits.
        trainable: The parts that are trained; the others are frozen. Parameters of a loss are frozen with its part.
        total_tokens: Dataset tokens of the run, rounded down to complete steps. Set this or total_steps.
        total_steps: Optimizer steps of the run. Set this or total_tokens.
        batch_tokens: Dataset tokens of an optimizer step over all ranks; a multiple of `context.window`,
            and a number of sequences that divides among the ranks.
        micro_batch: The most sequences of a forward pass on a rank; the largest divisor up to it is used, and
            the rest is gradient accumulation. 'auto' tries powers of two at each start and keeps the largest that fits
            the memory of every rank: of a GPU, or of a CPU under `ulimit -v`.
        compile: Compile the training step with torch.compile, a graph for each length of variants, at ZeRO 0 to 2.
            True, 'default' or 'max-autotune-no-cudagraphs' of its modes, or its backend 'eager', which only traces:
            it shows what cannot be compiled, and needs no C++ compiler.
        seed: Determines data order, variants and initialisation.
        stall_seconds: Seconds that a rank waits for one without a sign of life before it ends the run; 5 times as many
            for one that still responds, unless it evaluates, saves, reads data or compiles.
    """

    gistnet: Callable[[ModelShape], GistNet] | None
    lensnet: Callable[[ModelShape], LensNet] | None
    allocator: Callable[[ContextTree], Allocator]
    variants: Callable[[ContextTree], VariantStrategy]
    text: Callable[[], TextSource]
    tokenizer: Callable[[], Tokenizer]
    task: Callable[[ContextTree], SyntheticTask] | None = None
    evaluations: Sequence[Callable[[], Evaluation]] | None = None
    base: Callable[[BaseShape], BaseModel] | None = None
    positions: Callable[[HeadShape], Positions] | None = None
    losses: Sequence[Callable[[ModelShape], Loss]] | None = None
    extra_losses: Sequence[Callable[[ModelShape], Loss]] = ()
    loggers: Sequence[Callable[[RunStart], MetricLogger]] = ()
    callbacks: Sequence[Callable[[], Callback]] = ()
    hooks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    optimizer: Callable[[], Optimizer] | None = None
    schedule: Callable[[], Schedule] | None = None
    total_tokens: Count | None = None
    total_steps: Count | None = None
    batch_tokens: Count
    micro_batch: Count | Literal["auto"] = 8
    compile: Literal[False, True, "default", "max-autotune-no-cudagraphs", "eager"] = False
    seed: Seed = 0
    stall_seconds: Positive = 60.0
    start_from: str | None = None
    trainable: Sequence[Literal["base", "gistnet", "lensnet"]] = ("base", "gistnet", "lensnet")
    context: ContextConfig
    lens_targets: LensTargetsConfig
    optimizer_config: OptimizerConfig
    deepspeed: DeepSpeedConfig
    data: DataConfig
    validation: ValidationConfig
    evaluation: EvaluationConfig
    sampling: SamplingConfig
    session: SessionDefaults
    figures: FiguresConfig
    checkpoint: CheckpointConfig
    anomaly: AnomalyConfig
    logging: LoggingConfig

    def __post_init__(self) -> None:
        check_sequences(self.batch_tokens, self.context.window)
        self._check_length()

    def _check_length(self) -> None:
        if (self.total_tokens is None) == (self.total_steps is None):
            raise UserError(
                f"run: expected either total_tokens or total_steps, got {'both' if self.total_steps else 'neither'}",
                remedy="Bind one of run.total_tokens and run.total_steps, and set the other to None.",
                binding="run.total_steps",
            )
        if self.steps < 1:
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

    @property
    def micro_batch_limit(self) -> int:
        """The most sequences of a forward pass on a rank; 8 where 'auto' is not resolved, without training."""
        return 8 if self.micro_batch == "auto" else self.micro_batch

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
        first, last = (self._length(context.target(fraction)) for fraction in (0.0, 1.0))
        return first, last

    def variant_length(self, step: int) -> int:
        """Entries of each variant in optimizer step `step`: the largest reachable under the step's target."""
        target = self.context.target(self.progress(step))
        if self.context.length_mixed:
            first = self.context.target(0.0)
            low, high = min(first, target), max(first, target)
            # A function of seed and step alone: the same on every rank and after resuming.
            target = low + random.Random(f"length/{self.seed}/{step}").randrange(high - low + 1)
        return self._length(target)

    def _length(self, target: int) -> int:
        """Return the entries of a variant for a target: the largest reachable length under it, after `length_steps`."""
        steps = self.context.length_steps or (GRAPHS if self.compile else None)
        return self.context.tree.reachable_length(target if steps is None else self.context.rounded(target, steps))
