"""`run.micro_batch = 'auto'`: the largest micro-batch whose step fits the memory of every rank.

A copy of the step runs forward and backward on random tokens before there is an engine, next to memory reserved for
what DeepSpeed and the optimizer will hold.
"""

from __future__ import annotations

import copy
import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from mcframe.config.batch_size import micro_batch_for
from mcframe.config.schema import RunConfig
from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
from mcframe.interfaces.base_model import parameter_count
from mcframe.training.build import Components
from mcframe.training.random_states import unchanged_random_states
from mcframe.training.startup_summary import memory_estimate
from mcframe.training.train_step import StepBatch, TrainStep

AUTO = "auto"
_MARGIN = 0.05
"""Fraction of the memory that stays free, for fragments and libraries."""
_BUCKET = 500_000_000
"""Elements of DeepSpeed's buckets for gradients and for weights, from ZeRO 1 on."""


def with_micro_batch(components: Components, device: torch.device, ranks: int) -> Components:
    """Return the components with a number for `run.micro_batch`. Call it on every rank, before an engine.

    Raises:
        UserError: On a CPU without a limit of memory, or if one sequence does not fit.
    """
    run_config = components.run_config
    if run_config.micro_batch != AUTO:
        return components
    if device.type != "cuda" and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        raise UserError(
            f"run.micro_batch = 'auto': expected a GPU, or a limit of memory, got {device} without one",
            binding="run.micro_batch",
            remedy="Set run.micro_batch to a number of sequences, or limit the memory of each rank: ulimit -v KIB.",
        )
    sizes = candidates(run_config, components.step, ranks)
    attempt = _attempt(components, device, ranks)
    found = largest_that_fits(sizes, attempt)
    if ranks > 1:
        least = torch.tensor(found, device=device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        found = int(least)
    if not found:
        raise UserError(
            f"run.micro_batch = 'auto': {sizes[0]} sequence(s) of {run_config.context.window:,} tokens do not fit the "
            "memory of every rank",
            binding="run.micro_batch",
            remedy="Set gpt.activation_checkpointing = True, a higher deepspeed.zero_stage, or a smaller window; "
            "at ZeRO 3, which the search does not cover, set run.micro_batch = 1.",
        )
    return replace(components, run_config=replace(run_config, micro_batch=found))


def candidates(run_config: RunConfig, step: TrainStep, ranks: int) -> list[int]:
    """Return the sizes to try, ascending: the largest divisors of a rank's sequences up to each power of two."""
    own, every = run_config.sequences // ranks, step.baseline_every * step.variants_every
    powers = (2**power for power in range((own - 1).bit_length() + 1))
    return sorted({size for size in (micro_batch_for(own, each) for each in powers) if size % every == 0}) or [own]


def largest_that_fits(sizes: list[int], attempt: Callable[[int], object]) -> int:
    """Return the last size before the first that runs out of memory; 0 if the first does.

    Args:
        sizes: Ascending.
        attempt: Runs a step of a size.
    """
    largest = 0
    for size in sizes:
        try:
            attempt(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            gc.collect()  # an error's frames hold tensors
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        largest = size
    return largest


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that memory could not be allocated, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _attempt(components: Components, device: torch.device, ranks: int) -> Callable[[int], None]:
    """Return a function that runs one micro-batch of the longest variants of the run."""
    run_config = components.run_config
    count = components.model.strategy.count
    length = max(run_config.extreme_lengths) if count else 0
    vocabulary, window = components.model.gpt.vocab_size, run_config.context.window

    def attempt(size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(vocabulary, (size, window + 1), generator=generator).to(device)
        seeds = variant_seeds(run_config.seed, torch.arange(size, device=device), count)
        with unchanged_random_states(), _trial(components, device, ranks) as step:
            step.begin_step(0.0)
            step(StepBatch(tokens, seeds, length))[0].backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return attempt


@contextmanager
def _trial(components: Components, device: torch.device, ranks: int) -> Iterator[TrainStep]:
    """Hold a copy of the step on the device, and the memory that training needs in addition."""
    dtype = torch.bfloat16 if components.run_config.deepspeed.precision == "bf16" else torch.float32
    step = copy.deepcopy(components.step).to(device, dtype)
    reserved = torch.empty(_reserve(components, device, ranks), dtype=torch.uint8, device=device)
    try:
        yield step
    finally:
        del step, reserved


def _reserve(components: Components, device: torch.device, ranks: int) -> int:
    """Return the bytes that training needs next to weights, gradients and activations."""
    run_config = components.run_config
    needed = memory_estimate(components.step, components.optimizer, run_config, ranks)
    size = 0.0 if run_config.deepspeed.offload_optimizer else needed["optimizer"]
    if run_config.deepspeed.zero_stage:
        width = 2 if run_config.deepspeed.precision == "bf16" else 4
        size += 2 * width * min(_BUCKET, parameter_count(components.step))
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = resource.getrlimit(resource.RLIMIT_AS)[0]
    return int(size + _MARGIN * total)
