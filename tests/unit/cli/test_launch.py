"""Checks of `mcframe run`, and the start of the launcher."""

import os
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli import launch
from mcframe.cli.app import app
from mcframe.cli.run_options import arguments
from mcframe.completion import UNFINISHED
from mcframe.environment import prepare_rank
from mcframe.errors import UserError


@pytest.fixture
def started(monkeypatch):
    """Command and environment of a launcher that is not started."""
    found = {}

    class Ended:
        returncode, poll = 0, staticmethod(lambda: 0)

        def __init__(self, command, env):
            found.update(command=command[4:], env=env)
            if UNFINISHED in env:
                Path(env[UNFINISHED]).unlink()  # as rank 0 does

    monkeypatch.setattr(subprocess, "Popen", Ended)
    monkeypatch.setattr(launch, "handle_ending_signals", lambda handler: {})
    monkeypatch.setattr(launch.ctypes, "CDLL", Mock())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    return found


def run(*options):
    return CliRunner().invoke(app, ["run", *options])


def test_help_shows_every_option():
    text = run("--help").output
    for action in arguments()._actions:
        for option in action.option_strings:
            assert (option in text) == (option != "--local_rank"), option
    assert "--ranks" in text
    assert "--launcher" in text


def test_launcher_options_are_split_like_a_shell_does(started):
    result = run("--launcher", "--include 'node a:0' --master_port=1", "--gin", "a.gin", "--set", "a = 1")
    assert result.exit_code == 0, result.output
    assert started["command"][:3] == ["--include", "node a:0", "--master_port=1"]
    assert started["command"][4:] == ["--gin", "a.gin", "--set", "a = 1"]
    assert run("--gin", "a.gin", "--launcher", "--no_ssh").exit_code == 0
    assert "--no_ssh" in started["command"]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "hosts: No such file"), ("", "expected machines"), ("# none\n", "expected machines"),
     ("a slots=2\n\nb 2\n", "hosts:3"), ("a slots=0\n", "hosts:1"), ("a slots=1\na slots=1\n", "hosts:2"),
     ("\udcff", "not a text file")],
)  # fmt: skip
@pytest.mark.parametrize("option", ["--hostfile", "-H"])
def test_a_host_file_that_cannot_be_used_is_an_error(started, tmp_path, monkeypatch, text, message, option):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "hosts").write_text(text, "utf-8", "surrogateescape")
    result = run("--launcher", f"{option} hosts", "--gin", "a.gin")
    assert result.exit_code == 2
    assert message in result.output
    assert not started


def test_other_machines_need_pdsh(started, tmp_path, monkeypatch):
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n", "utf-8")
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    result = run("--launcher", f"--hostfile {hosts}", "--gin", "a.gin")
    assert result.exit_code == 2
    assert "apt-get install pdsh" in result.output
    assert not started
    assert run("--launcher", f"--hostfile {hosts} --no_ssh --node_rank 0", "--gin", "a.gin").exit_code == 0
    assert started


@pytest.mark.parametrize(
    "options",
    [["--ranks", "0"], ["--ranks", "-2"], ["--ranks", "two"], ["--launcher", "'open"], ["--rnks", "2"], ["--run-dir"]],
)
def test_a_wrong_option_is_one_message(started, options):
    result = run("--gin", "a.gin", *options)
    assert result.exit_code == 2
    assert result.output.count("mcframe stopped") == 1
    assert not started


@pytest.mark.parametrize("devices", ["-1", "", "NoDevFiles", "0,1"])
def test_without_usable_gpus_the_ranks_use_the_cpu(started, monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert run("--gin", "a.gin", "--ranks", "2").exit_code == 0
    assert "CUDA_VISIBLE_DEVICES" not in started["env"]
    assert started["env"]["DS_ACCELERATOR"] == "cpu"
    assert "--num_accelerators 2" in " ".join(started["command"])


def test_ranks_use_the_gpus_that_are_visible(started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert run("--gin", "a.gin", "--ranks", "2").exit_code == 0
    assert "--include localhost:2,5" in " ".join(started["command"])
    assert "CUDA_VISIBLE_DEVICES" not in started["env"]
    for devices, ranks in (("2", "2"), ("GPU-1e9c", "1")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        result = run("--gin", "a.gin", "--ranks", ranks)
        assert result.exit_code == 2
        assert "CUDA_VISIBLE_DEVICES: expected" in result.output


RANK = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"MASTER_ADDR": None}, "misses MASTER_ADDR"), ({"MASTER_PORT": ""}, "misses MASTER_PORT"),
     ({"RANK": None}, "misses RANK"), ({"RANK": "2"}, "below WORLD_SIZE = 2"),
     ({"WORLD_SIZE": "two"}, "expected a number"),
     ({"RANK": "-1"}, "expected a number"), (dict.fromkeys(list(RANK)[1:]), "misses WORLD_SIZE")],
)  # fmt: skip
def test_a_rank_without_all_of_its_variables_is_an_error(monkeypatch, changes, message):
    for name, value in {**RANK, **changes}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        prepare_rank()


def test_a_process_without_variables_is_a_single_rank(monkeypatch):

    for name in RANK:
        monkeypatch.setenv(name, "")  # restores the variable at the end
        monkeypatch.delenv(name)
    prepare_rank()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
    prepare_rank()
