"""How a rank ends once its training is over."""

import argparse

import pytest

from mcframe.cli import train as ranks
from mcframe.errors import EXIT_INTERRUPTED


@pytest.mark.parametrize(
    ("code", "done"), [(0, ["destroy_process_group"]), (EXIT_INTERRUPTED, ["barrier", "destroy_process_group"])]
)
def test_ranks_wait_for_each_other_only_where_the_launcher_would_end_them(monkeypatch, code, done):
    """After a success a rank may be at work for long: rank 0, where a plug-in looks at the finished run."""
    calls = []
    monkeypatch.setattr(ranks, "train_in_group", lambda options: code)
    monkeypatch.setattr(ranks, "barrier", lambda: calls.append("barrier"))
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "destroy_process_group", lambda: calls.append("destroy_process_group"))
    assert ranks.train(argparse.Namespace()) == code
    assert calls == done
