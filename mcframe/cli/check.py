"""`mcframe check`: what a gin file means, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from mcframe.cli.failure import guarded
from mcframe.cli.options import NoPlugin, Plugin, Set, StrictPlugins, Traceback, plugin_options
from mcframe.data.loader import micro_batch_for
from mcframe.discovery import PluginOptions
from mcframe.errors import UserError
from mcframe.modeling.step import MegaContextStep
from mcframe.recipe import Loaded, load_recipe
from mcframe.registry import KINDS
from mcframe.training.assembly import build_evaluations, build_model, build_task, parameter_counts
from mcframe.training.cost import Costs
from mcframe.training.engine_config import engine_config
from mcframe.training.report import left_out, memory_estimate, variants_in_words
from mcframe.training.settings import SEVERAL, Recipe


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
    raise typer.Exit(guarded(lambda: _check(file, set_, ranks, plugins), traceback=traceback))


def _check(file: Path, overrides: list[str], ranks: int, plugins: PluginOptions) -> int:
    loaded = load_recipe([file], overrides, plugins)
    with loaded.explaining():
        return _report(loaded, file, ranks)


def _report(loaded: Loaded, file: Path, ranks: int) -> int:
    recipe, console = loaded.recipe, Console()
    vocab_size = _vocab_size(loaded, console)
    with torch.device("meta"):
        model = build_model(recipe, vocab_size)
    recipe.allocator(recipe.context.geometry)
    recipe.text()
    build_evaluations(recipe)
    build_task(recipe, model)
    rows = {
        "plug-ins": _plugins(loaded),
        **{name: f"{count:,} parameters ({count / 1e6:.1f} M)" for name, count in parameter_counts(model).items()},
        **left_out(model),
    }
    variants = model.strategy.count
    lengths = recipe.extreme_lengths if variants else (0, 0)
    costs = Costs(model)
    flops = [costs.at(lengths[0], recipe.rebuild(0)), costs.at(lengths[1], recipe.rebuild(recipe.steps - 1))]
    rows["FLOPs a token"] = f"{flops[0].plain / 1e9:.3g} G plain; {flops[0].total / 1e9:.3g} G at the start and " + (
        f"{flops[1].total / 1e9:.3g} G at the end with all that a step runs"
    )
    rows |= {f"FLOPs of {name}": note for name, note in costs.notes.items()}
    rows["tokens a step"] = f"{recipe.batch_tokens:,} ({recipe.sequences} sequences of {recipe.context.window:,})"
    rows["steps"] = f"{recipe.steps:,}, {recipe.steps * recipe.batch_tokens:,} tokens"
    if variants:
        rows["variants"] = variants_in_words(recipe, variants)
        rows["usable nodes"] = _usable(recipe)
    rows["memory a rank"] = _memory(model, recipe, ranks)
    if recipe.sequences % ranks == 0:
        micro = micro_batch_for(recipe.sequences // ranks, recipe.micro_batch)
        engine_config(recipe, micro, recipe.sequences // (micro * ranks))
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
        console.print(f"bound but unused: {binding.key} ({binding.place})", style="yellow", highlight=False)
    return 0


def _vocab_size(loaded: Loaded, console: Console) -> int:
    """The tokenizer's size; where it has still to be trained, the one that the model names."""
    try:
        return loaded.recipe.tokenizer().vocab_size
    except UserError as error:
        stated = loaded.config.as_dict().get("gpt.vocab_size")
        if not isinstance(stated, int):
            raise
        console.print(f"note: {error.message}\n  → {error.remedy}", style="yellow", highlight=False)
        return stated


def _plugins(loaded: Loaded) -> str:
    bound = loaded.config.as_dict()
    parts = [bound.get(f"run.{SEVERAL.get(kind, kind)}") for kind in KINDS]
    named = [each for part in parts for each in (part if isinstance(part, list) else [part]) if each is not None]
    chosen = ", ".join(str(each).lstrip("@") for each in named)
    packages = ", ".join(f"{name} {version}" for name, version in loaded.registry.versions().items())
    packages += "".join(f", --plugin {each.spec}" for each in loaded.registry.plugins.values() if each.spec)
    return f"{chosen} (from {packages})"


def _usable(recipe: Recipe) -> str:
    most = recipe.context.check_levels()
    return ", ".join(f"LOD{lod}: up to {count} in a context" for lod, count in most.items())


def _memory(model: MegaContextStep, recipe: Recipe, ranks: int) -> str:
    parts = memory_estimate(model, recipe, ranks)
    whole = sum(parts.values())
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    return f"{whole / 2**30:.2f} GiB on each of {ranks} rank(s) before activations and logits ({listed})"
