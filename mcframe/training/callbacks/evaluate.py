"""Run the evaluations of `run.evaluations` while training."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mcframe.config.training_schema import EvaluationConfig
from mcframe.evaluation.eval_model import EngineEvalModel, RanksDisagree
from mcframe.evaluation.runner import headlines, run_evaluations
from mcframe.hookspecs import EvalResult, Evaluation
from mcframe.registry.attribution import last_line
from mcframe.registry.checks import raise_contract_error
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.eval_mode import eval_mode

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer


class Evaluate(TrainerCallback):
    """Run every evaluation and log its headlines.

    Args:
        config: `evaluation` of the configuration.
        model: The model in training, as evaluations see it.
    """

    watches = "the evaluations"

    def __init__(self, config: EvaluationConfig, model: EngineEvalModel) -> None:
        super().__init__(config.every, at_end=config.every > 0)
        self._model = model

    def run(self, trainer: Trainer) -> None:
        """Evaluate. Collective: results are the same on every rank."""
        metrics: dict[str, float] = {}
        results: list[tuple[str, EvalResult]] = []
        with eval_mode(trainer.engine.wrapped):
            for each in trainer.components.evaluations:
                trainer.watchers.call(subject(each), lambda each=each: results.append(self._result(each)))  # type: ignore[misc]
        for name, result in results:
            metrics |= headlines(result)
            trainer.recorder.evaluated(name, result)
        trainer.recorder.publish(metrics)

    def _result(self, evaluation: Evaluation) -> tuple[str, EvalResult]:
        """Return name and result of an evaluation, or raise on every rank.

        Raises:
            ContractError: The ranks make different calls in it.
        """
        try:
            try:
                (found,) = run_evaluations([evaluation], self._model)
            except RanksDisagree:
                raise
            except Exception as error:
                with suppress(RanksDisagree):  # the other ranks wait in their next call, and leave it
                    self._model.check_ranks(f"failed with {last_line(error)}")
                raise
            self._model.check_ranks("the end")
        except RanksDisagree as error:
            raise_contract_error(evaluation, "run", f"expected the same calls of the model on every rank, got {error}")
        return found


def subject(evaluation: Evaluation) -> str:
    """Return an evaluation as warnings name it."""
    return f"the evaluation {evaluation.name}"
