"""Paths of options and settings, and the files that are written to them."""

import os
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.cli.run_options import arguments
from mcframe.errors import UserError
from mcframe.files import replaced, user_path
from mcframe.hookspecs import RunStart
from mcframe.metrics.jsonl_logger import JsonlLogger


@pytest.mark.parametrize("written", ["", " ", "a\0b", "~missing-user/x"])
def test_what_is_no_path_is_named(written):
    with pytest.raises(UserError, match=r"^--out: "):
        user_path(written, "--out")


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    assert user_path("~/runs", "--out") == Path("/home/user/runs")
    options = arguments().parse_args(["--gin", "~/a.gin", "--run-dir=~/r", "--resume", "~/c"])
    assert [str(value) for value in (*options.gin, options.run_dir, options.resume)] == [
        "/home/user/a.gin", "/home/user/r", "/home/user/c",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    ["export ''", "export x --out ''", "sample '' --prompt x", "review ''", "review x --against ''", "compare a ''",
     "check ''", "eval '' ", "eval x --drop-baseline ''", "sweep ''", "dashboard wandb ''", "dashboard tensorboard ''",
     "new-plugin x --kind gistnet --dir ''", "tokenizer --gin ''", "check '~missing-user/x.gin'",
     "run --gin ''", "run --gin x --run-dir ''", "run --gin x --resume ''"],
)  # fmt: skip
def test_every_command_refuses_an_empty_path(words):
    result = CliRunner().invoke(app, shlex.split(words))
    assert result.exit_code == 2, result.output
    assert "expected a path, got ''" in result.output or "unknown home" in result.output


def test_a_written_file_has_the_mode_of_the_umask_or_of_the_file_before_it(tmp_path):
    file = tmp_path / "below" / "file"
    before = os.umask(0o027)
    try:
        with replaced(file) as partial:
            partial.write_text("1")
            partial.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (file.stat().st_mode & 0o777, file.read_text()) == (0o640, "1")
    file.chmod(0o604)
    with replaced(file) as partial:
        partial.write_text("2")
    assert (file.stat().st_mode & 0o777, file.read_text()) == (0o604, "2")


def test_a_link_stays_and_a_failure_changes_nothing(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)

    def fail() -> None:
        with replaced(link) as partial:
            partial.write_text("ne")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert target.read_text() == "old"
    with replaced(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert {each.name for each in tmp_path.iterdir()} == {"target", "link"}


@pytest.mark.parametrize(("path", "kind"), [(".", "folder"), ("/dev/null", "device")])
def test_folders_and_devices_are_not_replaced(tmp_path, monkeypatch, path, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"got the {kind}"), replaced(Path(path)):
        pass


def test_a_full_disk_is_named_with_the_file(tmp_path):
    logger = JsonlLogger(RunStart(tmp_path, {}, 0))
    logger._file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(UserError, match=r"metrics.jsonl: no space left on the device"):
        logger.write(0, 0, {"train/loss": 1.0})
