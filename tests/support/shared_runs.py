"""Settings of runs that tests of several files use through `launches.shared`."""

SHORT = (
    "run.total_tokens = 6144", "logging.every = 1024", "sampling.every = 4096", "sampling.length = 8",
    "run.extra_losses = [@loss.attribution]", "loss.attribution.weight = 0.5",
)  # fmt: skip
"""Six steps, with samples, which gather weights from all ranks at ZeRO 3."""

PLAIN = (*SHORT, "run.optimizer = @optimizer.adamw", "deepspeed.zero_stage = 0")
SHARDED = (*SHORT, "run.optimizer = @optimizer.adamw", "deepspeed.zero_stage = 3")

UNTRAINED = (
    "run.total_tokens = 6144",
    "logging.every = 1024",
    "validation.every = 2048",
    "optimizer.lr = 1e-30",
    "logging.wandb = 'offline'",
    "figures.every = 4096",
)
"""Six steps so small that rounding removes them: the loss of the plain model depends only on the tokens of a step."""
