"""Runs from elsewhere: no command executes, follows or prints what their files name, unless --trust is passed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil

import pytest
from typer.testing import CliRunner

import mcframe
from mcframe.cli.app import app
from mcframe.errors import UserError
from mcframe.registry.discovery import PluginOptions
from tests.support.shared_runs import UNTRAINED

pytestmark = pytest.mark.launcher
SECRET = "root:x:0:0:secret-of-another-file"
HOOK = "from mcframe.hookspecs import hookimpl\n@hookimpl\ndef run_finished(run): ...\n"


class Foreign:
    """A copy of a run that this user has not made, with a file that exists once any of its code was executed.

    Attributes:
        run: The run directory.
        marker: The file.
        outside: A file of the user, with a secret.
    """

    def __init__(self, original, folder):
        self.run, self.marker = folder / "foreign", folder / "executed"
        shutil.copytree(original, self.run, ignore=shutil.ignore_patterns("wandb", "tensorboard"))
        self.outside = folder / "private.gin"
        self.outside.write_text(f"{SECRET}\n")
        self.code = f"{HOOK}open({str(self.marker)!r}, 'a').write('executed')\n"
        self.folder = folder

    def name_plugin(self, spec, copy="", code=""):
        file = self.run / "provenance.json"
        facts = json.loads(file.read_text())
        named = {"spec": str(spec), "copy": copy, "sha256": hashlib.sha256(code.encode()).hexdigest() if code else ""}
        facts["plugin_options"]["named"].append(named)
        file.write_text(json.dumps(facts))

    def append(self, *lines):
        with (self.run / "config.gin").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def link(self, name):
        (self.run / name).unlink(missing_ok=True)
        (self.run / name).symlink_to(self.outside)


def module(foreign):
    (foreign.folder / "crafted_module.py").write_text(foreign.code)
    foreign.name_plugin("crafted_module")


def file_outside(foreign):
    (foreign.folder / "crafted.py").write_text(foreign.code)
    foreign.name_plugin(foreign.folder / "crafted.py", "plugins/none.py", foreign.code)


def copy_inside(foreign):
    (foreign.run / "plugins").mkdir(exist_ok=True)
    (foreign.run / "plugins" / "crafted.py").write_text(foreign.code)
    foreign.name_plugin("/nowhere/crafted.py", "plugins/crafted.py", foreign.code)


def copy_outside(foreign):
    (foreign.folder / "crafted.py").write_text(foreign.code)
    foreign.name_plugin("/nowhere/crafted.py", "../crafted.py", foreign.code)


def included(foreign):
    foreign.append(f"include {str(foreign.outside)!r}")


def included_by_a_link(foreign):
    (foreign.run / "near.gin").symlink_to(foreign.outside)
    foreign.append("include 'near.gin'")


def imported(foreign):
    (foreign.folder / "crafted_module.py").write_text(foreign.code)
    foreign.append("import crafted_module", "from crafted_module import something")


def outside_text(foreign):
    foreign.append(f"text.local_files.paths = [{str(foreign.outside)!r}]")


def config_link(foreign):
    foreign.link("config.gin")


def damaged_provenance(foreign):
    (foreign.run / "provenance.json").write_text('{"plugin_options": {"named": [{"spec": ["x"]}]}}')


PLUGINS = (module, file_outside, copy_inside, copy_outside)
CONFIGS = (included, included_by_a_link, imported, outside_text, config_link, damaged_provenance)
REOPENING = ("sample", "eval", "load_run")
READING = ("export", "review", "compare", "dashboard")


@pytest.fixture(scope="module")
def original(launches):
    return launches.shared(*UNTRAINED).succeeded().run_dir


@pytest.fixture
def foreign(original, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "1", "COLUMNS": "300", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Foreign(original, tmp_path)


def execute(command, run, other, *options):
    """Return the exit code and the output of a command, and the text of the files that it wrote."""
    if command == "load_run":
        try:
            mcframe.load_run(run, trust="--trust" in options)
        except UserError as error:
            return 2, str(error)
        return 0, ""
    out = run.parent / "out"
    arguments = {
        "sample": ["sample", run, "--prompt", "a", "--length", "2"],
        "eval": ["eval", run, "--windows", "2", "--evaluation", "gist_quality", "--out", out],
        "export": ["export", run, "--out", out / "weights"],
        "review": ["review", run, "--out", out],
        "compare": ["compare", run, other, "--out", out],
        "dashboard": ["dashboard", "wandb", run, "--out", out / "it.py"],
    }[command]
    result = CliRunner().invoke(app, [*map(str, arguments), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    written = [file.read_text("utf-8", "replace") for file in out.rglob("*") if file.is_file()] if out.exists() else []
    return result.exit_code, "".join([result.output, *written])


@pytest.mark.parametrize("command", REOPENING)
@pytest.mark.parametrize("craft", [*PLUGINS, *CONFIGS], ids=lambda craft: craft.__name__)
def test_no_command_executes_or_prints_what_a_run_names(foreign, original, command, craft):
    craft(foreign)
    code, output = execute(command, foreign.run, original)
    assert not foreign.marker.exists()
    assert SECRET not in output
    assert code == 2
    assert craft in (damaged_provenance, imported) or "--trust" in output


def undrawn(figure, file, format, **options):  # drawing takes seconds
    file.write("<svg></svg>" if format == "svg" else b"")


@pytest.mark.parametrize("command", READING)
def test_commands_that_only_read_do_not_care(foreign, original, monkeypatch, command):
    """They read configuration and provenance as text: all crafted ones at once."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", undrawn)
    for craft in (*PLUGINS, included, imported, outside_text):
        craft(foreign)
    code, output = execute(command, foreign.run, original)
    assert code == 0, output
    assert not foreign.marker.exists()
    assert SECRET not in output


