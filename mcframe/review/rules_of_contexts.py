"""Rules about what compression costs and about LensNet."""

from __future__ import annotations

import math

from mcframe.review.change import mean_bounds, rise_bounds
from mcframe.review.finding import Case, Finding, NotJudged, Outcome, Plot
from mcframe.review.run_facts import preferences_given_away, vocabulary

ADV, LENGTH = "mc/adv_delta_mean", "mc/wc_length"
CORRELATION, GISTS_ALONE = "mc/preference_corr_mean", "mc/pref_score_corr"
LOD_DELTA = "mc/lod_delta/"
_LOSS = "train/loss_lod0"
_DROPS = ("/gist_minus/drop/", "/gist_minus/drop_twin/")
_ENOUGH_SHOWN = 6


def rising_lod_delta(case: Case) -> Outcome:
    """What a gist costs the tokens behind it grows."""
    rule, run = "rising_lod_delta", case.run
    names = run.named(LOD_DELTA)
    if not names:
        return case.missing(rule, f"{LOD_DELTA}1")
    least, risen, tail_mask = case.rules.number(rule, "nats"), [], 0
    for name in names:
        # The interval is as wide as `alpha` asks: a change is called, not a mean.
        rise = rise_bounds(run.series[name].late(case.rules.late), 1 - case.rules.alpha)
        tail_mask += rise is not None
        if rise is not None and rise.low > 0 and rise.value >= least:
            risen.append((name, rise))
    if not tail_mask:
        return case.short(rule, names[0])
    if not risen:
        return None
    what = " and ".join(f"{name} rises by {rise.value:.2g} nats" for name, rise in risen)
    evidence = [
        f"{name}: {run.series[name].first:.3g} at first, {run.series[name].last:.3g} at last; over the last "
        f"{100 * case.rules.late:.0f} % a line rises by {rise.value:+.3g} nats ({rise.low:+.3g} to {rise.high:+.3g})"
        for name, rise in risen
    ]
    length = run.get(LENGTH)
    if length is not None and length.last < length.first:
        evidence.append(
            f"{LENGTH} fell from {length.first:,.0f} to {length.last:,.0f} in the same time: more is collapsed, so a "
            "part of the rise is a harder task"
        )
    step = "Give the gists more: loss.distillation, a deeper GistNet, or a slower curriculum of lengths."
    plot = Plot(rule, "ΔNLL behind gists", tuple(name for name, _ in risen))
    return Finding(rule, case.rules.severity(rule), f"{what} late in the run.", tuple(evidence), step, plot)


def implausible_delta(case: Case) -> Outcome:
    """A ΔNLL as if the variants' model knew next to nothing."""
    rule, run = "implausible_delta", case.run
    series = run.get(ADV)
    if series is None:
        return case.missing(rule, ADV)
    bounds = mean_bounds(series.late(case.rules.late), case.rules.level)
    if bounds is None:
        return case.short(rule, ADV)
    ids = vocabulary(run.config)
    limit = case.rules.number(rule, "nats") if ids is None else case.rules.number(rule, "share") * math.log(ids)
    if bounds.low <= limit:
        return None
    whence = "of an unknown vocabulary" if ids is None else f"{limit / math.log(ids):.2g} of ln {ids:,.0f}"
    evidence = [
        f"late mean {bounds.value:.3g} nats, interval {bounds.low:.3g} to {bounds.high:.3g}; "
        f"the limit is {limit:.3g}, {whence}"
    ]
    loss, coarse, fine = run.last(_LOSS), run.last("mc/lod_loss/1"), run.last("mc/lod_loss/0")
    if ids is not None and loss is not None:
        evidence.append(
            f"guessing blindly loses ln {ids:,.0f} = {math.log(ids):.3g} nats, {math.log(ids) - loss:.3g} more than "
            f"{_LOSS}"
        )
    if coarse is not None and fine is not None:
        evidence.append(f"mc/lod_loss/1 is {coarse - fine:+.2f} nats from mc/lod_loss/0, which does not fit")
    title = f"ΔNLL of variants is {bounds.value:.2g} nats, which is implausible: a few gists cannot cost nearly all."
    step = "Check the pairing of targets before reading anything from ΔNLL: compared with wrong targets it looks so."
    return Finding(
        rule,
        case.rules.severity(rule),
        title,
        tuple(evidence),
        step,
        Plot(rule, "ΔNLL of variants", (ADV,), None, limit),
    )


