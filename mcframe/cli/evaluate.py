"""`mcframe eval`: evaluate what a trained model's gists keep, and how well it focuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mcframe.cli.load_run import TrainedRun, load_run
from mcframe.cli.options import Gin, Run, Set, Trust, command
from mcframe.errors import UserError
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.evaluation.report import show, write
from mcframe.evaluation.runner import run_evaluations
from mcframe.hookspecs import EvalResult, Evaluation, RunInfo
from mcframe.registry.attribution import explain
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.factory import PluginFactory
from mcframe.training.build import build_evaluations
from mcframe.training.evaluation import eval_model
from mcframe.training.watchers import Watchers

FOLDER = "evaluation"
LINE_SECONDS = 30.0
"""Seconds between two lines of progress without a terminal."""


@command
def evaluate(
    plugins: PluginOptions,
    run: Run,
    gin: Gin = [],  # noqa: B006 - typer copies it
    set_: Set = [],  # noqa: B006
    evaluation: Annotated[list[str], typer.Option(metavar="NAME", help="Only this one; may be repeated.")] = [],  # noqa: B006
    drop_baseline: Annotated[Path | None, typer.Option(metavar="RUN", help="A run with run.gistnet = None.")] = None,
    mean_baseline: Annotated[Path | None, typer.Option(metavar="RUN", help="A run with @gistnet.mean.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default: RUN/evaluation.")] = None,
    windows: Annotated[int | None, typer.Option(min=2, help="Held-out sequences, in place of the bound.")] = None,
    trust: Trust = False,
) -> int:
    """Evaluate a checkpoint: what its gists keep, how well it focuses, against controls.

    --gin and --set are read on top of the run's own configuration.
    """
    paths = {name: path for name, path in (("drop", drop_baseline), ("mean", mean_baseline)) if path}
    # gin holds one configuration at a time, so the evaluated run is opened last.
    baselines = {name: load_run(path, plugins=plugins, trust=trust) for name, path in paths.items()}
    trained, console = load_run(run, gin, set_, plugins, trust), Console()
    for name, baseline in baselines.items():
        _check_baseline(name, baseline, trained)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {name: _eval_model(each, trained, device, windows) for name, each in {**baselines, "run": trained}.items()}
    facts = {
        "checkpoint": trained.checkpoint.path,
        "tokens": trained.checkpoint.tokens,
        "baselines": {name: baseline.checkpoint.path for name, baseline in baselines.items()},
        "windows": windows,
        "device": str(device),
    }
    selected = _selected(trained, evaluation)
    if not selected:
        raise UserError(
            "expected an evaluation, got none: run.evaluations is empty",
            remedy="Pass --evaluation NAME, such as gist_quality.",
        )
    folder, written, results = out or trained.directory / FOLDER, list[Path](), dict[str, EvalResult]()
    with trained.loaded.explaining():
        for name, result in _results(selected, models.pop("run"), models, trained, console):
            show(result, console)
            results[name] = result
            written = write(results, facts, folder)  # what is complete outlives an interruption of the next one
    for path in written:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
    return 0


def _eval_model(run: TrainedRun, evaluated: TrainedRun, device: torch.device, windows: int | None) -> EngineEvalModel:
    model = eval_model(evaluated.run_config, run.tokenizer, run.model.to(device), device)
    return replace(model, windows=windows)


def _selected(trained: TrainedRun, names: list[str]) -> list[Evaluation]:
    """Return the run's evaluations, or those of the names; a name may be that of any installed one."""
    loaded = trained.loaded
    own = build_evaluations(loaded.run_config)
    if not names:
        return own
    known = {evaluation.name: evaluation for evaluation in own}
    installed = loaded.registry.implementations["evaluation"]
    selected: list[Evaluation] = []
    for name in (name.removeprefix("@").removeprefix("evaluation.") for name in names):
        if name in known:
            selected.append(known[name])
        elif name in installed:
            selected.append(PluginFactory(installed[name], f"evaluation.{name}", loaded.config, loaded.registry)())
        else:
            raise loaded.registry.unknown("evaluation", name)
    return selected


def _results(
    evaluations: list[Evaluation],
    model: EngineEvalModel,
    baselines: Mapping[str, EngineEvalModel],
    trained: TrainedRun,
    console: Console,
) -> Iterator[tuple[str, EvalResult]]:
    """Yield each evaluation's name and result, with a progress bar."""
    with ContextsBar(console) as bar:
        watched = {name: replace(each, contexts_done=bar.done) for name, each in baselines.items()}
        model = replace(model, baselines=watched, announced=bar.announced, contexts_done=bar.done)
        registry = trained.loaded.registry
        registry.hooks.guard = Watchers(lambda error: explain(error, registry)).call
        for name, result in run_evaluations(evaluations, model):
            registry.hooks.evaluated(_run_info(trained), name, result)
            yield name, result


class ContextsBar:
    """Progress in working contexts: a bar on a terminal, elsewhere a line at most every `LINE_SECONDS`."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        lines = not console.is_terminal
        self._console, self._lines, self._expected, self._computed = console, lines, 0, 0
        self._bar = Progress(*columns, console=console, transient=True, disable=lines)
        self._task = self._bar.add_task("evaluating contexts", total=None)
        self._begin = self._printed = monotonic()

    def __enter__(self) -> ContextsBar:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def announced(self, contexts: int) -> None:
        """Add contexts that will be computed."""
        self._expected += contexts
        self._bar.update(self._task, total=self._expected)

    def done(self, contexts: int) -> None:
        """Add contexts that were computed."""
        self._computed += contexts
        self._bar.advance(self._task, contexts)
        now = monotonic()
        if self._lines and now - self._printed >= LINE_SECONDS:
            self._printed, elapsed = now, timedelta(seconds=round(now - self._begin))
            line = f"evaluating contexts: {self._computed:,} of {self._expected:,} after {elapsed}"
            self._console.print(line, highlight=False, soft_wrap=True)


def _run_info(trained: TrainedRun) -> RunInfo:
    checkpoint, run_config = trained.checkpoint, trained.run_config
    return RunInfo(
        directory=trained.directory, rank=0, world_size=1, tokens=checkpoint.tokens,
        step=checkpoint.tokens // run_config.batch_tokens, total_tokens=run_config.steps * run_config.batch_tokens,
    )  # fmt: skip


def _check_baseline(name: str, baseline: TrainedRun, run: TrainedRun) -> None:
    """Raise UserError unless a baseline reads the run's contexts and was trained as the option requires."""
    path, gistnet = baseline.checkpoint.path, baseline.model.gistnet
    flag = "--drop-baseline" if name == "drop" else "--set 'run.gistnet = @gistnet.mean'"
    learns = gistnet is not None and any(True for _ in gistnet.parameters())
    checks = (
        (baseline.model.tree != run.model.tree, f"has {baseline.model.tree}, the run has {run.model.tree}"),
        (baseline.tokenizer.identity != run.tokenizer.identity, "has another tokenizer than the run"),
        (not baseline.model.strategy.count, "was trained without variants, so it has read no compressed context"),
        (name == "mean" and (gistnet is None or learns), "was not trained with means: its GistNet learns or is None"),
        (name == "drop" and gistnet is not None, "was trained with a GistNet, so it has never read gaps"),
    )
    for wrong, text in checks:
        if wrong:
            raise UserError(
                f"the {name} baseline {path} {text}", remedy=f"Train the baseline with the run's gin file and {flag}."
            )
