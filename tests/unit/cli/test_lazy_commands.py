"""Commands are imported when they are called."""

import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import mcframe
from mcframe import hookspecs
from mcframe.cli.app import COMMANDS, app
from mcframe.errors import Interrupt
from mcframe.renamed import RENAMED_COMMANDS, RENAMED_EXPORTS, RENAMED_OPTIONS


def test_quick_commands_do_not_import_torch():
    code = (
        "import sys\nfrom mcframe.cli.app import app\n"
        "for command in ('--help', 'version', 'metrics'):\n"
        "    app([command], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0, result.output


def test_renamed_commands_options_and_exports_name_the_new_name():
    for name, new in RENAMED_COMMANDS.items():
        result = CliRunner().invoke(app, [name, "grid.toml"])
        assert result.exit_code == 2
        assert f"Run mcframe {new}" in result.output
    for option, new in RENAMED_OPTIONS.items():
        result = CliRunner().invoke(app, ["eval", "runs/x", option, "runs/y"])
        assert result.exit_code == 2
        assert f"Pass {new}" in result.output
    for name, new in RENAMED_EXPORTS.items():
        with pytest.raises(ImportError, match=f"new name: {new}"):
            getattr(hookspecs, name)
    with pytest.raises(AttributeError):
        _ = hookspecs.Nonsense


@pytest.mark.parametrize("function", ["mcframe.cli.app.echo", "typer.core.TyperGroup.parse_args"])
def test_an_interrupted_command_prints_one_line_and_has_the_signal_s_code(monkeypatch, function):
    def interrupted(*_):
        raise Interrupt(signal.SIGTERM)

    monkeypatch.setattr(function, interrupted)
    result = CliRunner().invoke(app, ["version"])
    assert (result.exit_code, result.output) == (143, "interrupted\n")


def test_load_run_is_public():
    from mcframe.cli.load_run import load_run

    assert mcframe.load_run is load_run
