"""Timers of the phases of a step: what counts into what, and that a device is never waited for within an interval."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from mcframe.metrics.accumulator import Accumulator
from mcframe.metrics.catalogue import describe
from mcframe.metrics.timers import OTHER, PARTS, PHASES, STEP, Timers


class Stream:
    """A device that is behind: a mark comes when the device gets there, at a time of its own."""

    def __init__(self) -> None:
        self.now, self.waits, self.behind = 0.0, 0, deque()

    def mark(self) -> Event:
        event = Event(self, self.now)
        self.behind.append(event)
        return event

    def delta_horizon(self, event: Event) -> None:
        while not event.come:
            self.behind.popleft().come = True


class Event:
    def __init__(self, stream: Stream, at: float) -> None:
        self.stream, self.at, self.come = stream, at, False

    def query(self) -> bool:
        return self.come

    def synchronize(self) -> None:
        self.stream.waits += 1
        self.stream.delta_horizon(self)

    def elapsed_time(self, end: Event) -> float:
        assert self.come, "read before it came"
        assert end.come, "read before it came"
        return end.at - self.at


def timed_steps(stream: Stream, phases: dict[str, float], steps: int = 1, between: float = 0.0) -> Timers:
    """Steps of these phases one after the other, and `between` ms in every step that belong to none."""
    timers = Timers(torch.device("cpu"), stream.mark)
    for _ in range(steps):
        with timers.step():
            for name, ms in phases.items():
                with timers.phase(name):
                    stream.now += ms
            stream.now += between
    return timers


def read(timers: Timers) -> dict[str, float]:
    accumulator = Accumulator()
    accumulator.add(timers.collect())
    return accumulator.read()


MS = {name: float(2**n) for n, name in enumerate(PHASES)}
"""Powers of two: a sum tells what it is made of."""


def test_each_timer_is_the_sum_that_its_definition_names():
    got = read(timed_steps(Stream(), MS, steps=3, between=0.25))
    whole = sum(MS.values()) + 0.25
    controller = MS["build"] + MS["sampling"] + MS["variant"] + MS["pack"] + MS["lens"] + MS["lens bookkeeping"]
    assert got == {
        "mc/build_ms": MS["build"],
        "mc/variant_ms": MS["sampling"] + MS["variant"],
        "mc/variant_pack_ms": MS["pack"],
        "mc/lens_ms": MS["lens"] + MS["lens bookkeeping"],
        "mc/controller_ms": controller,
        "mc/other_ms": whole - controller,
        "mc/overhead_ms": MS["sampling"] + MS["pack"] + MS["metrics"] + MS["lens bookkeeping"],
        "train/step_ms": whole,
        **{f"train/{n}_ms": MS[n] for n in ("data", "base", "losses", "metrics", "backward", "optimizer")},
    }


def test_a_phase_may_come_more_than_once_in_a_step():
    stream = Stream()
    timers = Timers(torch.device("cpu"), stream.mark)
    with timers.step():
        for ms in (1.0, 2.0, 4.0):
            with timers.phase("backward"):
                stream.now += ms
    assert read(timers) == {"train/backward_ms": 7.0, STEP: 7.0}


def test_a_plain_twin_has_no_timers_of_working_contexts():
    plain = {name: MS[name] for name in ("data", "base", "metrics", "backward", "optimizer")}
    assert read(timed_steps(Stream(), plain)) == {
        STEP: sum(plain.values()),
        **{f"train/{name}_ms": ms for name, ms in plain.items()},
    }


def test_a_step_without_a_lensnet_spends_nothing_on_it():
    got = read(timed_steps(Stream(), {"sampling": 1.0, "variant": 2.0, "pack": 4.0}))
    assert {name: got[name] for name in PARTS} == {
        "mc/build_ms": 0.0,
        "mc/variant_ms": 3.0,
        "mc/variant_pack_ms": 4.0,
        "mc/lens_ms": 0.0,
    }
    assert got[OTHER] == 0.0


def test_what_is_run_outside_a_step_counts_for_nothing():
    stream = Stream()
    timers = timed_steps(stream, MS)
    with timers.phase("build"):  # a validation, say
        stream.now += 1000.0
    assert read(timers)["mc/build_ms"] == MS["build"]
    assert read(timers) == {}


def test_steps_wait_for_nothing_and_reading_waits_once():
    stream = Stream()
    timers = timed_steps(stream, MS, steps=5)
    assert stream.waits == 0
    timers.collect()
    assert stream.waits == 1


def test_marks_that_have_come_are_let_go_within_an_interval():
    stream = Stream()
    timers = Timers(torch.device("cpu"), stream.mark)
    for _ in range(50):
        with timers.step():
            for _ in range(10):
                with timers.phase("backward"):
                    stream.now += 1.0
        stream.delta_horizon(stream.behind[-1])  # the device has caught up
    assert len(timers._waiting) <= 11  # of the last step alone
    assert stream.waits == 0
    assert read(timers)["train/backward_ms"] == 10.0


def test_a_name_that_is_no_phase_is_an_error():
    timers = Timers(torch.device("cpu"))
    with timers.step(), pytest.raises(AssertionError, match="backwards"), timers.phase("backwards"):
        pass


def test_every_timer_is_in_the_catalogue_in_milliseconds():
    for name in {OTHER, STEP, *PARTS, *(timer for timers in PHASES.values() for timer in timers)}:
        assert describe(name).unit == "ms", name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_events_of_a_gpu_measure_its_work():
    device = torch.device("cuda")
    timers, matrix = Timers(device), torch.randn(4096, 4096, device=device)
    accumulator = Accumulator(device)
    for _ in range(2):
        with timers.step(), timers.phase("base"):
            for _ in range(50):
                matrix = (matrix @ matrix).clamp(-1, 1)
    accumulator.add(timers.collect())
    got = accumulator.read()
    assert got["train/base_ms"] > 1.0
    assert got["train/base_ms"] == pytest.approx(got[STEP], rel=0.05)
