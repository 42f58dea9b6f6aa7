"""Training on one rank: read the gin files, build the parts, start the engine, train."""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from mcframe.cli.run_options import arguments
from mcframe.cli.user_errors import report_user_errors
from mcframe.cli.watched import Watched
from mcframe.config.baselines import baseline_option, run_name
from mcframe.config.run_config import Loaded, load_run_config
from mcframe.data.overlap import held_out_overlap
from mcframe.errors import UserError
from mcframe.files import replaced
from mcframe.metrics.loggers import Loggers, open_loggers
from mcframe.metrics.summary import SUMMARY, is_reported
from mcframe.registry.attribution import explain
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.plugins import Registry
from mcframe.training.auto_micro_batch import AUTO, with_micro_batch
from mcframe.training.build import Components, build_components
from mcframe.training.callbacks.checkpoint import CHECKPOINT_MS, SaveCheckpoint
from mcframe.training.callbacks.plugins import PluginCallbacks
from mcframe.training.callbacks.profile import Profile
from mcframe.training.checkpoint_folder import Checkpoint
from mcframe.training.checkpoint_writer import archive, remove_leftovers
from mcframe.training.checkpoints import load
from mcframe.training.device_settings import set_float32_products
from mcframe.training.engine import Engine, barrier, prepare_environment, start_distributed
from mcframe.training.provenance import added_plugins, changes, check_alike, fingerprint, write_record
from mcframe.training.random_states import seed_random_states
from mcframe.training.resume_rules import as_table, check_data, check_same_run, data_identity, differences
from mcframe.training.run_directory import OPERATIVE, RunPlan, plan, remove_partial_files, write_provenance
from mcframe.training.run_lock import RunLock
from mcframe.training.startup_summary import describe
from mcframe.training.trainer import Trainer
from mcframe.training.weights import start_from
from mcframe.trust import check_links


def main(argv: Sequence[str] | None = None) -> int:
    """Train on this rank. Return the exit code."""
    shown = "--traceback" in (sys.argv if argv is None else argv)
    return report_user_errors(lambda: train(arguments().parse_args(argv)), traceback=shown)


def train(options: argparse.Namespace) -> int:
    """Train in a group of processes, which is closed at the end. Return the exit code."""
    code = train_in_group(options)
    if dist.is_initialized():
        # The code is the same on every rank. The launcher kills the other ranks once one returns an error.
        if code:
            barrier()
        dist.destroy_process_group()
    return code


def train_in_group(options: argparse.Namespace) -> int:
    """Train and keep the group of processes, so that they can train again. Return the exit code."""
    prepare_environment()
    console = Console(quiet=os.environ["RANK"] != "0")
    plugins = PluginOptions(tuple(options.plugin), tuple(options.no_plugin), options.strict_plugins)
    baseline = baseline_option(baseline=options.baseline, drop_baseline=options.drop_baseline)
    loaded = load_run_config(options.gin, options.set, plugins, baseline)
    for warning in loaded.registry.warnings():
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    name, on_damage = run_name(Path(options.gin[-1]).stem, baseline), loaded.run_config.checkpoint.on_damage
    run_plan = plan(name, options.run_dir, options.resume, on_damage)
    check_links(run_plan.directory, options.trust)
    run_plan = replace(run_plan, bindings=loaded.config.parameters())
    run_config, checkpoint = loaded.run_config, run_plan.checkpoint
    total = run_config.steps * run_config.batch_tokens
    if checkpoint is not None and checkpoint.tokens >= total and is_reported(run_plan.directory, checkpoint.tokens):
        with loaded.explaining():
            check_same_run(checkpoint, loaded.config)
        console.print(
            f"{run_plan.directory} is complete: {checkpoint.tokens:,} tokens. Increase "
            "run.total_tokens to continue, or pass --resume never to train again.",
            highlight=False,
        )
        return 0
    with loaded.explaining():
        return run(loaded, run_plan, console, profile=options.profile)


