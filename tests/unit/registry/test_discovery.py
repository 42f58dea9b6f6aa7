"""`--plugin`, `--no-plugin` and `--strict-plugins`, with real packages and files."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.hookspecs import RunInfo
from mcframe.registry.discovery import PluginOptions, discover
from tests.support.file_plugins import NET, refusal, with_plugin

HELD_BY_AN_OBJECT = """
    from mcframe.hookspecs import hookimpl

    class Plugin:
        @hookimpl
        def run_finished(self, run): ...

    class inner:
        plugin = Plugin()
"""


# ---- --plugin ------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", ["nets.py", "./nets.py", "deep/down/nets.py"])
def test_a_local_file_offers_what_it_registers(put, spec):
    file = put(spec)
    registry = with_plugin(spec)
    offered = registry.implementations["gistnet"]["last"]
    assert (offered.plugin, offered.distribution, offered.file) == (str(file), "", str(file))
    assert offered.origin == f"plug-in {str(file)!r}"
    known = registry.plugins[str(file)]
    assert (known.spec, known.code) == (str(file), file.read_bytes())
    assert "transformer" in registry.implementations["gistnet"]
    assert str(file.parent) not in sys.path  # the folder's other modules must not shadow installed ones


def test_a_file_that_was_changed_is_read_again(put):
    put("nets.py")
    first = with_plugin("nets.py").implementations["gistnet"]["last"].factory
    assert with_plugin("nets.py").implementations["gistnet"]["last"].factory is first
    put("nets.py", NET.replace("{name}", "other"))
    assert set(with_plugin("nets.py").implementations["gistnet"]) >= {"other"}
    assert "last" not in with_plugin("nets.py").implementations["gistnet"]


def test_an_object_of_a_file_or_a_module(put, install):
    file = put("nets.py", HELD_BY_AN_OBJECT)
    assert with_plugin("nets.py:inner.plugin").plugins[f"{file}:inner.plugin"].lifecycle == ("run_finished",)
    install("a_package_of_objects", HELD_BY_AN_OBJECT)
    (info,) = (file.parent / ".." / "site").glob("a_package_of_objects-*")
    (info / "RECORD").write_text("a_package_of_objects.py,,\n")  # what an installer leaves
    registry = with_plugin("a_package_of_objects:inner.plugin")
    known = registry.plugins["a_package_of_objects:inner.plugin"]
    assert (known.distribution, known.version, known.lifecycle) == ("a_package_of_objects", "1.0", ("run_finished",))
    assert registry.versions()["a_package_of_objects"] == "1.0"  # it offers nothing, and is part of the run


def test_naming_a_registered_plugin_again_changes_nothing(put, install):
    install("third_party_nets", NET.replace("{name}", "theirs"))
    put("nets.py")
    registry = with_plugin("third_party_nets", "nets.py", "./nets.py")
    assert {"theirs", "last"} <= set(registry.implementations["gistnet"])
    assert registry.implementations["gistnet"]["theirs"].plugin == "third_party_nets:it"


WRONG = {
    "no file": ("nowhere.py", None, ["nowhere.py: No such file"], "a file that ends in .py", None),
    "no module": ("no_such_module_at_all", None, ["missing module 'no_such_module_at_all'"], "PYTHONPATH", None),
    "a file taken for a module": (
        "nets",
        ("nets.py", "x = 1"),
        ["missing module 'nets'"],
        "name the file: --plugin nets.py",
        None,
    ),
    "no such object": (
        "nets.py:plugin",
        ("nets.py", "plugins = 1"),
        ["no 'plugin' (did you mean plugins?)"],
        "colon",
        None,
    ),
    "no hook": ("nets.py", ("nets.py", "x = 1"), ["it implements no hook"], "mark its functions", None),
    "no Python": ("nets.py", ("nets.py", "x = 1\ndef ("), ["SyntaxError"], "Fix the error", 2),
    "raises": (
        "nets.py",
        ("nets.py", "x = 1\n\nraise RuntimeError('no luck')"),
        ["RuntimeError: no luck"],
        "Fix",
        3,
    ),
    "missing import": (
        "nets.py",
        ("nets.py", "import not_there_at_all"),
        ["ModuleNotFoundError", "not_there"],
        "Fix",
        1,
    ),
    "a class": ("nets.py:P", ("nets.py", "class P: ..."), ["P is a class"], "publish an instance", None),
    "a misspelt hook": (
        "nets.py",
        ("nets.py", "from mcframe.hookspecs import hookimpl\n@hookimpl\ndef register_gistnet(register): ..."),
        ["mcframe has no hook 'register_gistnet' (did you mean register_plugins"],
        "rename the function",
        None,
    ),
    "nothing": ("", None, ["names nothing"], "module, module:object or path/to/file.py", None),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_named_plugin_must_load(put, case):
    spec, file, parts, remedy, line = WRONG[case]
    path = put(*file) if file else None
    error = refusal(spec)
    for part in parts:
        assert part in error.message
    assert remedy in error.remedy
    assert str(error.location) == f"{path}:{line}" if line else error.location is None
    assert case == "nothing" or error.message.startswith("--plugin ")


def test_a_file_that_failed_may_be_corrected(put, monkeypatch):
    condition = "import os\nassert 'READY' in os.environ\n" + textwrap.dedent(NET.replace("{name}", "last"))
    put("nets.py", condition)
    refusal("nets.py")
    monkeypatch.setenv("READY", "yes")  # the half-executed module must not be reused
    assert "last" in with_plugin("nets.py").implementations["gistnet"]


def test_one_name_twice_is_refused_with_both_origins_and_one_may_be_skipped(put, install):
    install("other_nets", NET.replace("{name}", "last"))
    file = put("nets.py")
    error = refusal("nets.py")
    assert error.message == (
        f"two plug-ins offer gistnet.last: plug-in 'it' of other_nets 1.0 and plug-in {str(file)!r}"
    )
    assert "--no-plugin NAME" in error.remedy
    registry = discover(PluginOptions(named=("nets.py",), without=("other_nets",)))
    assert registry.implementations["gistnet"]["last"].plugin == str(file)


def test_one_name_in_two_packages_costs_a_warning_and_its_use_an_error(install, smoke):
    for package in ("one_lab", "other_lab", "third_lab"):
        install(package, NET.replace("{name}", "last") + '        register("of_" + __name__, Last)\n')
    install("own_lab", NET.replace("{name}", "mean"))
    registry = load_run_config([smoke], ["run.gistnet = @gistnet.of_third_lab"]).registry
    assert {"of_one_lab", "of_other_lab", "of_third_lab"} <= set(registry.implementations["gistnet"])
    both = "two plug-ins offer gistnet.last: plug-in 'it' of one_lab 1.0 and plug-in 'it' of other_lab 1.0"
    assert [line for line in registry.warnings() if "gistnet.last" in line] == [
        f"{both}; runs that use neither are not affected"
    ]
    for name in ("last", "mean"):
        with pytest.raises(UserError, match=f"two plug-ins offer gistnet.{name}: ") as caught:
            load_run_config([smoke], [f"run.gistnet = @gistnet.{name}"])
        assert "--no-plugin" in caught.value.remedy
    chosen = discover(PluginOptions(without=("one_lab", "third_lab")))
    assert chosen.implementations["gistnet"]["last"].distribution == "other_lab"


def test_a_default_that_a_package_offers_too_is_an_error(install, smoke):
    install("own_lab", NET.replace('register("{name}", Last)', 'register("adamw", Last, kind="optimizer")'))
    with pytest.raises(UserError, match=r"two plug-ins offer optimizer\.adamw"):
        load_run_config([smoke], [])


def test_output_of_an_import_goes_to_stderr(install, capsys):
    install("chatty_lab", "print('welcome')\n" + textwrap.dedent(NET.replace("{name}", "last")))
    assert "last" in discover().implementations["gistnet"]
    assert capsys.readouterr() == ("", "welcome\n")


# ---- life-cycle hooks ----------------------------------------------------------------------------
HOOKED = """
    from mcframe.hookspecs import hookimpl

    SEEN = []

    @hookimpl
    def run_started(run):
        SEEN.append(dict(run.hooks))
