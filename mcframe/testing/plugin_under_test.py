"""The plug-in under test: found by its name, bound by gin, built as a run builds it."""

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
from mcframe.config.configurables import Configurable
from mcframe.config.run_config import all_plugins, load_config
from mcframe.config.values import as_literal, render
from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError, did_you_mean
from mcframe.hookspecs import HeadShape, ModelShape, RunStart
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.plugins import Registered, Registry
from mcframe.testing.capabilities import CAPABILITIES
from mcframe.testing.requirements import expect, in_words

PLAIN = ContextTree(window=50, block_size=4, levels=2, slots=1, tail=5)
"""The tree that every plug-in must take: two levels, a window that is no whole number of blocks."""

ROOMS = (ContextTree(window=96, block_size=16, tail=20), ContextTree(window=80, block_size=16, tail=15))
"""Geometries of which a task must take one: four blocks that may be collapsed, and room to ask, some tokens or one."""

EXAMPLE = "example_settings"
"""How a factory says with which settings it can be tried: `example_settings(folder) -> {parameter: value}`."""

NETWORKS = ("gistnet", "lensnet")
PARTS = (*NETWORKS, "allocator", "variants")
"""The kinds that a model is made of; their factories take a shape or a tree."""

_TRYING = threading.RLock()


@dataclass
class PluginUnderTest:
    """One registered name with some gin bindings.

    entry     what is registered, and where it comes from
    settings  gin bindings, such as "gistnet.mine.layers = 1"
    width     D of the models that it is built for
    """

    entry: Registered
    registry: Registry
    settings: tuple[str, ...] = ()
    width: int = 16
    _config: Config | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """Its kind, as in `KINDS`."""
        return self.entry.kind

    @property
    def name(self) -> str:
        """Its full name, `kind.name`."""
        return f"{self.entry.kind}.{self.entry.name}"

    @property
    def published(self) -> Configurable:
        """Its factory and what a gin file may bind of it."""
        return Configurable(self.name, self.entry.factory, self.kind)

    @cached_property
    def bindings(self) -> tuple[str, ...]:
        """What it is built with: the settings, and its example as a whole unless they bind something that it binds.

        Raises NotConforming where it declares an example that cannot be made.
        """
        example = {f"{self.name}.{name}": value for name, value in _example(self.published).items()}
        if any(_binds(self.settings, key) for key in example):
            return self.settings
        return (*self.settings, *(f"{key} = {render(value)}" for key, value in example.items()))

    @property
    def unset(self) -> list[str]:
        """Bindings without which it cannot be built and that nobody has given. Raises as `bindings` does."""
        wanted = [f"{self.name}.{name}" for name in self.published.required]
        return [each for each in wanted if not _binds(self.bindings, each)]

    @cached_property
    def specimen(self) -> Any:
        """One that is built for the plain tree. Raises what the factory raises."""
        if self.kind != "task":
            return self.build()
        for tree in ROOMS:
            try:
                return self.build(tree)
            except UserError as refusal:
                declined = refusal
        raise declined

    @property
    def waits(self) -> str:
        """For which settings it waits, in words; empty where it can be tried."""
        return f"it needs a setting: {', '.join(self.unset)}" if self.unset else ""

    def has(self, capability: str) -> bool:
        """Whether it declares this capability."""
        return CAPABILITIES[capability].has(self.specimen)

    def build(self, tree: ContextTree = PLAIN, *, seed: int = 0, device: str = "cpu") -> Any:
        """What the factory makes, through gin and under a seed, leaving torch's random state as it was.

        Raises what the factory raises; a UserError means that it does not support the tree.
        """
        # Every call within a device's context takes longer; the CPU needs none.
        place = nullcontext() if device == "cpu" else torch.device(device)
        with torch.random.fork_rng(devices=[]), place:
            # Not torch.manual_seed: without a GPU it writes down a traceback for later, ten times as slow.
            torch.default_generator.manual_seed(seed)
            return self._loaded().build(self.name, *self._supplied(tree))

    def _supplied(self, tree: ContextTree) -> tuple[object, ...]:
        """What the framework passes by position."""
        if self.kind in (*NETWORKS, "loss"):
            return (ModelShape(self.width, tree),)
        if self.kind == "positions":
            return (HeadShape(2, self.width // 2, tree),)
        if self.kind == "logger":
            return (RunStart(Path(tempfile.mkdtemp(dir=self._folder)), {"run.seed": 0}, None),)
        return (tree,) if self.published.supplied else ()

    @cached_property
    def _folder(self) -> Path:
        """Where it may write; gone with this object."""
        folder = tempfile.mkdtemp(prefix="mcframe-candidate-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _loaded(self) -> Config:
        # gin holds one configuration at a time, and a test beside this one may have loaded its own.
        if self._config is None or not self._config.active:
            self._config = load_config([], self.bindings, self.registry)
        return self._config


def _binds(settings: Sequence[str], key: str) -> bool:
    return any(re.search(rf"^\s*{re.escape(key)}\s*=", one, re.M) for one in settings)


def _example(published: Configurable) -> Mapping[str, Any]:
    """The settings that a factory declares as its example. They and their folder last as long as this process."""
    with _TRYING:  # a second thread waits for what the first one makes
        settings, failure = _tried(published)
    expect(not failure, failure)
    return settings


@cache
def _tried(published: Configurable) -> tuple[Mapping[str, Any], str]:
    """The settings, or else why there are none."""
    factory = published.factory
    declared = getattr(factory, EXAMPLE, None)
    if declared is None:
        return {}, ""
    folder = tempfile.mkdtemp(prefix="mcframe-example-")
    weakref.finalize(factory, shutil.rmtree, folder, ignore_errors=True)
    try:
        settings = declared(Path(folder))
    except Exception as error:  # noqa: BLE001 - a stranger's code can raise anything; it is the finding
        return {}, f"its {EXAMPLE} raised {in_words(error)}"
    if not isinstance(settings, Mapping):
        return {}, f"its {EXAMPLE} returned {settings!r}; it returns a dict of parameters"
    unknown = [str(name) for name in settings if name not in published.parameters and not published.accepts_any]
    if unknown and inspect.isclass(factory) and EXAMPLE not in vars(factory):
        return {}, ""  # the example of a base, which takes other parameters
    if unknown:
        return {}, f"its {EXAMPLE} gives {', '.join(unknown)}, which it does not take"
    unsaid = [f"{name} = {value!r}" for name, value in settings.items() if as_literal(value) is None]
    if unsaid:
        return {}, f"its {EXAMPLE} gives {', '.join(unsaid)}, which no gin file can say"
    return dict(settings), ""


def find(name: str, settings: Sequence[str] = (), *, registry: Registry, width: int = 16) -> PluginUnderTest:
    """The plug-in that is registered under `kind.name`. Raises UserError where nobody offers it."""
    kind, _, item = name.removeprefix("@").partition(".")
    if kind not in registry.implementations:
        raise UserError(
            f"{name} is no name of a plug-in{did_you_mean(kind, registry.implementations)}",
            remedy="write kind.name, for example gistnet.mean; `mcframe plugins` lists them all",
        )
    if item not in registry.implementations[kind]:
        raise registry.unknown(kind, item)
    return PluginUnderTest(registry.implementations[kind][item], registry, tuple(settings), width)


@lru_cache(maxsize=8)
def installed_plugins(named: tuple[str, ...] = ()) -> Registry:
    """What is installed, and what `--plugin` would name besides; looked for once."""
    return all_plugins(PluginOptions(named))
