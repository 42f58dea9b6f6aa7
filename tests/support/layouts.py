"""Engines at several ZeRO stages and numbers of ranks, in forked processes that train for a few steps."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.forked_ranks import CONTEXT, ROOT

SEQUENCES = 4
BEFORE, AFTER = 2, 2
"""Steps before and after a checkpoint."""
FIXED = (
    f"run.batch_tokens = {SEQUENCES * 128}", f"run.total_tokens = {SEQUENCES * 128 * 9}", "context.window = 128",
    "gpt.width = 24", "gpt.depth = 1", "run.extra_losses = [@loss.attribution]",
)  # fmt: skip


def in_ranks(function: Callable[..., Any], ranks: int, *arguments: object) -> list[Any]:
    """Return what the function returns on each rank, called with these arguments in a process group of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    receivers, processes = [], []
    for rank in range(ranks):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        process = CONTEXT.Process(target=_call, args=(sender, {**os.environ, **environment}, function, arguments))
        process.start()
        sender.close()
        processes.append(process)
        receivers.append(receiver)
    results = [receiver.recv() for receiver in receivers]
    for process in processes:
        process.join()
    for failed, result in results:
        assert not failed, result
    return [result for _, result in results]


def _call(sender: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: tuple) -> None:
    from mcframe.training.engine import prepare_environment, start_distributed

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    try:
        prepare_environment()
        start_distributed()
        sender.send((False, function(*arguments)))
        dist.barrier()
    except BaseException:  # noqa: BLE001 - the parent raises it
        sender.send((True, traceback.format_exc()))
    os._exit(0)


def build_engine(stage: int, settings: Sequence[str] = (), plugins: Sequence[str] = ()) -> Any:
    """Return a new engine of the smallest run, and its run configuration."""
    from mcframe.config.run_config import load_run_config
    from mcframe.registry.discovery import PluginOptions
    from mcframe.training.build import build_components
    from mcframe.training.engine import Engine

    torch.manual_seed(0)
    all_settings = [*FIXED, f"deepspeed.zero_stage = {stage}", *settings]
    smoke = Path(ROOT, "gin", "smoke.gin")
    config = load_run_config([smoke], all_settings, PluginOptions(tuple(plugins))).run_config
    return Engine(build_components(config), dist.get_world_size()), config


def train(engine: Any, config: Any, steps: range) -> list[float]:
    """Train for these steps on random tokens, and return the losses, means over ranks."""
    from mcframe.context.counter_rng import variant_seeds
    from mcframe.training.train_step import StepBatch

    rank, world = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in steps:
        tokens = torch.randint(0, 96, (SEQUENCES, 129), generator=torch.Generator().manual_seed(step))
        indices = torch.arange(SEQUENCES) + SEQUENCES * step
        mine = slice(rank, None, world)
        seeds = variant_seeds(0, indices, engine.model.strategy.count)
        engine.step.begin_step(config.progress(step))
        total = torch.zeros((), dtype=torch.float64)
        for some in torch.arange(SEQUENCES)[mine].split(engine.micro_batch):
            loss, _ = engine(StepBatch(tokens[some], seeds[some], config.variant_length(step)))
            engine.backward_and_step(loss, lambda: None)
            total += loss.detach().double() / engine.accumulation / world
        engine.step.after_step()
        dist.all_reduce(total)
        losses.append(float(total))
    return losses


def save(engine: Any, folder: Path) -> None:
    """Write the state of an engine to a folder."""
    from mcframe.training import state_files
    from mcframe.training.engine_state import take

    folder.mkdir(parents=True, exist_ok=True)
    state_files.write(folder, dist.get_rank(), *take(engine))
    dist.barrier()


def everything(folder: Path) -> dict[str, Any]:
    """Return all tensors of the optimizer and the module in a folder, by name, each as one flat tensor or value."""
    from mcframe.training import state_files
    from mcframe.training.engine_state import weights

    state = state_files.read(folder)
    found = {f"weights/{name}": value for name, value in weights(state).items()}
    for rank, facts in enumerate(state.facts):
        for held in facts["held"]:
            for name, *_ in held["spans"]:
                size = torch.Size(state.facts[0]["shapes"][name]).numel()
                for each in held["by_element"]:
                    found[f"{each}/{name}"] = state.part(f"optimizer/{each}/{name}", 0, size).clone()
                for each, value in held["values"].items():
                    found[f"{each}/{name}"] = state.decoded(rank, value)
    return found | {name: state.facts[0][name] for name in ("scheduler", "counters")}
