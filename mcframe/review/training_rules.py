"""Rules on the loss, on weights, and on the baseline of a comparison."""

from __future__ import annotations

from mcframe.data.overlap import Overlap
from mcframe.review.change import MIN_VALUES, outliers, rise_bounds
from mcframe.review.finding import Case, Finding, Plot, SkipRule
from mcframe.review.same_tokens import compare_tokens
from mcframe.training.update_ratio import METRIC as UPDATE_RATIO

LOSSES = ("train/loss_lod0", "train/loss")
_LR = "train/lr"
_MAX_DRAWN = 3


def stalled_loss(case: Case) -> Finding | None:
    """Find a loss that rises or no longer falls while the learning rate is high."""
    rule, run = "stalled_loss", case.run
    name = _loss(case)
    series, nats = run.series[name], case.rules.number(rule, "nats")
    tokens = series.tokens
    begin = tokens[-1] - case.rules.late * (tokens[-1] - tokens[0]) if len(tokens) else 0.0
    counted = tokens > begin
    rate = run.get(_LR)
    if rate is not None and len(rate):
        limit = case.rules.number(rule, "lr") * rate.means.max()
        below = rate.tokens[(rate.means < limit) & (rate.tokens > begin)]
        counted &= tokens < (below[0] if len(below) else tokens[-1] + 1)
    rise = rise_bounds(series.means[counted], case.rules.level)
    if rise is None:
        raise case.too_short(name)
    if rise.low <= -nats:
        return None
    first, last = series.steps[counted][[0, -1]]
    word = "rises" if rise.low > 0 else "has stalled"
    title = f"The loss {word}: {rise.value:+.3f} nats from step {first:,.0f} to {last:,.0f}."
    evidence = (
        f"{name}: a line through these {int(counted.sum())} points changes by {rise.value:+.4f} nats, interval "
        f"{rise.low:+.4f} to {rise.high:+.4f}; a fall of {nats:g} lies outside",
    )
    step = "Try another learning rate or a longer warm-down; check whether data repeats."
    shade = (float(tokens[counted][0]), float(tokens[counted][-1]))
    return case.finding(rule, title, evidence, step, Plot(rule, "Loss", (name,), shade))


