"""A third-party optimizer and schedule in real runs."""

import textwrap

import pytest

from mcframe.training import state_files
from mcframe.training.engine_state import weights

pytestmark = pytest.mark.launcher

STEP = 1024
PLUGIN = '''
    """SGD with momentum, and a rate that falls in stairs."""

    import torch

    from mcframe.hookspecs import Optimizer, Schedule, UpdateRule, hookimpl

    class SGD(Optimizer):
        def update_rule(self, role, lr):
            return UpdateRule("SGD", lr, states=1)

        def build(self, groups, offload):
            return torch.optim.SGD(groups, momentum=0.9)

    class Stairs(Schedule):
        def __init__(self, *, stairs: int = 2):
            self.stairs = stairs

        def factor(self, step, total_steps):
            return 0.5 ** (self.stairs * step // total_steps)

    @hookimpl
    def register_plugins(register):
        register("sgd", SGD)
        register("stairs", Stairs)
'''


def test_a_third_party_optimizer_and_schedule_train_and_resume(launches, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(PLUGIN))
    settings = (
        "run.optimizer = @optimizer.sgd", "optimizer.lr = 0.1", "run.schedule = @schedule.stairs",
        "schedule.stairs.stairs = 4", "deepspeed.zero_stage = 1", f"run.total_tokens = {4 * STEP}",
        f"logging.every = {STEP}", f"checkpoint.every = {2 * STEP}", "validation.windows = 4",
    )  # fmt: skip
    options = ("--plugin", str(file))
    complete = launches.run(*settings, options=options).succeeded()
    assert "SGD at learning rate 0.1" in complete.text
    assert complete.curve("train/lr") == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    losses = complete.curve("train/loss")
    assert losses[-1] < losses[0]
    middle = complete.run_dir / "checkpoints" / f"tokens-{2 * STEP:015d}"
    options = (*options, "--resume", str(middle))
    resumed = launches.run(*settings, options=options, run_dir=complete.run_dir).succeeded()
    assert resumed.curve("train/loss") == losses


@pytest.mark.parametrize(("stage", "optimizer"), [(0, "adamw"), (1, "muon"), (3, "adamw")])
def test_a_part_trains_from_its_start_on(stage, optimizer, launches):
    settings = (
        f"run.optimizer = @optimizer.{optimizer}", "optimizer.lr_start = {'base': 0.5}",
        f"deepspeed.zero_stage = {stage}", f"run.total_tokens = {4 * STEP}", f"checkpoint.every = {STEP}",
        "checkpoint.keep = 4", "validation.windows = 4",
    )  # fmt: skip
    result = launches.run(*settings).succeeded()
    assert "after 50% of training" in " ".join(result.text.replace("│", " ").split())
    folders = sorted((result.run_dir / "checkpoints").glob("tokens-*"))
    first, second, third, _ = (weights(state_files.read(folder)) for folder in folders)

    def moved(one, other, part):
        return {bool((one[name] != other[name]).any()) for name in one if name.startswith(part) and one[name].numel()}

    assert moved(first, second, "model.gpt") == {False}
    assert True in moved(first, second, "model.gistnet")
    assert True in moved(second, third, "model.gpt")
