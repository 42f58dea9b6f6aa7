"""The plug-in under test: looked up by name, bound by gin, built as a run builds it."""

from __future__ import annotations

import inspect
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from mcframe.config import Config
from mcframe.config.configurables import Configurable, configurable_of
from mcframe.config.run_config import all_plugins, load_config
from mcframe.config.values import as_literal, render
from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError, did_you_mean
from mcframe.hookspecs import BaseShape, HeadShape, ModelShape, RunStart
from mcframe.modeling.rope import GaussianRope
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.plugins import Registered, Registry
from mcframe.testing.assertions import describe, expect
from mcframe.testing.kinds import NETWORKS

PLAIN = ContextTree(window=50, block_size=4, levels=2, slots=1, tail=5)
"""The tree that every plug-in must accept: two levels, a window that is not a multiple of the block size."""

TASK_TREES = (ContextTree(window=96, block_size=16, tail=20), ContextTree(window=80, block_size=16, tail=15))
"""Trees of which a task must accept one: four compressible blocks, and some tokens or one for the question."""

VOCABULARY = 13
"""Entries of the tokenizer of a base model that is checked, and of the training steps of the kit."""

EXAMPLE = "example_settings"
"""The attribute of a factory that returns settings to try it with: `example_settings(folder) -> {parameter: value}`."""

_TRYING = threading.RLock()


@dataclass
class PluginUnderTest:
    """One registered name with gin bindings.

    Attributes:
        entry: The registration, with its origin.
        registry: The registry that holds it.
        settings: gin bindings, such as "gistnet.mine.layers = 1".
        width: D of the models that it is built for.
    """

    entry: Registered
    registry: Registry
    settings: tuple[str, ...] = ()
    width: int = 16
    _config: Config | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """Its kind, as in gin files."""
        return self.entry.kind

    @property
    def name(self) -> str:
        """Its full name, `kind.name`."""
        return f"{self.entry.kind}.{self.entry.name}"

    @property
    def configurable(self) -> Configurable:
        """Its factory with the parameters that a gin file may bind."""
        return configurable_of(self.entry)

    @cached_property
    def bindings(self) -> tuple[str, ...]:
        """The settings, and the declared example unless the settings bind a parameter of it.

        Raises:
            NotConforming: The declared example cannot be built.
        """
        example = {f"{self.configurable.name}.{name}": value for name, value in _example(self.configurable).items()}
        if any(_binds(self.settings, key) for key in example):
            return self.settings
        return (*self.settings, *(f"{key} = {render(value)}" for key, value in example.items()))

    @property
    def missing_settings(self) -> str:
        """The required bindings that are not set, as a sentence; empty if it can be built. Raises as `bindings`."""
        required = [f"{self.configurable.name}.{name}" for name in self.configurable.required]
        missing = [each for each in required if not _binds(self.bindings, each)]
        return f"it needs a setting: {', '.join(missing)}" if missing else ""

    @cached_property
    def specimen(self) -> Any:
        """An instance for a plain tree. Raises the error of the factory."""
        if self.kind != "task":
            return self.build()
        for tree in TASK_TREES:
            try:
                return self.build(tree)
            except UserError as refusal:
                declined = refusal
        raise declined

    def build(self, tree: ContextTree = PLAIN, *, seed: int = 0, device: str = "cpu") -> Any:
        """Build an instance through gin under a seed, and keep torch's random state.

        Raises:
            UserError: The plug-in does not support the tree.
            Exception: Any other error of the factory.
        """
        # Every call within a device context costs time, and the CPU needs none.
        context = nullcontext() if device == "cpu" else torch.device(device)
        with torch.random.fork_rng(devices=[]), context:
            # torch.manual_seed records a traceback on machines without a GPU, which is ten times as slow.
            torch.default_generator.manual_seed(seed)
            # gin holds one configuration at a time, and another test may have loaded its own.
            if self._config is None or not self._config.active:
                self._config = load_config([], self.bindings, self.registry)
            return self._config.build(self.name, *self._arguments(tree))

    def _arguments(self, tree: ContextTree) -> tuple[object, ...]:
        """Return the arguments that the framework passes by position."""
        if self.kind in (*NETWORKS, "loss"):
            return (ModelShape(self.width, tree),)
        if self.kind == "base":
            return (BaseShape(tree, VOCABULARY, GaussianRope),)
        if self.kind == "positions":
            return (HeadShape(2, self.width // 2, tree),)
        if self.kind == "logger":
            return (RunStart(Path(tempfile.mkdtemp(dir=self._folder)), {"run.seed": 0}, None),)
        return (tree,) if self.configurable.supplied else ()

    @cached_property
    def _folder(self) -> Path:
        """A folder for its files, deleted with this object."""
        folder = tempfile.mkdtemp(prefix="mcframe-plugin-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)


def _binds(settings: Sequence[str], key: str) -> bool:
    return any(re.search(rf"^\s*{re.escape(key)}\s*=", one, re.M) for one in settings)


def _example(configurable: Configurable) -> Mapping[str, Any]:
    """Return the example that a factory declares. It and its folder last as long as this process."""
    with _TRYING:  # a second thread waits for the example of the first one
        settings, failure = _tried(configurable)
    expect(not failure, f"its {EXAMPLE} {failure}")
    return settings


@cache
def _tried(configurable: Configurable) -> tuple[Mapping[str, Any], str]:
    """Return the settings of the example, or the reason why they cannot be used."""
    factory = configurable.factory
    declared = getattr(factory, EXAMPLE, None)
    if declared is None:
        return {}, ""
    folder = tempfile.mkdtemp(prefix="mcframe-example-")
    weakref.finalize(factory, shutil.rmtree, folder, ignore_errors=True)
    try:
        settings = declared(Path(folder))
    except Exception as error:  # noqa: BLE001 - third-party code can raise anything; the error is the result
        return {}, f"raised {describe(error)}"
    if not isinstance(settings, Mapping):
        return {}, f"returned {settings!r}, expected a dict of parameters"
    unknown = [str(name) for name in settings if name not in configurable.parameters and not configurable.accepts_any]
    if unknown and inspect.isclass(factory) and EXAMPLE not in vars(factory):
        return {}, ""  # the example of a base class with other parameters
    if unknown:
        return {}, f"returned unknown parameters: {', '.join(unknown)}"
    unwritable = [f"{name} = {value!r}" for name, value in settings.items() if as_literal(value) is None]
    if unwritable:
        return {}, f"returned values that gin cannot write: {', '.join(unwritable)}"
    return dict(settings), ""


def find(name: str, settings: Sequence[str] = (), *, registry: Registry, width: int = 16) -> PluginUnderTest:
    """Return the plug-in that is registered as `kind.name`.

    Raises:
        UserError: The kind or the name is unknown.
    """
    kind, _, item = name.removeprefix("@").partition(".")
    if kind not in registry.implementations:
        raise UserError(
            f"{name}: expected kind.name of a plug-in{did_you_mean(kind, registry.implementations)}",
            remedy="write kind.name, for example gistnet.mean; `mcframe plugins` lists them all",
        )
    if item not in registry.implementations[kind]:
        raise registry.unknown(kind, item)
    return PluginUnderTest(registry.implementations[kind][item], registry, tuple(settings), width)


@lru_cache(maxsize=8)
def installed_plugins(named: tuple[str, ...] = ()) -> Registry:
    """Return the installed plug-ins and those that `--plugin` would name; loaded once."""
    return all_plugins(PluginOptions(named))
