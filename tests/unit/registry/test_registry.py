"""Plug-in discovery, with real packages: modules and *.dist-info folders on sys.path, as pip leaves them."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import textwrap
from pathlib import Path

import pytest

from mcframe.errors import UserError
from mcframe.hookspecs import RunInfo, hookimpl
from mcframe.registry.discovery import discover
from mcframe.registry.plugins import KINDS, Registry

GOOD = """
    from mcframe.hookspecs import hookimpl

    class Net:
        def __init__(self, shape, layers: int = 2): ...

    @hookimpl
    def register_plugins(register):
        register("{name}", Net, kind="gistnet")
"""


class Site:
    """A folder that stands for site-packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, package: str, source: str, *, points: str = "", version: str = "1.2") -> None:
        module = package.replace("-", "_")
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source))
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        points = points or f"{module}-point = {module}"
        (info / "entry_points.txt").write_text(f"[mcframe.plugins]\n{points}\n")
        importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:  # the next test has modules of the same names
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def installed(site):
    """With a package called mcframe, first on the path: it hides the one that may be installed."""
    (site.folder / "own_nets.py").write_text(textwrap.dedent(GOOD.replace("{name}", "own")))
    info = site.folder / "mcframe-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mcframe\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[mcframe.plugins]\nnets = own_nets\n")
    return site


def test_finds_implementations_of_packages_with_their_origin(installed):
    installed.install("third-party-good", GOOD.replace("{name}", "theirs"))
    registry = discover()
    theirs = registry.implementations["gistnet"]["theirs"]
    assert (theirs.plugin, theirs.distribution, theirs.version) == (
        "third-party-good:third_party_good-point",
        "third-party-good",
        "1.2",
    )
    assert theirs.factory.__name__ == "Net"
    assert "own" in registry.implementations["gistnet"]
    assert set(registry.implementations) == set(KINDS)
    assert not registry.warnings()
    assert registry.versions() == {"mcframe": "0.1.0", "third-party-good": "1.2"}


HOOK = "from mcframe.hookspecs import hookimpl\n@hookimpl\ndef "
REGISTER = f"{HOOK}register_plugins(register):\n    register"
OBJECT = """
    from mcframe.hookspecs import hookimpl

    class Plugin:
        @hookimpl
        def register_plugins(self, register): ...
"""
BROKEN = {
    "import_error": ("import no_such_module_of_theirs", "ModuleNotFoundError: No module named"),
    "syntax_error": ("def (", "SyntaxError"),
    "exits_at_import": ("raise SystemExit(3)", "SystemExit: 3"),
    "missing_attribute": ("", "AttributeError"),
    "misspelt_hook": (f"{HOOK}register_gistnet(register): ...", "no hook 'register_gistnet'"),
    "a_class": (OBJECT, "Plugin is a class; a plug-in is an instance or a module"),
    "default_value": (f"{HOOK}step_finished(run=None): ...", "parameter 'run' has a default value"),
    "unknown_argument": (f"{HOOK}step_finished(trainer): ...", "PluginValidationError"),
    "hook_raises": (
        f"{REGISTER}('half', print, kind='gistnet')\n    raise RuntimeError('no luck')",
        "RuntimeError: no luck",
    ),
    "bad_name": (f"{REGISTER}('a-b', print, kind='gistnet')", "'a-b' is not letters, digits and underscores"),
    "not_callable": (f"{REGISTER}('a', 3, kind='gistnet')", "gistnet.a is not callable"),
    "no_signature": (f"{REGISTER}('a', dict, kind='gistnet')", "gistnet.a has no signature"),
    "no_hook": ("def register_plugins(register): ...", "implements no hook: mark its functions"),
}
POINTS = {"missing_attribute": "p = missing_attribute:nothing", "a_class": "p = a_class:Plugin"}


