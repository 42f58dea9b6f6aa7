"""The registry of plug-ins and their implementations; `mcframe.registry.discovery` fills it."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pluggy

from mcframe.errors import UserError, did_you_mean
from mcframe.hookspecs import API_VERSION, INTERFACES, PROJECT, Hooks
from mcframe.registry.attribution import PluginCall, attributed
from mcframe.registry.hook_rules import implemented_hooks, stated_api
from mcframe.registry.lifecycle import REGISTRATION_HOOK, Lifecycle

KINDS: tuple[str, ...] = tuple(INTERFACES)
"""The kinds of plug-ins, as gin files name them."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Plugin:
    """A plug-in and its origin.

    Attributes:
        name: Its unique name.
        distribution: Its package; empty for a local file.
        version: The package's version; empty for a local file.
        spec: Its name in `--plugin`; empty for an entry point.
        code: The source of a local file as it was run.
        api: The version of the plug-in API that it was made for; empty if not stated.
        file: Its source file, if known.
        lifecycle: The hooks it implements, except `register_plugins`.
    """

    name: str
    distribution: str = ""
    version: str = ""
    spec: str = ""
    code: bytes = field(default=b"", repr=False)
    api: str = ""
    file: str = ""
    lifecycle: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """Its name without that of its package."""
        return self.name.removeprefix(f"{self.distribution}:")

    @property
    def names(self) -> tuple[str, ...]:
        """The names that settings accept: package, plug-in or both; of a local file its name without `.py`."""
        return (Path(self.file).stem,) if self.code else (self.distribution or self.short, self.short, self.name)

    @property
    def origin(self) -> str:
        """The plug-in and its package as text."""
        return _origin(self.name, self.distribution, self.version)


