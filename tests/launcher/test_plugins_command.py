"""`mcframe plugins` and the plug-in options of other commands, called in this process; a run with a plug-in file."""

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
    """A third-party plug-in."""

    import os
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from mcframe.hookspecs import GistNet, TextSource, hookimpl

    class Last(GistNet):
        """The last child, through a map.

        bias  whether the map has one
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
    """Call the command in this process."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    Path("third_party.py").write_text(textwrap.dedent(PLUGIN))
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def broken(new_site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    new_site(tmp_path / "site").install("broken_package", "import not_there_at_all")
    yield
    sys.modules.pop("broken_package", None)


def test_the_list_has_kinds_names_and_packages(mcframe):
    result = mcframe("plugins", "--plugin", "third_party.py")
    assert result.exit_code == 0, result.output
    rows = {tuple(cell.strip() for cell in line.split("│")[1:3]): line for line in result.output.splitlines()}
    first_party, third_party = rows["gistnet", "mean"], rows["gistnet", "last"]
    assert "│ mcframe 0.1.0, first-party-gistnets " in first_party
    assert "│ --plugin third_party.py " in third_party
    assert ("text", "local_files") in rows
    assert "│ run_started │ --plugin third_party.py │" in result.output


def test_the_list_breaks_no_word_at_80_columns(mcframe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = mcframe("plugins", "--plugin", "third_party.py").output.splitlines()
    entries = [entry for offered in all_plugins().implementations.values() for entry in offered.values()]
    for entry in entries:
        cells = [entry.kind, entry.name, f"{entry.distribution} {entry.version}, {entry.plugin.rpartition(':')[2]}"]
        assert cells in [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_the_list_for_machines(mcframe, broken, root, tmp_path):
    result = mcframe("plugins", "--json", "--plugin", "third_party.py", "--no-plugin", "first-party-lensnets")
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
    assert (lifecycle["hooks"], lifecycle["file"]) == (["run_started"], str(tmp_path / "third_party.py"))
    (failed,) = facts["broken"]
    assert (failed["plugin"], failed["package"], failed["version"]) == ("it", "broken_package", "1.0")
    assert failed["error"].startswith("ModuleNotFoundError")
    assert "pip uninstall broken_package" in failed["remedy"]


def test_broken_plug_ins_are_listed_with_error_and_remedy(mcframe, broken):
    result = mcframe("plugins")
    assert result.exit_code == 0, result.output
    assert "plug-in 'it' of broken_package 1.0" in result.output
    assert "ModuleNotFoundError" in result.output
    assert "upgrade broken_package" in result.output
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


def test_show_prints_types_defaults_required_values_and_values_that_gin_cannot_write(mcframe, smoke, tmp_path):
    result = mcframe("plugins", "--plugin", "third_party.py", "show", "last")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"# gistnet.last, plug-in '{tmp_path / 'third_party.py'}'")
    assert "# The last child, through a map.\n#\n# bias  whether the map has one\n" in result.output
    lines = result.output.splitlines()
    assert "run.gistnet = @gistnet.last" in lines
    assert [line.split("  #")[0].rstrip() for line in lines[-3:]] == [
        "gistnet.last.bias = False", "# gistnet.last.act has a default of its own", "gistnet.last.free = (1, 2)",
    ]  # fmt: skip
    assert lines[-3].endswith("  # bool")
    needy = mcframe("plugins", "show", "@text.pages", "--plugin", "third_party.py").output
    assert "text.pages.folder = %gin.REQUIRED  # str" in needy
    assert "text.pages.limit = None            # int or None" in needy
    (tmp_path / "pasted.gin").write_text(f"include '{smoke}'\n{needy}")
    with pytest.raises(UserError, match=r"missing values for text\.pages\.folder"):
        load_run_config(["pasted.gin"], [], PluginOptions(named=("third_party.py",)))


def test_show_for_machines(mcframe):
    facts = json.loads(mcframe("plugins", "show", "gistnet.last", "--json", "--plugin", "third_party.py").output)
    assert facts["select"] == "run.gistnet = @gistnet.last"
    assert facts["doc"].startswith("The last child")
    assert facts["parameters"][0] == {
        "binding": "gistnet.last.bias", "type": "bool", "default": "False", "required": False,
        "line": "gistnet.last.bias = False", "meaning": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gistnet.lsat", "did you mean @gistnet.last?"),
        ("transformer", "gistnet.transformer, lensnet.transformer"),
        ("gistnets.mean", "did you mean gistnet.mean?"),
    ],
)
def test_show_of_an_unknown_or_ambiguous_name(mcframe, name, message):
    result = mcframe("plugins", "show", name, "--plugin", "third_party.py")
    assert result.exit_code == 2
    assert message in result.output


def test_check_takes_a_plug_in_file_and_excluded_plug_ins(mcframe, smoke):
    chosen = ("--set", "run.gistnet = @gistnet.last", "--plugin", "third_party.py")
    result = mcframe("check", smoke, *chosen)
    assert result.exit_code == 0, result.output
    assert "gistnet.last" in result.output
    assert "third_party.py" in result.output
    wrong = mcframe("check", smoke, *chosen, "--set", "gistnet.last.bias = 3")
    assert wrong.exit_code == 2
    assert "expected bool, got int" in wrong.output
    without = mcframe("check", smoke, "--no-plugin", "first-party-lensnets")
    assert without.exit_code == 2
    assert "--no-plugin: first-party-lensnets" in without.output


# ---- a run ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(launches, tmp_path_factory, new_site):
    """Two ranks with a plug-in file that is removed afterwards, without an installed plug-in that would raise."""
    folder = tmp_path_factory.mktemp("plugin")
    site = new_site(folder / "site")
    site.install("excluded", "raise SystemExit('imported')")
    file = folder / "third_party.py"
    file.write_text(textwrap.dedent(PLUGIN))
    short = ("run.batch_tokens = 512", "run.total_tokens = 1024", "validation.windows = 4", "deepspeed.zero_stage = 0",
             "logging.tensorboard = False", "run.gistnet = @gistnet.last", "run.evaluations = []")  # fmt: skip
    options = ["--plugin", str(file), "--no-plugin", "excluded", "--strict-plugins"]
    result = launches.run(*short, ranks=2, options=options, environment=site.environment).succeeded()
    file.unlink()
    return result


@pytest.mark.launcher
def test_every_rank_loads_the_plugin_and_the_run_reports_it(trained):
    assert {file.name for file in trained.run_dir.glob("rank-*.txt")} == {"rank-0.txt", "rank-1.txt"}
    assert "third_party.py" in trained.output


@pytest.mark.launcher
def test_the_run_opens_without_the_file(trained, tmp_path):
    model = load_run(trained.run_dir).model
    assert type(model.gistnet).__name__ == "Last"
    copied = tmp_path / "run"
    shutil.copytree(trained.run_dir, copied)
    shutil.rmtree(copied / "plugins")
    with pytest.raises(UserError, match="was trained with the plug-in file"):
        load_run(copied)
    (tmp_path / "third_party.py").write_text(textwrap.dedent(PLUGIN))
    plugins = PluginOptions(named=(str(tmp_path / "third_party.py"),))
    assert type(load_run(copied, plugins=plugins).model.gistnet).__name__ == "Last"


@pytest.mark.launcher
def test_a_missing_plug_in_module_of_a_run_is_an_error(trained, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(trained.run_dir, copied)
    facts = json.loads((copied / "provenance.json").read_text())
    facts["plugin_options"]["named"].append({"spec": "a_missing_module", "copy": "", "sha256": ""})
    (copied / "provenance.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="--plugin a_missing_module") as caught:
        load_run(copied, trust=True)
    assert str(caught.value.location) == str(copied / "provenance.json")
