"""Checks that `run.batch_tokens` and `run.micro_batch` divide into sequences, ranks and forward passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcframe.errors import require

if TYPE_CHECKING:
    from mcframe.config.schema import RunConfig


def check_sequences(batch_tokens: int, window: int) -> None:
    """Raise UserError unless a step has complete sequences of T = `window` tokens."""
    near = max(1, round(batch_tokens / window)) * window
    rule = f"a multiple of context.window = {window}"
    require(batch_tokens % window == 0, "run.batch_tokens", batch_tokens, rule, f"Set run.batch_tokens = {near}.")


def check_ranks(run_config: RunConfig, world_size: int) -> None:
    """Raise UserError unless the sequences of a step divide among the ranks."""
    sequences, window = run_config.sequences, run_config.context.window
    near = max(1, round(sequences / world_size)) * world_size * window
    require(
        sequences % world_size == 0,
        "run.batch_tokens",
        run_config.batch_tokens,
        f"a multiple of {world_size} ranks times context.window = {window}",
        f"Set run.batch_tokens = {near}, or start another number of ranks.",
    )


def micro_batch_for(sequences_per_rank: int, limit: int) -> int:
    """Return the largest micro-batch up to `limit` that divides `sequences_per_rank`; both at least 1."""
    return max(size for size in range(1, min(sequences_per_rank, limit) + 1) if sequences_per_rank % size == 0)


def checked_micro_batch(run_config: RunConfig, world_size: int, *, baseline_every: int, variants_every: int) -> int:
    """Return the sequences of a forward pass on a rank.

    Args:
        run_config: The run.
        world_size: Ranks.
        baseline_every: One in `baseline_every` sequences has the uncompressed pass.
        variants_every: One in `variants_every` sequences has variants.

    Raises:
        UserError: They cannot be divided into those with and without the uncompressed pass or variants.
    """
    own = run_config.sequences // world_size
    # 'auto' is a number before there is an engine; until then all of a rank's sequences are checked.
    size = micro_batch_for(own, own if run_config.micro_batch == "auto" else run_config.micro_batch)
    for name, every in (("baseline_every", baseline_every), ("variants_every", variants_every)):
        require(
            size % every == 0,
            f"context.{name}",
            every,
            f"a divisor of the micro-batch of {size} sequences",
            f"Set run.micro_batch and run.batch_tokens so that a micro-batch has a multiple of {every} sequences, or "
            f"context.{name} = 1.",
        )
    return size
