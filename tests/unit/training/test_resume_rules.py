"""Settings of a resumed run that differ from the checkpoint's."""

from pathlib import Path

import pytest

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.training.checkpoint_folder import Checkpoint
from mcframe.training.resume_rules import differences


def changed(smoke, *settings):
    checkpoint = Checkpoint(Path("run"), {"bindings": load_run_config([smoke], []).config.parameters()})
    return differences(checkpoint, load_run_config([smoke], settings).config)


def test_a_default_that_is_written_out_is_no_difference(smoke):
    chosen = ("run.optimizer = @optimizer.adamw", "run.schedule = @schedule.trapezoid")
    evaluations = "run.evaluations = [@evaluation.gist_quality, @evaluation.focus_quality]"
    assert changed(smoke, *chosen, "run.positions = @positions.gaussian_rope", evaluations) == []


def test_what_is_applied_is_listed(smoke):
    assert [(each.binding, each.effect) for each in changed(smoke, "optimizer.lr = 0.5")] == [
        ("optimizer.lr", "applied")
    ]


@pytest.mark.parametrize(
    "setting",
    [
        "run.optimizer = @optimizer.muon",
        "run.variants = @variants.none",
        "gpt.gist_bias = 0.0",
        "gpt.depth = 3",
        "data.document_mask = True",
    ],
)
def test_what_changes_the_model_or_its_state_is_refused(smoke, setting):
    with pytest.raises(UserError, match="a resumed run cannot change") as caught:
        changed(smoke, setting)
    assert setting.split(" = ")[0] in caught.value.message
