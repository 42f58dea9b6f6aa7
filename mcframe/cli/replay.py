"""`mcframe replay`: run the step of a saved anomaly again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from mcframe.cli.load_run import load_settings
from mcframe.cli.options import Trust, command
from mcframe.cli.streams import echo
from mcframe.config.schema import RunConfig
from mcframe.errors import UserError
from mcframe.files import user_path
from mcframe.metrics.tables import FittedTable
from mcframe.registry.discovery import PluginOptions
from mcframe.training.anomaly import Origin, find_origin, restore
from mcframe.training.anomaly_record import AnomalyRecord, records
from mcframe.training.build import build_step
from mcframe.training.random_states import restore_random_states, seed_random_states
from mcframe.training.train_step import StepBatch, TrainStep
from mcframe.training.weights import start_from
from mcframe.trust import open_run, untrusted


@command
def replay(
    plugins: PluginOptions,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    step: Annotated[int | None, typer.Option(min=1, help="The step; by default that of the newest anomaly.")] = None,
    trust: Trust = False,
) -> int:
    """Run the step of an anomaly again, in one process on the CPU, and print whether the anomaly comes back.

    A run saves the batches of its anomalies in RUN/anomalies. The exit code is 1 if the anomaly does not come back.
    """
    run = user_path(run, "RUN")
    loaded = load_settings(run, plugins=plugins, trust=trust)
    record = _chosen(run, step)
    facts = record.facts
    torch.set_num_threads(facts.threads)
    echo(f"step {facts.step}, {facts.reaction.replace('_', ' ')}: {facts.problem}")
    with loaded.explaining():
        seed_random_states(loaded.run_config.seed, "build")
        tokenizer = loaded.run_config.tokenizer()
        module = build_step(loaded.run_config, tokenizer.vocab_size, tokenizer.separator).train()
        origin, rows = _repeat(run, record, loaded.run_config, module)
    Console().print(_table(rows))
    same = all(then == now or (math.isnan(then) and math.isnan(now)) for _, _, then, now, _ in rows)
    last = ", the last checkpoint before the step" if facts.weights.startswith("tokens") else ""
    echo(f"weights: those of {facts.weights}{last}; losses: {'equal bit for bit' if same else 'not equal'}")
    if origin is not None:
        echo(f"origin: {_text(origin)}")
    found = _comes_back(record, [now for _, _, _, now, _ in rows], origin)
    echo("reproduced" if found else "not reproduced")
    return 0 if found else 1


Row = tuple[int, int, float, float, dict[str, float]]
"""Rank, micro-batch, loss in the run, loss now, and the loss of each term now."""


def _chosen(run: Path, step: int | None) -> AnomalyRecord:
    found = {record.facts.step: record for record in records(run)}
    if not found:
        raise UserError(
            f"{run} holds no saved anomaly",
            remedy="Pass the directory of a run that reported one, which saves its batch in RUN/anomalies.",
        )
    if step is None:
        return max(found.values(), key=lambda record: record.path.stat().st_mtime_ns)
    if step not in found:
        steps = ", ".join(map(str, found))
        raise UserError(
            f"--step: expected the step of a saved anomaly ({steps}), got {step}", remedy="Pass one of these."
        )
    return found[step]


def _repeat(run: Path, record: AnomalyRecord, config: RunConfig, module: TrainStep) -> tuple[Origin | None, list[Row]]:
    """Return the origin of a value that is not finite, if one is found, and a row for each micro-batch."""
    if config.deepspeed.precision == "bf16":
        module.bfloat16()
    ranks, saved = record.load()
    weights = _start_weights(run, record, config, module) if saved is None else saved
    rows: list[Row] = []
    origin = None
    for rank, own in enumerate(ranks):
        _check(record, config, module, own["batches"])
        for number, batch in enumerate(_start(record, config, module, weights, own)):
            with torch.no_grad():
                loss, metrics = module(batch)
            terms = {name: (value[0] / value[1]).item() for name, value in metrics.means.items() if _is_term(name)}
            rows.append((rank, number + 1, float(own["losses"][number]), loss.item(), terms))
        if record.facts.nonfinite and origin is None:
            batches = _start(record, config, module, weights, own)
            origin = next((found for batch in batches if (found := find_origin(module, batch)) is not None), None)
    return origin, rows


def _check(record: AnomalyRecord, config: RunConfig, module: TrainStep, batches: list[StepBatch]) -> None:
    """Raise UserError unless the micro-batches fit the configuration, which may have been edited."""
    if not batches:
        raise UserError(
            f"{record.path} has no batch: the step was too long ago when the anomaly was found",
            remedy="Log more often with logging.every.",
        )
    window, vocabulary = config.context.window, config.tokenizer().vocab_size
    variants = module.model.strategy.count
    for each in batches:
        length, largest = each.tokens.shape[-1] - 1, int(each.tokens.max())
        if (length, largest < vocabulary, each.seeds.shape[-1]) != (window, True, variants):
            raise UserError(
                f"{record.path}: expected {window} tokens below {vocabulary} and {variants} variants, as in config.gin,"
                f" got {length} tokens up to {largest} and {each.seeds.shape[-1]} variants",
                remedy="Restore the run's config.gin.",
            )


def _start(
    record: AnomalyRecord, config: RunConfig, module: TrainStep, weights: Mapping[str, Tensor], own: Mapping[str, Any]
) -> Iterator[StepBatch]:
    """Set weights and random states to those before the step, then iterate over the micro-batches of a rank."""
    restore(module, weights)
    module.begin_step(config.progress(record.facts.step - 1))
    restore_random_states(own["random"])
    yield from own["batches"]


def _start_weights(run: Path, record: AnomalyRecord, config: RunConfig, module: TrainStep) -> Mapping[str, Tensor]:
    """Return the weights at the start of a run."""
    if record.facts.weights != "the start":
        raise UserError(
            f"{record.path} has no weights: {record.facts.weights} was damaged",
            remedy="Pass another step with --step N.",
        )
    if config.start_from is not None:
        if not open_run(run, trust=False):
            raise untrusted(run, f"open {config.start_from!r}, which run.start_from names")
        start_from(module, config.start_from)
    return {name: value.clone() for name, value in module.state_dict().items()}


def _is_term(name: str) -> bool:
    return name.startswith("loss/") and name.count("/") == 1


def _table(rows: list[Row]) -> FittedTable:
    names = list(dict.fromkeys(name for *_, terms in rows for name in terms))
    table = FittedTable("rank", "micro-batch", "loss in the run", "loss now", *names)
    for rank, number, then, now, terms in rows:
        values = (then, now, *(terms.get(name, math.nan) for name in names))
        table.add_row(str(rank), str(number), *(f"{value:.6g}" for value in values))
    return table


def _text(origin: Origin) -> str:
    path = origin.module.removeprefix("model.") or "the training step"
    where = f" ({origin.file}:{origin.line})" if origin.file else ""
    return f"{path}: {origin.what if origin.gradient else f'its forward pass first returns {origin.what}'}{where}"


def _comes_back(record: AnomalyRecord, losses: list[float], origin: Origin | None) -> bool:
    """Return whether a value is not finite again, or the loss is more than half as far above those before it."""
    facts = record.facts
    if facts.nonfinite:
        return origin is not None or not all(map(math.isfinite, losses))
    return sum(losses) / len(losses) - facts.mean > (facts.loss - facts.mean) / 2
