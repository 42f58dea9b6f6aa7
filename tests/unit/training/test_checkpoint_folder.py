"""Names, manifest and retention of checkpoints, with plain files."""

import json
import shutil

import pytest
import torch
import torch.distributed as dist

from mcframe.errors import UserError
from mcframe.training.checkpoint_folder import (
    COMPLETE,
    DamagedCheckpoint,
    find,
    folder_name,
    made_run_id,
    manifest_text,
    newest,
    run_id,
)  # fmt: skip
from mcframe.training.checkpoint_writer import archive, remove_leftovers
from mcframe.training.checkpoints import check_finite
from tests.support.checkpoint_files import write_checkpoint


@pytest.fixture
def run_dir(tmp_path):
    """A run of three checkpoints."""
    for tokens in (1, 2, 3):
        write_checkpoint(tmp_path / "run", tokens)
    return tmp_path / "run"


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir() if path.name != "run-id")


def test_the_newest_intact_checkpoint_is_found(run_dir):
    found = newest(run_dir)
    assert (found.tokens, found.facts["step"], found.path.name) == (3, 3, folder_name(3))
    assert find(run_dir) == found == find(found.path)
    assert newest(run_dir / "nothing") is None
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        find(run_dir / "nothing")


def test_copies_and_backups_of_a_user_are_neither_used_nor_deleted(run_dir):
    folder = run_dir / "checkpoints"
    backups = [
        "tokens-backup",
        f"{folder_name(2)}-good",
        "tokens-4",
        f"tokens-{9:016d}",
        "best",
        f"{folder_name(4)} ",
    ]
    for backup in backups:
        shutil.copytree(folder / folder_name(2), folder / backup)
    assert newest(run_dir).tokens == 3
    write_checkpoint(run_dir, 4, keep=1)
    assert names(run_dir) == sorted([*backups, folder_name(4)])
    assert find(folder / f"{folder_name(2)}-good").tokens == 2  # named by its user


def test_damaged_and_foreign_checkpoints_do_not_count_and_are_not_deleted(run_dir, tmp_path):
    folder = run_dir / "checkpoints"
    (folder / folder_name(1) / "model.bin").unlink()
    write_checkpoint(tmp_path / "other", 2)
    shutil.rmtree(folder / folder_name(2))
    shutil.copytree(tmp_path / "other" / "checkpoints" / folder_name(2), folder / folder_name(2))
    with pytest.raises(DamagedCheckpoint, match="another run"):
        find(folder / folder_name(2))
    write_checkpoint(run_dir, 4, keep=2)
    assert names(run_dir) == [folder_name(tokens) for tokens in (1, 2, 3, 4)]
    write_checkpoint(run_dir, 5, keep=2)
    assert names(run_dir) == [folder_name(tokens) for tokens in (1, 2, 4, 5)]


def test_a_damaged_checkpoint_is_skipped_with_one_warning_or_stops(run_dir, caplog):
    last, before = (run_dir / "checkpoints" / folder_name(tokens) for tokens in (3, 2))
    content = (last / "model.bin").read_bytes()
    (last / "model.bin").write_bytes(content[:-1] + b"?")
    assert newest(run_dir).path == before
    assert len(caplog.records) == 1
    assert f"{last} is damaged: model.bin: the content has changed" in caplog.text
    assert f"{before} is used" in caplog.text
    with pytest.raises(UserError, match=f"{last} is damaged: model.bin.*newest intact checkpoint is {before}"):
        newest(run_dir, "stop")
    with pytest.raises(DamagedCheckpoint, match=r"model\.bin"):
        find(last)
    (last / "model.bin").write_bytes(content)
    assert newest(run_dir, "stop").path == last


