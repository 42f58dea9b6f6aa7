"""Rules on speed: dips and their cause, packing, time that is in no timer, MFU."""

from __future__ import annotations

import json
import math

import numpy as np

from mcframe.metrics.mfu import PEAK
from mcframe.metrics.timers import OTHER, OTHER_PARTS, STEP
from mcframe.metrics.timers import PARTS as CONTROLLER_PARTS
from mcframe.review.change import Stretch, find_stretch, mean_bounds
from mcframe.review.finding import Case, Finding, Plot, SkipRule
from mcframe.review.run_facts import machine, plain_flops
from mcframe.review.series import Series, Values

SPEED, MFU, PER_STEP = "train/tok_per_sec", "train/mfu", "train/tokens_per_step"
PARTS = (*CONTROLLER_PARTS, OTHER)
_SUMS = ("mc/controller_ms", "mc/overhead_ms", STEP)
_OUTSIDE_STEPS = ("train/validation_ms", "train/checkpoint_ms")
_PACK = "mc/variant_pack_ms"


def throughput_dip(case: Case) -> Finding | None:
    """Find a stretch of lower speed, and the timer that rose most in it."""
    rule, speed = "throughput_dip", case.series(SPEED)
    stretch = find_stretch(speed.means, case.rules.alpha)
    if stretch is None:
        return None
    slow, fast = sorted((stretch.inside, stretch.outside))
    if fast <= 0 or 1 - slow / fast < case.rules.number(rule, "drop"):
        return None
    # A long dip is most of the run, and the stretch is the faster remainder.
    dips = stretch.inside < stretch.outside
    shade, steps = _extent(speed, stretch)
    where = f"{'from step' if dips else 'outside steps'} {steps}"
    cause, evidence, timer = _cause(case, shade, dips, slow, fast)
    title = f"Throughput fell from {fast:,.0f} to {slow:,.0f} tokens/s {where}; {cause}."
    evidence = [
        f"{SPEED}: {fast:,.0f} → {slow:,.0f} tokens/s ({100 * (slow / fast - 1):+.0f} %), {abs(stretch.score):.0f} "
        f"standard errors apart by the change-point test at α = {case.rules.alpha:g}",
        *evidence,
    ]
    step = f"Find out what changed in {timer} there." if timer else "Find out what else the machine did there."
    plot = Plot(rule, "Throughput dip", (SPEED, timer) if timer else (SPEED,), shade)
    return case.finding(rule, title, evidence, step, plot)


def _cause(case: Case, shade: tuple[float, float], dips: bool, slow: float, fast: float) -> tuple[str, list[str], str]:
    """Return (text, evidence, name) of the timer with the largest clear rise in the dip, no name if none rose."""
    run = case.run
    # A sum rises with each of its parts, and is no cause.
    sums = (*_SUMS, OTHER) if any(run.get(name) for name in OTHER_PARTS) else _SUMS
    timers = [name for name in run.named("", "_ms") if name not in (*sums, *_OUTSIDE_STEPS)]
    if not timers:
        return "no timer in the log explains it", [], ""
    rises = []
    for name in timers:
        series = run.series[name]
        inside = (series.tokens >= shade[0]) & (series.tokens <= shade[1])
        there, elsewhere = (series.means[inside == dips], series.means[inside != dips])
        if _clearly_above(there, elsewhere, 1 - case.rules.alpha):
            rises.append((float(there.mean() - elsewhere.mean()), name, float(elsewhere.mean()), float(there.mean())))
    if not rises:
        return "none of the timers rose with it", [], ""
    rise, name, before, after = max(rises)
    evidence = [f"{name}: {before:,.3g} → {after:,.4g} ms in the dip, the largest rise of {len(timers)} timers"]
    per_step = run.last(PER_STEP)
    if per_step:
        added = 1000 * per_step * (1 / slow - 1 / fast)
        evidence.append(f"the step took {added:,.0f} ms longer, of which {name} explains {100 * rise / added:.0f} %")
    return f"most likely timer: {name}, which rose from {before:,.3g} to {after:,.4g} ms", evidence, name


def _clearly_above(there: Values, elsewhere: Values, level: float) -> bool:
    inside, outside = mean_bounds(there, level), mean_bounds(elsewhere, level)
    return inside is not None and outside is not None and inside.low > outside.high


def _extent(series: Series, stretch: Stretch) -> tuple[tuple[float, float], str]:
    """Return the first and last token of a stretch, and its steps as text."""
    ends = [stretch.begin, stretch.end - 1]
    (first, last), steps = series.tokens[ends], series.steps[ends]
    return (float(first), float(last)), f"{steps[0]:,.0f} to {steps[1]:,.0f}"


def slow_pack(case: Case) -> Finding | None:
    """Find packing that takes longer than gathering embeddings on a GPU."""
    rule, limit, pack = "slow_pack", case.rules.number("slow_pack", "ms"), case.series(_PACK)
    if machine(case.run.provenance).get("device") == "cpu":
        raise SkipRule("the limit is for embeddings that stay on a GPU; this run is on a CPU")
    values, where, shade = pack.means, "over the run", None
    stretch = find_stretch(values, case.rules.alpha)
    if stretch is not None:
        inside = np.zeros(len(values), dtype=bool)
        inside[stretch.begin : stretch.end] = True
        high = stretch.inside > stretch.outside
        values = values[inside == high]
        shade, steps = _extent(pack, stretch)
        where = f"{'from' if high else 'outside'} step {steps}"
    bounds = mean_bounds(values, case.rules.level)
    if bounds is None:
        raise case.too_short(_PACK)
    if bounds.low <= limit:
        return None
    evidence = (f"mean {bounds.value:.4g} ms {where}, interval {bounds.low:.4g} to {bounds.high:.4g}",)
    title = f"Packing variants takes {bounds.value:.3g} ms {where}; over {limit:g} ms it no longer stays on the device."
    step = "Profile the packing before you change the batch size; tensors that travel through the host cost this much."
    return case.finding(rule, title, evidence, step, Plot(rule, "Packing", (_PACK,), shade, limit))


