"""All rules of a review, and their application to a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mcframe.review import context_rules, speed_rules, training_rules
from mcframe.review.finding import Case, Finding, SkipRule
from mcframe.review.rules import SEVERITIES

RULES: dict[str, Callable[[Case], Finding | None]] = {
    rule.__name__: rule
    for rule in (
        speed_rules.throughput_dip, speed_rules.slow_pack, speed_rules.time_unaccounted, speed_rules.low_mfu,
        speed_rules.mfu_unit,
        context_rules.rising_lod_delta, context_rules.implausible_delta, context_rules.lens_uncorrelated,
        context_rules.gist_no_better,
        training_rules.misaligned_tokens, training_rules.stalled_loss, training_rules.spiking_loss,
        training_rules.unmoved_weights, training_rules.not_finite, training_rules.skipped_steps,
        training_rules.held_out_in_training,
    )
}  # fmt: skip
"""Rules by their names in rules.toml. A rule returns a finding or None, or raises SkipRule."""


@dataclass
class Outcomes:
    """The findings, most severe first; rules that were skipped, with the reason; rules without a finding."""

    findings: list[Finding] = field(default_factory=list)
    skipped: dict[str, SkipRule] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)


def apply_rules(case: Case) -> Outcomes:
    """Apply every rule to a run."""
    outcomes = Outcomes()
    for name, rule in RULES.items():
        if not case.rules.enabled(name):
            outcomes.skipped[name] = SkipRule(f"disabled in {case.rules.source}")
            continue
        try:
            finding = rule(case)
        except SkipRule as skip:
            outcomes.skipped[name] = skip
        else:
            if finding is None:
                outcomes.silent.append(name)
            else:
                outcomes.findings.append(finding)
    outcomes.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return outcomes
