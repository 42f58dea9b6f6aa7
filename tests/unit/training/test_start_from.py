"""Weights of another run as the start of a run."""

from types import SimpleNamespace

import pytest
import torch

from mcframe.errors import UserError
from mcframe.training import weights
from tests.support.modeling_builders import FixedVariants, build_step
from tests.support.oracle import Tree


def step_with(levels: int, gist_bias: float | None = None):
    return build_step(Tree(32, 4, levels, 1, 4, 0, 0), FixedVariants([[[0] * 8]]), gistnet=None, gist_bias=gist_bias)


@pytest.fixture
def saved(monkeypatch):
    """Return a function that makes a step the one that runs start from."""

    def save(step):
        monkeypatch.setattr(weights, "find", lambda path: SimpleNamespace(path=path))
        monkeypatch.setattr(weights, "load_weights", lambda checkpoint: step.state_dict())

    return save


@pytest.mark.parametrize("gist_bias", [None, -8.0])
def test_a_run_with_more_levels_keeps_its_own_rows_for_them(saved, tmp_path, gist_bias):
    before, step = step_with(1, gist_bias), step_with(3, gist_bias)
    saved(before)
    own = {name: value.clone() for name, value in step.gpt.state_dict().items()}
    weights.start_from(step, str(tmp_path))
    found, start = step.gpt.state_dict(), before.gpt.state_dict()
    grown = [name for name in start if start[name].shape != found[name].shape]
    assert len(grown) == (1 if gist_bias is None else 1 + step.gpt.depth)
    for name, value in found.items():
        rows = len(start[name]) if name in grown else len(value)
        assert torch.equal(value[:rows], start[name])
        assert torch.equal(value[rows:], own[name][rows:])


def test_a_run_with_fewer_levels_is_refused(saved, tmp_path):
    saved(step_with(3))
    with pytest.raises(UserError, match="expected shape") as caught:
        weights.start_from(step_with(1), str(tmp_path))
    assert "no fewer context.levels" in caught.value.remedy