def lens_uncorrelated(case: Case) -> Outcome:
    """LensNet's scores do not follow what was measured, or contradict it."""
    rule, config = "lens_uncorrelated", case.run.config
    # Where the level of detail alone gives preferences away, the correlation with them says nothing.
    name = GISTS_ALONE if preferences_given_away(config) else CORRELATION
    series = case.run.get(name)
    if series is None:
        return case.missing(rule, name)
    bounds = mean_bounds(series.late(case.rules.late), case.rules.level)
    if bounds is None:
        return case.short(rule, name)
    if bounds.low > 0:
        return None
    what = "the cost of gists" if name == GISTS_ALONE else "measured preferences"
    title = (
        f"LensNet's scores contradict {what} (correlation {bounds.value:+.3f})."
        if bounds.high < 0
        else f"The correlation of LensNet's scores with {what} ({bounds.value:+.3f}) cannot be told from zero."
    )
    evidence = [
        f"{name}: late mean {bounds.value:+.3f}, {100 * case.rules.level:g} % interval {bounds.low:+.3f} to "
        f"{bounds.high:+.3f}, from values worth {bounds.size:.0f} independent ones"
    ]
    if name == GISTS_ALONE:
        evidence.append(
            f"{CORRELATION} is not asked: asked on the worse context alone, signs are given away by the level of detail"
        )
    step = "Compare mc/preference_strength with lens_targets.scale_nats, and with a run of lens_targets.shuffle."
    if name == GISTS_ALONE:
        step = "Train with lens_targets.sides = 'both', which asks for more than the level of detail."
    plot = Plot(rule, "LensNet", (name,), None, 0.0)
    return Finding(rule, case.rules.severity(rule), title, tuple(evidence), step, plot)


def gist_no_better(case: Case) -> Outcome:
    """Gists that do no better than leaving the span out, by the controls of `mcframe eval`."""
    rule, measured = "gist_no_better", case.run.evaluation
    names = [n for n in measured if any(d in n for d in _DROPS) and not n.endswith(("_low", "_high"))]
    tail_mask = {
        n: (measured[n], measured[f"{n}_low"], measured[f"{n}_high"])
        for n in names
        if {f"{n}_low", f"{n}_high"} <= measured.keys()
    }
    if not tail_mask:
        step = "Run mcframe eval: whether a gist is better than leaving its block out was not measured."
        return NotJudged(
            rule,
            "no gist_minus/drop in evaluation/eval.json; mcframe eval writes it",
            step if case.run.get(ADV) else "",
        )
    bad = {name: bounds for name, bounds in tail_mask.items() if not bounds[2] < 0}
    if not bad:
        return None
    worse = sum(low > 0 for _, low, _ in bad.values())
    title = f"Gists are no better than dropping in {len(bad)} of {len(tail_mask)} controls, surely worse in {worse}."
    evidence = [
        f"{name.removeprefix('eval/')}: {value:+.3g} nats, interval {low:+.3g} to {high:+.3g}"
        for name, (value, low, high) in list(bad.items())[:_ENOUGH_SHOWN]
    ]
    if len(bad) > _ENOUGH_SHOWN:
        evidence.append(f"and {len(bad) - _ENOUGH_SHOWN} more in evaluation/eval.json")
    step = "Look whether dropping costs anything there: where it does not, a gist has nothing to save."
    return Finding(rule, case.rules.severity(rule), title, tuple(evidence), step)
