"""Steps of a configuration on random tokens, timed against its plain baseline and the networks of both alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from statistics import median
from typing import Any, cast

import torch
import torch.distributed as dist

from mcframe.config.schema import RunConfig
from mcframe.context.counter_rng import variant_seeds
from mcframe.metrics.mfu import device_peak
from mcframe.metrics.timers import STEP, HostMark, Mark, Timers, device_mark
from mcframe.training.auto_micro_batch import with_micro_batch
from mcframe.training.build import Components, build_optimizer, build_schedule, build_step
from mcframe.training.communication import PERSISTENT, Collectives, Exchange, exchange
from mcframe.training.device_settings import set_float32_products
from mcframe.training.engine import Engine
from mcframe.training.floor import Floor
from mcframe.training.flops import StepFlops
from mcframe.training.run_directory import processor
from mcframe.training.train_step import StepBatch

_WARM_UP = 2
_OPTIMIZER = "train/optimizer_ms"
STEP_TIMERS = (
    "train/base_ms", "mc/build_ms", "mc/variant_ms", "mc/variant_pack_ms", "mc/lens_ms", "train/losses_ms",
    "train/backward_ms", _OPTIMIZER,
)  # fmt: skip
"""The timers of a step without data, metrics and sums."""


class ProcessMark(HostMark):
    """This moment on the clock of the process's own processor time, which other processes disturb less."""

    def __init__(self) -> None:
        self.seconds = time.process_time()


def clock(device: torch.device, ranks: int) -> tuple[str, Callable[[], Mark]]:
    """Return the name of the clock of a device, and what makes its marks. Ranks that wait for others use the wall's."""
    if device.type == "cuda":
        return "device", device_mark
    return ("processor", ProcessMark) if ranks == 1 else ("wall", HostMark)


