"""Tasks of lm-evaluation-harness: how they are found and run, and the numbers of their results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcframe.errors import UserError

if TYPE_CHECKING:
    from mcframe.evaluation.harness_model import HarnessModel


@contextmanager
def needs_harness() -> Iterator[None]:
    """Raise UserError for a package that the body imports and that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"lm-evaluation-harness: expected the package {error.name}, which is not installed",
            remedy="Run pip install 'mcframe[lm-eval]'.",
        ) from error


def run_tasks(
    model: HarnessModel, tasks: Sequence[str], limit: int | None = None, include: Path | None = None
) -> dict[str, float]:
    """Return the metrics of tasks as `TASK/METRIC`.

    Args:
        model: The model.
        tasks: Names of tasks of the harness, or of `include` if it is set.
        limit: Documents of each task; None for all.
        include: A folder with tasks as YAML files.

    Raises:
        UserError: A task is unknown.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include), include_defaults=include is None)
    missing = set(tasks) - set(manager.all_tasks)
    if missing:
        raise UserError(
            f"expected tasks of {include or 'lm-evaluation-harness'}, got {', '.join(sorted(missing))}",
            remedy="Correct the names, or set the folder with their YAML files. lm_eval ls tasks lists the names.",
        )
    with _every_rank_has_results():
        found: dict[str, Any] = simple_evaluate(
            model=model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0, log_samples=False,
            random_seed=None, numpy_random_seed=None, torch_random_seed=None,
        )  # fmt: skip
    return {
        f"{task}/{name.partition(',')[0]}": float(value)
        for task, metrics in found["results"].items()
        for name, value in metrics.items()
        if isinstance(value, int | float) and "," in name and "_stderr" not in name
    }


@contextmanager
def _every_rank_has_results() -> Iterator[None]:
    """Let the harness take this process for the only one: it returns nothing where LOCAL_RANK is not 0."""
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        if rank is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = rank
