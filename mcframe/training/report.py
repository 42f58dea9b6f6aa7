"""The start-up report: what was chosen and why, before the first step."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mcframe.modeling.gpt import parameter_count
from mcframe.modeling.step import MegaContextStep
from mcframe.training.assembly import Assembly, parameter_counts
from mcframe.training.cost import Costs
from mcframe.training.settings import Recipe


def memory_estimate(model: MegaContextStep, recipe: Recipe, world_size: int) -> dict[str, float]:
    """Bytes a rank needs for weights, gradients and optimizer states. Activations and logits come on top."""
    parameters = parameter_count(model)
    stage, half = recipe.deepspeed.zero_stage, recipe.deepspeed.precision == "bf16"
    # AdamW keeps two moments; Muon one, but for embeddings and head, which are AdamW's.
    tables = parameter_count(model.gpt.token_embed) + parameter_count(model.gpt.lm_head)
    states = 8 * parameters if recipe.optimizer.name == "adamw" else 4 * parameters + 4 * tables
    weight = 2 if half else 4
    master = 4 * parameters if half or stage else 0  # ZeRO holds a flat float32 copy of the weights
    share = {
        name: world_size if stage >= least else 1 for name, least in (("optimizer", 1), ("grad", 2), ("weight", 3))
    }
    return {
        "weights": parameters * weight / share["weight"],
        "gradients": parameters * weight / share["grad"],
        "optimizer": (states + master) / share["optimizer"],
    }


def describe(assembly: Assembly, extra: dict[str, str]) -> RenderableType:
    """The report as a table, with `extra` rows at its end."""
    recipe, model = assembly.recipe, assembly.model
    table = Table(show_header=False, title="mcframe", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    parts = _parts(recipe, model, assembly.costs, assembly.tokenizer.vocab_size)
    for name, value in {**parts, **_clock(recipe), **extra}.items():
        table.add_row(name, value)
    return Group(table, Text(""))


def _parts(recipe: Recipe, model: MegaContextStep, costs: Costs, tokenizer_size: int) -> dict[str, str]:
    counts = parameter_counts(model)
    rows = {name: f"{count / 1e6:,.1f} M parameters" for name, count in counts.items()} | left_out(model)
    if model.gpt.vocab_size > tokenizer_size:
        unused = model.gpt.vocab_size - tokenizer_size
        rows["base model"] += f"; {unused:,} of {model.gpt.vocab_size:,} embeddings have no token"
    geometry, count = model.geometry, model.strategy.count
    rows["context"] = (
        f"{geometry.window:,} tokens in blocks of {geometry.block_size}, LOD0-{geometry.levels}, "
        f"{geometry.slots} slot(s) a gist, tail {geometry.tail}"
    )
    if count:
        rows["variants"] = variants_in_words(recipe, count)
    else:
        rows["variants"] = "none: the plain twin; GistNet and LensNet are not built"
    flops = costs.at(recipe.extreme_lengths[0] if count else 0, recipe.rebuild(0))
    rows["FLOPs a token"] = f"{flops.plain / 1e9:.3g} G plain, {flops.total / 1e9:.3g} G with all that a step runs"
    return rows | {f"FLOPs of {name}": note for name, note in costs.notes.items()}


def left_out(model: MegaContextStep) -> dict[str, str]:
    """What a run does without: its GistNet and LensNet where they are None, objectives that need what is not there."""
    rows = {}
    if model.strategy.count and model.gistnet is None:
        rows["GistNet"] = "none; collapsed blocks are dropped"
    if model.strategy.count and model.lensnet is None:
        why = ": without gists it has nothing to judge" if model.gistnet is None else ""
        rows["LensNet"] = f"none; no scores are learned{why}"
    lacking = model.added.left_out.items()
    return rows | {f"objective {name}": f"left out; this run has no {need}" for name, need in lacking}


def variants_in_words(recipe: Recipe, count: int) -> str:
    """How many variants a sequence has, and of which lengths."""
    first, last = recipe.extreme_lengths
    mixed = "; every step draws between the two" if recipe.context.mixed_lengths else ""
    return f"{count} a sequence, of {first:,} entries at the start, {last:,} at the end{mixed}"


def _clock(recipe: Recipe) -> dict[str, str]:
    return {
        "steps": f"{recipe.steps:,} of {recipe.batch_tokens:,} tokens ({recipe.sequences} sequences), "
        f"{recipe.steps * recipe.batch_tokens:,} in all",
        "optimizer": _optimizer(recipe),
    }


def _optimizer(recipe: Recipe) -> str:
    optimizer, stage = recipe.optimizer, recipe.deepspeed.zero_stage
    clipping = f"gradients clipped at {optimizer.clipping}" if optimizer.clipping else "no clipping"
    if optimizer.name == "muon":
        clipping += " (it would act on Muon's orthogonalised update)"
    return f"{optimizer.name}, {clipping}; ZeRO {stage}, {recipe.deepspeed.precision}"


def optimizer_groups(optimizer: Any) -> str:
    """What the optimizer's groups hold, in words: DeepSpeed sorts parameters for Muon by itself."""
    groups = getattr(optimizer, "optimizer", optimizer).param_groups
    parts = []
    for group in groups:
        name = "Muon" if group.get("use_muon") else "AdamW"
        parts.append(f"{name} at learning rate {group.get('initial_lr', group['lr']):g}")
    return ", ".join(parts)
