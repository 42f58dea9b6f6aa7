"""Plug-ins that are broken in real runs, each rejected by the clause meant for it; and what carries those runs."""

from pathlib import Path

import pytest

from mcframe.testing import trainings
from mcframe.testing.checking import check_clause
from mcframe.testing.plugin_under_test import find, installed_plugins
from mcframe.testing.requirements import CLAUSES, clauses_of, every_clause
from mcframe.testing.runs import alone
from mcframe.testing.trainings import Trained, Training, trained
from mcframe.training.run_directory import OPERATIVE

pytestmark = pytest.mark.launcher

ROOT_SUPPORT = Path(__file__).resolve().parents[2] / "support"
FILE = str(ROOT_SUPPORT / "broken_in_runs.py")
SLOW = [id for id, each in every_clause().items() if each.slow]


def candidate(name):
    return find(name, registry=installed_plugins((FILE,)))


def outcomes(name, ids=SLOW):
    """Clause -> how it ended and what was said, for the clauses that are asked of its kind."""
    plugin, broken = candidate(name), {}
    asked = [each for each in clauses_of(plugin.kind) if each.id in ids]
    results = [check_clause(plugin, each, broken) for each in asked]
    return {each.clause: (each.outcome, each.message) for each in results}


@pytest.fixture(scope="module")
def runs():
    """Runs of several plug-ins on one rank, from one start of the launcher."""
    names = ("broken_sound", "broken_idle", "broken_forgetful")
    return trained(*(run for name in names for run in alone(candidate(f"gistnet.{name}"))))


ON_ONE_RANK = [
    ("sound", None, ""),
    ("idle", "R2", "not moved in four steps: unused"),
    ("forgetful", "R3", "after 3,072 tokens these differ: "),
]


@pytest.mark.parametrize(("name", "clause", "said"), ON_ONE_RANK)
def test_on_one_rank(runs, name, clause, said):
    found = outcomes(f"gistnet.broken_{name}", ("R1", "R2", "R3"))
    assert {id for id, (outcome, _) in found.items() if outcome == "failed"} == ({clause} if clause else set()), found
    assert not clause or said in found[clause][1]


REJECTED = [
    ("gistnet.broken_notanumber", "R1", "the loss is nan after 3,072 tokens"),
    ("lensnet.broken_skipping", "R4", "no gradient reached lensnet.sometimes.bias and 1 more"),
    ("gistnet.broken_crowded", "R5", "at ZeRO 0 on two ranks train/loss differs by"),
    ("variants.broken_arbitrary", "R6", "differ in: variants"),
    ("gistnet.broken_compiled", "R7", "compiled, it differs by up to"),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "clause", "said"), REJECTED)
def test_each_is_rejected_by_its_clause(name, clause, said):
    found = outcomes(name)
    assert found[clause][0] == "failed", found
    assert said in found[clause][1]
    earlier = SLOW[: SLOW.index(clause)]
    assert [id for id in earlier if found.get(id, ("", ""))[0] == "failed"] in ([], ["R5"], ["R3", "R5"]), found


def test_every_slow_clause_rejects_something():
    assert {id for id, each in CLAUSES.items() if each.slow} == {clause for _, clause, _ in ON_ONE_RANK + REJECTED} - {
        None
    }


@pytest.mark.matrix
def test_a_training_that_ends_its_process_or_waits_forever_costs_the_others_nothing(monkeypatch):
    monkeypatch.setattr(trainings, "PATIENCE_S", 90.0)
    names = ("dying", "sound", "stuck", "idle")
    asked = [Training((f"run.gistnet = @gistnet.broken_{name}",), (FILE,), steps=1, ranks=2) for name in names]
    dying, sound, stuck, idle = trained(*asked)
    assert (dying.code, sound.code, stuck.code, idle.code) == (3, 0, None, 0)
    assert "it is not done after 90 s" in stuck.why


def test_a_run_that_chose_another_one_does_not_do(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / OPERATIVE).write_text("run.gistnet = @gistnet.mean_of_two\nrun.added = (@loss.a, @b)\n")
    run = Trained(tmp_path, 0, 1.0)
    assert run.chose("gistnet.mean_of_two")
    assert run.chose("loss.a")
    assert not run.chose("gistnet.mean")


def test_what_is_known_to_this_process_alone_is_not_trained(registry_of, monkeypatch):
    from tests.support import broken_in_runs

    plugin = find("gistnet.broken_sound", registry=registry_of(broken_in_runs))
    result = check_clause(plugin, CLAUSES["R1"], {})
    assert result.outcome == "skipped"
    assert "name its file with --plugin" in result.message
