"""The DeepSpeed engine, its start, and guards against its silent failures."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from torch.optim.lr_scheduler import LambdaLR

from mcframe.config.batch_size import check_ranks, checked_micro_batch
from mcframe.context.step_metrics import StepMetrics
from mcframe.environment import prepare_rank
from mcframe.errors import UserError
from mcframe.hookspecs import Optimizer
from mcframe.modeling.model import MegaContextModel, PhaseTimer, no_timer
from mcframe.registry.checks import raise_contract_error
from mcframe.training.build import Components, lr_factor
from mcframe.training.clipping import PartClipping
from mcframe.training.compiled_step import CompiledStep
from mcframe.training.compiler import INSTALL, check_compiler, op_not_built
from mcframe.training.device_settings import keep_freed_memory, prepare_allocator
from mcframe.training.engine_config import engine_config, gradient_clipping
from mcframe.training.external_weights import check_external, external_digests
from mcframe.training.first_interval import GradientWatch
from mcframe.training.param_groups import lr_factors, optimizer_groups, param_groups, with_starts
from mcframe.training.rendezvous import SharedBuffer, await_ranks
from mcframe.training.stall import Store
from mcframe.training.train_step import StepBatch, TrainStep

_log = logging.getLogger(__name__)
_SHARED_MEMORY_OP = "deepspeed_shm_comm"
_SHARED_BUFFER = 66 * 2**20
"""Bytes in /dev/shm of a rank's buffer of DeepSpeed's CPU communication op."""


def prepare_environment() -> None:
    """Set the environment variables that DeepSpeed reads when it is imported.

    Without them DeepSpeed would look for MPI if it is started by plain `python`, and print its search for devices on a
    machine without a GPU. DS_ACCELERATOR=cpu hides GPUs from torch, too. The folder of this Python is added to PATH,
    for its `ninja`.

    Raises:
        UserError: The variables of a rank are set in part.
    """
    prepare_rank()
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # DeepSpeed's launcher numbers the ranks of a CPU in it
    prepare_allocator()
    keep_freed_memory()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_directory()))
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def extensions_directory() -> Path:
    """Return the cache of built ops: TORCH_EXTENSIONS_DIR, or a folder for this installation of torch and DeepSpeed.

    In torch's default folder, two environments of a machine would rebuild the op, for a minute, at every change from
    one to the other, since their include paths differ.
    """
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    from torch.utils.cpp_extension import get_default_build_root

    # Found, not imported: DeepSpeed must not be imported before the environment is prepared.
    sources = find_spec("deepspeed")
    built_from = (torch.__file__, torch.__version__, sources and sources.origin, sys.version)
    return Path(get_default_build_root(), f"mcframe_{hashlib.sha256(repr(built_from).encode()).hexdigest()[:12]}")


def shared_memory_op_cached() -> bool:
    """Return whether DeepSpeed's CPU communication op is built for this installation."""
    return any(extensions_directory().glob(f"**/{_SHARED_MEMORY_OP}*/*.so"))


def divide_cores() -> None:
    """Divide the cores of this machine among its ranks, unless OMP_NUM_THREADS is set.

    By default every rank uses all cores. Threads that wait for a core make training ten times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_SIZE", "1"))))


def start_distributed(limit: float = 300.0, met: Callable[[Store], object] | None = None) -> torch.device:
    """Join the process group, and return the device of this rank.

    Several ranks on CPUs build DeepSpeed's CPU op at the first start; a single one has no other to communicate with.

    Args:
        limit: Seconds to wait for other ranks to start.
        met: Called with a store of all ranks once several ranks have started.

    Raises:
        UserError: A rank or a compiler is missing, or another program has the port.
    """
    cpu = not torch.cuda.is_available()
    rank, alone = int(os.environ["RANK"]), os.environ["WORLD_SIZE"] == "1"
    if cpu:
        divide_cores()
    if cpu and not alone and not shared_memory_op_cached():
        if missing := check_compiler():
            raise UserError(
                f"DeepSpeed needs {missing} to build the CPU communication op of several ranks",
                remedy=f"{INSTALL}, then run `mcframe doctor --ranks 2`; or train with one rank.",
            )
        if rank == 0:
            print(  # noqa: T201
                "First start on this machine: building DeepSpeed's CPU communication op, or waiting for a run that "
                "builds it, about a minute.",
                flush=True,
            )
    buffer = SharedBuffer(rank) if cpu and not alone and not dist.is_initialized() else None
    if (store := _meet(rank, limit)) is not None and met is not None:
        met(store)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # torch prints a deprecation note for every collective of DeepSpeed.
    logging.getLogger("torch.distributed").addFilter(lambda record: "all_gather_into_tensor" not in record.getMessage())
    if cpu and alone:
        # Not read first: DeepSpeed would probe every op, and run a compiler for it.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})[_SHARED_MEMORY_OP] = False
    elif cpu:
        _load_shared_memory_op()
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _named_port(rank):
        deepspeed.init_distributed(verbose=False)
    if cpu:
        # On a CPU, compiling Muon's small matrix products takes longer than a short run gains from it.
        torch.compiler.set_stance("force_eager")
        if buffer is not None:
            barrier()
            buffer.remove()
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _meet(rank: int, limit: float) -> Store | None:
    """Wait for all ranks, unless they are a group already, and return a store; None if this rank is the only one."""
    if dist.is_initialized():
        return None if dist.get_world_size() == 1 else dist.distributed_c10d._get_default_store()
    if (world_size := int(os.environ["WORLD_SIZE"])) == 1:
        return None
    with _named_port(rank):
        return await_ranks(rank, world_size, limit)


@contextmanager
def _named_port(rank: int) -> Iterator[None]:
    """Name the port in errors of the network."""
    try:
        yield
    except dist.DistNetworkError as error:
        port = os.environ.get("MASTER_PORT", "29500")
        raise UserError(
            f"rank {rank} cannot connect to the other ranks at port {port}: {str(error).splitlines()[0]}",
            remedy="If another run of this machine has the port, use deepspeed --master_port N mcframe/run.py ..., or "
            "`mcframe run`, which takes a free one.",
        ) from error


def _load_shared_memory_op() -> None:
    """Build DeepSpeed's CPU communication op if necessary, and load it; one process at a time.

    torch waits forever for a lock file that a killed process did not remove. The system releases our lock when its
    process ends, so the process that holds ours may remove torch's. This assumes that only mcframe builds ops in this
    folder, and that torch builds each op in a folder of its name with a file called `lock`.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME):
        return
    folder = extensions_directory()
    problem = _too_little_shared_memory()
    try:
        if not problem:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "mcframe.lock"):
                (folder / builder.NAME / "lock").unlink(missing_ok=True)
                builder.load(verbose=False)
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror}; set TORCH_EXTENSIONS_DIR to another folder"
    if problem:
        deepspeed.ops.__compatible_ops__[builder.NAME] = False
        _log.warning("the ranks communicate through gloo alone, which is slower: %s", problem)


