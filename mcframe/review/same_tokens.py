"""Whether two runs read the same tokens in the same order, and how one knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcframe.review.record import Record
from mcframe.review.run_facts import decides_what_is_read, differences

_PER_STEP = "train/tokens_per_step"
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SameTokens:
    """same is None where nothing tells. reasons: what it was judged by, or what differs."""

    same: bool | None
    reasons: tuple[str, ...]


def judge_tokens(run: Record, other: Record) -> SameTokens:
    """Compare the token clocks of two runs, and the bindings that decide what is read.

    The logs do not hold the tokens themselves: equal clocks, seed, text and tokenizer are what can be known. One that
    stopped earlier has read the beginning of what the other read.
    """
    wrong: list[str] = []
    known: list[str] = []
    steps = run.last(_PER_STEP), other.last(_PER_STEP)
    if None not in steps:
        if steps[0] != steps[1]:
            wrong.append(f"{_PER_STEP}: {steps[0]:,.0f} against {steps[1]:,.0f}")
        else:
            known.append(f"{steps[0]:,.0f} tokens a step")
    if run.x == other.x == "tokens":
        drift = _drift(run, other)
        if drift is not None and drift[1] > _TOLERANCE:
            wrong.append(f"the clocks part: at step {drift[0]:,.0f} they are {100 * drift[1]:.3g} % apart in tokens")
        elif drift is not None:
            known.append("equal token counts at equal steps")
    if run.config and other.config:
        for key, (one, two) in differences(run.config, other.config).items():
            if decides_what_is_read(key):
                wrong.append(f"{key}: {one} against {two}")
        known.append("the same seed, text, tokenizer, batch and window")
    elif not wrong:
        return SameTokens(None, ("no operative.gin of both says which text and seed they had",))
    if wrong:
        return SameTokens(False, tuple(wrong))
    if run.tokens[1] != other.tokens[1]:
        shorter = run if run.tokens[1] < other.tokens[1] else other
        known.append(f"{shorter.name} stopped earlier, at {shorter.tokens[1]:,} tokens")
    return SameTokens(True, tuple(known))


def _drift(run: Record, other: Record) -> tuple[float, float] | None:
    """(step, relative difference) where the clocks differ most over the steps that both have."""
    mine, theirs = _clock(run), _clock(other)
    last = min(mine[-1][0], theirs[-1][0])
    steps = np.linspace(max(mine[0][0], theirs[0][0]), last, 64)
    if last <= 0 or steps[0] > last:
        return None
    counts = [np.interp(steps, *np.array(clock).T) for clock in (mine, theirs)]
    apart = np.abs(counts[0] - counts[1]) / np.maximum(1.0, np.maximum(counts[0], counts[1]))
    worst = int(np.argmax(apart))
    return float(steps[worst]), float(apart[worst])


def _clock(run: Record) -> list[tuple[float, float]]:
    """(step, tokens) along the run: of the metric with most points."""
    fullest = max((s for s in run.series.values() if s.count), key=len)
    if not len(fullest):
        return [(run.steps[0], run.tokens[0]), (run.steps[1] or 1, run.tokens[1])]
    return list(zip(fullest.steps.tolist(), fullest.tokens.tolist(), strict=True))
