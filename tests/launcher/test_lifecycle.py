"""A third-party package in runs of two ranks: its parts train, its hooks are called in order, a loss fails."""

from __future__ import annotations

import shutil

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.training.build import build_step
from mcframe.training.checkpoint_folder import find
from mcframe.training.weights import load_weights

pytestmark = pytest.mark.launcher

STEP = 512
PACKAGE = '''
    """Positions that are learned, a loss with parameters, and a diary of every hook."""

    import os

    import torch
    from torch import nn

    from mcframe.hookspecs import Loss, Positions, LossTerm, hookimpl

    FAILING = []

    class Learned(Positions):
        """Rotation by learned frequencies."""

        def __init__(self, shape):
            super().__init__()
            self.frequency_embed = nn.Parameter(torch.logspace(0, -3, shape.width // 2))

        def forward(self, context):
            angle = context.token[:, None, :, None].float() * self.frequency_embed.float()
            return angle.cos(), angle.sin()

    class Nearby(Loss):
        """States of variants, through a map, stay near those of the uncompressed pass."""

        name = "nearby"

        def __init__(self, shape, *, weight: float = 0.1):
            super().__init__()
            self.weight = weight
            self.map = nn.Linear(shape.width, shape.width)

        def forward(self, view):
            if FAILING:
                raise OSError("the pager is down")
            paired = view.variants.paired
            index = (paired.context.end - 1)[..., None].expand_as(view.variants.hidden)
            states = view.uncompressed.hidden.detach().repeat_interleave(len(index) // len(view.seeds), dim=0)
            error = (self.map(view.variants.hidden) - states.gather(1, index)).square().mean(dim=-1)
            return LossTerm(view.by_sequence(error.mean(dim=1)), {"largest": error.amax(dim=1).detach()})

    @hookimpl
    def register_plugins(register):
        register("learned", Learned)
        register("nearby", Nearby)

    def note(run, *parts):
        with open(run.directory / f"diary-{run.rank}.txt", "a") as file:
            print(run.step, *parts, file=file)

    @hookimpl
    def checkpoint_loaded(run, checkpoint):
        note(run, "checkpoint_loaded", checkpoint.name)

    @hookimpl
    def run_started(run):
        note(run, "run_started")

    @hookimpl
    def step_finished(run):
        note(run, "step_finished")
        FAILING.extend([True] if run.step == int(os.environ.get("FAIL", "0")) else [])

    @hookimpl
    def metrics_logged(run, metrics):
        note(run, "metrics_logged", next(name for name in metrics if not name.startswith("mc/")).split("/")[0])

    @hookimpl
    def checkpoint_saved(run, checkpoint):
        note(run, "checkpoint_saved", checkpoint.name)

    @hookimpl
    def evaluated(run, name, result):
        note(run, "evaluated", name, len(result.metrics) > 0)

    @hookimpl
    def run_finished(run, summary):
        note(run, "run_finished", summary["status"])

    @hookimpl
    def run_failed(run, error):
        note(run, "run_failed", type(error).__name__)
'''
SETTINGS = (
    "run.positions = @positions.learned",
    "run.hooks = {'third_party': {}}",
    "run.extra_losses = [@loss.nearby]",
    "deepspeed.zero_stage = 3",
    f"run.batch_tokens = {STEP}",
    f"logging.every = {STEP}",
    "validation.windows = 4",
    f"validation.every = {2 * STEP}",
    f"checkpoint.every = {STEP}",
    "checkpoint.asynchronous = False",  # the order of hooks would depend on the disk
    f"evaluation.every = {2 * STEP}",
    "run.evaluations = [@evaluation.gist_quality]",
    "evaluation.gist_quality.windows = 4",
)


def saved(step):
    return f"{step} checkpoint_saved tokens-{step * STEP:015d}"