@pytest.mark.parametrize("craft", [module, copy_inside], ids=lambda craft: craft.__name__)
def test_trust_executes_them_and_is_needed_once(foreign, original, craft):
    craft(foreign)
    assert execute("load_run", foreign.run, original, "--trust") == (0, "")
    assert foreign.marker.exists()
    assert execute("load_run", foreign.run, original) == (0, "")
    foreign.append("sampling.length = 9")
    assert execute("load_run", foreign.run, original)[0] == 2


def test_a_plugin_of_the_command_line_needs_no_trust(foreign):
    copy_inside(foreign)
    mine = foreign.folder / "crafted.py"
    mine.write_text(HOOK)
    with pytest.raises(UserError, match=r"crafted\.py"):
        mcframe.load_run(foreign.run)
    mcframe.load_run(foreign.run, plugins=PluginOptions(named=(str(mine),)))
    mcframe.load_run(foreign.run, plugins=PluginOptions(without=("crafted.py",)))
    assert not foreign.marker.exists()


def test_runs_without_code_and_paths_need_no_trust(foreign, original):
    code, output = execute("sample", foreign.run, original)
    assert code == 0, output
    assert not os.path.exists(foreign.folder / "config")


LINKED = (
    "config.gin", "operative.gin", "provenance.json", "metrics.jsonl", "texts.jsonl", "pictures.jsonl", "summary.json",
    "evaluation/eval.json",
)  # fmt: skip


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("load_run", name) for name in LINKED),
        *((command, "operative.gin") for command in ("sample", "eval", *READING)),
    ],
)
def test_links_to_files_outside_are_not_followed(foreign, original, command, name):
    (foreign.run / "evaluation").mkdir(exist_ok=True)
    foreign.link(name)
    code, output = execute(command, foreign.run, original)
    assert code == 2
    assert "link out of the run directory" in output
    assert "--trust" in output
    assert SECRET not in output


def test_links_to_folders_are_those_of_trusted_runs(foreign, original):
    shutil.move(foreign.run / "checkpoints", foreign.folder / "disk")
    (foreign.run / "checkpoints").symlink_to(foreign.folder / "disk")
    assert execute("export", foreign.run, original)[0] == 2
    assert execute("load_run", foreign.run, original, "--trust") == (0, "")
    assert execute("export", foreign.run, original)[0] == 0


class Crafted:
    """An object whose pickle executes code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("command", ["sample", "eval", "export", "load_run"])
def test_pickles_in_checkpoints_are_not_executed(foreign, original, command):
    for file in (foreign.run / "checkpoints").rglob("*"):
        if file.is_file() and file.suffix != ".json":
            file.write_bytes(pickle.dumps(Crafted(foreign.marker)))
    code, output = execute(command, foreign.run, original)
    assert code == 2, output
    assert not foreign.marker.exists()
