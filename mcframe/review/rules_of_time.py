"""Rules about speed: dips and their cause, packing, time that nobody accounts for, MFU."""

from __future__ import annotations

import json
import math

import numpy as np

from mcframe.metrics.flops import PEAK
from mcframe.metrics.timers import OTHER, OTHER_PARTS, STEP
from mcframe.metrics.timers import PARTS as CONTROLLER_PARTS
from mcframe.review.change import Stretch, find_stretch, mean_bounds
from mcframe.review.finding import Case, Finding, NotJudged, Outcome, Plot
from mcframe.review.run_facts import device, plain_flops, ranks
from mcframe.review.series import Series, Values

SPEED, MFU, PER_STEP = "train/tok_per_sec", "train/mfu", "train/tokens_per_step"
PARTS = (*CONTROLLER_PARTS, OTHER)
_SUMS = ("mc/controller_ms", "mc/overhead_ms", STEP)
_BESIDE = ("train/validation_ms", "train/checkpoint_ms")
_PACK = "mc/variant_pack_ms"


def throughput_dip(case: Case) -> Outcome:
    """A stretch of lower speed, and the timer that rose most in it."""
    rule, run = "throughput_dip", case.run
    speed = run.get(SPEED)
    if speed is None:
        return case.missing(rule, SPEED)
    stretch = find_stretch(speed.means, case.rules.alpha)
    if stretch is None:
        return None
    slow, fast = sorted((stretch.inside, stretch.outside))
    if fast <= 0 or 1 - slow / fast < case.rules.number(rule, "drop"):
        return None
    # Whichever of the two is slower is the dip: a long one is most of the run, the stretch is then what is left.
    dips = stretch.inside < stretch.outside
    shade = _tokens(speed, stretch)
    where = (
        f"from step {speed.steps[stretch.begin]:,.0f} to {speed.steps[stretch.end - 1]:,.0f}"
        if dips else
        f"outside steps {speed.steps[stretch.begin]:,.0f} to {speed.steps[stretch.end - 1]:,.0f}"
    )  # fmt: skip
    cause, evidence, culprit = _cause(case, shade, dips, slow, fast)
    title = f"Throughput fell from {fast:,.0f} to {slow:,.0f} tokens/s {where}; {cause}"
    said = (
        f"{SPEED}: {fast:,.0f} → {slow:,.0f} tokens/s ({100 * (slow / fast - 1):+.0f} %), {abs(stretch.score):.0f} "
        f"standard errors apart by the change-point test at α = {case.rules.alpha:g}",
        *evidence,
    )
    step = f"Look at what changed in {culprit} there." if culprit else "Look at what else the machine did there."
    metrics = (SPEED, culprit) if culprit else (SPEED,)
    return Finding(
        rule, case.rules.severity(rule), title + ".", said, step, Plot(rule, "Throughput dip", metrics, shade)
    )


def _cause(
    case: Case, shade: tuple[float, float], dips: bool, slow: float, fast: float
) -> tuple[str, tuple[str, ...], str]:
    """(words, evidence, timer) for the timer that clearly rose, by most milliseconds; words alone where none did."""
    run = case.run
    # A sum rises whatever rises in it, and is no cause.
    sums = (*_SUMS, OTHER) if any(run.get(name) for name in OTHER_PARTS) else _SUMS
    timers = [name for name in run.named("", "_ms") if name not in (*sums, *_BESIDE)]
    if not timers:
        return "no timer in the log says why", (), ""
    rises = []
    for name in timers:
        series = run.series[name]
        inside = (series.tokens >= shade[0]) & (series.tokens <= shade[1])
        there, elsewhere = (series.means[inside], series.means[~inside])
        there, elsewhere = (there, elsewhere) if dips else (elsewhere, there)
        if _clearly_above(there, elsewhere, 1 - case.rules.alpha):
            rises.append((float(there.mean() - elsewhere.mean()), name, float(elsewhere.mean()), float(there.mean())))
    if not rises:
        return "none of the timers rose with it", (), ""
    rise, name, before, after = max(rises)
    evidence = [f"{name}: {before:,.3g} → {after:,.4g} ms in the dip, the largest rise of {len(timers)} timers"]
    per_step = run.last(PER_STEP)
    if per_step:
        added = 1000 * per_step * (1 / slow - 1 / fast)
        evidence.append(f"the step took {added:,.0f} ms longer, of which {name} explains {100 * rise / added:.0f} %")
    return f"most likely timer: {name}, which rose from {before:,.3g} to {after:,.4g} ms", tuple(evidence), name