def time_unaccounted(case: Case) -> Finding | None:
    """Find timers whose sum differs from the time of a step by the tokens per second."""
    rule, run = "time_unaccounted", case.run
    missing = [name for name in (*PARTS, SPEED, PER_STEP) if run.get(name) is None]
    if missing:
        raise SkipRule(f"no {', '.join(missing)} in the log")
    # With the remainder, any sum is right; the sum of its parts need not be.
    names = (*CONTROLLER_PARTS, *(tuple(name for name in OTHER_PARTS if run.get(name)) or (OTHER,)))
    speed, parts = case.late_mean(SPEED), [case.late_mean(name) for name in names]
    if speed.low <= 0:
        raise case.too_short(SPEED)
    per_step = run.series[PER_STEP].last
    summed = sum(part.value for part in parts)
    error = math.sqrt(sum((part.high - part.value) ** 2 for part in parts))
    step, shortest, longest = (1000 * per_step / rate for rate in (speed.value, speed.high, speed.low))
    fraction = case.rules.number(rule, "fraction")
    if (1 - fraction) * shortest <= summed + error and summed - error <= (1 + fraction) * longest:
        return None
    title = f"The timers sum to {summed:,.0f} ms, a step takes {step:,.0f} ms by the tokens per second."
    means = ", ".join(f"{n.removeprefix('mc/')} {part.value:,.4g}" for n, part in zip(names, parts, strict=True))
    evidence = (
        f"late means: {means}",
        f"{per_step:,.0f} tokens a step at {speed.value:,.0f} tokens/s are {step:,.0f} ms "
        f"(interval {shortest:,.0f} to {longest:,.0f})",
    )
    advice = "Find out what the timers omit, or per what they count, before you call any part of a step cheap."
    return case.finding(rule, title, evidence, advice, Plot(rule, "Timers", names))


def low_mfu(case: Case) -> Finding | None:
    """Find an MFU far below that of similar devices."""
    rule, bounds = "low_mfu", case.late_mean(MFU)
    reaches = case.rules.number(rule, "reaches")
    limit = case.rules.number(rule, "fraction") * reaches
    if bounds.high >= limit:
        return None
    title = f"MFU is {bounds.value:.4f}, a fraction: {100 * bounds.value:.2f} % of the peak. The device is nearly idle."
    evidence = (
        f"late mean {bounds.value:.4f}, interval {bounds.low:.4f} to {bounds.high:.4f}; under {limit:g}",
        f"such a device reaches about {reaches:g} (low_mfu.reaches), {reaches / bounds.value:,.0f} times this",
    )
    step = "Profile one step: with so little arithmetic, launches, host synchronisation or data take the time."
    return case.finding(rule, title, evidence, step, Plot(rule, "MFU, a fraction", (MFU,), None, limit))


def mfu_unit(case: Case) -> Finding | None:
    """Find an MFU that cannot be a fraction: outside 0 to 1, or far above what the tokens per second allow."""
    rule, run, series = "mfu_unit", case.run, case.series(MFU)
    plot = Plot(rule, "MFU", (MFU,), None, 1.0)
    step = "Read it as per cent, if the code that wrote it did; then compare it again."
    high, low = float(series.highs.max()), float(series.lows.min())
    if high > 1 or low < 0:
        title = f"MFU reaches {high if high > 1 else low:.3g}, which is no fraction; it may be per cent."
        evidence = f"lowest {low:.3g}, highest {high:.3g}; a fraction of a peak lies between 0 and 1"
        return case.finding(rule, title, (evidence,), step, plot)
    flops, peak = plain_flops(run.config), _peak(case)
    if flops is None or peak is None or run.get(SPEED) is None:
        raise SkipRule("it lies between 0 and 1; a test of it needs the speed, the model's size and the device's peak")
    bounds, rate, devices = case.late_mean(MFU), case.late_mean(SPEED), int(machine(run.provenance).get("ranks", 1))
    plain = rate.high * flops / (peak * devices)
    if bounds.low <= case.rules.number(rule, "times") * plain:
        return None
    title = f"MFU is logged as {bounds.value:.3g}, but the speed allows {plain:.2g}: it is per cent, not a fraction."
    evidence = (
        f"{rate.value:,.0f} tokens/s × {flops / 1e9:.3g} GFLOP a token / {devices} × {peak / 1e12:,.0f} TFLOP/s = "
        f"{plain:.2g} for the plain model; variants cost a few times that, not {bounds.value / plain:,.0f} times"
    )
    return case.finding(rule, title, (evidence,), step, plot)


def _peak(case: Case) -> float | None:
    provenance = json.dumps(case.run.provenance)
    named = [peak for name, peak in PEAK.items() if f'"{name}"' in provenance]
    return case.rules.number("mfu_unit", "peak_flops") or next(iter(named), None)
