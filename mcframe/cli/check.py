"""`mcframe check`: print the run that a gin file describes, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

from mcframe.cli.options import Set, command
from mcframe.cli.vocabulary import vocabulary
from mcframe.config.baselines import baseline_option
from mcframe.config.batch_size import check_ranks, checked_micro_batch
from mcframe.config.run_config import PLUGIN_FIELDS, Loaded, load_run_config
from mcframe.config.schema import RunConfig
from mcframe.errors import UserError
from mcframe.files import user_path
from mcframe.hookspecs import Allocator, Optimizer
from mcframe.metrics.tables import FittedTable
from mcframe.registry.discovery import PluginOptions
from mcframe.training.budgets import check_budgets
from mcframe.training.build import (
    build_evaluations,
    build_optimizer,
    build_schedule,
    build_step,
    build_task,
    parameter_counts,
)
from mcframe.training.checkpoint_folder import find
from mcframe.training.flops import StepFlops
from mcframe.training.probe import probe_focuses
from mcframe.training.startup_summary import describe_text, describe_variants, memory_estimate, omitted
from mcframe.training.train_step import TrainStep

_PROBED_WINDOW = 16_384


@command
def check(
    plugins: PluginOptions,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A gin file.")],
    set_: Set = [],  # noqa: B006 - typer copies it
    baseline: Annotated[bool, typer.Option("--baseline", help="Check the file's plain baseline.")] = False,
    drop_baseline: Annotated[bool, typer.Option("--drop-baseline", help="Check the file's drop baseline.")] = False,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that the memory estimate is for.")] = 1,
) -> int:
    """Parse a gin file, build its parts on the meta device and print them. Trains nothing."""
    option = baseline_option(baseline=baseline, drop_baseline=drop_baseline)
    loaded = load_run_config([file], set_, plugins, option)
    with loaded.explaining():
        console = Console()
        table = FittedTable(show_header=False, title=" ".join(filter(None, (str(file), option))), title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        rows, warnings = _rows(loaded, ranks, console)
        for name, value in rows.items():
            table.add_row(name, Text(value))  # a path may look like markup
        console.print(table, highlight=False)
    for warning in [*loaded.registry.warnings(), *warnings]:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    # Of bindings that training alone reads, `unused` returns those whose configurable was not selected.
    for binding in loaded.config.unused():
        console.print(f"bound but unused: {binding.key} ({binding.location})", style="yellow", highlight=False)
    return 0


def _rows(loaded: Loaded, ranks: int, console: Console) -> tuple[dict[str, str], list[str]]:
    """Build the parts on the meta device and return the rows of the table, and warnings."""
    run_config = loaded.run_config
    check_ranks(run_config, ranks)
    vocab_size = vocabulary(
        loaded,
        lambda error: console.print(f"note: {error.message}\n  → {error.remedy}", style="yellow", highlight=False),
    )
    with torch.device("meta"):
        step = build_step(run_config, vocab_size)
    checked_micro_batch(run_config, ranks, baseline_every=step.baseline_every, variants_every=step.variants_every)
    variants = step.model.strategy.count
    allocator = run_config.allocator(run_config.context.tree)
    text = run_config.text()
    evaluations = build_evaluations(run_config)
    build_task(run_config, step.model)
    optimizer = build_optimizer(run_config)
    build_schedule(run_config)
    costs = StepFlops(step)
    shortest, longest = run_config.extreme_lengths if variants else (0, 0)
    start, end = costs.at(shortest), costs.at(longest, progress=1.0)
    rows = {
        "plug-ins": _plugins(loaded),
        **{name: f"{count:,} parameters ({count / 1e6:.1f} M)" for name, count in parameter_counts(step).items()},
        **omitted(step),
        **describe_text(run_config, text),
        "FLOPs a token": f"{start.plain / 1e9:.3g} G plain; {start.total / 1e9:.3g} G at the start and "
        f"{end.total / 1e9:.3g} G at the end with all that a step runs",
        **{f"FLOPs of {name}": note for name, note in costs.notes.items()},
        "tokens a step": f"{run_config.batch_tokens:,} ({run_config.sequences} sequences of "
        f"{run_config.context.window:,})",
        "steps": f"{run_config.steps:,}, {run_config.steps * run_config.batch_tokens:,} tokens",
    }
    if variants:
        rows["variants"] = describe_variants(run_config, variants)
        usable = run_config.context.check_levels().items()
        rows["usable nodes"] = ", ".join(f"LOD{lod}: up to {count} in a context" for lod, count in usable)
    rows["memory a rank"] = _memory(step, optimizer, run_config, ranks)
    warnings = check_budgets(run_config, allocator, evaluations) if variants else []
    warnings += _probe(run_config, step, allocator) if variants else []
    return rows, [*_missing_start(run_config), *warnings]


def _missing_start(run_config: RunConfig) -> list[str]:
    """Return a warning if the run whose weights this one starts from does not exist, or not yet."""
    if run_config.start_from is None:
        return []
    try:
        find(user_path(run_config.start_from, "run.start_from"))
    except UserError as error:
        return [f"run.start_from: {error.message}"]
    return []


def _probe(run_config: RunConfig, step: TrainStep, allocator: Allocator) -> list[str]:
    """Try strategy and allocator, unless the window is so long that it would take seconds. Return warnings."""
    tree = run_config.context.tree
    if tree.window > _PROBED_WINDOW:
        return []
    lengths = (run_config.variant_length(0), *run_config.extreme_lengths)
    return probe_focuses(run_config.variants(tree), allocator, tree, lengths, pairs=step.losses.require("pairs"))


def _plugins(loaded: Loaded) -> str:
    bound = loaded.config.as_dict()
    parts = [bound.get(f"run.{field}") for field in PLUGIN_FIELDS]
    named = [each for part in parts for each in (part if isinstance(part, list) else [part]) if each is not None]
    chosen = ", ".join(str(each).lstrip("@") for each in named)
    packages = ", ".join(f"{name} {version}" for name, version in loaded.registry.versions().items())
    packages += "".join(f", --plugin {each.spec}" for each in loaded.registry.plugins.values() if each.spec)
    return f"{chosen} (from {packages})"


def _memory(step: TrainStep, optimizer: Optimizer, run_config: RunConfig, ranks: int) -> str:
    parts = memory_estimate(step, optimizer, run_config, ranks)
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    total = sum(parts.values()) / 2**30
    return f"{total:.2f} GiB on each of {ranks} rank(s) before activations and logits ({listed})"