def run(loaded: Loaded, run_plan: RunPlan, console: Console, *, profile: bool = False) -> int:
    """Build the parts of a run in order and train. Return the exit code."""
    run_config, checkpoint = loaded.run_config, run_plan.checkpoint
    changed = differences(checkpoint, loaded.config) if checkpoint is not None else []
    seed_random_states(run_config.seed, "build")
    components = build_components(run_config)
    # A checkpoint of this run brings its own weights.
    begun = None
    if run_config.start_from is not None and checkpoint is None:
        begun = start_from(components.step, run_config.start_from)
    with Watched(run_config.stall_seconds) as watched:
        device = start_distributed(watched.start_limit, watched.begin)
        set_float32_products(device, run_config.deepspeed.tf32)
        with RunLock(run_plan.directory) as lock:
            _take_directory(lock, run_plan)
            _check_shared(run_plan, loaded.registry)
            if run_config.micro_batch == AUTO:
                with console.status("Looking for the largest micro-batch that fits"):
                    components = with_micro_batch(components, device, dist.get_world_size())
            engine = Engine(components, dist.get_world_size())
            seed_random_states(run_config.seed, "train", dist.get_rank())
            restored = None if checkpoint is None else _restore(checkpoint, components, engine, console)
            _print_start(loaded, run_plan, components, engine, begun, device, console)
            if changed:
                console.print(as_table(changed), highlight=False)
            with console.status("Reading and tokenising text"):
                callbacks = PluginCallbacks(
                    components.callbacks, loaded.config.as_dict(), lambda error: explain(error, loaded.registry)
                )
                # Called after the first step: until then the run directory is as it was.
                facts = dict[str, Any]()
                record_start = functools.partial(_record_start, loaded, run_plan, lock, facts, console)
                hooks = loaded.registry.hooks
                trainer = Trainer(components, engine, run_plan, record_start, hooks, device, callbacks, restored)
                if profile:
                    trainer.watch_with(Profile())
                if dist.get_rank() == 0 and run_config.task is None:
                    facts |= _overlap(components, trainer, console)
            watched.begin_training()
            summary = trainer.run()
    return _print_end(loaded, trainer, summary, console)


def _take_directory(lock: RunLock, run_plan: RunPlan) -> None:
    """Take the run directory on rank 0, for all ranks. Raises UserError on every rank if another run has it."""
    refused: list[UserError | None] = [None]
    if dist.get_rank() == 0:
        try:
            lock.take()
            run_plan.check_unchanged()
        except UserError as error:
            lock.release()
            refused = [error]
    dist.broadcast_object_list(refused)
    if refused[0] is not None:
        raise refused[0]


def _record_start(
    loaded: Loaded, run_plan: RunPlan, lock: RunLock, facts: Mapping[str, Any], console: Console
) -> Loggers:
    """Open the loggers and write what describes the run, on rank 0."""
    if dist.get_rank() != 0:
        return Loggers({})
    directory = run_plan.directory
    loggers = _loggers(loaded, run_plan)  # before `operative` records which bindings have been read
    lock.confirm()
    begun_at = checkpoint.tokens if (checkpoint := run_plan.checkpoint) is not None else -1
    if is_reported(directory, begun_at + 1):  # of steps that this run does again
        (directory / SUMMARY).unlink()
    write_provenance(directory, loaded.config.bound(), {**write_record(directory, loaded.registry), **facts})
    with replaced(directory / OPERATIVE) as partial:
        partial.write_text(loaded.config.operative(), "utf-8")
    if checkpoint is not None:
        archive(directory, checkpoint.tokens)
        if (lost := SaveCheckpoint.lost_time(directory, checkpoint)) is not None:
            step = checkpoint.tokens // loaded.run_config.batch_tokens
            loggers.write(checkpoint.tokens, step, {CHECKPOINT_MS: lost})
    remove_leftovers(directory)
    remove_partial_files(directory)
    for binding in loaded.config.unused():
        console.print(f"note: nothing reads {binding.key} ({binding.location})", style="yellow", highlight=False)
    return loggers


def _print_end(loaded: Loaded, trainer: Trainer, summary: Mapping[str, Any], console: Console) -> int:
    """Print how the run ended and what to do next. Return the exit code."""
    directory = trainer.plan.directory
    for reason in trainer.plugins.stop_reasons:
        console.print(f"Stopped by {reason}", markup=False, highlight=False, soft_wrap=True)
    if summary["status"] == "interrupted":
        again = "gin files and plug-ins" if added_plugins(loaded.registry) else "gin files"
        options = f"--run-dir {directory} {loaded.baseline or ''}".rstrip()
        console.print(f"To resume: the same {again} with {options}", style="bold", soft_wrap=True)
        return 128 + trainer.stopped_by
    command = f"mcframe review {shlex.quote(str(directory))}"
    console.print(f"To read it: {command}", style="bold", markup=False, highlight=False, soft_wrap=True)
    return 0


