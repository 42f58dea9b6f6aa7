"""Compare the tokens of two runs and their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcframe.review.record import Record
from mcframe.review.run_facts import decides_tokens, differences

_PER_STEP = "train/tokens_per_step"
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SameTokens:
    """Result of a comparison; `same` is None if the logs do not decide it. `reasons` are its grounds."""

    same: bool | None
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """The result as the end of a sentence."""
        return {
            True: "read the same tokens",
            False: "did not read the same tokens",
            None: "may or may not have read the same tokens",
        }[self.same] + f": {'; '.join(self.reasons)}."


def compare_tokens(run: Record, other: Record) -> SameTokens:
    """Compare the token counts of two runs over steps, and the bindings that decide which tokens are read.

    The logs do not hold the tokens themselves, so equal counts, seed, text and tokenizer are taken as proof. Of two
    runs, the one that stopped earlier has read the beginning of the other's tokens.
    """
    different: list[str] = []
    equal: list[str] = []
    steps = run.last(_PER_STEP), other.last(_PER_STEP)
    if None not in steps:
        if steps[0] != steps[1]:
            different.append(f"{_PER_STEP}: {steps[0]:,.0f} against {steps[1]:,.0f}")
        else:
            equal.append(f"{steps[0]:,.0f} tokens a step")
    if run.x == other.x == "tokens":
        drift = _drift(run, other)
        if drift is not None and drift[1] > _TOLERANCE:
            different.append(f"at step {drift[0]:,.0f} their token counts are {100 * drift[1]:.3g} % apart")
        elif drift is not None:
            equal.append("equal token counts at equal steps")
    if run.config and other.config:
        for key, (one, two) in differences(run.config, other.config).items():
            if decides_tokens(key):
                different.append(f"{key}: {one} against {two}")
        equal.append("the same seed, text, tokenizer, batch and window")
    elif not different:
        return SameTokens(None, ("operative.gin of both, with text and seed, is missing",))
    if different:
        return SameTokens(False, tuple(different))
    if run.tokens[1] != other.tokens[1]:
        shorter = run if run.tokens[1] < other.tokens[1] else other
        equal.append(f"{shorter.name} stopped earlier, at {shorter.tokens[1]:,} tokens")
    return SameTokens(True, tuple(equal))


def _drift(run: Record, other: Record) -> tuple[float, float] | None:
    """Return (step, relative difference) where the token counts differ most over the steps of both runs."""
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
    """Return (step, tokens) along the run, of the metric with most points."""
    fullest = max((s for s in run.series.values() if s.count), key=len)
    if not len(fullest):
        return [(run.steps[0], run.tokens[0]), (run.steps[1] or 1, run.tokens[1])]
    return list(zip(fullest.steps.tolist(), fullest.tokens.tolist(), strict=True))
