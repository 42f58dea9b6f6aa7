"""The section on throughput: speed, MFU, what a step spends its time on."""

from __future__ import annotations

from mcframe.metrics.timers import OTHER, OTHER_PARTS
from mcframe.review.document import Part, Text
from mcframe.review.finding import Case
from mcframe.review.rules_of_time import PARTS, SPEED
from mcframe.review.section_parts import plot, present, tabled

_TIME = (SPEED, "train/mfu", "train/hfu", "train/tokens_per_step")


def throughput(case: Case) -> list[Part]:
    """Tables, remarks and plots."""
    run = case.run
    timers = run.named("", "_ms")
    parts = tabled(case, present(run, _TIME) + timers)
    parts.append(Text(
        f"± is half of the {100 * case.rules.level:g} % interval of the mean, which allows for values that resemble "
        "their neighbours; a mean without it stands on too few. The trend is the rise of a straight line over the same "
        f"values, told where noise alone would show it with a probability of {case.rules.alpha:g} at most."
    ))  # fmt: skip
    if run.get("train/mfu"):
        parts.append(Text("MFU is a fraction of the device's peak: 0.41 is 41 %, 0.0041 is 0.41 %."))
    else:
        parts.append(Text("No MFU is logged: the device's peak is unknown, or the device is a CPU."))
    if not timers:
        parts.append(Text("No timers of the step's parts are logged, so what a step spends its time on is not known."))
    # In detail where the remainder is taken apart.
    apart = present(run, OTHER_PARTS)
    phases = present(run, [name for name in PARTS if name != OTHER or not apart]) + apart
    parts += plot(case, "throughput", "Speed, tokens a second", SPEED)
    return parts + plot(case, "timers", "What a step spends its time on, ms", *phases, stacked=True)
