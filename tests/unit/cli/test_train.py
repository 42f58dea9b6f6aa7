"""End of a rank after its training."""

import argparse

import pytest

from mcframe.cli import train as ranks
from mcframe.errors import EXIT_INTERRUPTED


@pytest.mark.parametrize(
    ("code", "done"), [(0, ["destroy_process_group"]), (EXIT_INTERRUPTED, ["barrier", "destroy_process_group"])]
)
def test_ranks_wait_for_each_other_only_after_an_error(monkeypatch, code, done):
    """After a success, rank 0 may run the hooks of plug-ins for a long time, so the others do not wait."""
    calls = []
    monkeypatch.setattr(ranks, "train_in_group", lambda options: code)
    monkeypatch.setattr(ranks, "barrier", lambda: calls.append("barrier"))
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "destroy_process_group", lambda: calls.append("destroy_process_group"))
    assert ranks.train(argparse.Namespace()) == code
    assert calls == done
