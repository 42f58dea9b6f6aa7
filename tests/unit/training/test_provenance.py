"""The record of the plug-ins of a run, and opening a run with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcframe.errors import UserError
from mcframe.registry.discovery import PluginOptions, discover
from mcframe.training.provenance import added_plugins, changes, check_alike, fingerprint, reopened, write_record

HOOK = """
from mcframe.hookspecs import hookimpl

@hookimpl
def run_finished(run):
    {what}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a run directory with the plug-in `nets.py` and without first-party LensNets."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(HOOK.format(what="..."))
    options = PluginOptions(named=("nets.py",), without=("first-party-lensnets",))
    return record(Path("run"), options)


def record(directory, options):
    directory.mkdir(exist_ok=True)
    (directory / "provenance.json").write_text(json.dumps(write_record(directory, discover(options))))
    return directory


def test_a_copy_of_a_file_is_recorded(run, tmp_path):
    facts = json.loads((run / "provenance.json").read_text())
    (named,) = facts["plugin_options"]["named"]
    assert named["spec"] == str(tmp_path / "nets.py")
    assert (run / named["copy"]).read_text() == Path("nets.py").read_text()
    assert facts["plugin_options"]["without"] == ["first-party-lensnets"]
    assert "mcframe" in facts["plugins"]


@pytest.mark.parametrize("lost", ["", "changed", "removed"])
def test_the_copy_is_opened_if_the_file_changed(run, lost):
    was = Path("nets.py").read_text()
    if lost == "changed":
        Path("nets.py").write_text(HOOK.format(what="raise RuntimeError"))
    elif lost == "removed":
        Path("nets.py").unlink()
    options = reopened(run, PluginOptions(), trusted=True)
    assert options.without == ("first-party-lensnets",)
    registry = discover(options)
    (plugin,) = (plugin for plugin in registry.plugins.values() if plugin.spec)
    assert plugin.code.decode() == was
    assert Path(plugin.file).is_relative_to(run.resolve())
    assert not registry.implementations["lensnet"]


def test_without_its_copy_an_unchanged_file_is_opened(run, tmp_path):
    (copy,) = run.glob("plugins/*/nets.py")
    copy.unlink()
    assert reopened(run, PluginOptions(), trusted=True).named == (str(tmp_path / "nets.py"),)
    for spoil in (lambda: Path("nets.py").write_text("x = 1"), Path("nets.py").unlink):
        spoil()
        with pytest.raises(UserError) as caught:
            reopened(run, PluginOptions(), trusted=True)
        assert f"was trained with the plug-in file {tmp_path / 'nets.py'}" in caught.value.message
        assert str(copy.relative_to(run)) in caught.value.message
        assert "--plugin FILE" in caught.value.remedy
        assert str(caught.value.location) == str(run / "provenance.json")


def test_a_file_of_the_same_name_replaces_it_and_an_option_removes_it(run):
    Path("new").mkdir()
    Path("new/nets.py").write_text(HOOK.format(what="pass"))
    assert reopened(run, PluginOptions(named=("new/nets.py",)), trusted=True).named == ("new/nets.py",)
    assert len(reopened(run, PluginOptions(named=("other.py",)), trusted=True).named) == 2
    left = reopened(run, PluginOptions(without=("nets.py", "first-party-variants")), trusted=True)
    assert left.named == ()
    assert set(left.without) == {"first-party-variants", "first-party-lensnets"}
    discover(left)


def test_an_excluded_package_may_be_uninstalled(run):
    facts = json.loads((run / "provenance.json").read_text())
    facts["plugin_options"]["without"].append("gone-since")
    (run / "provenance.json").write_text(json.dumps(facts))
    assert reopened(run, PluginOptions(), trusted=True).without == ("first-party-lensnets",)


def test_a_run_without_a_record_is_opened_with_the_options(tmp_path):
    (tmp_path / "provenance.json").write_text('{"plugins": {}}')
    options = PluginOptions(named=("a.py",), strict=True)
    assert reopened(tmp_path, options, trusted=True) == options
    assert reopened(tmp_path / "nowhere", options, trusted=True) == options


def test_a_reopened_run_has_the_same_record(run):
    again = record(Path("again"), reopened(run, PluginOptions(), trusted=True))
    Path("nets.py").unlink()
    (run / "provenance.json").unlink()
    discover(reopened(again, PluginOptions(), trusted=True))


def test_other_plugins_of_a_resumed_run_are_reported(run, tmp_path):
    def reported(*named):
        return changes(run, added_plugins(discover(PluginOptions(named=named))))

    file = tmp_path / "nets.py"
    assert reported("nets.py") == []
    assert reported() == [f"--plugin {file} was passed before"]
    Path("more.py").write_text(HOOK.format(what="pass"))
    assert reported("nets.py", "more.py") == [f"--plugin {tmp_path / 'more.py'} was not passed before"]
    Path("nets.py").write_text(HOOK.format(what="pass"))
    assert reported("nets.py") == [f"{file} was changed"]
    assert changes(tmp_path / "new", added_plugins(discover(PluginOptions(named=("nets.py",))))) == []


def test_ranks_must_have_the_same_plugins(run):
    def rank(*named):
        return fingerprint(discover(PluginOptions(named=named)))

    first = rank("nets.py")
    check_alike([first, rank("nets.py"), first])
    with pytest.raises(UserError, match=r"rank 0 has nets\.py \w{12} where rank 2 has nothing"):
        check_alike([first, first, rank()])
    Path("nets.py").write_text(HOOK.format(what="pass"))
    with pytest.raises(UserError, match=r"rank 0 has nets\.py \w{12} where rank 1 has nets\.py \w{12}") as caught:
        check_alike([first, rank("nets.py")])
    assert "storage of all nodes" in caught.value.remedy
    with pytest.raises(UserError, match=r"rank 0 has nothing where rank 1 has third_party 1\.0"):
        check_alike([first, [*first, "third_party 1.0"]])