def _restore(
    checkpoint: Checkpoint, components: Components, engine: Engine, console: Console
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a checkpoint into the engine, and return the rest of its state. Raises UserError for other data."""
    with console.status("Reading and tokenising text"):
        check_data(checkpoint, data_identity(components))
    return load(engine, checkpoint)


def _overlap(components: Components, trainer: Trainer, console: Console) -> dict[str, Any]:
    """Measure how much of the held-out text is in the training text; print and return it. It never ends a run."""
    fraction = components.run_config.data.validation_fraction
    try:
        overlap = held_out_overlap(components.text, components.tokenizer, trainer.held_out, fraction)
    except Exception as error:  # noqa: BLE001 - of a plug-in, which is called again only for this
        console.print(
            f"note: the overlap of held-out and training text is unknown: {error}", style="yellow", markup=False
        )
        return {}
    if overlap is None:
        return {}
    console.print(f"held-out text: {overlap}", highlight=False, soft_wrap=True)
    return {"held_out_overlap": asdict(overlap)}


def _print_start(
    loaded: Loaded,
    run_plan: RunPlan,
    components: Components,
    engine: Engine,
    begun: str | None,
    device: torch.device,
    console: Console,
) -> None:
    """Print the summary of the run and what has changed since its checkpoint."""
    extra = {
        "parameter groups": "\n".join(map(str, engine.param_groups)),
        "ranks": f"{dist.get_world_size()} on {device}; micro-batches of {engine.micro_batch} sequences, "
        f"{engine.accumulation} a step",
        "run directory": str(run_plan.directory),
    }
    added = added_plugins(loaded.registry)
    if added:
        extra["added plug-ins"] = ", ".join(each.spec for each in added)
    if begun is not None:
        extra["starts from"] = begun
    if run_plan.checkpoint is not None:
        extra["resumed from"] = f"{run_plan.checkpoint.path} ({run_plan.checkpoint.tokens:,} tokens)"
    console.print(describe(components, extra), highlight=False)
    for change in changes(run_plan.directory, added) if run_plan.checkpoint is not None else ():
        console.print(f"note: {change}", style="yellow", highlight=False, markup=False)


def _check_shared(run_plan: RunPlan, registry: Registry) -> None:
    """Raise UserError on every rank if the nodes do not have the run directory and the plug-ins in common."""
    mark = run_plan.directory / f".shared-by-port-{os.environ['MASTER_PORT']}"
    world_size = dist.get_world_size()
    seen: list[tuple[bool, int | None] | None] = [None] * world_size
    try:
        if dist.get_rank() == 0:
            mark.touch()
        dist.barrier()
        dist.all_gather_object(seen, (mark.exists(), run_plan.checkpoint.tokens if run_plan.checkpoint else None))
    finally:
        if dist.get_rank() == 0:
            mark.unlink(missing_ok=True)
    if len(set(seen)) > 1:
        raise UserError(
            f"the ranks do not find the same run in {run_plan.directory}",
            remedy="Put the run directory on shared storage: --run-dir DIR.",
        )
    fingerprints: list[list[str]] = [[]] * world_size
    dist.all_gather_object(fingerprints, fingerprint(registry))
    check_alike(fingerprints)


def _loggers(loaded: Loaded, run_plan: RunPlan) -> Loggers:
    logging, checkpoint, config = loaded.run_config.logging, run_plan.checkpoint, loaded.config.as_dict()
    return open_loggers(
        run_plan.directory,
        rank=0,
        tensorboard=logging.tensorboard,
        wandb=logging.wandb,
        config=config,
        resume_tokens=checkpoint.tokens if checkpoint else None,
        others=dict(zip(_logger_names(loaded, config), loaded.run_config.loggers, strict=True)),
    )


def _logger_names(loaded: Loaded, config: Mapping[str, Any]) -> list[str]:
    """Return the names of `run.loggers` in messages: each as it is bound, with its package."""
    names: list[str] = []
    for number, written in enumerate(config.get("run.loggers", ()), start=1):
        origin = loaded.registry.implementations["logger"][written.rpartition(".")[2]].origin
        again = f" ({number})" if any(name.startswith(f"{written} ") for name in names) else ""
        names.append(f"{written} of {origin}{again}")
    return names
