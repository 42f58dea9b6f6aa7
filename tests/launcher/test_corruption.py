"""Random corruptions of a checkpoint of a real run: each is found, and the checkpoint before is used."""

import shutil

import pytest

from mcframe.training.checkpoint_folder import checkpoints
from tests.chaos.corrupt import corrupt, undetected
from tests.support.launches import EVERY_STEP, FOUR_STEPS, STEP

pytestmark = pytest.mark.launcher


def name(step):
    return f"tokens-{step * STEP:015d}"


@pytest.fixture(scope="module")
def trained(launches):
    return launches.shared(*FOUR_STEPS).succeeded().run_dir


def test_random_corruptions_are_found(trained, tmp_path, caplog):
    for seed in range(40):
        caplog.clear()
        done, missed = undetected(trained, tmp_path / "run", seed)
        assert not missed, done
        assert (name(4) in caplog.text) == bool(seed % 5), done


@pytest.mark.matrix
def test_300_random_corruptions_are_found(trained, tmp_path):
    for seed in range(1000, 1300):
        done, missed = undetected(trained, tmp_path / "run", seed)
        assert not missed, done


def test_a_run_resumes_before_a_damaged_checkpoint_and_keeps_it(launches, trained, tmp_path):
    reference = launches.shared(*FOUR_STEPS)
    run_dir = shutil.copytree(trained, tmp_path / "run")
    done = corrupt(1, run_dir / "checkpoints" / name(4), run_dir / "checkpoints" / name(2))
    (run_dir / "checkpoints" / f".writing-{name(9)}").mkdir()
    (run_dir / "checkpoints" / f".deleting-{name(1)}").mkdir()
    explicit = launches.run(*FOUR_STEPS, run_dir=run_dir, options=("--resume", str(run_dir / "checkpoints" / name(4))))
    assert explicit.code == 2
    assert f"{name(4)} is damaged" in explicit.text, done
    result = launches.run(*FOUR_STEPS, run_dir=run_dir).succeeded()
    assert result.text.count("warning: ") == 1
    assert f"{name(4)} is damaged" in result.text
    assert f"{name(3)} is used" in result.text
    assert result.metrics == reference.metrics
    assert [each.path.name for each in checkpoints(run_dir)] == [name(step) for step in (1, 2, 3, 4)]
    assert (run_dir / "checkpoints" / "superseded" / name(4)).exists()
    assert not list((run_dir / "checkpoints").glob(".*"))


POISON = """
from mcframe.hookspecs import Callback, hookimpl

mcframe_api = "0.1"


class Poison(Callback):
    name = "poison"

    def on_start(self, run):
        self.parameter = next(run.model.parameters())

    def after_step(self, step):
        if step.step == 1:
            self.parameter.data.fill_(float("nan"))


@hookimpl
def register_plugins(register):
    register("poison", Poison)
"""


def test_state_that_is_not_finite_is_not_saved(launches, tmp_path):
    """The loss and the gradient of the last step are those before its update."""
    plugin = tmp_path / "poison.py"
    plugin.write_text(POISON)
    settings = ("run.callbacks = [@callback.poison]", "checkpoint.keep = 1")
    result = launches.run(*EVERY_STEP, *settings, f"run.total_tokens = {2 * STEP}", options=("--plugin", str(plugin)))
    assert result.code == 2, result.output[-3000:]
    assert "is not finite on rank 0 after 1,024 tokens; no checkpoint is written" in result.text
    assert [each.path.name for each in checkpoints(result.run_dir)] == [name(1)]
    assert not list((result.run_dir / "checkpoints").glob(".*"))
