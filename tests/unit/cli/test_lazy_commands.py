"""Commands are imported when they are called."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import mcframe
from mcframe import hookspecs
from mcframe.cli.app import COMMANDS, app


@pytest.mark.parametrize("command", ["--help", "version", "metrics"])
def test_quick_commands_do_not_import_torch(command):
    code = (
        "import sys\nfrom mcframe.cli.app import app\n"
        f"app([{command!r}], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0, result.output


def test_renamed_command_and_export_end_in_the_new_name():
    assert CliRunner().invoke(app, ["ablate", "grid.toml"]).exit_code == 2
    with pytest.raises(ImportError, match="new name: Loss"):
        _ = hookspecs.Objective
    with pytest.raises(AttributeError):
        _ = hookspecs.Nonsense


def test_load_run_is_public():
    from mcframe.cli.load_run import load_run

    assert mcframe.load_run is load_run