def spiking_loss(case: Case) -> Finding | None:
    """Find single points far above their neighbours."""
    rule, name = "spiking_loss", _loss(case)
    series, least = case.run.series[name], case.rules.number(rule, "nats")
    if len(series) < MIN_VALUES:
        raise case.too_short(name)
    above = outliers(series.highs, case.rules.alpha)
    # The first tenth falls too steeply for a median of neighbours to follow.
    above[: len(above) // 10] = 0.0
    high = above > least
    if not high.any():
        return None
    steps = ", ".join(f"{step:,.0f}" for step in series.steps[high][:5])
    more = ", …" if high.sum() > 5 else ""
    title = f"The loss spikes {int(high.sum())} time(s), by up to {above.max():.2f} nats (step {steps}{more})."
    evidence = (
        f"{name}: these points lie over {least:g} nats and over eight robust deviations above the median of eleven "
        f"neighbours, where normal noise would put none (α = {case.rules.alpha:g})",
    )
    step = "Inspect the batches there and train/grad_norm; optimizer.gradient_clipping limits the effect of one."
    return case.finding(rule, title, evidence, step, Plot(rule, "Loss", (name,)))


def not_finite(case: Case) -> Finding | None:
    """Find values that were infinite or NaN."""
    counts = {name: series.not_finite for name, series in sorted(case.run.series.items()) if series.not_finite}
    if not counts:
        return None
    more = " …" if len(counts) > 3 else ""
    title = f"{sum(counts.values())} value(s) are not finite: {', '.join(list(counts)[:3])}{more}."
    evidence = [
        f"{name}: {count} of {count + case.run.series[name].count} values" for name, count in list(counts.items())[:8]
    ]
    step = "Find the first step at which it happens; lower the learning rate or clip the gradient."
    return case.finding("not_finite", title, evidence, step)


def skipped_steps(case: Case) -> Finding | None:
    """Find steps that were skipped, or from which the run returned to a checkpoint."""
    counts = {name: case.run.get(f"train/{name}") for name in ("skipped_steps", "rollbacks")}
    most = {name: int(series.highs.max()) for name, series in counts.items() if series is not None and len(series)}
    if not any(most.values()):
        return None
    skipped, rollbacks = most.get("skipped_steps", 0), most.get("rollbacks", 0)
    title = f"{skipped} step(s) were skipped, and {rollbacks} time(s) the run returned to a checkpoint."
    evidence = tuple(
        f"train/{name}: from step {series.steps[series.highs > 0][0]:,.0f} on"
        for name, series in counts.items()
        if series is not None and most.get(name)
    )
    step = "Run mcframe replay on the run directory: it names the module, or shows the loss of each term."
    return case.finding("skipped_steps", title, evidence, step)


def unmoved_weights(case: Case) -> Finding | None:
    """Find trained modules whose weights do not change."""
    rule, run = "unmoved_weights", case.run
    names = run.named(UPDATE_RATIO)
    if not names:
        raise SkipRule(f"no {UPDATE_RATIO}MODULE in the log")
    late = {name: run.series[name].late(case.rules.late) for name in names}
    late = {name: values for name, values in late.items() if len(values) >= case.rules.number(rule, "readings")}
    if not late:
        raise case.too_short(names[0])
    # A change is never negative, so a mean of exactly 0 consists of zeros.
    still = [name for name, values in late.items() if not values.any()]
    if not still:
        return None
    moving = [name for name in late if name not in still]
    modules = ", ".join(name.removeprefix(UPDATE_RATIO) for name in still)
    title = f"Weights do not move: {modules}." if moving else "No weights move at all."
    evidence = []
    for name in still:
        moved = run.series[name].steps[run.series[name].means > 0]
        since = f"it moved last up to step {moved[-1]:,.0f}" if len(moved) else "it has never moved"
        evidence.append(f"{name}: exactly 0 at each of the last {len(late[name])} readings; {since}")
    rate = run.get(_LR)
    if rate is not None and not rate.late(case.rules.late).any():
        evidence.append(f"{_LR} is 0 over this part of the run")
    step = (
        "Check whether the module's output reaches a loss, whether a detach or a no_grad cuts it off, and whether the "
        "loss has weight 0; remove modules that should not train from run.trainable."
    )
    plot = Plot(rule, "Change of weights", (*still[:_MAX_DRAWN], *moving[:_MAX_DRAWN]))
    return case.finding(rule, title, evidence, step, plot)


def held_out_in_training(case: Case) -> Finding | None:
    """Find held-out windows that are in the training text."""
    rule, recorded = "held_out_in_training", case.run.provenance.get("held_out_overlap")
    if not isinstance(recorded, dict):
        raise SkipRule("no held_out_overlap in provenance.json", "Train again: every run of text records it.")
    overlap = Overlap(**recorded)
    fraction = overlap.covered / overlap.windows
    if fraction <= case.rules.number(rule, "fraction"):
        return None
    title = f"{fraction:.0%} of the held-out windows are in the training text: validation is too good."
    step = "Remove repeated passages from the corpus, and train again before you compare validation with other corpora."
    return case.finding(rule, title, (str(overlap),), step)


def misaligned_tokens(case: Case) -> Finding | None:
    """Find a baseline that read different tokens, so that curves over tokens are not comparable."""
    if case.baseline is None:
        raise SkipRule("no baseline was passed with --against")
    tokens = compare_tokens(case.run, case.baseline)
    if tokens.same is None:
        raise SkipRule("; ".join(tokens.reasons))
    if tokens.same:
        return None
    title = f"{case.run.name} and {case.baseline.name} did not read the same tokens."
    step = "Train the baseline again with the run's gin file, changing run.variants alone."
    return case.finding("misaligned_tokens", title, tokens.reasons, step)


def _loss(case: Case) -> str:
    name = next((name for name in LOSSES if case.run.get(name) is not None), "")
    if not name:
        raise SkipRule(f"no {' nor '.join(LOSSES)} in the log")
    return name
