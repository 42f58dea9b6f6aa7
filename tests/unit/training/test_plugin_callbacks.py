"""Callbacks of plug-ins: metrics, requests to stop, state, and errors."""

import json
import logging
import math

import pytest
import torch

from mcframe.context.step_metrics import StepMetrics
from mcframe.errors import UserError
from mcframe.hookspecs import Callback
from mcframe.metrics.accumulator import Accumulator
from mcframe.sweep.plan import PlannedRun
from mcframe.training.callbacks.plugins import PluginCallbacks
from mcframe.training.stop_signal import StopSignal
from mcframe_plugins.callback.early_stopping import EarlyStopping
from tests.support.checkpoint_files import write_checkpoint


@pytest.fixture
def stop_signal():
    signal = StopSignal()
    yield signal
    signal.restore()


class Watches(Callback):
    """Reports losses and raises at one step."""

    def __init__(self, name, fails_at=-1):
        self.name, self.fails_at, self.seen = name, fails_at, []

    def after_backward(self, step):
        return {"loss": step.losses["train/loss"]}

    def after_step(self, step):
        if step.step == self.fails_at:
            raise OSError("the disk is full")
        self.seen.append((step.step, step.tokens, sorted(step.losses)))

    def on_metrics(self, tokens, metrics):
        metrics.clear()


def mean(total, count):
    return torch.tensor([total, count], dtype=torch.float64)


def run_step(callbacks, step, losses, accumulator, stop_signal):
    callbacks.begin_step()
    for loss in losses:
        others = {"loss/a": mean(loss, 1.0), "loss/a/part": mean(1.0, 1.0), "mc/x": mean(1.0, 1.0)}
        callbacks.add(StepMetrics(means={"train/loss": mean(loss, 1.0), **others}))
    callbacks.after_backward(step, 1024 * (step + 1))
    callbacks.after_step(step, 1024 * (step + 1))
    callbacks.settle(accumulator, stop_signal)


def test_callbacks_see_the_losses_of_a_step_and_their_metrics_are_means_over_steps(stop_signal):
    watch, accumulator = Watches("watch"), Accumulator()
    callbacks = PluginCallbacks([watch])
    run_step(callbacks, 0, [1.0, 2.0], accumulator, stop_signal)
    run_step(callbacks, 1, [3.0, 6.0], accumulator, stop_signal)
    assert watch.seen == [(0, 1024, ["loss/a", "train/loss"]), (1, 2048, ["loss/a", "train/loss"])]
    assert accumulator.read().metrics == {"callback/watch/loss": 3.0}


def test_a_callback_that_raises_is_dropped_with_a_warning_and_the_others_go_on(stop_signal, caplog):
    broken, watch, accumulator = Watches("broken", fails_at=1), Watches("watch"), Accumulator()
    callbacks = PluginCallbacks([broken, watch])
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            run_step(callbacks, step, [float(step)], accumulator, stop_signal)
    (warning,) = caplog.messages
    line = Watches.after_step.__code__.co_firstlineno + 2
    assert warning.startswith(f"OSError: the disk is full ({__file__}:{line})")
    assert [step for step, *_ in watch.seen] == [0, 1, 2]
    # Of the failed step nothing is logged, so that ranks without the error hold the same metrics.
    assert accumulator.read().metrics == {"callback/broken/loss": 0.0, "callback/watch/loss": 1.0}
    assert set(callbacks.state()) == {"watch"}


@pytest.mark.parametrize("value", [torch.ones(3), 1.0])
def test_a_metric_that_is_no_scalar_ends_its_callback_alone(stop_signal, caplog, value):
    broken, accumulator = Watches("broken"), Accumulator()
    broken.after_backward = lambda step: {"x": value}
    callbacks = PluginCallbacks([broken, Watches("watch")])
    run_step(callbacks, 0, [1.0], accumulator, stop_signal)
    assert "a tensor with one element" in caplog.messages[0]
    assert "without the callback broken" in caplog.messages[0]
    assert accumulator.read().metrics == {"callback/watch/loss": 1.0}


def test_a_state_that_no_checkpoint_can_hold_ends_its_callback_alone(caplog):
    broken = Watches("broken")
    broken.state_dict = lambda: {"f": lambda: 1}
    assert set(PluginCallbacks([broken, Watches("watch")]).state()) == {"watch"}
    assert "without the callback broken" in caplog.messages[0]


def test_an_explained_error_is_what_is_logged(stop_signal, caplog):
    def explain(error):
        return UserError(f"callback.broken of plug-in 'it' of package 1.0 failed: {error}")

    callbacks = PluginCallbacks([Watches("broken", fails_at=0)], explain=explain)
    run_step(callbacks, 0, [1.0], Accumulator(), stop_signal)
    assert caplog.messages[0].startswith("callback.broken of plug-in 'it' of package 1.0 failed: the disk is full")


def test_metrics_are_passed_as_a_copy():
    metrics = {"val/loss": 1.0}
    PluginCallbacks([Watches("watch")]).on_metrics(0, metrics)
    assert metrics == {"val/loss": 1.0}


def test_two_callbacks_need_two_names():
    with pytest.raises(UserError, match=r"run\.callbacks: expected callbacks with different names"):
        PluginCallbacks([Watches("watch"), Watches("watch")])


def readings(callback, *values):
    for number, value in enumerate(values):
        callback.on_metrics(number, {"val/loss": value, "train/loss": 0.0})
        callback.on_metrics(number, {"train/loss": 1.0})
        if callback.stop_reason:
            return number
    return None


def test_early_stopping_counts_readings_without_an_improvement(stop_signal):
    assert readings(EarlyStopping(patience=2), 3.0, 2.0, 2.5, 1.9, 1.9, math.nan) == 5
    assert readings(EarlyStopping(patience=2), 3.0, 2.9, 2.8, 2.7) is None
    early = EarlyStopping(patience=2, min_delta=0.5)
    callbacks = PluginCallbacks([early])
    assert not callbacks.stop_requested(stop_signal)
    assert readings(early, 3.0, 2.9, 2.8, 2.7) == 2
    assert callbacks.stop_requested(stop_signal)
    assert callbacks.stop_reasons == ["early_stopping: val/loss has not fallen below 3 in 2 readings"]


def test_early_stopping_resumes_where_it_was():
    first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
    readings(first, 3.0, 3.5, 3.5)
    PluginCallbacks([second]).restore(PluginCallbacks([first]).state())
    assert readings(second, 2.9) is None
    third = EarlyStopping(patience=3)
    third.load_state_dict(first.state_dict())
    assert readings(third, 3.1) == 0


@pytest.mark.parametrize(
    ("trained", "status", "progress"),
    [
        (0, None, "new"),
        (2048, None, "unfinished"),
        (2048, "interrupted", "unfinished"),
        (2048, "stopped", "finished"),
        (3072, "stopped", "unfinished"),  # resumed since, and killed
        (4096, None, "finished"),
    ],
)
def test_a_sweep_counts_a_run_that_a_callback_stopped_as_finished(tmp_path, trained, status, progress):
    if trained:
        write_checkpoint(tmp_path, trained)
    if status:
        (tmp_path / "summary.json").write_text(json.dumps({"status": status, "tokens": 2048}))
    assert PlannedRun(None, 0, tmp_path, (), "", 4096, 1024).progress == progress
