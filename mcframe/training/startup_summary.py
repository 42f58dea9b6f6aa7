"""The start-up summary: components, sizes and settings of a run."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from mcframe.config.schema import RunConfig
from mcframe.hookspecs import Optimizer, TextSource
from mcframe.interfaces.base_model import parameter_count
from mcframe.metrics.tables import FittedTable
from mcframe.safe_text import redacted
from mcframe.training.build import Components, parameter_counts, plugin_name
from mcframe.training.compiled_step import describe_compile
from mcframe.training.engine_config import gradient_clipping
from mcframe.training.flops import StepFlops
from mcframe.training.param_groups import param_groups
from mcframe.training.train_step import TrainStep


def memory_estimate(step: TrainStep, optimizer: Optimizer, run_config: RunConfig, world_size: int) -> dict[str, float]:
    """Return the bytes of a rank for weights, gradients and optimizer states, without activations and logits."""
    parameters = parameter_count(step)
    stage, half = run_config.deepspeed.zero_stage, run_config.deepspeed.precision == "bf16"
    groups = param_groups(step, optimizer, run_config.optimizer_config)
    states = sum(4 * group.rule.states * group.count for group in groups)
    weight = 2 if half else 4
    trained = sum(group.count for group in groups)
    master = 4 * trained if half or stage else 0  # ZeRO holds a flat float32 copy of the trained weights
    ranks = {
        name: world_size if stage >= least else 1 for name, least in (("optimizer", 1), ("grad", 2), ("weight", 3))
    }
    return {
        "weights": parameters * weight / ranks["weight"],
        "gradients": trained * weight / ranks["grad"],
        "optimizer": (states + master) / ranks["optimizer"],
    }


def describe(components: Components, extra: dict[str, str]) -> RenderableType:
    """Return the summary as a table, with `extra` rows at its end."""
    run_config = components.run_config
    table = FittedTable(show_header=False, title="mcframe", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    parts = _parts(run_config, components.step, components.flops, components.tokenizer.vocab_size)
    text = describe_text(run_config, components.text)
    for name, value in {**parts, **text, **_clock(components), **extra}.items():
        table.add_row(name, Text(redacted(value)))  # a path may look like markup
    return Group(table, Text(""))


def _parts(run_config: RunConfig, step: TrainStep, step_flops: StepFlops, tokenizer_size: int) -> dict[str, str]:
    counts, model = parameter_counts(step), step.model
    rows = {name: f"{count / 1e6:,.1f} M parameters" for name, count in counts.items()} | omitted(step)
    if model.gpt.vocab_size > tokenizer_size:
        unused = model.gpt.vocab_size - tokenizer_size
        rows["base model"] += f"; {unused:,} of {model.gpt.vocab_size:,} embeddings have no token"
    tree, count = model.tree, model.strategy.count
    rows["context"] = (
        f"{tree.window:,} tokens in blocks of {tree.block_size}, LOD0-{tree.levels}, "
        f"{tree.slots} slot(s) a gist, tail {tree.tail}"
    )
    if count:
        rows["variants"] = describe_variants(run_config, count)
    else:
        rows["variants"] = "none: the plain baseline; GistNet and LensNet are not built"
    flops = step_flops.at(run_config.extreme_lengths[0] if count else 0)
    rows["FLOPs a token"] = f"{flops.plain / 1e9:.3g} G plain, {flops.total / 1e9:.3g} G with all that a step runs"
    return rows | {f"FLOPs of {name}": note for name, note in step_flops.notes.items()}


def describe_text(run_config: RunConfig, text: TextSource) -> dict[str, str]:
    """Return a row about the text: its source, and what is read of it; none where a task replaces the text."""
    if run_config.task is not None:
        return {}
    return {"text": ": ".join(filter(None, [plugin_name(run_config.text), str(text.describe() or "")]))}


def omitted(step: TrainStep) -> dict[str, str]:
    """Return the parts that a run omits: tokens of the uncompressed pass, GistNet or LensNet, losses without inputs."""
    rows, model = {}, step.model
    if step.baseline_window is not None or step.baseline_every > 1:
        tokens = f"the last {step.baseline_window or model.tree.window:,} of {model.tree.window:,} tokens"
        rows["uncompressed pass"] = f"{tokens}, in one of {step.baseline_every} sequences"
    if model.strategy.count and model.gistnet is None:
        rows["GistNet"] = "none; collapsed blocks are dropped"
    if model.strategy.count and model.lensnet is None:
        why = ": without gists it has no entries to score" if model.gistnet is None else ""
        rows["LensNet"] = f"none; no scores are learned{why}"
    skipped = step.losses.skipped.items()
    return rows | {f"loss {name}": f"skipped: this run has no {need}" for name, need in skipped}


def describe_variants(run_config: RunConfig, count: int) -> str:
    """Return the number of variants of a sequence, and their lengths, as text."""
    first, last = run_config.extreme_lengths
    mixed = "; every step draws between the two" if run_config.context.length_mixed else ""
    every = run_config.context.variants_every
    sequences = "a sequence" if every == 1 else f"in one of {every} sequences"
    return f"{count} {sequences}, of {first:,} entries at the start, {last:,} at the end{mixed}"


def _clock(components: Components) -> dict[str, str]:
    run_config = components.run_config
    return {
        "steps": f"{run_config.steps:,} of {run_config.batch_tokens:,} tokens ({run_config.sequences} sequences), "
        f"{run_config.steps * run_config.batch_tokens:,} in all",
        "optimizer": _optimizer(components),
        **({"compiles": describe_compile(run_config, components.model.strategy.count)} if run_config.compile else {}),
    }


def _optimizer(components: Components) -> str:
    run_config, optimizer = components.run_config, components.optimizer
    norm = gradient_clipping(run_config, optimizer)
    clipping = f"gradients of each part clipped at {norm}" if norm else "no clipping"
    if optimizer.replaces_gradients:
        clipping += " (it would act on the optimizer's update)"
    name, schedule = plugin_name(run_config.optimizer), plugin_name(run_config.schedule)
    stage, precision = run_config.deepspeed.zero_stage, run_config.deepspeed.precision
    return f"{name}, {clipping}; schedule {schedule}; ZeRO {stage}, {precision}"
