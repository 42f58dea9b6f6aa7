"""A checkpoint for which the disk has no space: the file is named, and what is kept."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError
from mcframe.training import checkpoints, state_files

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.fixture
def engine(monkeypatch):
    """An engine whose state does not fit on the disk."""
    monkeypatch.setattr(checkpoints.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(checkpoints, "take", lambda engine: ({"weights": torch.zeros(2**16)}, {}))

    def save_file(*_):
        raise SafetensorError(FULL)

    monkeypatch.setattr(state_files, "save_file", save_file)
    return SimpleNamespace(stage=0)


@pytest.mark.parametrize("earlier", [True, False])
def test_a_full_disk_names_the_file_and_what_is_kept(engine, tmp_path, earlier):
    if earlier:
        kept = tmp_path / "checkpoints" / "tokens-000000000000001"
        kept.mkdir(parents=True)
        (kept / "complete.json").write_text(json.dumps({"tokens": 1}))
    with pytest.raises(UserError, match=r"rank-0\.safetensors: no space") as caught:
        checkpoints.save(engine, tmp_path, {"tokens": 2}, {}, {}, keep=1)
    assert ("tokens-000000000000001, which is kept" in caught.value.remedy) == earlier
    assert [each.tokens for each in checkpoints.checkpoints(tmp_path)] == [1] * earlier
    assert not list((tmp_path / "checkpoints").glob(".writing*"))


def test_other_errors_of_a_checkpoint_pass(engine, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(state_files, "save_file", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.save(engine, tmp_path, {"tokens": 2}, {}, {}, keep=1)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("No space left on device (os error 28)")]
)
def test_a_full_disk_is_an_error_of_the_user_wherever_it_arises(error, capsys):
    def action():
        raise error

    assert report_user_errors(action, traceback=False) == 2
    assert "no space left on the device" in capsys.readouterr().err
