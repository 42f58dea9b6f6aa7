"""`mcframe check`: what a gin file means, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from mcframe.cli.options import NoPlugin, Plugin, Set, StrictPlugins, Traceback, plugin_options
from mcframe.cli.user_errors import report_user_errors
from mcframe.config.run_config import PLUGIN_FIELDS, Loaded, load_run_config
from mcframe.config.schema import RunConfig
from mcframe.data.loader import micro_batch_for
from mcframe.errors import UserError
from mcframe.hookspecs import Optimizer
from mcframe.registry.discovery import PluginOptions
from mcframe.training.build import (
    build_evaluations,
    build_optimizer,
    build_schedule,
    build_step,
    build_task,
    parameter_counts,
)
from mcframe.training.engine_config import engine_config
from mcframe.training.flops import StepFlops
from mcframe.training.startup_summary import describe_variants, memory_estimate, omitted
from mcframe.training.train_step import TrainStep


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A gin file.")],
    set_: Set = [],  # noqa: B006 - typer copies it
    ranks: Annotated[int, typer.Option(help="Processes that the memory estimate is for.")] = 1,
    plugin: Plugin = [],  # noqa: B006
    no_plugin: NoPlugin = [],  # noqa: B006
    strict_plugins: StrictPlugins = False,
    traceback: Traceback = False,
) -> None:
    """Parse a gin file, build its parts on the meta device and print what they are. Trains nothing."""
    plugins = plugin_options(plugin, no_plugin, strict_plugins)
    raise typer.Exit(report_user_errors(lambda: _check(file, set_, ranks, plugins), traceback=traceback))


def _check(file: Path, overrides: list[str], ranks: int, plugins: PluginOptions) -> int:
    loaded = load_run_config([file], overrides, plugins)
    with loaded.explaining():
        return _report(loaded, file, ranks)


def _report(loaded: Loaded, file: Path, ranks: int) -> int:
    run_config, console = loaded.run_config, Console()
    vocab_size = _vocab_size(loaded, console)
    with torch.device("meta"):
        step = build_step(run_config, vocab_size)
    model = step.model
    run_config.allocator(run_config.context.tree)
    run_config.text()
    build_evaluations(run_config)
    build_task(run_config, model)
    optimizer = build_optimizer(run_config)
    build_schedule(run_config)
    rows = {
        "plug-ins": _plugins(loaded),
        **{name: f"{count:,} parameters ({count / 1e6:.1f} M)" for name, count in parameter_counts(step).items()},
        **omitted(step),
    }
    variants = model.strategy.count
    lengths = run_config.extreme_lengths if variants else (0, 0)
    costs = StepFlops(step)
    flops = [
        costs.at(lengths[0]),
        costs.at(lengths[1], progress=1.0),
    ]
    rows["FLOPs a token"] = f"{flops[0].plain / 1e9:.3g} G plain; {flops[0].total / 1e9:.3g} G at the start and " + (
        f"{flops[1].total / 1e9:.3g} G at the end with all that a step runs"
    )
    rows |= {f"FLOPs of {name}": note for name, note in costs.notes.items()}
    rows["tokens a step"] = (
        f"{run_config.batch_tokens:,} ({run_config.sequences} sequences of {run_config.context.window:,})"
    )
    rows["steps"] = f"{run_config.steps:,}, {run_config.steps * run_config.batch_tokens:,} tokens"
    if variants:
        rows["variants"] = describe_variants(run_config, variants)
        rows["usable nodes"] = _usable(run_config)
    rows["memory a rank"] = _memory(step, optimizer, run_config, ranks)
    if run_config.sequences % ranks == 0:
        micro = micro_batch_for(run_config.sequences // ranks, run_config.micro_batch)
        engine_config(run_config, optimizer, micro, run_config.sequences // (micro * ranks))
    table = Table(show_header=False, title=str(file), title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, highlight=False)
    for warning in loaded.registry.warnings():
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    # What only training reads is not unused: of the bindings, those are left whose configurable was not chosen.
    for binding in loaded.config.unused():
        console.print(f"bound but unused: {binding.key} ({binding.location})", style="yellow", highlight=False)
    return 0


def _vocab_size(loaded: Loaded, console: Console) -> int:
    """The tokenizer's size; where it has still to be trained, the one that the model names."""
    try:
        return loaded.run_config.tokenizer().vocab_size
    except UserError as error:
        stated = loaded.config.as_dict().get("gpt.vocab_size")
        if not isinstance(stated, int):
            raise
        console.print(f"note: {error.message}\n  → {error.remedy}", style="yellow", highlight=False)
        return stated


def _plugins(loaded: Loaded) -> str:
    bound = loaded.config.as_dict()
    parts = [bound.get(f"run.{field}") for field in PLUGIN_FIELDS]
    named = [each for part in parts for each in (part if isinstance(part, list) else [part]) if each is not None]
    chosen = ", ".join(str(each).lstrip("@") for each in named)
    packages = ", ".join(f"{name} {version}" for name, version in loaded.registry.versions().items())
    packages += "".join(f", --plugin {each.spec}" for each in loaded.registry.plugins.values() if each.spec)
    return f"{chosen} (from {packages})"


def _usable(run_config: RunConfig) -> str:
    most = run_config.context.check_levels()
    return ", ".join(f"LOD{lod}: up to {count} in a context" for lod, count in most.items())


def _memory(step: TrainStep, optimizer: Optimizer, run_config: RunConfig, ranks: int) -> str:
    parts = memory_estimate(step, optimizer, run_config, ranks)
    whole = sum(parts.values())
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    return f"{whole / 2**30:.2f} GiB on each of {ranks} rank(s) before activations and logits ({listed})"