@pytest.mark.parametrize("module", BROKEN)
def test_a_broken_plugin_is_recorded_and_the_others_work(installed, module):
    source, expected = BROKEN[module]
    installed.install(module, source, points=POINTS.get(module, ""), version="0.7")
    registry = discover()
    assert list(registry.implementations["gistnet"]) == ["own"]
    (warning,) = registry.warnings()
    assert "\n" not in warning
    assert f"of {module} 0.7 could not be loaded" in warning.replace("-", "_")
    assert expected in warning
    registry.hooks.run_finished(RunInfo(Path(), 0, 1, 0, 0, 0), {})  # none of its hooks stay registered


def test_a_plugin_with_no_metadata_left_is_recorded_like_others(installed):
    info = installed.folder / "leftover-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[mcframe.plugins]\nleft = leftover_of_an_uninstall\n")
    (warning,) = discover().warnings()
    assert "'left' could not be loaded: ModuleNotFoundError" in warning


def test_an_unknown_name_lists_similar_names_and_the_broken_plugin(installed):
    installed.install("fancy-nets", "import no_such_module_of_theirs", version="3.1")
    error = discover().unknown("gistnet", "oen")
    assert "did you mean @gistnet.own?" in error.message
    assert "likely cause" in error.message
    assert "'fancy_nets-point' of fancy-nets 3.1 could not be loaded: ModuleNotFoundError" in error.message
    assert "pip install --upgrade fancy-nets" in error.remedy
    assert "pip uninstall fancy-nets" in error.remedy


def test_an_unknown_name_without_broken_plugins_has_no_likely_cause(installed):
    error = discover().unknown("lensnet", "x")
    assert "likely cause" not in error.message
    assert "expected one of: none" in error.message


def test_entry_points_of_two_packages_may_have_one_name(installed):
    installed.install("first-one", GOOD.replace("{name}", "a"), points="nets = first_one")
    installed.install("second-one", GOOD.replace("{name}", "b"), points="nets = second_one")
    registry = discover()
    assert not registry.warnings()
    assert {"a", "b"} <= set(registry.implementations["gistnet"])


def test_a_bare_checkout_names_the_command_to_install_it(site, monkeypatch):
    site.install("someone-else", GOOD.replace("{name}", "x"))
    found = importlib.metadata.entry_points(group="mcframe.plugins")
    others = [point for point in found if point.dist.name != "mcframe"]
    monkeypatch.setattr("mcframe.registry.discovery.entry_points", lambda: importlib.metadata.EntryPoints(others))
    with pytest.raises(UserError, match="bare checkout") as caught:
        discover()
    assert "pip install -e . -c constraints.txt" in caught.value.remedy


class InProcess:
    def __init__(self, name="mine"):
        self.name = name
        self.seen = []

    @hookimpl
    def register_plugins(self, register):
        register(self.name, print, kind="gistnet")

    @hookimpl
    def run_started(self, run):
        self.seen.append(run)


def test_a_plugin_object_is_registered_with_its_hooks():
    registry, plugin = Registry(), InProcess()
    registry.register_plugin(plugin, "tests")
    assert registry.implementations["gistnet"]["mine"].factory is print
    assert registry.implementations["gistnet"]["mine"].origin == "plug-in 'tests'"
    run = RunInfo(Path("x"), 0, 1, 2, 3, 4)
    registry.hooks.run_started(run)
    assert plugin.seen == [run]


def test_a_refused_plugin_leaves_the_registry_unchanged():
    registry = Registry()
    registry.register_plugin(InProcess(), "first")
    second = InProcess()
    with pytest.raises(UserError, match=r"gistnet\.mine: plug-in 'first' and plug-in 'second'"):
        registry.register_plugin(second, "second")
    registry.hooks.run_started(RunInfo(Path(), 0, 1, 0, 0, 0))
    assert second.seen == []
    second.name = "other"
    registry.register_plugin(second, "second")
    assert set(registry.implementations["gistnet"]) == {"mine", "other"}


def test_a_plugin_name_is_taken_once():
    registry = Registry()
    registry.register_plugin(InProcess("a"), "one")
    with pytest.raises(UserError, match="already registered"):
        registry.register_plugin(InProcess("b"), "one")
    assert "a" in registry.implementations["gistnet"]
