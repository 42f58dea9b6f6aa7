"""Put evaluations to a model, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mcframe.errors import UserError
from mcframe.hookspecs import EvalModel, EvalResult, Evaluation
from mcframe.registry.checks import raise_contract_error


def check_names(evaluations: Sequence[Evaluation]) -> None:
    """Raises UserError where two evaluations would write the same metrics."""
    names = [evaluation.name for evaluation in evaluations]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two evaluations are called {name!r}, so their metrics would have the same names",
                remedy=f"give one of them another name, such as recall/evaluation.{name}.name = 'recall_{name}' and "
                f"run.evaluations = [..., @recall/evaluation.{name}]",
            )


def run_evaluations(evaluations: Sequence[Evaluation], subject: EvalModel) -> Iterator[tuple[str, EvalResult]]:
    """Each evaluation's name and findings. Raises UserError as `check_names` does."""
    check_names(evaluations)
    for evaluation in evaluations:
        findings = evaluation.run(subject)
        if not isinstance(findings, EvalResult):
            raise_contract_error(
                evaluation, "run", f"expected an EvalResult, got a value of type {type(findings).__name__}"
            )
        yield evaluation.name, findings


def headlines(findings: EvalResult) -> dict[str, float]:
    """The metrics without the bounds of their intervals: what is logged while training."""
    return {name: value for name, value in findings.metrics.items() if not name.endswith(("_low", "_high"))}
