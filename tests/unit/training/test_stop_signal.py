"""Signals during training: the first requests a stop, a later Ctrl-C ends at once."""

import signal

import pytest

from mcframe import errors
from mcframe.ending_signals import handle_ending_signals
from mcframe.errors import Interrupt, raise_interrupt
from mcframe.training import stop_signal
from mcframe.training.stop_signal import StopSignal


@pytest.fixture
def clock(monkeypatch):
    """Handlers of a rank before training, and a clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(errors, "interrupts", [])
    monkeypatch.setattr(stop_signal.time, "monotonic", lambda: now[0])
    before = handle_ending_signals(raise_interrupt)
    yield now
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_any_signal_requests_a_stop_and_a_later_ctrl_c_interrupts(clock, first):
    stop = StopSignal()
    assert stop.agreed() == 0
    signal.raise_signal(getattr(signal, first))
    signal.raise_signal(signal.SIGINT)  # the same Ctrl-C, from the terminal
    clock[0] += 10
    signal.raise_signal(signal.SIGTERM)  # and from the launcher
    assert stop.agreed() == getattr(signal, first)
    with pytest.raises(Interrupt) as raised:
        signal.raise_signal(signal.SIGINT)
    assert raised.value.number == signal.SIGINT


def test_the_last_lines_of_a_stopped_run_are_not_interrupted(clock):
    quiet = StopSignal()
    quiet.restore()
    assert signal.getsignal(signal.SIGTERM) is raise_interrupt
    stop = StopSignal()
    signal.raise_signal(signal.SIGHUP)
    stop.restore()
    signal.raise_signal(signal.SIGTERM)


def test_nohup_is_respected(clock):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignal()
    signal.raise_signal(signal.SIGHUP)
    assert stop.agreed() == 0