def machine(device: torch.device) -> dict[str, Any]:
    """Return the machine that figures belong to: they are compared with those of the same one alone."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
    }


class BenchedStep:
    """One optimizer step of a configuration, repeated on the same random tokens.

    It has everything of a step of a run but reading text, accumulating metrics and looking for anomalies.

    Args:
        run_config: The configuration.
        vocab_size: Entries of the vocabulary.
        device: The device of this rank.
    """

    def __init__(self, run_config: RunConfig, vocab_size: int, device: torch.device) -> None:
        ranks = dist.get_world_size()
        step = build_step(run_config, vocab_size)
        unused = cast(Any, None)  # nothing of a step reads text
        components = Components(
            run_config=run_config, tree=run_config.context.tree, text=unused, tokenizer=unused, task=None, step=step,
            flops=StepFlops(step), allocator=unused, evaluations=(), callbacks=(),
            optimizer=build_optimizer(run_config), schedule=build_schedule(run_config),
        )  # fmt: skip
        count = step.model.strategy.count
        set_float32_products(device, run_config.deepspeed.tf32)
        components = with_micro_batch(components, device, ranks)
        self._alone = deepcopy(step)  # an engine would reduce its gradients, and partition its weights
        self.length = run_config.variant_length(0) if count else 0
        self.tokens = run_config.batch_tokens
        self.device, self.ranks = device, ranks
        self.clock, self._mark = clock(device, ranks)
        self.engine = Engine(components, ranks)
        micro = self.engine.micro_batch
        self.flops = components.flops.at(self.length, micro_batch=micro).total * self.tokens
        self.timers = Timers(device, self._mark)
        self.engine.time_with(self.timers.phase)
        generator = torch.Generator().manual_seed(dist.get_rank())
        shape = (micro, run_config.context.window + 1)
        tokens = torch.randint(vocab_size, shape, generator=generator).to(device)
        seeds = variant_seeds(run_config.seed, torch.arange(micro, device=device), count)
        self._batch = StepBatch(tokens, seeds, self.length)
        self._progress = run_config.progress(0)

    def run(self) -> None:
        """Run one step."""
        self.engine.step.begin_step(self._progress)
        with self.timers.step():
            for _ in range(self.engine.accumulation):
                loss, _ = self.engine(self._batch)
                self.engine.backward_and_step(loss, lambda: None)
        self.engine.step.after_step()

    def timed(self) -> dict[str, float]:
        """Run one step, and return its timers in ms."""
        self.run()
        means = self.timers.collect().means
        return {name: float(value[0] / value[1]) for name, value in means.items()}

    def communicated(self) -> dict[str, int]:
        """Run one step, and return the bytes of the messages of each collective."""
        with torch.compiler.set_stance("force_eager"), Collectives() as collectives:
            self.run()
        self.timers.collect()
        return dict(collectives.bytes)

    def exchanged(self) -> Exchange:
        """Return the messages of a step by the formula."""
        counts = [getattr(each, "ds_numel", each.numel()) for each in self._trained]
        width = 2 if self.engine.config["bf16"]["enabled"] else 4
        large = sum(count for count in counts if count > PERSISTENT)
        return exchange(
            trained=sum(counts),
            large=large,
            width=width,
            stage=self.engine.stage,
            accumulation=self.engine.accumulation,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(each.dtype for each in self.engine.model.parameters())

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        return [each for each in self.engine.step.parameters() if each.requires_grad]

    def floor(self) -> Floor:
        """Return the floor of a micro-batch, with weights of its own."""
        return Floor(self._alone.to(self.device, self.dtype), self._batch, self._mark)


@dataclass(frozen=True)
class Measurement:
    """Medians over the rounds. Ratios are medians of the ratios within a round.

    Attributes:
        figures: Name -> figure: times in ms, ratios without a unit; `step/floor` and `baseline/floor` without the
            optimizer, which the floor does not have.
        phases: Timer -> ms, of the step.
        baseline_phases: Timer -> ms, of the baseline.
        communicated: Collective -> bytes of the messages of a step; empty with one rank.
    """

    figures: dict[str, float]
    phases: dict[str, float]
    baseline_phases: dict[str, float]
    communicated: dict[str, int] = field(default_factory=dict)


def measure(step: BenchedStep, baseline: BenchedStep, rounds: int) -> Measurement:
    """Time steps of both and their floors in turn.

    Args:
        step: The step of a configuration.
        baseline: That of its plain baseline.
        rounds: Steps of each; their order alternates.
    """
    both = (step, baseline)
    for each in both:
        for _ in range(_WARM_UP):
            each.timed()
    memory = _memory_gib(step)  # before floors have memory
    floors = {each: each.floor() for each in both}
    for floor in floors.values():
        floor.milliseconds()
    times: dict[BenchedStep, list[dict[str, float]]] = {each: [] for each in both}
    alone: dict[BenchedStep, list[float]] = {each: [] for each in both}
    for number in range(rounds):
        for each in both if number % 2 else both[::-1]:
            times[each].append(each.timed())
            alone[each].append(floors[each].milliseconds() * each.engine.accumulation)
    measured = _medians(step, baseline, times, alone)
    measured = replace(measured, figures=measured.figures | memory)
    if step.ranks == 1:
        return measured
    formula = {"formula_bytes": step.exchanged().sent(step.ranks)}
    return replace(measured, figures=measured.figures | formula, communicated=step.communicated())


def _memory_gib(step: BenchedStep) -> dict[str, float]:
    """Return the peak memory of a step on a GPU."""
    if step.device.type != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats(step.device)
    step.timed()
    return {"memory_gib": torch.cuda.max_memory_allocated(step.device) / 2**30}


def _medians(
    step: BenchedStep,
    baseline: BenchedStep,
    times: dict[BenchedStep, list[dict[str, float]]],
    alone: dict[BenchedStep, list[float]],
) -> Measurement:
    own, plain = ([each[STEP] for each in times[which]] for which in (step, baseline))
    passes, plain_passes = ([each[STEP] - each[_OPTIMIZER] for each in times[which]] for which in (step, baseline))
    figures = {
        "step_ms": median(own),
        "baseline_ms": median(plain),
        "floor_ms": median(alone[step]),
        "baseline_floor_ms": median(alone[baseline]),
        "step/baseline": _ratio(own, plain),
        "step/floor": _ratio(passes, alone[step]),
        "baseline/floor": _ratio(plain_passes, alone[baseline]),
        "flops/baseline": step.flops / baseline.flops,
        "tokens_per_second": 1000 * step.tokens / median(own),
        "baseline_tokens_per_second": 1000 * baseline.tokens / median(plain),
    }
    if step.device.type == "cuda":
        peak = device_peak(torch.cuda.get_device_name(step.device), step.dtype)
        if peak is not None:
            figures["mfu"] = step.flops / (figures["step_ms"] / 1000) / (peak * step.ranks)
            figures["baseline_mfu"] = baseline.flops / (figures["baseline_ms"] / 1000) / (peak * step.ranks)
    phases, baseline_phases = (_phases(times[which]) for which in (step, baseline))
    return Measurement(figures, phases, baseline_phases)


def _phases(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return the medians of the timers that any step has."""
    shown = [name for name in (*STEP_TIMERS, STEP) if any(name in each for each in steps)]
    return {name: median(each.get(name, 0.0) for each in steps) for name in shown}


def _ratio(over: list[float], under: list[float]) -> float:
    return median(a / b if b else float("nan") for a, b in zip(over, under, strict=True))
