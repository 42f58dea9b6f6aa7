"""The short form of `tox -e chaos`."""

import random

import pytest

from tests.chaos.kill import Kill, attempt, resumed
from tests.chaos.runs import Configuration, Runs

pytestmark = pytest.mark.launcher


def test_a_run_that_is_killed_three_times_ends_as_the_undisturbed_run(launches, tmp_path):
    """The launcher alone in start-up, all ranks in a checkpoint, and one rank in a validation."""
    runs, configuration, draw = Runs(launches), Configuration(stage=1), random.Random(1)
    kills = (
        Kill("runner", "KILL", "start-up", 0, 1.0, launched=True),
        Kill("group", "KILL", "checkpoint", 2, 0.01, launched=False),
        Kill("rank", "KILL", "validation", 3, 0.02, launched=False),
    )
    for kill in kills:
        attempt(runs, configuration, tmp_path / "run", kill, draw)
        assert kill.sent
        assert kill.problems == []
    assert list(runs.differences(configuration, resumed(runs, configuration, tmp_path / "run"))) == []