def _clearly_above(there: Values, elsewhere: Values, level: float) -> bool:
    inside, outside = mean_bounds(there, level), mean_bounds(elsewhere, level)
    return inside is not None and outside is not None and inside.low > outside.high


def _tokens(series: Series, stretch: Stretch) -> tuple[float, float]:
    """Tokens at which a stretch begins and ends."""
    return float(series.tokens[stretch.begin]), float(series.tokens[stretch.end - 1])


def slow_pack(case: Case) -> Outcome:
    """Packing that takes longer than gathering embeddings on the device should."""
    rule, limit = "slow_pack", case.rules.number("slow_pack", "ms")
    pack = case.run.get(_PACK)
    if pack is None:
        return case.missing(rule, _PACK)
    if device(case.run.provenance) == "cpu":
        return NotJudged(rule, "the limit is for embeddings that stay on a GPU; this run is on a CPU")
    values, where = pack.means, "over the run"
    stretch = find_stretch(values, case.rules.alpha)
    shade = None
    if stretch is not None:
        high = stretch.inside > stretch.outside
        part = values[stretch.begin : stretch.end]
        rest = np.concatenate([values[: stretch.begin], values[stretch.end :]])
        values = part if high else rest
        shade = _tokens(pack, stretch)
        where = f"{'from' if high else 'outside'} step {pack.steps[stretch.begin]:,.0f} to "
        where += f"{pack.steps[stretch.end - 1]:,.0f}"
    bounds = mean_bounds(values, case.rules.level)
    if bounds is None:
        return case.short(rule, _PACK)
    if bounds.low <= limit:
        return None
    evidence = (f"mean {bounds.value:.4g} ms {where}, interval {bounds.low:.4g} to {bounds.high:.4g}",)
    title = f"Packing variants takes {bounds.value:.3g} ms {where}; over {limit:g} ms it no longer stays on the device."
    step = "Profile the packing before touching the batch size; tensors that travel through the host cost this much."
    plot = Plot(rule, "Packing", (_PACK,), shade, limit)
    return Finding(rule, case.rules.severity(rule), title, evidence, step, plot)


def time_unaccounted(case: Case) -> Outcome:
    """The timers' sum against the time that a step takes by the speed."""
    rule, run = "time_unaccounted", case.run
    lacking = [name for name in (*PARTS, SPEED, PER_STEP) if run.get(name) is None]
    if lacking:
        return NotJudged(rule, f"no {', '.join(lacking)} in the log")
    late = case.rules.late
    speed = mean_bounds(run.series[SPEED].late(late), case.rules.level)
    # The remainder makes any sum right; what it is made of need not.
    own = tuple(name for name in OTHER_PARTS if run.get(name))
    names = (*CONTROLLER_PARTS, *(own or (OTHER,)))
    parts = [mean_bounds(run.series[name].late(late), case.rules.level) for name in names]
    if speed is None or speed.low <= 0 or any(part is None for part in parts):
        return case.short(rule, SPEED)
    per_step = run.series[PER_STEP].last
    summed = sum(part.value for part in parts if part)
    doubt = math.sqrt(sum((part.high - part.value) ** 2 for part in parts if part))
    step, shortest, longest = (1000 * per_step / rate for rate in (speed.value, speed.high, speed.low))
    share = case.rules.number(rule, "share")
    if (1 - share) * shortest <= summed + doubt and summed - doubt <= (1 + share) * longest:
        return None
    title = f"The timers sum to {summed:,.0f} ms, a step takes {step:,.0f} ms by the tokens per second."
    figures = ", ".join(f"{n.removeprefix('mc/')} {p.value:,.4g}" for n, p in zip(names, parts, strict=True) if p)
    evidence = (
        f"late means: {figures}",
        f"{per_step:,.0f} tokens a step at {speed.value:,.0f} tokens/s are {step:,.0f} ms "
        f"(interval {shortest:,.0f} to {longest:,.0f})",
    )
    advice = "Find out what the timers leave out, or per what they count, before calling any part of a step cheap."
    return Finding(rule, case.rules.severity(rule), title, evidence, advice, Plot(rule, "Timers", names))