def test_a_run_without_an_intact_checkpoint_does_not_start_again(run_dir):
    for folder in (run_dir / "checkpoints").glob("tokens-*"):
        (folder / COMPLETE).unlink()
    with pytest.raises(UserError, match=r"(?s)complete\.json.*no checkpoint of this run is intact"):
        newest(run_dir)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: (path / "rank-0.pt").unlink(), "missing rank-0.pt"),
        (lambda path: (path / "rank-0.pt").write_text("short"), "rank-0.pt: expected 24 bytes, got 5"),
        (lambda path: (path / "notes.txt").touch(), "unexpected file notes.txt"),
        (lambda path: (path / "empty").mkdir(), "unexpected file empty"),
        (lambda path: (path / COMPLETE).unlink(), "complete.json cannot be read: No such file"),
        (lambda path: (path / COMPLETE).write_text("{"), "complete.json is not JSON"),
        (lambda path: link(path / COMPLETE), "complete.json is not a regular file"),
        (lambda path: link(path / "model.bin"), "model.bin is not a regular file"),
        (lambda path: (path / COMPLETE).write_text('{"tokens": 3}'), "complete.json has no checksum"),
        (lambda path: (path / COMPLETE).write_text(f"[{'[' * 200_000}"), "complete.json is not JSON"),
        (lambda path: edit(path, step=7), "complete.json: the content has changed"),
        (lambda path: shutil.copy(path.with_name(folder_name(2)) / COMPLETE, path), "that of tokens-000000000000002"),
        (lambda path: shutil.copy(path.with_name(folder_name(2)) / "model.bin", path), "model.bin: the content has"),
        (lambda path: path.rename(path.with_name("old")) and path.write_text("a file"), "cannot be read"),
    ],
)
def test_damage_is_named(run_dir, damage, named):
    path = run_dir / "checkpoints" / folder_name(3)
    damage(path)
    with pytest.raises(DamagedCheckpoint) as caught:
        find(path)
    assert named in caught.value.message
    assert newest(run_dir).tokens == 2


def link(file):
    target = file.rename(file.parents[2] / file.name)
    file.symlink_to(target)


def edit(path, **facts):
    file = path / COMPLETE
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}, sort_keys=True) + "\n")


def test_another_format_is_refused(run_dir):
    path = run_dir / "checkpoints" / folder_name(3)
    facts = json.loads((path / COMPLETE).read_text())
    (path / COMPLETE).write_text(manifest_text({**facts, "format": 99}))
    with pytest.raises(DamagedCheckpoint, match="expected format 2, got 99"):
        find(path)


def test_later_checkpoints_of_a_branch_are_moved_and_none_is_overwritten(run_dir):
    archive(run_dir, 2)
    write_checkpoint(run_dir, 3)
    archive(run_dir, 2)
    assert names(run_dir) == ["superseded", folder_name(1), folder_name(2)]
    assert names(run_dir)[0] == "superseded"
    moved = sorted(path.name for path in (run_dir / "checkpoints" / "superseded").iterdir())
    assert moved == [folder_name(3), f"{folder_name(3)}-2"]


def test_leftovers_of_a_killed_run_are_removed_and_no_other_hidden_folder(run_dir):
    folder = run_dir / "checkpoints"
    for name in (f".writing-{folder_name(4)}", f".deleting-{folder_name(1)}", ".writing-mine", ".cache"):
        (folder / name).mkdir()
    remove_leftovers(run_dir)
    assert sorted(path.name for path in folder.glob(".*")) == [".cache", ".writing-mine"]
    assert newest(run_dir).tokens == 3


def test_the_identity_of_a_run_survives_the_loss_of_its_file(run_dir):
    before = run_id(run_dir)
    (run_dir / "checkpoints" / "run-id").write_text("damaged")
    assert newest(run_dir).tokens == 3
    assert made_run_id(run_dir) == before == run_id(run_dir)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_that_is_not_finite_is_named(run_dir, value, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    w, b = "weights/model.w", "optimizer/exp_avg/model.b"
    sound = {
        "weights/step": torch.tensor(3), w: torch.randn(4, 5), "weights/empty": torch.zeros(0),
        b: torch.ones(3).bfloat16(), "module/mask": torch.tensor(float("-inf")),
    }  # fmt: skip
    check_finite(sound, 7, run_dir)
    for bad in (w, b):
        tensors = {name: each.clone() for name, each in sound.items()}
        tensors[bad].view(-1)[2] = value
        with pytest.raises(UserError, match=f"^{bad} is not finite on rank 0 after 7 tokens; no checkpoint"):
            check_finite(tensors, 7, run_dir)
    with pytest.raises(UserError, match=rf"{w} \(and 1 more tensors\) is not finite"):
        check_finite({w: tensors[w] * value, b: tensors[b]}, 7, run_dir)