STARTED = ["0 run_started", "0 metrics_logged val"]
FIRST = [saved(1), "1 step_finished", "1 metrics_logged train"]
LAST = [saved(2), "2 step_finished", "2 metrics_logged train", "2 metrics_logged val", "2 evaluated gist_quality True",
        "2 metrics_logged eval", "2 run_finished finished"]  # fmt: skip
RESUMED = ["2 checkpoint_loaded tokens-000000000001024", "2 run_started"]
FAILED = [saved(3), "3 step_finished", "3 metrics_logged train", "3 run_failed OSError"]
RANK_0_ONLY = ("metrics_logged", "evaluated", "run_finished")


@pytest.fixture(scope="module")
def site(tmp_path_factory, new_site):
    site = new_site(tmp_path_factory.mktemp("site"))
    site.install("third_party", PACKAGE)
    return site


@pytest.fixture(scope="module")
def finished(launches, site):
    return launches.run(*SETTINGS, f"run.total_tokens = {2 * STEP}", ranks=2, environment=site.environment).succeeded()


@pytest.fixture(scope="module")
def failed(launches, site, finished):
    """The same run, resumed; a loss fails after its first step."""
    directory = launches.folder / "failed"
    shutil.copytree(finished.run_dir, directory)
    for diary in directory.glob("diary-*"):
        diary.unlink()
    return launches.run(
        *SETTINGS,
        f"run.total_tokens = {6 * STEP}",
        ranks=2,
        run_dir=directory,
        environment={**site.environment, "FAIL": "3"},
    )


def diary(result, rank):
    return (result.run_dir / f"diary-{rank}.txt").read_text().splitlines()


def of_rank(lines, rank):
    return [line for line in lines if rank == 0 or line.split()[1] not in RANK_0_ONLY]


@pytest.mark.parametrize("rank", [0, 1])
def test_hooks_are_called_in_the_documented_order_on_the_documented_ranks(finished, failed, rank):
    assert diary(finished, rank) == of_rank(STARTED + FIRST + LAST, rank)
    assert diary(failed, rank) == of_rank(RESUMED + FAILED, rank)


def test_positions_and_losses_of_plugins_are_trained_and_stored_in_checkpoints(finished, site, smoke, monkeypatch):
    monkeypatch.syspath_prepend(str(site.folder))
    run_config = load_run_config([smoke], SETTINGS).run_config
    before = build_step(run_config, run_config.tokenizer().vocab_size).state_dict()
    after = load_weights(find(finished.run_dir))
    assert before.keys() == after.keys()
    for name in ("model.gpt.positions.frequency_embed", "losses.nearby.map.weight", "losses.nearby.map.bias"):
        assert not torch.equal(before[name], after[name]), name
    assert len(finished.curve("loss/nearby")) == 2
    assert all(big > mean for big, mean in zip(
        finished.curve("loss/nearby/largest"), finished.curve("loss/nearby"), strict=True
    ))  # fmt: skip


def test_a_loss_that_raises_ends_the_run_with_one_message_and_keeps_its_files(failed, site):
    assert failed.code == 2, failed.output[-6000:]
    assert failed.errors == 1
    assert "Traceback" not in failed.output
    message = "loss.nearby of plug-in 'it' of third_party 1.0 failed in forward: OSError: the pager is down"
    assert message in failed.text
    line = PACKAGE.splitlines().index('                raise OSError("the pager is down")') + 1
    assert f"{site.folder / 'third_party.py'}:{line}" in failed.text
    assert failed.checkpoints == [2 * STEP, 3 * STEP]
    assert sorted(failed.metrics) == [0, STEP, 2 * STEP, 3 * STEP]


def test_evaluations_of_a_checkpoint_call_the_hook_too(finished, site, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    shutil.copytree(finished.run_dir, directory)
    monkeypatch.syspath_prepend(str(site.folder))
    result = CliRunner().invoke(app, ["eval", str(directory), "--windows", "4"])
    assert result.exit_code == 0, result.output
    lines = (directory / "diary-0.txt").read_text().splitlines()
    assert lines == [*diary(finished, 0), "2 evaluated gist_quality True"]
