"""Clauses of every plug-in, whatever its kind: names, documentation, parameters, versions, construction."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

from mcframe.config.parameters import parameters_of
from mcframe.errors import UserError
from mcframe.hookspecs import API_VERSION, INTERFACES
from mcframe.registry.hook_rules import API_ATTRIBUTE
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import NotConforming, Skipped, expect, requirement


@requirement("P1", "Its name is lower case and does not repeat its kind", "*")
def p1_name(plugin: PluginUnderTest) -> None:
    """`gistnet.last_child`, not `gistnet.LastChild` or `gistnet.last_child_gistnet`.

    A name whose rest is a single letter keeps its kind: `z_loss`.
    """
    name = plugin.entry.name
    expect(bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)), f"{name!r} is not lower case with underscores")
    parts = name.split("_")
    rest = "_".join(part for part in parts if part != plugin.kind)
    expect(plugin.kind not in parts or len(rest) == 1, f"expected a name without its kind, {plugin.kind}, got {name!r}")


@requirement("P2", "Its factory has a docstring that says what it does", "*")
def p2_docstring(plugin: PluginUnderTest) -> None:
    """Its own: `mcframe plugins show` prints it."""
    doc = inspect.cleandoc(plugin.entry.factory.__doc__ or "")
    inherited = any(doc == inspect.cleandoc(base.__doc__ or "") for base in INTERFACES.values())
    expect(bool(doc) and not inherited, "the factory has no docstring of its own")
    expect(len(doc.splitlines()[0].split()) > 2, f"its first line says nothing: {doc.splitlines()[0]!r}")


@requirement("P3", "Its docstring names every parameter", "*", after=("P2",))
def p3_documented(plugin: PluginUnderTest) -> None:
    """Those that a gin file may bind. They may stand in a table or in a sentence."""
    doc = inspect.getdoc(plugin.entry.factory) or ""
    missing = [name for name in plugin.published.parameters if not re.search(rf"\b{re.escape(name)}\b", doc)]
    expect(not missing, f"the docstring does not name {', '.join(missing)}")


@requirement("P4", "Every parameter has a type that can be resolved", "*")
def p4_annotations(plugin: PluginUnderTest) -> None:
    """gin bindings are checked against it before anything is built."""
    published = plugin.published
    untyped = [name for name in published.parameters if published.annotation(name) is Any]
    expect(not untyped, f"no type, or one that cannot be imported: {', '.join(untyped)}")


@requirement("P5", "Every default can be written in a gin file", "*")
def p5_defaults(plugin: PluginUnderTest) -> None:
    """So that the operative configuration says what was run."""
    unwritten = [each.binding for each in parameters_of(plugin.published) if not each.required and each.default is None]
    expect(not unwritten, f"gin cannot write the default of {', '.join(unwritten)}")


@requirement("P6", "It says for which version of the plug-in API it was made", "*")
def p6_api(plugin: PluginUnderTest) -> None:
    """On its module or its object; one that does not fit is not even loaded."""
    expect(bool(plugin.entry.api), f'the plug-in {plugin.entry.plugin!r} has no {API_ATTRIBUTE} = "{API_VERSION}"')


@requirement("P7", "Its factory can be imported by name", "*")
def p7_importable(plugin: PluginUnderTest) -> None:
    """Or what it makes could not be sent to another process. A lambda, or a class within a function, cannot."""
    try:
        found = pickle.loads(pickle.dumps(plugin.entry.factory))
    except Exception as error:  # noqa: BLE001 - whatever it is that keeps it from being imported
        found, said = None, f": {type(error).__name__}: {error}"
    else:
        said = ""
    expect(found is plugin.entry.factory, f"the factory {plugin.entry.factory!r} cannot be imported by its name{said}")


@requirement("P8", "Its factory makes an instance of the interface of its kind", "*")
def p8_interface(plugin: PluginUnderTest) -> None:
    """With its defaults and the given settings, for a plain tree."""
    interface = INTERFACES[plugin.kind]
    if plugin.waits:
        raise Skipped(plugin.waits)
    try:
        made = plugin.specimen
    except UserError as refusal:
        raise NotConforming(f"it cannot be built here: {refusal}") from refusal
    expect(isinstance(made, interface), f"it made a {type(made).__name__}, which is no {interface.__name__}")


@requirement("P9", "Its methods take what the interface's take", "*", after=("P8",))
def p9_methods(plugin: PluginUnderTest) -> None:
    """As many, by position: that is how the framework passes them."""
    interface = INTERFACES[plugin.kind]
    for name in sorted(getattr(interface, "__abstractmethods__", ())):
        wanted = getattr(interface, name)
        if isinstance(wanted, property):
            continue
        _expect_accepts(getattr(plugin.entry.factory, name, None), wanted, name)


def _expect_accepts(method: Callable[..., Any] | None, wanted: Callable[..., Any], name: str) -> None:
    if method is None:  # the factory is a function; what it makes is seen by other clauses
        return
    parameters = inspect.signature(wanted).parameters.values()
    ours = inspect.signature(method)
    try:
        ours.bind(*[None for _ in parameters])
    except TypeError as error:
        raise NotConforming(f"{name}{ours} does not take {inspect.signature(wanted)}: {error}") from error
