"""Global state that a plug-in changes is set back and reported with the name of the plug-in."""

import logging
import os
import random
import sys
from types import SimpleNamespace

import gin
import numpy as np
import pytest
import torch

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape, RunInfo
from mcframe.registry.attribution import explain
from mcframe.registry.checks import ContractError
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.factory import PluginFactory
from mcframe.registry.global_state import RARE_SETTINGS, SETTINGS, _warned
from mcframe.registry.load_from_path import Spec, load_from_path
from mcframe.registry.plugins import Registry
from mcframe.training.random_states import random_states, restore_random_states
from tests.support.error_cases import GISTNET, HEAD
from tests.support.launches import SMOKE
from tests.support.modeling_builders import TREE

HEAD = "import gin, os, random\nimport numpy as np\n" + HEAD
CERTAIN = {
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "gradient mode": "torch.set_grad_enabled(False)",
    "default device": "torch.set_default_device('meta')",
    "working directory": "os.chdir('/')",
    "lock of gin": "gin.config._set_config_is_locked(not gin.config_is_locked())",
}
MEANT = {
    "seed of torch": "torch.manual_seed(271828)",
    "number of torch's threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "anomaly detection": "torch.autograd.set_detect_anomaly(True)",
}
RARE = {
    "seed of Python": "random.seed(0)",
    "seed of numpy": "np.random.seed(0)",
}


@pytest.fixture(autouse=True)
def restored():
    _warned.clear()
    watched = [setting for setting in SETTINGS if "gin" not in setting.name]  # loading a configuration locks it
    before = [setting.read() for setting in watched]
    state, threads = random_states(), torch.get_num_threads()
    random.seed(7), np.random.seed(7)
    yield
    restore_random_states(state), torch.set_num_threads(threads), torch.autograd.set_detect_anomaly(False)
    assert [setting.read() for setting in watched] == before


def plugin(folder, *, imports="", factory="", forward="", hook=""):
    source = HEAD + imports + GISTNET.replace("super()", f"{factory or 'pass'}; super()")
    source = source.replace("return self.head", f"{forward or 'pass'}; return self.head")
    source += f"\n\n@hookimpl\ndef step_finished(run):\n    {hook or 'pass'}\n"
    file = folder / "mine.py"
    file.write_text(source)
    return file


def used(file):
    """Load the plug-in, build its GistNet, run it, and call its hook."""
    registry = Registry()
    load_from_path(registry, Spec.parse(str(file)))
    entry = registry.implementations["gistnet"]["mine"]
    builder = SimpleNamespace(build=lambda factory, *arguments: factory(*arguments))
    net = PluginFactory(entry, entry.factory, builder, registry)(ModelShape(8, TREE))
    try:
        net(torch.zeros(2, 3, TREE.block_size, 8), 1)
        registry.hooks.step_finished(RunInfo(file.parent, 0, 1, 0, 1, 2))
    except ContractError as error:
        raise explain(error, registry) from error
    return net


@pytest.mark.parametrize("at", ["imports", "factory", "forward"])
@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_certainly_wrong_is_an_error(tmp_path, name, at):
    with pytest.raises(UserError) as raised:
        used(plugin(tmp_path, **{at: CERTAIN[name]}))
    error = raised.value
    where = {"imports": "its import", "factory": "its factory", "forward": "forward"}[at]
    assert f"{where} changes the {name}" in error.message
    assert "mine.py" in error.message
    assert error.remedy
    assert at == "imports" or "gistnet.mine of plug-in" in error.message


@pytest.mark.parametrize("at", ["imports", "factory", "forward", "hook"])
@pytest.mark.parametrize("name", MEANT)
def test_what_may_be_meant_costs_one_warning(tmp_path, caplog, name, at):
    file = plugin(tmp_path, **{at: MEANT[name]})
    with caplog.at_level(logging.WARNING):
        net = used(file)
        torch.manual_seed(1)
        net(torch.zeros(2, 3, TREE.block_size, 8), 1)
    (record,) = caplog.messages
    assert f"changes the {name}" in record
    assert "mine.py" in record


@pytest.mark.parametrize("at", ["imports", "factory"])
@pytest.mark.parametrize("name", RARE)
def test_other_generators_are_watched_where_it_costs_nothing(tmp_path, caplog, name, at):
    used(plugin(tmp_path, **{at: RARE[name]}))
    (record,) = caplog.messages
    assert f"changes the {name}" in record


def test_random_numbers_may_be_drawn(tmp_path, caplog):
    draws = "torch.rand(1), random.random(), np.random.rand()"
    used(plugin(tmp_path, imports=draws, factory=draws, forward=draws, hook=draws))
    assert caplog.messages == []


def test_a_hook_only_watches(tmp_path, caplog):
    used(plugin(tmp_path, hook="os.chdir('/'); torch.set_grad_enabled(False)"))
    assert len(caplog.messages) == 2
    assert all("its hook step_finished changes" in each and "(undone)" in each for each in caplog.messages)
    assert torch.is_grad_enabled()


def test_bindings_of_gin_stay(tmp_path):
    change = "gin.config._CONFIG['', 'gpt'] = {'width': 8}"
    with pytest.raises(UserError, match="its factory changes the bindings of gin"):
        used(plugin(tmp_path, factory=change))
    assert ("", "gpt") not in gin.config._CONFIG


def test_an_installed_package_that_changes_state_is_broken(tmp_path, new_site, monkeypatch):
    """A run that does not select it is not affected."""
    new_site(tmp_path / "site").install("mylab", HEAD + CERTAIN["default dtype"] + GISTNET)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    registry = load_run_config([SMOKE], []).registry
    sys.modules.pop("mylab", None)
    assert [broken.distribution for broken in registry.broken] == ["mylab"]
    assert "its import changes the default dtype of torch" in registry.broken[0].error
    assert torch.get_default_dtype() == torch.float32


def test_a_text_source_that_leaves_the_directory_is_named(tmp_path):
    source = """import os
from mcframe.hookspecs import TextSource, hookimpl


class Mine(TextSource):
    identity = "mine"

    def documents(self, epoch=0):
        os.chdir("/")
        yield "text"


@hookimpl
def register_plugins(register):
    register("mine", Mine)
"""
    (tmp_path / "mine.py").write_text(source)
    loaded = load_run_config([SMOKE], ["run.text = @text.mine"], PluginOptions((str(tmp_path / "mine.py"),)))
    here = os.getcwd()
    expected = r"text\.mine of plug-in .* documents changes the working directory"
    with pytest.raises(UserError, match=expected), loaded.explaining():
        next(iter(loaded.run_config.text().documents()))
    assert os.getcwd() == here


def test_every_change_has_a_remedy():
    assert all(setting.remedy.endswith(".") for setting in [*SETTINGS, *RARE_SETTINGS])
