"""The version of the API that a plug-in was made for."""

import re
import textwrap

import pytest

from mcframe.config.run_config import all_plugins
from mcframe.hookspecs import API_VERSION
from mcframe.registry.discovery import discover
from mcframe.registry.hook_rules import api_fits
from tests.support.file_plugins import NET, refusal, with_plugin


@pytest.mark.parametrize(
    ("stated", "ours", "fits"),
    [
        ("0.1", "0.1", True), ("0.2", "0.1", False), ("0.1", "0.2", False), ("1.0", "0.1", False),
        ("1.0", "1.0", True), ("1.0", "1.3", True), ("1.4", "1.3", False), ("1.9", "1.10", True), ("1.0", "2.0", False),
    ],
)  # fmt: skip
def test_which_versions_fit(stated, ours, fits):
    assert api_fits(stated, ours) is fits


def test_a_stated_version_that_fits_is_listed(put):
    file = put("nets.py", f'mcframe_api = "{API_VERSION}"\n' + textwrap.dedent(NET.replace("{name}", "last")))
    registry = with_plugin("nets.py")
    assert registry.plugins[str(file)].api == registry.implementations["gistnet"]["last"].api == API_VERSION


@pytest.mark.parametrize(
    ("stated", "message", "remedy"),
    [
        ('"9.2"', r"made for mcframe's plug-in API 9\.2, and mcframe \S+ has API 0\.1", "upgrade mcframe"),
        ('"0.0"', r"plug-in API 0\.0, and mcframe", "bring its code to API 0.1"),
        ("0.1", r"mcframe_api is 0\.1, which is no version", 'write mcframe_api = "0.1"'),
        ('"0.1.3"', r"mcframe_api is '0\.1\.3', which is no version", 'write mcframe_api = "0.1"'),
    ],
)
def test_a_version_that_does_not_fit(put, stated, message, remedy):
    # Its unknown hook is not reported: the version is the cause.
    put("nets.py", f"mcframe_api = {stated}\nfrom mcframe.hookspecs import hookimpl\n@hookimpl\ndef new(x): ...\n")
    error = refusal("nets.py")
    assert re.search(message, error.message), error.message
    assert remedy in error.remedy


@pytest.mark.parametrize(("stated", "remedy"), [("9.0", "upgrade mcframe"), ("0.0", "upgrade made_for_another")])
def test_an_installed_plugin_for_another_api_is_broken_not_fatal(install, stated, remedy):
    install("made_for_another", f'mcframe_api = "{stated}"\n' + textwrap.dedent(NET.replace("{name}", "theirs")))
    registry = discover()
    assert "theirs" not in registry.implementations["gistnet"]
    (broken,) = registry.broken
    assert f"'it' of made_for_another 1.0 could not be loaded: it was made for mcframe's plug-in API {stated}" in str(
        broken
    )
    assert broken.remedy.startswith(remedy)


def test_all_that_comes_with_mcframe_states_its_api():
    registry = all_plugins()
    own = {plugin.short: plugin.api for plugin in registry.plugins.values() if plugin.distribution == "mcframe"}
    assert len(own) >= 5
    assert set(own.values()) == {API_VERSION}
