"""The life-cycle hooks of plug-ins, called one plug-in after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pluggy

from mcframe.hookspecs import EvalResult, Hooks, RunInfo
from mcframe.registry.attribution import last_line

REGISTRATION_HOOK = "register_plugins"
_HOOKS = [hook for hook in vars(Hooks) if not hook.startswith("_") and hook != REGISTRATION_HOOK]

Guard = Callable[[str, Callable[[], object]], object]


class Lifecycle:
    """The life-cycle hooks of every plug-in, as typed methods. See `mcframe.hookspecs.Hooks`.

    Args:
        manager: The plug-ins.
        silent: Those whose hooks do not act.
        settings: The value of `run.hooks`.

    Attributes:
        guard: Calls the hook of a plug-in, by a name for messages, and catches its exceptions. None raises them.
    """

    def __init__(
        self,
        manager: pluggy.PluginManager,
        silent: Sequence[object] = (),
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._manager, self._silent, self._settings = manager, silent, settings or {}
        self.guard: Guard | None = None

    @property
    def subjects(self) -> list[str]:
        """The plug-ins with hooks that act, as messages name them."""
        names = (name for hook in _HOOKS for name, _ in self._plugins(hook))
        return [_subject(name) for name in dict.fromkeys(names)]

    def _plugins(self, hook: str) -> list[tuple[str, object]]:
        """Return the plug-ins with this hook that act, in the order of their calls."""
        found = reversed(getattr(self._manager.hook, hook).get_hookimpls())
        return [(each.plugin_name, each.plugin) for each in found if each.plugin not in self._silent]

    def _call(self, hook: str, run: RunInfo, **arguments: Any) -> None:
        arguments["run"] = replace(run, hooks=self._settings)
        if self.guard is None:
            self._manager.subset_hook_caller(hook, self._silent)(**arguments)
            return
        for name, plugin in self._plugins(hook):
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            caller = self._manager.subset_hook_caller(hook, others)
            self.guard(_subject(name), partial(caller, **arguments))

    def checkpoint_loaded(self, run: RunInfo, checkpoint: Path) -> None:
        """The run resumes from this checkpoint. Every rank."""
        self._call("checkpoint_loaded", run, checkpoint=checkpoint)

    def run_started(self, run: RunInfo) -> None:
        """The first step comes next. Every rank."""
        self._call("run_started", run)

    def step_finished(self, run: RunInfo) -> None:
        """An optimizer step is done. Every rank."""
        self._call("step_finished", run)

    def metrics_logged(self, run: RunInfo, metrics: Mapping[str, float]) -> None:
        """Metrics have been read back and reduced. Rank 0."""
        self._call("metrics_logged", run, metrics=metrics)

    def checkpoint_saved(self, run: RunInfo, checkpoint: Path) -> None:
        """A checkpoint is complete on disk. Every rank."""
        self._call("checkpoint_saved", run, checkpoint=checkpoint)

    def evaluated(self, run: RunInfo, name: str, result: EvalResult) -> None:
        """An evaluation has been run. Rank 0."""
        self._call("evaluated", run, name=name, result=result)

    def run_finished(self, run: RunInfo, summary: Mapping[str, Any]) -> None:
        """The run has ended well. Rank 0."""
        self._call("run_finished", run, summary=summary)

    def run_failed(self, run: RunInfo, error: Exception) -> None:
        """The run ends by an error; errors of plug-ins here become notes of it. Every rank that met it."""
        self.guard = None
        try:
            self._call("run_failed", run, error=error)
        except Exception as another:  # noqa: BLE001 - the first error is the one to report
            error.add_note(f"a plug-in's hook run_failed failed in turn: {last_line(another)}")


def _subject(name: str) -> str:
    return f"the hooks of {name}"
