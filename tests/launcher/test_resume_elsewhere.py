"""Resuming from a checkpoint with other settings: those that fit take effect, the others are refused."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mcframe.training.state_files import read
from mcframe_plugins.schedule.trapezoid import Trapezoid
from tests.support.launches import EVERY_STEP, FOUR_STEPS, STEP

pytestmark = pytest.mark.launcher


@pytest.fixture
def trained(launches, tmp_path):
    """A copy of a run of four steps with a checkpoint after each."""
    result = launches.shared(*FOUR_STEPS).succeeded()
    return shutil.copytree(result.run_dir, tmp_path / "run")


def test_more_tokens_stretch_the_schedule(launches, trained):
    result = launches.run(*EVERY_STEP, f"run.total_tokens = {6 * STEP}", run_dir=trained).succeeded()
    assert "resumed from" in result.text
    rates = [result.metrics[step * STEP]["train/lr"] for step in (5, 6)]
    # The checkpoint's own rate for step 5 was the old schedule's end: 0.
    expected = [0.003 * Trapezoid().factor(step, 6) for step in (4, 5)]
    assert rates == pytest.approx(expected)
    assert min(rates) > 0.001


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("setting", "was"),
    [
        (f"run.batch_tokens = {2 * STEP}", f"run.batch_tokens = {STEP}"),
        ("run.seed = 7", "run.seed = 0"),
        ("gpt.depth = 3", "gpt.depth = 2"),
        ("gistnet.transformer.residual = False", "gistnet.transformer.residual = True"),
        ("data.validation_fraction = 0.5", "data.validation_fraction differs"),
    ],
)
def test_another_order_of_data_or_model_is_refused_and_changes_nothing(launches, trained, setting, was):
    before = files_of(trained)
    result = launches.run(*EVERY_STEP, f"run.total_tokens = {8 * STEP}", setting, run_dir=trained)
    assert result.code == 2
    assert was in " ".join(result.text.split())
    assert files_of(trained) == before


def options_of(checkpoint):
    """Return the parameter groups of the optimizer of a checkpoint."""
    return read(checkpoint).value(0, "options")


@pytest.mark.parametrize(
    ("optimizer", "stage", "settings"),
    [
        *(
            pytest.param(
                "adamw",
                stage,
                {"optimizer.weight_decay": 0.1, "optimizer.adamw.betas": (0.8, 0.9)},
                marks=pytest.mark.matrix,
            )
            for stage in (0, 2)
        ),
        ("muon", 1, {"optimizer.weight_decay": 0.1, "optimizer.muon.lr": 0.01, "optimizer.muon.momentum": 0.5}),
    ],
)
def test_changed_options_of_the_optimizer_are_used_and_listed(launches, tmp_path, optimizer, stage, settings):
    fixed = (*EVERY_STEP, f"run.optimizer = @optimizer.{optimizer}", f"deepspeed.zero_stage = {stage}")
    first = launches.run(*fixed, f"run.total_tokens = {STEP}", run_dir=tmp_path / "run").succeeded()
    changed = (*(f"{name} = {value}" for name, value in settings.items()), "optimizer.lr = 0.001")
    result = launches.run(*fixed, f"run.total_tokens = {2 * STEP}", *changed, run_dir=first.run_dir).succeeded()
    assert result.metrics[2 * STEP]["train/lr"] == pytest.approx(0.001 * Trapezoid().factor(1, 2))
    shown = " ".join(result.text.replace("│", " ").split())
    assert "optimizer.lr 0.003 0.001 applied" in shown
    options = options_of(first.run_dir / "checkpoints" / f"tokens-{2 * STEP:015d}")
    for name, value in settings.items():
        option = name.rpartition(".")[2]
        kept = {"lr": "initial_lr"}.get(option, option)
        assert value in [group.get(kept) for group in options], options
        assert re.search(rf"{re.escape(name)} .* applied", shown)


def test_another_text_is_refused_and_moved_text_is_not(launches, tmp_path):
    def corpus(name, word):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(20):
            (folder / f"{number}.txt").write_text(f"{number:02} {word} " * 60)
        return f"text.local_files.paths = {str(folder)!r}"

    settings = (*EVERY_STEP, "run.text = @text.local_files", "data.validation_fraction = 0.3")
    first = launches.run(
        *settings, corpus("first", "lens"), f"run.total_tokens = {STEP}", run_dir=tmp_path / "run"
    ).succeeded()
    before = files_of(first.run_dir)
    other = launches.run(*settings, corpus("other", "gist"), f"run.total_tokens = {2 * STEP}", run_dir=first.run_dir)
    assert other.code == 2
    assert "run.text differs" in " ".join(other.text.split())
    assert files_of(first.run_dir) == before
    moved = launches.run(*settings, corpus("moved", "lens"), f"run.total_tokens = {2 * STEP}", run_dir=first.run_dir)
    assert "accepted if the tokens are the same" in " ".join(moved.succeeded().text.split())


def test_an_older_checkpoint_begins_a_branch_and_keeps_the_other(launches, trained):
    older = trained / "checkpoints" / f"tokens-{2 * STEP:015d}"
    settings = (*EVERY_STEP, f"run.total_tokens = {3 * STEP}", "checkpoint.keep = 1")
    result = launches.run(*settings, run_dir=trained, options=("--resume", str(older))).succeeded()
    assert result.checkpoints == [3 * STEP]
    archived = trained / "checkpoints" / "superseded"
    assert sorted(path.name for path in archived.iterdir()) == [f"tokens-{n * STEP:015d}" for n in (3, 4)]
    assert sorted(result.metrics) == [0, STEP, 2 * STEP, 3 * STEP]


def test_the_summary_counts_complete_parameters_at_zero_3(launches):
    short = (
        "run.batch_tokens = 256", "run.total_tokens = 256", "validation.every = 0", "validation.windows = 4",
        "gpt.width = 256",
    )  # fmt: skip
    plain, split = (launches.run(*short, f"deepspeed.zero_stage = {stage}").succeeded().text for stage in (0, 3))
    for row in ("base model 1.7 M parameters", "G plain"):
        assert row in plain
        assert row in split
    figures = [words.partition("FLOPs a token")[2][:60] for words in (plain, split)]
    assert figures[0] == figures[1]


def test_state_that_ranks_share_is_equal_on_all_ranks(sharded_run):
    """On resumption every rank takes that of one of them."""
    folder = sorted((sharded_run.run_dir / "checkpoints").glob("tokens-*"))[-1]
    one, other = (load_file(folder / f"rank-{rank}.safetensors") for rank in (0, 1))
    shared = {name for name in one | other if name.startswith("shared/")}
    assert "shared/anomalies/losses" in shared
    differ = [name for name in sorted(shared) if not torch.equal(one[name].nan_to_num(-1), other[name].nan_to_num(-1))]
    assert not differ