def _too_little_shared_memory() -> str:
    """Return what is wrong if /dev/shm cannot hold the buffers of the op: touching them would end the process.

    Its size decides, not what is free at the moment, so that all ranks of a machine decide alike.
    """
    ranks, folder = int(os.environ.get("LOCAL_SIZE", "1")), Path("/dev/shm")
    needed = ranks * _SHARED_BUFFER
    if ranks == 1 or not folder.is_dir() or (size := shutil.disk_usage(folder).total) >= needed:
        return ""
    return f"{folder} has {size >> 20} MiB, and {ranks} ranks need {needed >> 20} (docker run --shm-size)"


def complete_optimizer(optimizer: Optimizer, groups: list[dict[str, Any]], offload: bool) -> torch.optim.Optimizer:
    """Return the built optimizer.

    Raises:
        ContractError: It does not hold every parameter of the groups.
        UserError: An op of DeepSpeed that it uses cannot be built on this machine.
    """
    expected = {id(parameter) for group in groups for parameter in group["params"]}
    try:
        built = optimizer.build(groups, offload)
    except Exception as error:
        if (failure := op_not_built(error, type(optimizer).__name__)) is None:
            raise
        raise failure from error
    held = {id(parameter) for group in built.param_groups for parameter in group["params"]}
    if missing := expected - held:
        raise_contract_error(
            optimizer, "build", f"expected an optimizer of all {len(expected)} parameters, got one without "
            f"{len(missing)} of them, which would never be trained",
        )  # fmt: skip
    return built


