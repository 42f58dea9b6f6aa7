"""Plug-ins that are broken in real runs are rejected by their requirements; and the runs themselves."""

from pathlib import Path

import pytest

from mcframe.testing import trainings
from mcframe.testing.checking import check_requirement
from mcframe.testing.plugin_under_test import find, installed_plugins
from mcframe.testing.requirements import all_requirements, requirements_of
from mcframe.testing.trainings import Trained, Training, on_one_rank, on_two_ranks, trained
from mcframe.training.run_directory import OPERATIVE

pytestmark = pytest.mark.launcher

FILE = str(Path(__file__).resolve().parents[2] / "support" / "broken_in_runs.py")
SLOW = [id for id, each in all_requirements().items() if each.slow]


def plugin(name, settings=()):
    return find(name, settings, registry=installed_plugins((FILE,)))


def failures(name, ids=SLOW, settings=()):
    """Return the messages of the requirements that the plug-in breaks."""
    found, broken = plugin(name, settings), {}
    results = [check_requirement(found, each, broken) for each in requirements_of(found.kind) if each.id in ids]
    return {each.requirement: each.message for each in results if each.outcome == "failed"}


SMALL = ("gpt.depth = 1", "gpt.width = 32")


@pytest.fixture(scope="module")
def runs():
    """Runs of several plug-ins on one rank, from one start of a process."""
    names = ("sound", "idle", "forgetful")
    sound, idle, forgetful = (on_one_rank(plugin(f"gistnet.broken_{name}", SMALL)) for name in names)
    return trained(*sound, idle[0], *forgetful)


ON_ONE_RANK = [
    ("sound", None, ""),
    ("idle", "R1", "not changed in four steps: unused"),
    ("forgetful", "R2", "after 3,072 tokens these differ: "),
]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("name", "requirement", "detail"), ON_ONE_RANK)
def test_on_one_rank(name, requirement, detail):
    found = failures(f"gistnet.broken_{name}", ("R1", "R2"), SMALL)
    assert list(found) == ([requirement] if requirement else [])
    assert detail in found.get(requirement, "")


REJECTED = [
    ("gistnet.broken_notanumber", "R1", "the loss is nan after 3,072 tokens"),
    ("lensnet.broken_skipping", "R3", "no gradient reached lensnet.sometimes.bias and 1 more"),
    ("gistnet.broken_crowded", "R3", "at ZeRO 0 on two ranks train/loss differs by"),
    ("variants.broken_arbitrary", "R4", "differ in: variants"),
    ("gistnet.broken_compiled", "R5", "compiled, it differs by up to"),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "requirement", "detail"), REJECTED)
def test_fault_is_rejected_by_its_requirement(name, requirement, detail):
    found = failures(name)
    assert detail in found[requirement]
    assert next(iter(found)) in (requirement, "R3"), found  # random proposals differ between ZeRO stages, too


def test_every_slow_requirement_rejects_a_fault():
    assert {*SLOW} == {requirement for _, requirement, _ in ON_ONE_RANK + REJECTED} - {None}


@pytest.mark.matrix
def test_training_that_dies_or_hangs_does_not_affect_the_others(monkeypatch):
    monkeypatch.setattr(trainings, "TIMEOUT_S", 90.0)
    names = ("dying", "sound", "stuck", "idle")
    late = "run.stall_seconds = 1000"  # so that the limit of the training ends it, not the watch of the other rank
    settings = [(f"run.gistnet = @gistnet.broken_{name}", late) for name in names]
    requested = [Training(each, (FILE,), steps=1, ranks=2) for each in settings]
    dying, sound, stuck, idle = trained(*requested)
    assert (dying.code, sound.code, stuck.code, idle.code) == (3, 0, None, 0)
    assert "it is not done after 90 s" in stuck.failure


def test_run_that_chose_another_plugin_is_detected(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / OPERATIVE).write_text("run.gistnet = @gistnet.mean_of_two\nrun.losses = (@loss.a, @b)\n")
    run = Trained(tmp_path, 0, 1.0)
    assert run.chose("gistnet.mean_of_two")
    assert run.chose("loss.a")
    assert not run.chose("gistnet.mean")


def test_losses_are_added_unless_they_are_defaults_and_run_at_the_stages_that_they_support():
    for name, selection, stages in (
        ("loss.next_token", "run.losses = [@loss.next_token, @loss.variants", 4),
        ("loss.ema_kl", "run.extra_losses = [@loss.ema_kl]", 3),
    ):
        assert on_one_rank(plugin(name))[0].settings[0].startswith(selection)
        assert len(on_two_ranks(plugin(name))) == stages


def test_plugin_of_this_process_alone_is_not_trained(registry_of):
    from tests.support import broken_in_runs

    found = find("gistnet.broken_sound", registry=registry_of(broken_in_runs))
    result = check_requirement(found, all_requirements()["R1"], {})
    assert result.outcome == "skipped"
    assert "name its file with --plugin" in result.message