"""


@pytest.mark.parametrize(
    ("settings", "named", "acts"),
    [
        ({}, (), False),
        ({"other_lab": {}}, (), False),
        ({"hooked_lab": {"channel": "runs"}}, (), True),
        ({"it": {}}, (), True),
        ({"hooked_lab:it": {}}, (), True),
        ({}, ("hooked_lab",), True),
    ],
)
def test_hooks_of_an_installed_package_act_only_where_a_run_enables_them(install, smoke, settings, named, acts):
    for package in ("hooked_lab", "other_lab"):
        install(package, HOOKED)
    registry = load_run_config([smoke], [f"run.hooks = {settings}"], PluginOptions(named=named)).registry
    registry.hooks.run_started(RunInfo(Path("run"), 0, 1, 0, 0, 0))
    seen = importlib.import_module("hooked_lab").SEEN
    assert seen == ([settings] if acts else [])
    silent = [line for line in registry.warnings() if "hooked_lab" in line]
    assert silent == ([] if acts else [
        "life-cycle hooks of plug-in 'it' of hooked_lab 1.0 do not act; run.hooks = {'hooked_lab': {}} enables them"
    ])  # fmt: skip


def test_hooks_of_a_file_act_and_gin_configures_them(put, smoke):
    put("hooked.py", textwrap.dedent(HOOKED))
    registry = load_run_config(
        [smoke], ["run.hooks = {'hooked': {'every': 3}}"], PluginOptions(named=("hooked.py",))
    ).registry
    registry.hooks.run_started(RunInfo(Path("run"), 0, 1, 0, 0, 0))
    (plugin,) = (each for each in registry.plugins.values() if each.code)
    seen = next(module.SEEN for module in sys.modules.values() if getattr(module, "__file__", "") == plugin.file)
    assert seen == [{"hooked": {"every": 3}}]


@pytest.mark.parametrize("name", ["hooked_lba", "mcframe"])
def test_hooks_of_an_unknown_plugin_are_refused(install, smoke, name):
    install("hooked_lab", HOOKED)
    with pytest.raises(UserError, match=f"life-cycle hooks, got '{name}'") as caught:
        load_run_config([smoke], [f"run.hooks = {{'{name}': {{}}}}"])
    assert "hooked_lab" in caught.value.remedy
    assert caught.value.location is not None


# ---- --no-plugin ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["it", "skipped_PACK-AGE", "skipped_pack_age:it"])
def test_a_skipped_plugin_is_not_imported(install, name):
    install("skipped_pack_age", "raise SystemExit('imported')")
    registry = discover(PluginOptions(without=(name,)))
    assert (registry.broken, registry.skipped) == ([], ["it"])
    assert "skipped_pack_age" not in registry.versions()
    assert "skipped with --no-plugin: it" in registry.unknown("gistnet", "nothing").message


def test_skipping_an_unknown_plugin_is_refused():
    error = refusal(without=("first-party-gistnet",))
    assert "--no-plugin first-party-gistnet: no plug-in" in error.message
    assert "(did you mean first-party-gistnets?)" in error.message
    assert "mcframe" in error.remedy


@pytest.mark.parametrize("group", ["mcframe.plugin", "mcframe_plugins", "mcframe.Plugins", "mcframe"])
def test_a_misspelt_group_of_entry_points_is_a_warning(install, tmp_path, group):
    install("their_nets", "")
    (file,) = tmp_path.glob("site/their_nets*/entry_points.txt")
    file.write_text(file.read_text().replace("[mcframe.plugins]", f"[{group}]"))
    importlib.invalidate_caches()
    (warning,) = discover().warnings()
    assert warning.startswith(f"their_nets 1.0 offers 'it' under the entry-point group {group!r}, which nothing reads")
    assert "expected 'mcframe.plugins'" in warning


# ---- --strict-plugins ----------------------------------------------------------------------------
def test_a_broken_plugin_stops_runs_that_use_it_and_strict_ones(install, smoke):
    install("broken_one", "import not_there_at_all")
    registry = load_run_config([smoke], []).registry
    (warning,) = registry.warnings()
    assert "plug-in 'it' of broken_one 1.0 could not be loaded: ModuleNotFoundError: No module named" in warning
    with pytest.raises(UserError, match="likely cause") as used:
        load_run_config([smoke], ["run.gistnet = @gistnet.theirs"])
    assert "of broken_one 1.0" in used.value.message
    assert str(used.value.location).startswith("--set")
    error = refusal(strict=True)
    assert warning.split(";")[0] in error.message
    assert "pip install --upgrade broken_one" in error.remedy
    assert "--no-plugin NAME" in error.remedy
    assert not discover(PluginOptions(without=("broken_one",), strict=True)).broken


# ---- parameters of a third party's plug-in -------------------------------------------------------
@pytest.mark.parametrize(
    ("binding", "message", "remedy"),
    [
        ("gistnet.last.bias = 'yes'", "expected bool, got str", "gistnet.last.bias"),
        ("gistnet.last.mode = 'c'", "expected one of", "'a', 'b'"),
        ("gistnet.last.bais = True", "no parameter 'bais' (did you mean bias?)", "bias, mode"),
        ("gistnet.last.shape = 1", "supplied by the framework", "Remove it"),
    ],
)
def test_bindings_of_a_file_are_checked_before_training(put, smoke, binding, message, remedy):
    put("nets.py")
    put("mine.gin", f"include '{smoke}'\nrun.gistnet = @gistnet.last\n{binding}\n")
    with pytest.raises(UserError) as caught:
        load_run_config(["mine.gin"], [], PluginOptions(named=("nets.py",)))
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert str(caught.value.location) == "mine.gin:3"
