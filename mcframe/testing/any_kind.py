"""Requirements of every kind: names, documentation, parameters, versions, construction."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

from mcframe.config.parameters import parameters_of
from mcframe.errors import UserError
from mcframe.hookspecs import API_VERSION, INTERFACES
from mcframe.registry.hook_rules import API_ATTRIBUTE
from mcframe.testing.assertions import NotConforming, Skipped, expect
from mcframe.testing.kinds import BUILT_BY_KIT
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import requirement


@requirement("P1", "The name is lower case and does not repeat the kind", "*")
def p1_name(plugin: PluginUnderTest) -> None:
    """`gistnet.last_child`, not `gistnet.LastChild` or `gistnet.last_child_gistnet`; `loss.z_loss` is fine."""
    name = plugin.entry.name
    expect(bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)), f"{name!r} is not lower case with underscores")
    parts = name.split("_")
    single = len(parts) == 2 and len(parts[0]) == 1  # the letter alone would mean nothing
    expect(plugin.kind not in parts or single, f"{name!r} repeats the kind {plugin.kind}")


@requirement("P2", "The factory has a docstring of its own that names every parameter", "*")
def p2_documented(plugin: PluginUnderTest) -> None:
    """`mcframe plugins show` prints it. Parameters are those that a gin file may bind."""
    doc = inspect.cleandoc(plugin.entry.factory.__doc__ or "")
    inherited = any(doc == inspect.cleandoc(base.__doc__ or "") for base in INTERFACES.values())
    expect(bool(doc) and not inherited, "the factory has no docstring of its own")
    expect(len(doc.splitlines()[0].split()) > 2, f"its first line is no description: {doc.splitlines()[0]!r}")
    missing = [name for name in plugin.configurable.parameters if not re.search(rf"\b{re.escape(name)}\b", doc)]
    expect(not missing, f"the docstring does not name {', '.join(missing)}")


@requirement("P3", "Every parameter has a type that can be resolved and a default that gin can write", "*")
def p3_parameters(plugin: PluginUnderTest) -> None:
    """gin bindings are checked against the types, and the operative configuration records the defaults."""
    configurable = plugin.configurable
    untyped = [name for name in configurable.parameters if configurable.annotation(name) is Any]
    expect(not untyped, f"no type, or one that cannot be imported: {', '.join(untyped)}")
    unwritable = [each.binding for each in parameters_of(configurable) if not each.required and each.default is None]
    expect(not unwritable, f"gin cannot write the default of {', '.join(unwritable)}")


@requirement("P4", "The plug-in states the version of the plug-in API that it was made for", "*")
def p4_api(plugin: PluginUnderTest) -> None:
    """On its module or its object. A plug-in for another version is not loaded."""
    expect(bool(plugin.entry.api), f'the plug-in {plugin.entry.plugin!r} has no {API_ATTRIBUTE} = "{API_VERSION}"')


@requirement("P5", "The factory can be imported by its name", "*")
def p5_importable(plugin: PluginUnderTest) -> None:
    """Its instances are sent to other processes. A lambda, or a class within a function, cannot be imported."""
    factory, detail = plugin.entry.factory, ""
    try:
        found = pickle.loads(pickle.dumps(factory))
    except Exception as error:  # noqa: BLE001 - any error means that it cannot be imported
        found, detail = None, f": {type(error).__name__}: {error}"
    expect(found is factory, f"the factory {factory!r} cannot be imported by its name{detail}")


@requirement("P6", "The factory builds an instance of the interface, whose methods accept its arguments", "*")
def p6_built(plugin: PluginUnderTest) -> None:
    """For a plain tree, with the defaults and the settings. Arguments are passed by position."""
    interface = INTERFACES[plugin.kind]
    if reason := plugin.missing_settings:
        raise Skipped(reason)
    if plugin.kind not in BUILT_BY_KIT:
        return  # only a run has the arguments of such a factory
    try:
        made = plugin.specimen
    except UserError as refusal:
        raise NotConforming(f"it cannot be built here: {refusal}") from refusal
    expect(isinstance(made, interface), f"expected a {interface.__name__}, got a {type(made).__name__}")
    for name in sorted(getattr(interface, "__abstractmethods__", ())):
        declared = getattr(interface, name)
        if not isinstance(declared, property):
            _expect_accepts(getattr(made, name), declared, name)


def _expect_accepts(method: Any, declared: Any, name: str) -> None:
    """Raise NotConforming unless a bound method accepts as many arguments as the interface declares."""
    try:
        inspect.signature(method).bind(*list(inspect.signature(declared).parameters)[1:])
    except TypeError as error:
        expected = inspect.signature(declared)
        raise NotConforming(f"{name}: expected {expected}, got {inspect.signature(method)}: {error}") from error
