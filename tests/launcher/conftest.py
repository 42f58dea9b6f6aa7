"""Runs that tests of several files read; commands in this process do not count FLOPs."""

import pytest

from mcframe.training.flops import StepFlops
from tests.support.forked_ranks import uncounted
from tests.support.shared_runs import PLAIN, SHARDED, UNTRAINED


@pytest.fixture(autouse=True)
def no_flop_counts(monkeypatch):
    monkeypatch.setattr(StepFlops, "_run", uncounted)


@pytest.fixture(scope="session")
def plain_run(launches):
    """One rank at ZeRO 0."""
    return launches.shared(*PLAIN).succeeded()


@pytest.fixture(scope="session")
def sharded_run(launches):
    """Two ranks at ZeRO 3."""
    return launches.shared(*SHARDED, ranks=2).succeeded()


@pytest.fixture(scope="session")
def untrained_run(launches):
    """A run with figures that logs to TensorBoard and wandb."""
    return launches.shared(*UNTRAINED).succeeded()
