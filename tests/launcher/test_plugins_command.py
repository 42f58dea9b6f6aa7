"""`mcframe plugins` and the plug-in options of other commands, in this process; a run with a plug-in in a file."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.cli.load_run import load_run
from mcframe.config.run_config import all_plugins, load_run_config
from mcframe.errors import UserError
from mcframe.hookspecs import API_VERSION
from mcframe.registry.discovery import PluginOptions

PLUGIN = '''
    """Somebody's."""

    import os
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from mcframe.hookspecs import GistNet, TextSource, hookimpl

    class Last(GistNet):
        """The last child, through a map.

        bias  whether it has one
        """

        def __init__(self, shape, *, bias: bool = False, act: Callable[[float], float] = abs, free=(1, 2)):
            super().__init__()
            self.slots = shape.tree.slots
            self.head = nn.Linear(shape.width, shape.width, bias=bias)

        def forward(self, children, lod):
            return self.head(children[:, :, -self.slots :])

    class Pages(TextSource):
        """Pages."""

        def __init__(self, folder: str, *, limit: int | None = None): ...

    @hookimpl
    def register_plugins(register):
        register("last", Last)
        register("pages", Pages)

    @hookimpl
    def run_started(run):
        Path(run.directory, f"rank-{run.rank}.txt").write_text("started")
