"""Rules about the loss, and about the twin that a run is compared with."""

from __future__ import annotations

from mcframe.review.change import outliers, rise_bounds
from mcframe.review.finding import Case, Finding, NotJudged, Outcome, Plot
from mcframe.review.same_tokens import judge_tokens
from mcframe.training.update_ratio import METRIC as MOVED

LOSSES = ("train/loss_lod0", "train/loss")
_LR = "train/lr"
_ENOUGH_DRAWN = 3


def stalled_loss(case: Case) -> Outcome:
    """A loss that does not fall any more, or rises, while the learning rate is still up."""
    rule, run = "stalled_loss", case.run
    name = _loss(case)
    if not name:
        return case.missing(rule, " nor ".join(LOSSES))
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
        return case.short(rule, name)
    if rise.low <= -nats:
        return None
    first, last = (run_steps[counted][edge] for run_steps, edge in ((series.steps, 0), (series.steps, -1)))
    word = "rises" if rise.low > 0 else "has stalled"
    title = f"The loss {word}: {rise.value:+.3f} nats from step {first:,.0f} to {last:,.0f}."
    evidence = (
        f"{name}: a line through these {int(counted.sum())} points changes by {rise.value:+.4f} nats, interval "
        f"{rise.low:+.4f} to {rise.high:+.4f}; a fall of {nats:g} lies outside",
    )
    step = "Try another learning rate or a longer warm-down; look whether data repeats."
    shade = (float(tokens[counted][0]), float(tokens[counted][-1]))
    return Finding(rule, case.rules.severity(rule), title, evidence, step, Plot(rule, "Loss", (name,), shade))


def spiking_loss(case: Case) -> Outcome:
    """Single points far above their neighbours."""
    rule, name = "spiking_loss", _loss(case)
    if not name:
        return case.missing(rule, " nor ".join(LOSSES))
    series, least = case.run.series[name], case.rules.number(rule, "nats")
    above = outliers(series.highs, case.rules.alpha)
    # The first tenth falls too steeply for a median of neighbours to follow.
    above[: len(above) // 10] = 0.0
    where = above > least
    if not where.any():
        return None if len(above) >= 12 else case.short(rule, name)
    steps = ", ".join(f"{step:,.0f}" for step in series.steps[where][:5])
    more = ", …" if where.sum() > 5 else ""
    title = f"The loss spikes {int(where.sum())} time(s), by up to {above.max():.2f} nats (step {steps}{more})."
    evidence = (
        f"{name}: these points lie over {least:g} nats and over eight robust deviations above the median of eleven "
        f"neighbours, where normal noise would put none (α = {case.rules.alpha:g})",
    )
    step = "Look at the batches there and at train/grad_norm; optimizer.gradient_clipping limits what one can do."
    return Finding(rule, case.rules.severity(rule), title, evidence, step, Plot(rule, "Loss", (name,)))


def not_finite(case: Case) -> Outcome:
    """Values that were infinite or no number."""
    rule = "not_finite"
    counts = {name: series.not_finite for name, series in sorted(case.run.series.items()) if series.not_finite}
    if not counts:
        return None
    total = sum(counts.values())
    title = f"{total} value(s) are not finite: {', '.join(list(counts)[:3])}{' …' if len(counts) > 3 else ''}."
    evidence = tuple(
        f"{name}: {count} of {count + case.run.series[name].count} values" for name, count in list(counts.items())[:8]
    )
    step = "Find the first step at which it happens; lower the learning rate or clip the gradient."
    return Finding(rule, case.rules.severity(rule), title, evidence, step)


def unmoved_weights(case: Case) -> Outcome:
    """Modules that are to be trained and whose weights stay exactly as they are."""
    rule, run = "unmoved_weights", case.run
    names = run.named(MOVED)
    if not names:
        return case.missing(rule, f"{MOVED}MODULE")
    late = {name: run.series[name].late(case.rules.late) for name in names}
    least = case.rules.number(rule, "readings")
    tail_mask = [name for name in names if len(late[name]) >= least]
    if not tail_mask:
        return case.short(rule, names[0])
    # A change is no less than 0: a mean of exactly 0 is made of nothing else.
    still = [name for name in tail_mask if not late[name].any()]
    if not still:
        return None
    moving = [name for name in tail_mask if name not in still]
    modules = ", ".join(name.removeprefix(MOVED) for name in still)
    title = f"Weights do not move: {modules}." if moving else "No weights move at all."
    evidence = [_stood_still(case, name) for name in still]
    rate = run.get(_LR)
    if rate is not None and not rate.late(case.rules.late).any():
        evidence.append(f"{_LR} is 0 over this part of the run")
    step = (
        "Look whether its output reaches a loss, whether a detach or a no_grad cuts it off, and whether the weight of "
        "its objective is 0; take what is meant to stand still out of run.trainable."
    )
    plot = Plot(rule, "Change of weights", (*still[:_ENOUGH_DRAWN], *moving[:_ENOUGH_DRAWN]))
    return Finding(rule, case.rules.severity(rule), title, tuple(evidence), step, plot)


def _stood_still(case: Case, name: str) -> str:
    """Since when a module stands still, in words."""
    series, readings = case.run.series[name], len(case.run.series[name].late(case.rules.late))
    moved = series.steps[series.means > 0]
    since = f"it moved last up to step {moved[-1]:,.0f}" if len(moved) else "it has never moved"
    return f"{name}: exactly 0 at each of the last {readings} readings; {since}"


def misaligned_tokens(case: Case) -> Outcome:
    """A twin that read other tokens, so that curves by tokens do not compare."""
    rule = "misaligned_tokens"
    if case.twin is None:
        return NotJudged(rule, "no twin was named with --against")
    tail_mask = judge_tokens(case.run, case.twin)
    if tail_mask.same is None:
        return NotJudged(rule, "; ".join(tail_mask.reasons))
    if tail_mask.same:
        return None
    title = f"{case.run.name} and {case.twin.name} did not read the same tokens."
    step = "Train the twin again with the run's gin file and run.variants alone changed."
    return Finding(rule, case.rules.severity(rule), title, tail_mask.reasons, step)


def _loss(case: Case) -> str:
    return next((name for name in LOSSES if case.run.get(name) is not None), "")
