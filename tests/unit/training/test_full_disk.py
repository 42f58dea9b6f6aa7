"""A checkpoint for which the disk has no space: the file is named, and what is kept."""

import pytest
import torch
import torch.distributed as dist

from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError
from mcframe.training.checkpoint_folder import checkpoints
from mcframe.training.checkpoint_writer import CheckpointWriter, WriteJob, prepare_folder


def written(run_dir, tokens, write):
    writer = CheckpointWriter(dist.HashStore(), 0, 1)
    prepare_folder(run_dir, tokens)
    writer.start(WriteJob(run_dir, tokens, write, {}, keep=1))
    return writer.wait()


def write_small(folder):
    (folder / "small.pt").touch()
    return ["small.pt"]


def write_to_full_device(folder):
    """Write to a link to a full device."""
    (folder / "weights.pt").symlink_to("/dev/full")
    torch.save({"weights": torch.zeros(2**16)}, folder / "weights.pt")
    return ["weights.pt"]


@pytest.mark.parametrize("earlier", [True, False])
def test_a_full_disk_names_the_file_and_what_is_kept(tmp_path, earlier):
    if earlier:
        written(tmp_path, 1, write_small)
    with pytest.raises(UserError, match=r"weights\.pt: (no space|cannot be written)") as caught:
        written(tmp_path, 2, write_to_full_device)
    assert ("tokens-000000000000001, which is kept" in caught.value.remedy) == earlier
    assert [each.tokens for each in checkpoints(tmp_path)] == [1] * earlier
    assert not list((tmp_path / "checkpoints").glob(".writing*"))


def test_other_errors_of_a_checkpoint_pass(tmp_path):
    def fail(folder):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        written(tmp_path, 2, fail)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("No space left on device (os error 28)")]
)
def test_a_full_disk_is_an_error_of_the_user_wherever_it_arises(error, capsys):
    def action():
        raise error

    assert report_user_errors(action, traceback=False) == 2
    assert "no space left on the device" in capsys.readouterr().err