class Engine:
    """A DeepSpeed engine around the train step, with one backward pass a micro-batch and a check of gradients."""

    def __init__(self, components: Components, world_size: int) -> None:
        import deepspeed

        step, run_config, optimizer = components.step, components.run_config, components.optimizer
        check_ranks(run_config, world_size)
        self.compiled = step.compiled = CompiledStep(run_config.compile) if run_config.compile else None
        self.micro_batch = checked_micro_batch(
            run_config, world_size, baseline_every=step.baseline_every, variants_every=step.variants_every
        )
        self.accumulation = run_config.sequences // (self.micro_batch * world_size)
        self.config = engine_config(run_config, optimizer, self.micro_batch, self.accumulation)
        self.stage = run_config.deepspeed.zero_stage
        self.watch = GradientWatch(step)
        self._timed: PhaseTimer = no_timer
        self.param_groups = param_groups(step, optimizer, run_config.optimizer_config)
        self._peak_lr = run_config.optimizer_config.lr
        self._schedule, self._steps = components.schedule, run_config.steps
        offload = run_config.deepspeed.offload_optimizer
        groups = optimizer_groups(step, self.param_groups)
        dtype = torch.bfloat16 if run_config.deepspeed.precision == "bf16" else torch.float32
        read = external_digests(components.model.gpt, dtype)
        self.wrapped, _, _, self.scheduler = deepspeed.initialize(
            model=step,
            config=self.config,
            optimizer=lambda _: with_starts(complete_optimizer(optimizer, groups, offload), self.param_groups),
            # Of anything but a plain function, LambdaLR would store the attributes in checkpoints.
            lr_scheduler=lambda built: LambdaLR(built, lr_factors(built.param_groups, self._lr_factor, self._steps)),
        )
        check_external(read, self.model.gpt, dtype)
        limit = gradient_clipping(run_config, optimizer)
        self._clipping = PartClipping(self.wrapped, self.param_groups, limit) if limit else None
        self._unclipped_norm: torch.Tensor | None = None
        self._reports_norm = not optimizer.replaces_gradients
        if self.stage == 0 and run_config.anomaly.reacts("skip") and torch.cuda.is_available():
            for group in self.optimizer.param_groups:
                if "capturable" in group:  # torch's optimizers then count their steps on the device
                    group["capturable"] = True
        # What the configuration sets, before any step or checkpoint changes it.
        self.group_options: list[dict[str, Any]] = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in self.scheduler.optimizer.param_groups
        ]

    def _lr_factor(self, step: int) -> float:
        """Return the schedule's factor on the peak learning rate, checked."""
        return lr_factor(self._schedule, step, self._steps)

    def __call__(self, batch: StepBatch) -> tuple[torch.Tensor, StepMetrics]:
        """Return loss and metrics of a micro-batch."""
        with nullcontext() if self.compiled is None else self._timed("forward"):
            loss, metrics = self.wrapped(batch)
        return loss, metrics

    @property
    def step(self) -> TrainStep:
        """The module that is trained."""
        module: TrainStep = self.wrapped.module
        return module

    @property
    def model(self) -> MegaContextModel:
        """The model."""
        return self.step.model

    def time_with(self, timed: PhaseTimer) -> None:
        """Time the phases of a step with `timed`; see `mcframe.metrics.timers.PHASES`."""
        self._timed = timed
        if self.compiled is None:  # one graph has no phases
            self.step.time_with(timed)

    def backward_and_step(self, loss: torch.Tensor, before_step: Callable[[], None]) -> None:
        """Run one backward pass of a micro-batch, and the optimizer's step if the batch is complete.

        Two passes before a step would silently change the result at ZeRO 2.

        Args:
            loss: The loss of the micro-batch.
            before_step: Called before the optimizer's step, with complete gradients.
        """
        with self._timed("backward"):
            self.wrapped.backward(loss)
        if complete := self.wrapped.is_gradient_accumulation_boundary():
            if self.stage == 3:
                self.watch.check()
            before_step()
        with self._timed("optimizer"):
            if complete and self.stage == 0 and self._clipping is None:
                gradients = [each.grad for each in self.step.parameters() if each.grad is not None]
                self._unclipped_norm = torch.nn.utils.get_total_norm(gradients)
            self.wrapped.step()
            if complete and self.overflowed:
                self.scheduler.step()  # DeepSpeed skips the schedule with the step, from ZeRO 1 on

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step for parameters without a factor: `optimizer.lr` times the schedule's."""
        return self._peak_lr * self._lr_factor(self.scheduler.last_epoch)

    def apply_settings(self, before: Sequence[Mapping[str, Any]] | None) -> None:
        """Set the optimizer's options from this configuration; a checkpoint restores those of its own run.

        Args:
            before: `group_options` of the run that wrote the checkpoint. Only options that differ from them are set:
                some optimizers keep state among their options.
        """
        groups = self.scheduler.optimizer.param_groups
        for group, was, now in zip(groups, before or self.group_options, self.group_options, strict=True):
            group.update({name: value for name, value in now.items() if name not in was or was[name] != value})
        self.scheduler.base_lrs[:] = [options["initial_lr"] for options in self.group_options]
        pairs = zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        self.scheduler._last_lr = [base * factor(self.scheduler.last_epoch) for base, factor in pairs]
        for group, rate in zip(groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the plug-in has built. From ZeRO 1 on it holds DeepSpeed's flat partitions."""
        built: torch.optim.Optimizer = self.scheduler.optimizer
        return built

    @property
    def overflowed(self) -> bool:
        """True if DeepSpeed skipped the last update because of a gradient that is not finite, at ZeRO 1 to 3."""
        return bool(getattr(self.wrapped.optimizer, "overflow", False))

    def checked_norm(self, device: torch.device) -> torch.Tensor:
        """Return the norm of the last step's gradient, or of the update that replaces it, float64 on the device.

        It is negative or not finite if the gradient has a value that is not finite. Does not synchronise with the host.
        """
        if self.overflowed:
            norm: Any = math.inf
        elif self._clipping is not None:
            norm = self._clipping.total
        else:
            norm = self._unclipped_norm if self.stage == 0 else self.wrapped.get_global_grad_norm()
        return torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float64, device=device)

    @property
    def gradient_norms(self) -> dict[str, torch.Tensor]:
        """Norms of the last step's gradient before clipping by name: of all, and of each part if it is clipped."""
        if self._clipping is not None:
            parts = {f"train/grad_norm/{part.replace(' ', '_')}": norm for part, norm in self._clipping.norms.items()}
            total = self._clipping.total
        else:
            parts, total = {}, self.wrapped.get_global_grad_norm() if self._reports_norm else None
        return ({} if total is None else {"train/grad_norm": torch.as_tensor(total)}) | parts


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
