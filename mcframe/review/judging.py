"""Every rule, asked in turn."""

from __future__ import annotations

from collections.abc import Callable

from mcframe.review import rules_of_contexts, rules_of_time, rules_of_training
from mcframe.review.finding import Case, Finding, NotJudged, Outcome
from mcframe.review.rules import SEVERITIES

RULES: dict[str, Callable[[Case], Outcome]] = {
    rule.__name__: rule
    for rule in (
        rules_of_time.throughput_dip, rules_of_time.slow_pack, rules_of_time.time_unaccounted,
        rules_of_time.low_mfu, rules_of_time.mfu_unit,
        rules_of_contexts.rising_lod_delta, rules_of_contexts.implausible_delta,
        rules_of_contexts.lens_uncorrelated, rules_of_contexts.gist_no_better,
        rules_of_training.misaligned_tokens, rules_of_training.stalled_loss, rules_of_training.spiking_loss,
        rules_of_training.unmoved_weights, rules_of_training.not_finite,
    )
}  # fmt: skip
"""Rules by the names that rules.toml has them under."""


def judge(case: Case) -> tuple[list[Finding], list[NotJudged], list[str]]:
    """(findings, gravest first; rules that could not judge; rules that looked and found nothing)."""
    found: list[Finding] = []
    unjudged: list[NotJudged] = []
    silent: list[str] = []
    for name, rule in RULES.items():
        if not case.rules.enabled(name):
            unjudged.append(NotJudged(name, f"disabled in {case.rules.source}"))
            continue
        outcome = rule(case)
        if isinstance(outcome, Finding):
            found.append(outcome)
        elif isinstance(outcome, NotJudged):
            unjudged.append(outcome)
        else:
            silent.append(name)
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return found, unjudged, silent