def low_mfu(case: Case) -> Outcome:
    """MFU far below what the device reaches: it is idle."""
    rule = "low_mfu"
    series = case.run.get(MFU)
    if series is None:
        return case.missing(rule, MFU)
    bounds = mean_bounds(series.late(case.rules.late), case.rules.level)
    if bounds is None:
        return case.short(rule, MFU)
    reaches = case.rules.number(rule, "reaches")
    limit = case.rules.number(rule, "share") * reaches
    if bounds.high >= limit:
        return None
    title = f"MFU is {bounds.value:.4f}, a fraction: {100 * bounds.value:.2f} % of the peak. The device is nearly idle."
    evidence = (
        f"late mean {bounds.value:.4f}, interval {bounds.low:.4f} to {bounds.high:.4f}; under {limit:g}",
        f"such a device reaches about {reaches:g} (low_mfu.reaches), {reaches / bounds.value:,.0f} times this",
    )
    step = "Profile one step: with so little arithmetic the time goes to launches, host synchronisation or data."
    return Finding(
        rule, case.rules.severity(rule), title, evidence, step, Plot(rule, "MFU, a fraction", (MFU,), None, limit)
    )


def mfu_unit(case: Case) -> Outcome:
    """An MFU that cannot be a fraction: outside (0, 1], or far above what the tokens per second allow."""
    rule, run = "mfu_unit", case.run
    series = run.get(MFU)
    if series is None:
        return case.missing(rule, MFU)
    plot = Plot(rule, "MFU", (MFU,), None, 1.0)
    step = "Read it as per cent, if the code that wrote it did; then judge it again."
    severity = case.rules.severity(rule)
    high, low = float(series.highs.max()), float(series.lows.min())
    if high > 1 or low < 0:
        title = f"MFU reaches {high if high > 1 else low:.3g}, which is no fraction; it may be per cent."
        return Finding(
            rule,
            severity,
            title,
            (f"lowest {low:.3g}, highest {high:.3g}; a fraction of a peak lies between 0 and 1",),
            step,
            plot,
        )
    flops, peak, speed = plain_flops(run.config), _peak(case), run.get(SPEED)
    if flops is None or peak is None or speed is None:
        return NotJudged(
            rule, "it lies between 0 and 1; whether it fits the speed needs the model's size and the device's peak"
        )
    bounds = mean_bounds(series.late(case.rules.late), case.rules.level)
    rate = mean_bounds(speed.late(case.rules.late), case.rules.level)
    if bounds is None or rate is None:
        return case.short(rule, MFU)
    devices = ranks(run.provenance)
    plain = rate.high * flops / (peak * devices)
    if bounds.low <= case.rules.number(rule, "times") * plain:
        return None
    title = f"MFU is logged as {bounds.value:.3g}, but the speed allows {plain:.2g}: it is per cent, not a fraction."
    evidence = (
        f"{rate.value:,.0f} tokens/s × {flops / 1e9:.3g} GFLOP a token / {devices} × {peak / 1e12:,.0f} TFLOP/s = "
        f"{plain:.2g} for the plain model; variants cost a few times that, not {bounds.value / plain:,.0f} times",
    )
    return Finding(rule, severity, title, evidence, step, plot)


def _peak(case: Case) -> float | None:
    given = case.rules.number("mfu_unit", "peak_flops")
    machine = json.dumps(case.run.provenance)
    named = [peak for name, peak in PEAK.items() if f'"{name}"' in machine]
    return given or (named[0] if named else None)
