"""Run several evaluations of one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from mcframe.errors import UserError
from mcframe.hookspecs import EvalModel, EvalResult, Evaluation
from mcframe.registry.checks import raise_contract_error


def check_names(evaluations: Sequence[Evaluation]) -> None:
    """Check that the names of evaluations, and so of their metrics, are unique.

    Raises:
        UserError: Two evaluations have one name.
    """
    for name, count in Counter(evaluation.name for evaluation in evaluations).items():
        if count > 1:
            raise UserError(
                f"expected evaluations of different names, got {count} called {name!r}",
                remedy=f"Rename one, such as recall/evaluation.{name}.name = 'recall_{name}' and "
                f"run.evaluations = [..., @recall/evaluation.{name}].",
            )


def run_evaluations(evaluations: Sequence[Evaluation], model: EvalModel) -> Iterator[tuple[str, EvalResult]]:
    """Yield each evaluation's name and result.

    Raises:
        UserError: Two evaluations have one name, or one does not return an `EvalResult`.
    """
    check_names(evaluations)
    for evaluation in evaluations:
        result = evaluation.run(model)
        if not isinstance(result, EvalResult):
            raise_contract_error(
                evaluation, "run", f"expected an EvalResult, got a value of type {type(result).__name__}"
            )
        yield evaluation.name, result


def headlines(result: EvalResult) -> dict[str, float]:
    """Return the metrics without the bounds of their intervals, for the log of a run."""
    return {name: value for name, value in result.metrics.items() if not name.endswith(("_low", "_high"))}
