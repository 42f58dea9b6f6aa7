"""`mcframe eval`: what a trained model's gists keep, and how well it focuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mcframe.cli.load_run import TrainedRun, load_run
from mcframe.cli.options import Gin, NoPlugin, Plugin, Run, Set, StrictPlugins, Traceback, plugin_options
from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.evaluation.report import show, write
from mcframe.evaluation.runner import run_evaluations
from mcframe.hookspecs import EvalModel, EvalResult, Evaluation, RunInfo
from mcframe.registry.factory import PluginFactory
from mcframe.training.build import build_evaluations
from mcframe.training.evaluation import eval_model

FOLDER = "evaluation"


def evaluate(
    run: Run,
    gin: Gin = [],  # noqa: B006 - typer copies it
    set_: Set = [],  # noqa: B006
    evaluation: Annotated[list[str], typer.Option(metavar="NAME", help="Only this one; may be repeated.")] = [],  # noqa: B006
    drop_baseline: Annotated[Path | None, typer.Option(metavar="RUN", help="A run with run.gistnet = None.")] = None,
    mean_baseline: Annotated[Path | None, typer.Option(metavar="RUN", help="A run with @gistnet.mean.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default: RUN/evaluation.")] = None,
    windows: Annotated[int | None, typer.Option(min=2, help="Held-out sequences, whatever gin says.")] = None,
    plugin: Plugin = [],  # noqa: B006
    no_plugin: NoPlugin = [],  # noqa: B006
    strict_plugins: StrictPlugins = False,
    traceback: Traceback = False,
) -> None:
    """Evaluate a checkpoint: what its gists keep, how well it focuses, against controls.

    --gin and --set are read on top of the run's own configuration.
    """

    def act() -> int:
        # gin holds one configuration at a time: the run that is asked about is opened last.
        plugins = plugin_options(plugin, no_plugin, strict_plugins)
        places = {name: place for name, place in (("drop", drop_baseline), ("mean", mean_baseline)) if place}
        baselines = {name: load_run(place, plugins=plugins) for name, place in places.items()}
        asked = _Asked(load_run(run, gin, set_, plugins), baselines, windows)
        return asked.answer(evaluation, out)

    raise typer.Exit(report_user_errors(act, traceback=traceback))


class _Asked:
    """A trained run, its baselines, and a console to answer on."""

    def __init__(self, trained: TrainedRun, baselines: Mapping[str, TrainedRun], windows: int | None) -> None:
        self.trained, self.baselines, self.windows = trained, baselines, windows
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.console = Console()
        for name, baseline in baselines.items():
            _check_baseline(name, baseline, trained)

    def answer(self, names: list[str], out: Path | None) -> int:
        """Put the evaluations, print and write what they find. Returns the exit code."""
        trained = self.trained
        with trained.loaded.explaining():
            findings = self._ask(self._chosen(names))
        for each in findings.values():
            show(each, self.console)
        folder = out or trained.checkpoint.path.parents[1] / FOLDER
        for path in write(findings, self._facts(), folder):
            self.console.print(str(path), highlight=False, soft_wrap=True)
        return 0

    def _chosen(self, names: list[str]) -> list[Evaluation]:
        """The run's evaluations; where names are given, those of them, and others that are installed."""
        loaded = self.trained.loaded
        own = build_evaluations(loaded.run_config)
        if not names:
            return own
        known = {evaluation.name: evaluation for evaluation in own}
        chosen: list[Evaluation] = []
        for name in (name.removeprefix("@").removeprefix("evaluation.") for name in names):
            if name in known:
                chosen.append(known[name])
            elif name in loaded.registry.implementations["evaluation"]:
                entry = loaded.registry.implementations["evaluation"][name]
                chosen.append(PluginFactory(entry, f"evaluation.{name}", loaded.config, loaded.registry)())
            else:
                raise loaded.registry.unknown("evaluation", name)
        return chosen

    def _ask(self, evaluations: list[Evaluation]) -> dict[str, EvalResult]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("evaluating contexts", total=None)
            expected = 0

            def announced(contexts: int) -> None:
                nonlocal expected
                expected += contexts
                bar.update(task, total=expected)

            def contexts_done(contexts: int) -> None:
                bar.advance(task, contexts)

            baselines: dict[str, EvalModel] = {
                name: replace(self._subject(baseline), contexts_done=contexts_done)
                for name, baseline in self.baselines.items()
            }
            subject = replace(
                self._subject(self.trained), baselines=baselines, announced=announced, contexts_done=contexts_done
            )
            findings: dict[str, EvalResult] = {}
            for name, found in run_evaluations(evaluations, subject):
                findings[name] = found
                self.trained.loaded.registry.hooks.evaluated(self._run_info(), name, found)
            return findings

    def _run_info(self) -> RunInfo:
        checkpoint, run_config = self.trained.checkpoint, self.trained.run_config
        return RunInfo(
            directory=checkpoint.path.parents[1], rank=0, world_size=1, tokens=checkpoint.tokens,
            step=checkpoint.tokens // run_config.batch_tokens, total_tokens=run_config.steps * run_config.batch_tokens,
        )  # fmt: skip

    def _subject(self, run: TrainedRun) -> EngineEvalModel:
        model = run.model.to(self.device)
        subject = eval_model(self.trained.run_config, run.tokenizer, model, self.device)
        return replace(subject, windows=self.windows)

    def _facts(self) -> dict[str, Any]:
        checkpoint = self.trained.checkpoint
        return {
            "checkpoint": checkpoint.path,
            "tokens": checkpoint.tokens,
            "baselines": {name: baseline.checkpoint.path for name, baseline in self.baselines.items()},
            "windows": self.windows,
            "device": str(self.device),
        }


def _check_baseline(name: str, baseline: TrainedRun, run: TrainedRun) -> None:
    """Raises UserError where a baseline cannot read what the run reads, or is no such baseline."""
    if baseline.model.tree != run.model.tree:
        raise UserError(
            f"the {name} baseline {baseline.checkpoint.path} has {baseline.model.tree}, the run has {run.model.tree}",
            remedy="train the baseline with the run's gin file and run.gistnet changed, nothing else",
        )
    if baseline.tokenizer.identity != run.tokenizer.identity:
        raise UserError(
            f"the {name} baseline {baseline.checkpoint.path} has another tokenizer than the run",
            remedy="train the baseline with the run's gin file and run.gistnet changed, nothing else",
        )
    if not baseline.model.strategy.count:
        raise UserError(
            f"{baseline.checkpoint.path} was trained without variants: it has never read a context with {name}s in it",
            remedy="train the baseline with the run's gin file and run.gistnet changed, nothing else",
        )
    if name == "mean" and (baseline.model.gistnet is None or any(True for _ in baseline.model.gistnet.parameters())):
        raise UserError(
            f"{baseline.checkpoint.path} was not trained with means: its GistNet learns, or there is none",
            remedy="train the baseline with --set 'run.gistnet = @gistnet.mean'",
        )
    if name == "drop" and baseline.model.gistnet is not None:
        raise UserError(
            f"{baseline.checkpoint.path} was trained with a GistNet, so it has not learned to live with gaps",
            remedy="train the baseline with --drop-baseline",
        )