@dataclass(frozen=True)
class Registered:
    """One implementation, `kind.name` in a gin file, and its origin."""

    kind: str
    name: str
    factory: Callable[..., Any]
    plugin: str
    distribution: str = ""
    version: str = ""
    api: str = ""

    @property
    def origin(self) -> str:
        """Its plug-in and package as text."""
        return _origin(self.plugin, self.distribution, self.version)

    @property
    def file(self) -> str:
        """The file that defines it; empty if unknown."""
        return _source_file(inspect.unwrap(self.factory))


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point that could not be loaded, with the last line of the error and, if known, a remedy."""

    entry_point: str
    distribution: str
    version: str
    error: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{_origin(self.entry_point, self.distribution, self.version)} could not be loaded: {self.error}"

    @property
    def remedy(self) -> str:
        """The remedy, in the imperative."""
        package = self.distribution or "the package"
        return self.advice or (
            f"upgrade {package} to a version made for mcframe's plug-in API {API_VERSION} (pip install --upgrade "
            f"{package}), report the error to its authors, or pip uninstall {package}"
        )


class NameTaken(UserError):
    """Two plug-ins offer the same name: neither is broken, so the user has to choose."""


class Registry:
    """Plug-ins and what they offer: `implementations[kind][name]`."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self.hooks = Lifecycle(self._manager)
        self.implementations: dict[str, dict[str, Registered]] = {kind: {} for kind in KINDS}
        self.plugins: dict[str, Plugin] = {}
        self.broken: list[BrokenPlugin] = []
        self.skipped: list[str] = []
        self.contested: dict[tuple[str, str], NameTaken] = {}
        self.silent: list[Plugin] = []
        self._named: set[str] = set()
        self.misspelt: list[str] = []

    def register_plugin(self, plugin: object, name: str, *, distribution: str = "", version: str = "") -> None:
        """Add a plug-in, a module or an instance, under a name of its own; on an error the registry is unchanged.

        Raises:
            UserError: It breaks a rule of the hook API, was made for another version of it, or offers a name that is
                taken.
        """
        self.add(plugin, Plugin(name, distribution, version))

    def add(self, plugin: object, known: Plugin, *, installed: bool = False) -> None:
        """Add a plug-in of known origin; see `register_plugin`.

        A name that two installed packages offer belongs to neither: its use is an error.
        """
        api = stated_api(plugin, known.distribution)
        implemented = implemented_hooks(self._manager, plugin)
        self._check_new(plugin, known.name)
        known = replace(
            known,
            api=api,
            file=known.file or _source_file(plugin if inspect.ismodule(plugin) else type(plugin)),
            lifecycle=tuple(hook for hook in implemented if hook != REGISTRATION_HOOK),
        )
        try:
            self._manager.register(plugin, known.name)
            offered = self._offers(plugin, known)
            contested = [(entry, taken) for entry in offered if (taken := self._taken(entry))]
            if contested and not installed:
                raise contested[0][1]
        except BaseException:  # a hook may call sys.exit; its other hooks must not stay registered
            self._manager.unregister(name=known.name)
            raise
        if known.distribution != PROJECT:
            self._attribute_hooks(plugin, known)
        self.plugins[known.name] = known
        for entry in offered:
            self.implementations[entry.kind][entry.name] = entry
        for entry, taken in contested:
            del self.implementations[entry.kind][entry.name]
            self.contested[entry.kind, entry.name] = taken

    def _taken(self, entry: Registered) -> NameTaken | None:
        """Return the error for a name that another plug-in offers, too; None if it is free."""
        if (other := self.implementations[entry.kind].get(entry.name)) is not None:
            return NameTaken(
                f"two plug-ins offer {entry.kind}.{entry.name}: {other.origin} and {entry.origin}",
                remedy="Uninstall one of them, skip one with --no-plugin NAME, or rename one implementation.",
            )
        return self.contested.get((entry.kind, entry.name))

    def enable_hooks(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Call life-cycle hooks of these plug-ins alone, and of those that `--plugin` names.

        Args:
            settings: The value of `run.hooks`: the settings of each plug-in or package, for its hooks to read.

        Raises:
            UserError: A name is that of no plug-in or package with life-cycle hooks.
        """
        found = [each for each in self.plugins.values() if each.lifecycle and each.distribution != PROJECT]
        known = sorted({each.names[0] for each in found})
        for name in settings:
            if not any(name in each.names for each in found):
                raise UserError(
                    f"run.hooks: expected a plug-in or package with life-cycle hooks, got {name!r}"
                    f"{did_you_mean(name, known)}",
                    binding="run.hooks",
                    remedy=f"Write one of: {', '.join(known)}." if known else "Remove it from run.hooks.",
                )
        self.silent = [
            each
            for each in found
            if each.distribution and not each.spec and each.name not in self._named and not {*each.names} & {*settings}
        ]
        removed = [self._manager.get_plugin(each.name) for each in self.silent]
        self.hooks = Lifecycle(self._manager, removed, settings)

    def name(self, plugin: object) -> None:
        """Note that `--plugin` names a plug-in that is registered already: its hooks act."""
        self._named.add(self._manager.get_name(plugin) or "")

    def has(self, plugin: object) -> bool:
        """Return whether this module or instance is registered."""
        return self._manager.is_registered(plugin)

    def warnings(self) -> list[str]:
        """Return a line for each contested name and each plug-in that could not be loaded, found or enabled."""
        taken = [f"{error.message}; runs that use neither are not affected" for error in self.contested.values()]
        silent = [
            f"life-cycle hooks of {each.origin} do not act; run.hooks = {{{each.names[0]!r}: {{}}}} enables them"
            for each in self.silent
        ]
        broken = [f"{broken}; runs that do not need it are not affected" for broken in self.broken]
        return [*self.misspelt, *broken, *taken, *silent]

    def versions(self) -> dict[str, str]:
        """Return the version of every package with a plug-in here, for checkpoints and reports."""
        return {plugin.distribution: plugin.version for plugin in self.plugins.values() if plugin.distribution}

    def unknown(self, kind: str, name: str) -> UserError:
        """Return the error for an unknown name, with similar names, all names of the kind, and likely causes."""
        if (kind, name) in self.contested:
            return self.contested[kind, name]
        full = f"@{kind}.{name}"
        offered = [f"@{kind}.{known}" for known in sorted(self.implementations[kind])]
        message = f"unknown plug-in {full}{did_you_mean(full, offered)}"
        message += f"; expected one of: {', '.join(offered) or 'none'}"
        remedy = f"Correct the name, install the package of {full}, or pass its file with --plugin"
        if self.skipped:
            message += f"\n  skipped with --no-plugin: {', '.join(self.skipped)}"
        if self.broken:
            message += "\n  likely cause, a plug-in that is installed but broken:"
            message += "".join(f"\n    {broken} (mcframe's plug-in API is {API_VERSION})" for broken in self.broken)
            remedy = "; ".join([remedy, *(broken.remedy for broken in self.broken)])
        return UserError(message, remedy=remedy)

    def _check_new(self, plugin: object, name: str) -> None:
        if self._manager.has_plugin(name):
            raise UserError(f"a plug-in called {name!r} is already registered", remedy="use another name")
        if self.has(plugin):
            raise UserError(
                f"it is the same as the plug-in {self._manager.get_name(plugin)!r}", remedy="publish it under one name"
            )

    def _attribute_hooks(self, plugin: object, known: Plugin) -> None:
        for hook in known.lifecycle:
            call = PluginCall(known.name, f"its hook {hook}", origin=known.origin)
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin is plugin:
                    implementation.function = attributed(implementation.function, call)

    def _offers(self, plugin: object, known: Plugin) -> list[Registered]:
        """Return what one plug-in registers through its hook `register_plugins`."""
        offered: dict[tuple[str, str], Registered] = {}
        others = [other for other in self._manager.get_plugins() if other is not plugin]

        def register(name: str, factory: Callable[..., Any], /, *, kind: str | None = None) -> None:
            if kind is None:
                kind = kind_of(name, factory)
            elif kind not in KINDS:
                raise UserError(
                    f"register({name!r}): expected one of {', '.join(KINDS)} as kind, got {kind!r}"
                    f"{did_you_mean(kind, KINDS)}",
                    remedy="Pass one of these kinds, or derive the class from an interface of mcframe.hookspecs.",
                )
            entry = Registered(kind, name, factory, known.name, known.distribution, known.version, known.api)
            _check_offer(entry, offered.get((kind, name)))
            offered[kind, name] = entry

        self._manager.subset_hook_caller(REGISTRATION_HOOK, others)(register=register)
        return list(offered.values())


def kind_of(name: str, factory: Callable[..., Any]) -> str:
    """Return the kind of what `factory` builds.

    A class belongs to the kind of its base class, a function to that of its return annotation.

    Raises:
        UserError: The kind cannot be inferred, or more than one fits.
    """
    inner = inspect.unwrap(factory.func if isinstance(factory, partial) else factory)
    product = inner if inspect.isclass(inner) else _return_annotation(inner)
    kinds = [kind for kind, base in INTERFACES.items() if inspect.isclass(product) and issubclass(product, base)]
    if len(kinds) == 1:
        return kinds[0]
    shown = getattr(inner, "__name__", repr(inner))
    names = ", ".join(sorted(interface.__name__ for interface in INTERFACES.values()))
    raise UserError(
        f"register({name!r}, {shown}): expected a class that derives from one interface, or a function annotated to "
        f"return one, got {shown}",
        remedy=f"derive it from one of {names} (mcframe.hookspecs), or pass kind='...' to register",
    )


def _return_annotation(function: Callable[..., Any]) -> Any:
    try:
        return typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        return None


def _check_offer(entry: Registered, taken: Registered | None) -> None:
    if not isinstance(entry.name, str) or not _NAME.fullmatch(entry.name):
        raise UserError(
            f"{entry.kind} name {entry.name!r} is not letters, digits and underscores",
            remedy="rename it, for example my_net",
        )
    if not callable(entry.factory):
        raise UserError(f"{entry.kind}.{entry.name} is not callable", remedy="register a class or a function")
    try:
        inspect.signature(entry.factory)
    except (TypeError, ValueError):
        raise UserError(
            f"{entry.kind}.{entry.name} has no signature to read its parameters from",
            remedy="register a Python function or class that calls it",
        ) from None
    if taken:
        raise NameTaken(
            f"two plug-ins offer {entry.kind}.{entry.name}: {taken.origin} and {entry.origin}",
            remedy="Uninstall one of them, skip one with --no-plugin NAME, or rename one implementation.",
        )


def _origin(plugin: str, distribution: str, version: str) -> str:
    """Return a plug-in and its package as text, with the package's name once."""
    plugin = plugin.removeprefix(f"{distribution}:")
    return f"plug-in {plugin!r}" + (f" of {distribution} {version}".rstrip() if distribution else "")


def _source_file(item: object) -> str:
    try:
        return inspect.getsourcefile(item) or ""  # type: ignore[arg-type]
    except (TypeError, OSError):  # written in C, or at a prompt
        return ""
