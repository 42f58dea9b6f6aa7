"""A callback that runs tasks of lm-evaluation-harness while a model trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcframe.bounds import Count
from mcframe.errors import UserError
from mcframe.evaluation.harness_tasks import needs_harness, run_tasks
from mcframe.files import user_path
from mcframe.hookspecs import Callback, CallbackRun, CallbackStep
from mcframe.modeling.model import MegaContextModel
from mcframe.runtime.session_config import SessionDefaults


class HarnessTasks(Callback):
    """Run tasks of lm-evaluation-harness every so many tokens, and log their metrics.

    Every rank computes all of them. A task that fails ends the callback with a warning, not the run. Needs the extra
    `mcframe[lm-eval]`.

    Args:
        tasks: Names of tasks.
        every: Dataset tokens between two readings; the first is after the first step.
        limit: Documents of each task; None for all.
        budget: Entries of a compressed context; None for the full context.
        include: A folder with tasks as YAML files, in place of those of the harness.
        batch_size: Sequences of a pass of the full context.
        name: Names its metrics, `callback/NAME/TASK/METRIC`.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        every: Count = 2**27,
        limit: Count | None = None,
        budget: Count | None = None,
        include: str | None = None,
        batch_size: Count = 8,
        name: str = "lm_eval",
    ) -> None:
        with needs_harness():
            import lm_eval  # noqa: F401
        if isinstance(tasks, str) or not tasks:
            raise UserError(
                f"callback.lm_eval.tasks: expected a list of names, got {tasks!r}",
                binding="callback.lm_eval.tasks",
                remedy="Set callback.lm_eval.tasks to a list such as ['hellaswag'].",
            )
        self.name, self._tasks, self._every, self._limit = name, list(tasks), every, limit
        self._budget, self._batch_size = budget, batch_size
        self._include: Path | None = None if include is None else user_path(include, "callback.lm_eval.include")
        self._read = -1
        self._run: CallbackRun | None = None

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings of one small task in a folder, which is read once."""
        (folder / "data.jsonl").write_text('{"question": "a", "answer": " b"}\n', "utf-8")
        lines = (
            "task: mcframe_example", "dataset_path: json",
            f"dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}", "test_split: test",
            "output_type: loglikelihood", "doc_to_text: '{{question}}'", "doc_to_target: '{{answer}}'",
            "metric_list: [{metric: perplexity}, {metric: acc}]",
        )  # fmt: skip
        (folder / "example.yaml").write_text("\n".join(lines), "utf-8")
        return {"tasks": ["mcframe_example"], "include": str(folder)}

    def on_start(self, run: CallbackRun) -> None:
        """Keep the model; a resumed run reads again after the next interval."""
        self._run = run

    def after_step(self, step: CallbackStep) -> Mapping[str, Tensor] | None:
        """Run the tasks if an interval has passed."""
        run = self._run
        if run is None or run.tokenizer is None or run.allocator is None or step.tokens // self._every <= self._read:
            return None
        self._read = step.tokens // self._every
        from mcframe.evaluation.harness_model import HarnessModel

        model = run.model
        assert isinstance(model, MegaContextModel)
        bounded = model.gpt.positions.bounded
        config = None if self._budget is None else self._session(run).config(model.tree, bounded)
        training = model.training
        model.eval()
        try:
            harness = HarnessModel(model, run.tokenizer, run.allocator, config, self._batch_size)
            found = run_tasks(harness, self._tasks, self._limit, self._include)
        finally:
            model.train(training)
        return {name: torch.tensor(value, device=model.gpt.device) for name, value in found.items()}

    def _session(self, run: CallbackRun) -> SessionDefaults:
        """Return the settings of the run's sessions, with this budget."""
        bound = {each.name: run.config.get(f"session.{each.name}", each.default) for each in fields(SessionDefaults)}
        return SessionDefaults(**{**bound, "budget": self._budget})

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the last interval."""
        return {"read": self._read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self._read = state["read"]
