"""The settings of the training loop as frozen dataclasses: optimizer, DeepSpeed, and what recurs while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from mcframe.bounds import Count, Fraction, NonNegative, NonNegativeInt, Positive, Repeats
from mcframe.errors import UserError, require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of every optimizer (gin: `optimizer`); `run.optimizer` selects one.

    Attributes:
        lr: Peak learning rate. `@optimizer.muon` has another one for matrices.
        weight_decay: Weight decay.
        gradient_clipping: Largest gradient norm of each part: base model, GistNet, LensNet, and a loss with parameters.
            0 for no clipping. None is 1.0, and 0 with `@optimizer.muon`: clipping would act on Muon's orthogonalised
            update, at some ZeRO stages and not at others.
        lr_scale: Factors on the learning rates of parts: {'base': 0.1, 'gistnet': 1.0, 'lensnet': 1.0}.
        lr_start: Fractions of training before which the learning rate of a part is 0: {'base': 0.5} trains the other
            parts first.
    """

    lr: Positive = 3e-3
    weight_decay: NonNegative = 0.0
    gradient_clipping: NonNegative | None = None
    lr_scale: Mapping[Literal["base", "gistnet", "lensnet"], NonNegative] = field(default_factory=dict)
    lr_start: Mapping[Literal["base", "gistnet", "lensnet"], Fraction] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """Options of DeepSpeed (gin: `deepspeed`).

    Attributes:
        zero_stage: 0 to 3.
        precision: fp32, or bf16 with fp32 master weights, which needs ZeRO 1 or higher.
        offload_optimizer: Keep the optimizer's state in the CPU's memory; needs ZeRO 1 or higher.
        offload_parameters: Keep parameters in the CPU's memory; needs ZeRO 3.
        tf32: On a GPU, round the operands of float32 matrix products to TF32, 10 bits of mantissa; else all 23 count.
        settings: Any keys of DeepSpeed's JSON; they override those that mcframe sets.
    """

    zero_stage: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    tf32: bool = False
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
class ValidationConfig:
    """Validation on held-out text (gin: `validation`).

    Attributes:
        every: Dataset tokens between validations; 0 for the first and the last only.
        windows: Sequences that a validation reads.
    """

    every: NonNegativeInt = 10_000_000
    windows: Repeats = 64


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The evaluations of `run.evaluations` while training (gin: `evaluation`).

    Attributes:
        every: Dataset tokens between evaluations, which cost far more than a validation; 0 for never.
    """

    every: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class FiguresConfig:
    """Figures of a run (gin: `figures`).

    Attributes:
        every: Dataset tokens between figures, which show the data recorded with every log; 0 for never.
    """

    every: NonNegativeInt = 50_000_000


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Intervals and number of checkpoints (gin: `checkpoint`).

    Attributes:
        every: Dataset tokens between checkpoints; 0 for the last only.
        keep: Newest checkpoints that stay on disk. Damaged ones do not count and are not deleted.
        asynchronous: Write in the background: a step waits for the copy to memory only, and the copy stays in memory
            until it is written.
        on_damage: Where the newest checkpoint is damaged, resume from an older one with a warning, or stop.
    """

    every: NonNegativeInt = 50_000_000
    keep: Count = 2
    asynchronous: bool = True
    on_damage: Literal["older", "stop"] = "older"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Continuations that are printed while training (gin: `sampling`).

    Attributes:
        every: Dataset tokens between samples; 0 for never.
        prompts: Texts to continue.
        length: Tokens of a continuation.
        temperature: 0 takes the likeliest token each time.
    """

    every: NonNegativeInt = 10_000_000
    prompts: Sequence[str] = ("def ", "The ")
    length: Repeats = 64
    temperature: NonNegative = 0.8


@dataclass(frozen=True, kw_only=True)
class AnomalyConfig:
    """Reaction to a loss or gradient that is not finite, and to spikes of the loss, on all ranks (gin: `anomaly`).

    `skip` undoes the step on the device: weights, optimizer state and buffers stay as before it; step number, schedule
    and data advance. It needs memory for one copy of them, and one more of the weights. `roll_back` loads the newest
    checkpoint and trains from there without the batch of the step; a run writes one after its first step. Either is
    found at the next log line, checkpoint or validation at the latest. `RUN/anomalies` has batch and weights, those of
    the step or of the newest checkpoint, for `mcframe replay RUN`.

    Attributes:
        on_nonfinite: Reaction to a loss or gradient that is NaN or infinite on any rank.
        on_spike: Reaction to a loss far above those of the steps before it.
        spike_deviations: Least height of a spike above the mean of these losses, in standard deviations.
        spike_nats: Least height of a spike above the mean of these losses, in nats.
        spike_window: Number of these losses; a spike is recognised once half of them exist.
        limit: Most steps that are skipped or rolled back within `limit_steps`; one more stops the run.
        limit_steps: Steps over which `limit` counts.
        keep: Newest anomalies whose batch and weights stay on disk.
    """

    on_nonfinite: Literal["stop", "skip", "roll_back"] = "stop"
    on_spike: Literal["ignore", "stop", "skip", "roll_back"] = "ignore"
    spike_deviations: Positive = 8.0
    spike_nats: NonNegative = 0.5
    spike_window: Annotated[int, Field(ge=4, le=65_536)] = 64
    limit: NonNegativeInt = 3
    limit_steps: Count = 1000
    keep: Count = 3

    def reacts(self, reaction: str) -> bool:
        """Return whether this is the reaction to one of the two."""
        return reaction in (self.on_nonfinite, self.on_spike)


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Log lines, and loggers next to metrics.jsonl (gin: `logging`).

    Attributes:
        every: Dataset tokens between log lines; 0 for the last only.
        tensorboard: Write event files to `RUN/tensorboard`.
        wandb: auto stands for `WANDB_MODE`; without it for online if a login exists, else offline.
    """

    every: NonNegativeInt = 1_000_000
    tensorboard: bool = True
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
