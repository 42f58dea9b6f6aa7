"""Timers of the phases of a step: their sums, and no wait for the device within an interval."""

from __future__ import annotations

import time
from collections import deque

import pytest
import torch

from mcframe.metrics.accumulator import Accumulator
from mcframe.metrics.catalogue import describe
from mcframe.metrics.timers import OTHER, PARTS, PHASES, STEP, HostMark, Timers


class Stream:
    """Device that lags: it reaches a mark only when `catch_up` is called."""

    def __init__(self) -> None:
        self.now, self.waits, self.queue = 0.0, 0, deque()

    def mark(self) -> Event:
        event = Event(self, self.now)
        self.queue.append(event)
        return event

    def catch_up(self, event: Event) -> None:
        while not event.reached:
            self.queue.popleft().reached = True


class Event:
    def __init__(self, stream: Stream, at: float) -> None:
        self.stream, self.at, self.reached = stream, at, False

    def query(self) -> bool:
        return self.reached

    def synchronize(self) -> None:
        self.stream.waits += 1
        self.stream.catch_up(self)

    def elapsed_time(self, end: Event) -> float:
        assert self.reached, "read before it was reached"
        assert end.reached, "read before it was reached"
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
    return accumulator.read().metrics


MS = {name: float(2**n) for n, name in enumerate(PHASES)}
"""Powers of two: every sum has one set of terms."""


def test_each_timer_is_the_sum_that_its_definition_names():
    got = read(timed_steps(Stream(), MS, steps=3, between=0.25))
    step = sum(MS.values()) + 0.25
    controller = MS["build"] + MS["sampling"] + MS["variant"] + MS["pack"] + MS["lens"] + MS["lens bookkeeping"]
    assert got == {
        "mc/build_ms": MS["build"],
        "mc/variant_ms": MS["sampling"] + MS["variant"],
        "mc/variant_pack_ms": MS["pack"],
        "mc/lens_ms": MS["lens"] + MS["lens bookkeeping"],
        "mc/controller_ms": controller,
        "mc/other_ms": step - controller,
        "mc/overhead_ms": MS["sampling"] + MS["pack"] + MS["metrics"] + MS["lens bookkeeping"],
        "train/step_ms": step,
        **{f"train/{n}_ms": MS[n] for n in ("data", "base", "forward", "losses", "metrics", "backward", "optimizer")},
    }


def test_a_plain_baseline_has_no_timers_of_working_contexts():
    plain = {name: MS[name] for name in ("data", "base", "metrics", "backward", "optimizer")}
    assert read(timed_steps(Stream(), plain)) == {
        STEP: sum(plain.values()),
        **{f"train/{name}_ms": ms for name, ms in plain.items()},
    }


def test_a_step_without_a_lensnet_has_zero_lens_time():
    got = read(timed_steps(Stream(), {"sampling": 1.0, "variant": 2.0, "pack": 4.0}))
    assert {name: got[name] for name in PARTS} == {
        "mc/build_ms": 0.0,
        "mc/variant_ms": 3.0,
        "mc/variant_pack_ms": 4.0,
        "mc/lens_ms": 0.0,
    }
    assert got[OTHER] == 0.0


def test_nothing_is_timed_outside_a_step():
    stream = Stream()
    timers = timed_steps(stream, MS)
    with timers.phase("build"):
        stream.now += 1000.0
    assert read(timers)["mc/build_ms"] == MS["build"]
    assert read(timers) == {}


def test_steps_wait_for_nothing_and_reading_waits_once():
    stream = Stream()
    timers = timed_steps(stream, MS, steps=5)
    assert stream.waits == 0
    timers.collect()
    assert stream.waits == 1


def test_reached_marks_are_removed_within_an_interval():
    stream = Stream()
    timers = Timers(torch.device("cpu"), stream.mark)
    for _ in range(50):
        with timers.step():
            for _ in range(10):
                with timers.phase("backward"):
                    stream.now += 1.0
        stream.catch_up(stream.queue[-1])  # the device has caught up
    assert len(timers._pending) <= 11  # of the last step alone
    assert stream.waits == 0
    assert read(timers)["train/backward_ms"] == 10.0


def test_an_unknown_phase_is_an_error():
    timers = Timers(torch.device("cpu"))
    with timers.step(), pytest.raises(AssertionError, match="backwards"), timers.phase("backwards"):
        pass


def test_every_timer_is_in_the_catalogue_in_milliseconds():
    for name in {OTHER, STEP, *PARTS, *(timer for timers in PHASES.values() for timer in timers)}:
        assert describe(name).unit == "ms", name


def test_marks_of_a_cpu_include_waits():
    began = time.perf_counter()
    start = HostMark()
    time.sleep(0.02)
    milliseconds = start.elapsed_time(HostMark())
    assert 20 <= milliseconds <= 1000 * (time.perf_counter() - began)
