"""Real runs without a GistNet or a LensNet, with frozen parts, or with a task instead of text."""

import math

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.training.build import build_components, build_step
from mcframe.training.checkpoint_folder import find
from mcframe.training.weights import load_weights

pytestmark = pytest.mark.launcher

SHORT = (
    "run.batch_tokens = 512",
    "run.total_tokens = 2048",
    "logging.every = 512",
    "validation.every = 1024",
    "validation.windows = 4",
)
RECALL = ("run.task = @task.recall", "task.recall.keys = 56", "context.tail = 15")


def moved(result, settings, root):
    """Return the parts of the model, and the losses, with parameters that differ from their initial values."""
    run_config = load_run_config([root / "gin/smoke.gin"], list(settings)).run_config
    before = build_step(run_config, run_config.tokenizer().vocab_size)
    after = load_weights(find(result.run_dir))
    assert before.state_dict().keys() == after.keys()
    changed = {name for name, value in before.named_parameters() if not torch.equal(value, after[name])}
    assert all(torch.isfinite(value).all() for value in after.values())
    return {part_of(name) for name in changed}


def part_of(name):
    """Return the part of the model, or the loss, that a parameter belongs to."""
    return name.removeprefix("model.").removeprefix("losses.").split(".")[0]


@pytest.mark.parametrize(
    ("stage", "ranks", "optimizer"),
    [(1, 1, "muon"), (3, 1, "adamw"), pytest.param(3, 2, "adamw", marks=pytest.mark.matrix)],
)
def test_only_trainable_parts_move(launches, root, stage, ranks, optimizer):
    settings = (
        *SHORT,
        "run.trainable = ('gistnet',)",
        "run.extra_losses = [@loss.reconstruction, @loss.distillation]",
        "gpt.gist_bias = -1",
        f"deepspeed.zero_stage = {stage}",
        f"run.optimizer = @optimizer.{optimizer}",
    )
    result = launches.run(*settings, ranks=ranks).succeeded()
    assert moved(result, settings, root) == {"gistnet", "reconstruction"}
    last = result.metrics[2048]
    changes = {name: change for name, change in last.items() if name.startswith("train/update_ratio/")}
    assert {part_of(name.split("/")[2]) for name in changes} == {"gistnet", "reconstruction"}
    assert all(change > 0 for change in changes.values())
    assert len(result.curve("mc/reconstruction_loss")) == 4
    first, *others = result.curve("val/loss")  # the base model is frozen
    assert others == pytest.approx([first] * len(others), abs=1e-6)


def test_a_task_is_trained_on_and_only_its_answers_are_scored(launches, root):
    settings = (*SHORT, *RECALL, "run.lensnet = None", "gpt.gist_bias = -4")
    result = launches.run(*settings).succeeded()
    assert "LensNet none" in result.text
    assert moved(result, settings, root) == {"gpt", "gistnet"}
    assert result.curve("mc/lens_loss") == []
    for loss, bits in zip(result.curve("val/loss"), result.curve("val/bpb"), strict=True):
        assert bits == pytest.approx(loss / math.log(2), rel=1e-6)  # an answer is a byte
    last = max(tokens for tokens, metrics in result.metrics.items() if "mc/tail_delta" in metrics)
    # Gists predict no answer, because the last token before the cursor belongs to a question.
    assert "mc/lod_loss/0" in result.metrics[last]
    assert not any("mc/lod_loss/1" in metrics for metrics in result.metrics.values())


def test_a_run_without_gistnet_drops_blocks(launches, root):
    settings = (*SHORT, "run.gistnet = None")
    result = launches.run(*settings).succeeded()
    assert "GistNet none; collapsed blocks are dropped" in result.text
    assert moved(result, settings, root) == {"gpt"}
    assert {"mc/tail_delta", "mc/lod_loss/0", "val/bpb"} <= set.union(*(set(m) for m in result.metrics.values()))
    assert result.curve("mc/gist_entry_delta/1") == []
    assert result.curve("mc/adv_delta_mean") == []


def test_a_task_with_ids_that_are_not_text_has_no_bits_per_byte(launches):
    settings = (*SHORT, *RECALL, "task.recall.keys = 300", "gpt.vocab_size = 400", "run.variants = @variants.none")
    result = launches.run(*settings).succeeded()
    assert result.curve("val/loss")
    assert result.curve("val/bpb") == []


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (["run.gistnet = None"], ["GistNet none; collapsed blocks are dropped", "LensNet none"]),
        (["run.lensnet = None"], ["GistNet", "LensNet none"]),
        (["run.lensnet = None", "run.variants = @variants.none"], ["base model"]),
    ],
)
def test_check_lists_missing_parts(root, tmp_path, monkeypatch, settings, rows):
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    checked = CliRunner().invoke(app, ["check", str(root / "gin/smoke.gin"), *(f"--set={s}" for s in settings)])
    assert checked.exit_code == 0, checked.output
    output = " ".join(checked.output.replace("│", " ").split())
    assert all(each in output for each in rows)
    assert "None" not in output  # a missing part is not listed as a plug-in
    assert ("LensNet none" in output) == ("LensNet none" in rows)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.trainable = ('base', 'gistnets')", "gistnets"),
        ("run.trainable = ()", "run.trainable"),
        ("loss.reconstruction.blocks = (1, 99)", "blocks of a window, got 99"),
        ("context.tail = 16", "context.tail = 15"),
        ("gpt.vocab_size = 300", "300"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_starts(root, tmp_path, monkeypatch, setting, message):
    """`mcframe check` refuses them, too."""
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path))
    settings = [*SHORT, *RECALL, "run.extra_losses = [@loss.reconstruction]", "task.recall.keys = 300"]
    settings = [s for s in settings if s.split(" ")[0] != setting.split(" ")[0]] + [setting]
    if "vocab" not in setting:
        settings.append("gpt.vocab_size = 400")
    settings.remove("task.recall.keys = 56")
    with pytest.raises(UserError) as caught:
        build_components(load_run_config([root / "gin/smoke.gin"], settings).run_config)
    assert message in f"{caught.value.message} {caught.value.remedy}"
    checked = CliRunner().invoke(app, ["check", str(root / "gin/smoke.gin"), *(f"--set={s}" for s in settings)])
    assert checked.exit_code == 2