'''


@pytest.fixture
def mcframe(monkeypatch, tmp_path):
    """Runs the command in this process."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    Path("somebody.py").write_text(textwrap.dedent(PLUGIN))
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def broken(new_site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    new_site(tmp_path / "site").install("broken_package", "import not_there_at_all")
    yield
    sys.modules.pop("broken_package", None)


def test_the_list_says_what_there_is_and_where_from(mcframe):
    result = mcframe("plugins", "--plugin", "somebody.py")
    assert result.exit_code == 0, result.output
    rows = {tuple(cell.strip() for cell in line.split("│")[1:3]): line for line in result.output.splitlines()}
    ours, theirs = rows["gistnet", "mean"], rows["gistnet", "last"]
    assert "│ mcframe 0.1.0, first-party-gistnets " in ours
    assert "│ --plugin somebody.py " in theirs
    assert ("text", "local_files") in rows
    assert "│ run_started │ --plugin somebody.py │" in result.output


def test_the_list_breaks_no_word_at_80_columns(mcframe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = mcframe("plugins", "--plugin", "somebody.py").output.splitlines()
    entries = [entry for offered in all_plugins().implementations.values() for entry in offered.values()]
    for entry in entries:
        cells = [entry.kind, entry.name, f"{entry.distribution} {entry.version}, {entry.plugin.rpartition(':')[2]}"]
        assert cells in [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_the_list_for_machines(mcframe, broken, root, tmp_path):
    result = mcframe("plugins", "--json", "--plugin", "somebody.py", "--no-plugin", "first-party-lensnets")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert facts["api"] == API_VERSION
    entries = {(entry["kind"], entry["name"]): entry for entry in facts["implementations"]}
    assert entries["gistnet", "mean"] == {
        "kind": "gistnet", "name": "mean", "plugin": "first-party-gistnets", "package": "mcframe", "version": "0.1.0",
        "api": API_VERSION, "file": str(root / "plugins/gistnet/mean.py"),
    }  # fmt: skip
    assert not any(kind == "lensnet" for kind, _ in entries)
    assert facts["left_out"] == ["first-party-lensnets"]
    (lifecycle,) = facts["lifecycle"]
    assert (lifecycle["hooks"], lifecycle["file"]) == (["run_started"], str(tmp_path / "somebody.py"))
    (failed,) = facts["broken"]
    assert (failed["plugin"], failed["package"], failed["version"]) == ("it", "broken_package", "1.0")
    assert failed["error"].startswith("ModuleNotFoundError")
    assert "pip uninstall broken_package" in failed["remedy"]


def test_what_is_broken_is_listed_with_its_error_and_remedy(mcframe, broken):
    result = mcframe("plugins")
    assert result.exit_code == 0, result.output
    assert "broken: plug-in 'it' of broken_package 1.0 could not be loaded: ModuleNotFoundError" in result.output
    assert "→ upgrade broken_package" in result.output
    strict = mcframe("plugins", "--strict-plugins")
    assert strict.exit_code == 2
    shown = mcframe("plugins", "show", "broken_package")
    assert shown.exit_code == 2
    assert "ModuleNotFoundError" in shown.output


def test_lines_of_show_can_be_pasted(mcframe, smoke, tmp_path):
    for name in ("gistnet.transformer", "lensnet.transformer", "allocator.greedy", "variants.random_collapse",
                 "evaluation.gist_quality", "task.recall", "tokenizer.bytes", "positions.gaussian_rope",
                 "loss.next_token", "loss.z_loss", "logger.prometheus"):  # fmt: skip
        result = mcframe("plugins", "show", name)
        assert result.exit_code == 0, result.output
        (tmp_path / "pasted.gin").write_text(f"include '{smoke}'\n{result.output}")
        loaded = load_run_config([tmp_path / "pasted.gin"], [])
        bound = {key: value for key, value in loaded.config.as_dict().items() if key.startswith(f"{name}.")}
        assert len(bound) == sum(line.startswith(f"{name}.") for line in result.output.splitlines())


def test_show_says_types_defaults_what_must_be_set_and_what_gin_cannot_write(mcframe, smoke, tmp_path):
    result = mcframe("plugins", "--plugin", "somebody.py", "show", "last")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"# gistnet.last, plug-in '{tmp_path / 'somebody.py'}', without the plug-in API")
    assert "# The last child, through a map.\n#\n# bias  whether it has one\n" in result.output
    lines = result.output.splitlines()
    assert "run.gistnet = @gistnet.last" in lines
    assert [line.split("  #")[0].rstrip() for line in lines[-3:]] == [
        "gistnet.last.bias = False", "# gistnet.last.act has a default of its own", "gistnet.last.free = (1, 2)",
    ]  # fmt: skip
    assert lines[-3].endswith("  # bool")
    needy = mcframe("plugins", "show", "@text.pages", "--plugin", "somebody.py").output
    assert "text.pages.folder = %gin.REQUIRED  # str" in needy
    assert "text.pages.limit = None            # int or None" in needy
    (tmp_path / "pasted.gin").write_text(f"include '{smoke}'\n{needy}")
    with pytest.raises(UserError, match=r"missing values for text\.pages\.folder"):
        load_run_config(["pasted.gin"], [], PluginOptions(named=("somebody.py",)))


def test_show_for_machines(mcframe):
    facts = json.loads(mcframe("plugins", "show", "gistnet.last", "--json", "--plugin", "somebody.py").output)
    assert facts["select"] == "run.gistnet = @gistnet.last"
    assert facts["doc"].startswith("The last child")
    assert facts["parameters"][0] == {
        "binding": "gistnet.last.bias", "type": "bool", "default": "False", "required": False,
        "line": "gistnet.last.bias = False", "meaning": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gistnet.lsat", "no plug-in offers @gistnet.lsat (did you mean @gistnet.last?)"),
        ("transformer", "transformer is the name of gistnet.transformer, lensnet.transformer"),
        ("gistnets.mean", "unknown plug-in gistnets.mean (did you mean gistnet.mean?)"),
    ],
)
def test_show_of_what_is_not_there_or_not_alone(mcframe, name, message):
    result = mcframe("plugins", "show", name, "--plugin", "somebody.py")
    assert result.exit_code == 2
    assert message in result.output


def test_check_takes_a_file_and_what_is_left_out(mcframe, smoke):
    chosen = ("--set", "run.gistnet = @gistnet.last", "--plugin", "somebody.py")
    result = mcframe("check", smoke, *chosen)
    assert result.exit_code == 0, result.output
    assert "gistnet.last" in result.output
    assert "somebody.py" in result.output
    wrong = mcframe("check", smoke, *chosen, "--set", "gistnet.last.bias = 3")
    assert wrong.exit_code == 2
    assert "expected bool, got int" in wrong.output
    without = mcframe("check", smoke, "--no-plugin", "first-party-lensnets")
    assert without.exit_code == 2
    assert "left out with --no-plugin: first-party-lensnets" in without.output


# ---- a run ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(launches, tmp_path_factory, new_site):
    """Two ranks of `mcframe/run.py` with a plug-in in a file that is gone afterwards, without one that is installed."""
    folder = tmp_path_factory.mktemp("given")
    site = new_site(folder / "site")
    site.install("unwanted", "raise SystemExit('imported')")
    file = folder / "somebody.py"
    file.write_text(textwrap.dedent(PLUGIN))
    short = ("run.total_tokens = 2048", "logging.every = 1024", "deepspeed.zero_stage = 0",
             "logging.tensorboard = False", "run.gistnet = @gistnet.last", "run.evaluations = []")  # fmt: skip
    options = ["--plugin", str(file), "--no-plugin", "unwanted", "--strict-plugins"]
    result = launches.run(*short, ranks=2, options=options, environment=site.environment).succeeded()
    file.unlink()
    return result


@pytest.mark.launcher
def test_every_rank_had_the_plugin_and_the_run_says_so(trained):
    assert {file.name for file in trained.run_dir.glob("rank-*.txt")} == {"rank-0.txt", "rank-1.txt"}
    assert "plug-ins passed" in trained.output
    assert "somebody.py" in trained.output


@pytest.mark.launcher
def test_the_run_opens_again_without_the_file(trained, tmp_path):
    model = load_run(trained.run_dir).model
    assert type(model.gistnet).__name__ == "Last"
    copied = tmp_path / "run"
    shutil.copytree(trained.run_dir, copied)
    shutil.rmtree(copied / "plugins")
    with pytest.raises(UserError, match="was trained with the plug-in file"):
        load_run(copied)
    (tmp_path / "somebody.py").write_text(textwrap.dedent(PLUGIN))
    plugins = PluginOptions(named=(str(tmp_path / "somebody.py"),))
    assert type(load_run(copied, plugins=plugins).model.gistnet).__name__ == "Last"


@pytest.mark.launcher
def test_a_module_that_a_run_was_given_and_is_not_there(trained, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(trained.run_dir, copied)
    facts = json.loads((copied / "provenance.json").read_text())
    facts["plugin_options"]["named"].append({"spec": "a_module_of_then", "copy": "", "sha256": ""})
    (copied / "provenance.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="--plugin a_module_of_then: there is no module") as caught:
        load_run(copied)
    assert str(caught.value.place) == str(copied / "provenance.json")
