"""Rules on the cost of compression and on LensNet."""

from __future__ import annotations

import math
import re

from mcframe.evaluation.document_means import FEWEST_DOCUMENTS
from mcframe.review.finding import Case, Finding, Plot, SkipRule
from mcframe.review.run_facts import level_predicts_preferences, vocabulary

ADV, LENGTH = "mc/adv_delta_mean", "mc/wc_length"
CORRELATION, GISTS_ALONE = "mc/preference_corr_mean", "mc/pref_score_corr"
LOD_DELTA = "mc/lod_delta/"
_LOSS = "train/loss_lod0"
_DROP = re.compile("/gist_minus/drop(_baseline)?/")
_MAX_SHOWN = 6


def rising_lod_delta(case: Case) -> Finding | None:
    """Find a rise in what gists cost the tokens after them."""
    rule, run = "rising_lod_delta", case.run
    names = run.named(LOD_DELTA)
    if not names:
        raise SkipRule(f"no {LOD_DELTA}1 in the log")
    rises = {name: rise for name in names if (rise := case.late_rise(name)) is not None}
    if not rises:
        raise case.too_short(names[0])
    risen = {n: rise for n, rise in rises.items() if rise.low > 0 and rise.value >= case.rules.number(rule, "nats")}
    if not risen:
        return None
    evidence = [
        f"{name}: {run.series[name].first:.3g} at first, {run.series[name].last:.3g} at last; over the last "
        f"{100 * case.rules.late:.0f} % a line rises by {rise.value:+.3g} nats ({rise.low:+.3g} to {rise.high:+.3g})"
        for name, rise in risen.items()
    ]
    length = run.get(LENGTH)
    if length is not None and length.last < length.first:
        evidence.append(
            f"{LENGTH} fell from {length.first:,.0f} to {length.last:,.0f} in the same time: more blocks are "
            "collapsed, so a part of the rise is a harder task"
        )
    title = " and ".join(f"{name} rises by {rise.value:.2g} nats" for name, rise in risen.items())
    step = "Train the gists more: loss.distillation, a deeper GistNet, or a slower curriculum of lengths."
    return case.finding(rule, f"{title} late in the run.", evidence, step, Plot(rule, "ΔNLL after gists", (*risen,)))


def implausible_delta(case: Case) -> Finding | None:
    """Find a ΔNLL close to that of blind guessing."""
    rule, run = "implausible_delta", case.run
    bounds, ids = case.late_mean(ADV), vocabulary(run.config)
    limit = case.rules.number(rule, "nats") if ids is None else case.rules.number(rule, "fraction") * math.log(ids)
    if bounds.low <= limit:
        return None
    source = "of an unknown vocabulary" if ids is None else f"{limit / math.log(ids):.2g} of ln {ids:,.0f}"
    evidence = [
        f"late mean {bounds.value:.3g} nats, interval {bounds.low:.3g} to {bounds.high:.3g}; "
        f"the limit is {limit:.3g}, {source}"
    ]
    loss, coarse, fine = run.last(_LOSS), run.last("mc/lod_loss/1"), run.last("mc/lod_loss/0")
    if ids is not None and loss is not None:
        evidence.append(
            f"guessing blindly costs ln {ids:,.0f} = {math.log(ids):.3g} nats, {math.log(ids) - loss:.3g} more than "
            f"{_LOSS}"
        )
    if coarse is not None and fine is not None:
        evidence.append(f"mc/lod_loss/1 is {coarse - fine:+.2f} nats from mc/lod_loss/0, which does not fit")
    title = f"ΔNLL of variants is {bounds.value:.2g} nats, which is implausible: a few gists cannot cost nearly all."
    step = "Check the pairing of targets before using any ΔNLL: a comparison with wrong targets looks like this."
    return case.finding(rule, title, evidence, step, Plot(rule, "ΔNLL of variants", (ADV,), None, limit))


def lens_uncorrelated(case: Case) -> Finding | None:
    """Find scores of LensNet that do not follow the measured preferences, or contradict them."""
    rule = "lens_uncorrelated"
    # If the level of detail alone predicts preferences, the correlation with them means nothing.
    gists_alone = level_predicts_preferences(case.run.config)
    name = GISTS_ALONE if gists_alone else CORRELATION
    bounds = case.late_mean(name)
    if bounds.low > 0:
        return None
    what = "the cost of gists" if gists_alone else "measured preferences"
    title = (
        f"LensNet's scores contradict {what} (correlation {bounds.value:+.3f})."
        if bounds.high < 0
        else f"The correlation of LensNet's scores with {what} ({bounds.value:+.3f}) does not differ from zero."
    )
    evidence = [
        f"{name}: late mean {bounds.value:+.3f}, {100 * case.rules.level:g} % interval {bounds.low:+.3f} to "
        f"{bounds.high:+.3f}, from values worth {bounds.size:.0f} independent ones"
    ]
    step = "Compare mc/preference_strength with lens_targets.scale_nats, and with a run of lens_targets.shuffle."
    if gists_alone:
        evidence.append(
            f"{CORRELATION} is not used: with signs on the worse context alone, the level of detail predicts them"
        )
        step = "Train with lens_targets.sides = 'both', which requires more than the level of detail."
    return case.finding(rule, title, evidence, step, Plot(rule, "LensNet", (name,), None, 0.0))


def gist_no_better(case: Case) -> Finding | None:
    """Find gists that are no better than dropping the span, in the results of `mcframe eval`."""
    rule, measured = "gist_no_better", case.run.evaluation
    tested = {
        name: (measured[name], measured[f"{name}_low"], measured[f"{name}_high"])
        for name in measured
        if _DROP.search(name) and {f"{name}_low", f"{name}_high"} <= measured.keys()
        if measured.get(_DROP.sub("/documents/", name), FEWEST_DOCUMENTS) >= FEWEST_DOCUMENTS
    }
    if not tested:
        step = "Run mcframe eval: whether a gist is better than dropping its block was not measured."
        reason = "no gist_minus/drop in evaluation/eval.json; mcframe eval writes it"
        if any(_DROP.search(name) for name in measured):
            reason = f"gist_minus/drop is of fewer than {FEWEST_DOCUMENTS} documents"
        raise SkipRule(reason, step if case.run.get(ADV) else "")
    bad = {name: bounds for name, bounds in tested.items() if not bounds[2] < 0}
    if not bad:
        return None
    worse = sum(low > 0 for _, low, _ in bad.values())
    title = f"Gists are no better than dropping in {len(bad)} of {len(tested)} controls, clearly worse in {worse}."
    evidence = [
        f"{name.removeprefix('eval/')}: {value:+.3g} nats, interval {low:+.3g} to {high:+.3g}"
        for name, (value, low, high) in list(bad.items())[:_MAX_SHOWN]
    ]
    if len(bad) > _MAX_SHOWN:
        evidence.append(f"and {len(bad) - _MAX_SHOWN} more in evaluation/eval.json")
    step = "Check whether dropping costs anything there: if it does not, a gist has nothing to save."
    return case.finding(rule, title, evidence, step)
