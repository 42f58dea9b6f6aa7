"""Which plug-ins are installed, and what they offer.

Entry points are loaded one by one: a package that does not import must not take every command down with it. It
is remembered instead, mentioned in one warning line, and becomes the likely cause once a run asks for a name that
nobody offers.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from mcframe.errors import UserError
from mcframe.hookspecs import API_VERSION, ENTRY_POINT_GROUP, PROJECT, Hooks, RunInfo

KINDS: Mapping[str, str] = {
    "gistnet": "register_gistnets",
    "lensnet": "register_lensnets",
    "allocator": "register_allocators",
    "variants": "register_variants",
    "text": "register_text_sources",
    "tokenizer": "register_tokenizers",
    "task": "register_tasks",
    "evaluation": "register_evaluations",
}
"""Each kind of plug-in, and the hook that offers plug-ins of that kind."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Registered:
    """One implementation: `kind.name` in a gin file, and where it comes from."""

    kind: str
    name: str
    factory: Callable[..., Any]
    plugin: str
    distribution: str = ""
    version: str = ""

    @property
    def origin(self) -> str:
        """Who offers it, in words."""
        return _origin(self.plugin, self.distribution, self.version)


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point that could not be loaded, and the last line of the error."""

    entry_point: str
    distribution: str
    version: str
    error: str

    def __str__(self) -> str:
        return f"{_origin(self.entry_point, self.distribution, self.version)} could not be loaded: {self.error}"

    @property
    def remedy(self) -> str:
        """What to do about it."""
        package = self.distribution or "the package"
        return (
            f"upgrade {package} to a version made for mcframe's plug-in API {API_VERSION} (pip install --upgrade "
            f"{package}), report the error to its authors, or pip uninstall {package}"
        )


class Lifecycle:
    """The life-cycle hooks of every plug-in, as typed methods. See `mcframe.hookspecs.Hooks`."""

    def __init__(self, relay: pluggy.HookRelay) -> None:
        self._relay = relay

    def run_started(self, run: RunInfo) -> None:
        """The first step comes next. Every rank."""
        self._relay.run_started(run=run)

    def step_finished(self, run: RunInfo) -> None:
        """An optimizer step is done. Every rank."""
        self._relay.step_finished(run=run)

    def metrics_logged(self, run: RunInfo, metrics: Mapping[str, float]) -> None:
        """Metrics have been read back and reduced. Rank 0."""
        self._relay.metrics_logged(run=run, metrics=metrics)

    def checkpoint_saved(self, run: RunInfo, checkpoint: Path) -> None:
        """A checkpoint is complete on disk. Every rank."""
        self._relay.checkpoint_saved(run=run, checkpoint=checkpoint)

    def run_finished(self, run: RunInfo, summary: Mapping[str, Any]) -> None:
        """The run has ended. Rank 0."""
        self._relay.run_finished(run=run, summary=summary)


class Registry:
    """Plug-ins and what they offer: `implementations[kind][name]`."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self.hooks = Lifecycle(self._manager.hook)
        self.implementations: dict[str, dict[str, Registered]] = {kind: {} for kind in KINDS}
        self.broken: list[BrokenPlugin] = []

    def register_plugin(self, plugin: object, name: str, *, distribution: str = "", version: str = "") -> None:
        """Add a plug-in, a module or an instance, under a name of its own; all of it or, on an error, nothing.

        Raises UserError where it breaks a rule of the hook API or offers a name that is already taken.
        """
        _check_hooks(self._manager, plugin)
        if self._manager.has_plugin(name):
            raise UserError(f"a plug-in called {name!r} is already registered", remedy="give it another name")
        try:
            self._manager.register(plugin, name)
            offered = self._offers(plugin, name, distribution, version)
        except Exception:
            self._manager.unregister(name=name)
            raise
        for entry in offered:
            self.implementations[entry.kind][entry.name] = entry

    def warnings(self) -> list[str]:
        """One line for each plug-in that could not be loaded."""
        return [f"{broken}; runs that do not need it are not affected" for broken in self.broken]

    def versions(self) -> dict[str, str]:
        """Version of every package that offers something, for checkpoints and reports."""
        entries = (entry for offered in self.implementations.values() for entry in offered.values())
        return {entry.distribution: entry.version for entry in entries if entry.distribution}

    def unknown(self, kind: str, name: str) -> UserError:
        """The error for a name that no plug-in of this kind has: near misses, what there is, likely causes."""
        full = f"@{kind}.{name}"
        offered = [f"@{kind}.{known}" for known in sorted(self.implementations[kind])]
        message = f"no plug-in offers {full}{did_you_mean(full, offered)}"
        message += f"; of this kind there are: {', '.join(offered) or 'none'}"
        remedy = f"write one of these names, or install the package that offers {full}"
        if self.broken:
            message += "\n  likely cause, a plug-in that is installed but broken:"
            message += "".join(f"\n    {broken} (mcframe's plug-in API is {API_VERSION})" for broken in self.broken)
            remedy = "; ".join([remedy, *(broken.remedy for broken in self.broken)])
        return UserError(message, remedy=remedy)

    def _offers(self, plugin: object, name: str, distribution: str, version: str) -> list[Registered]:
        """What one plug-in offers through its `register_*` hooks."""
        offered: dict[tuple[str, str], Registered] = {}
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        for kind, hook in KINDS.items():

            def register(item: str, factory: Callable[..., Any], /, *, kind: str = kind) -> None:
                entry = Registered(kind, item, factory, name, distribution, version)
                _check_offer(entry, offered.get((kind, item)) or self.implementations[kind].get(item))
                offered[kind, item] = entry

            self._manager.subset_hook_caller(hook, others)(register=register)
        return list(offered.values())


class _NameTaken(UserError):
    """Two plug-ins offer the same name: neither is broken, so a person has to choose."""


def discover() -> Registry:
    """Every plug-in that is installed, ours included.

    Raises UserError where mcframe itself is not installed, or two plug-ins offer the same name.
    """
    registry = Registry()
    found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (_distribution(point), point.name))
    if PROJECT not in {_distribution(point)[0] for point in found}:
        raise UserError(
            "mcframe's own plug-ins are not installed: this looks like a bare checkout",
            remedy="run `pip install -e . -c constraints.txt` in the checkout",
        )
    for point in found:
        distribution, version = _distribution(point)
        # The distribution's name makes entry points of two packages with one name two plug-ins.
        try:
            registry.register_plugin(
                point.load(), f"{distribution}:{point.name}", distribution=distribution, version=version
            )
        except _NameTaken:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - importing a stranger's package can raise anything
            registry.broken.append(BrokenPlugin(point.name, distribution, version, _last_line(error)))
    return registry


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """' (did you mean A or B?)' with the options that look like `name`, or nothing."""
    near = difflib.get_close_matches(name, sorted(options), n=3, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, option, name).ratio() for option in near]
    # A clear best match stands alone: names of one kind resemble each other by their common beginning.
    near = [option for option, ratio in zip(near, likeness, strict=True) if ratio > likeness[0] - 0.1]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Refuse what pluggy would accept and then silently not do."""
    if inspect.isclass(plugin):
        raise UserError(
            f"{plugin.__name__} is a class; a plug-in is an instance or a module",
            remedy=f"publish an instance: `plugin = {plugin.__name__}()`",
        )
    hooks = {hook for hook in dir(Hooks) if not hook.startswith("_")}
    implemented = 0
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        implemented += 1
        hook = options.get("specname") or attribute
        if hook not in hooks and not options.get("optionalhook"):
            raise UserError(f"mcframe has no hook {hook!r}{did_you_mean(hook, hooks)}", remedy="rename the function")
        for parameter in inspect.signature(getattr(plugin, attribute)).parameters.values():
            # pluggy passes such a parameter nothing: it would always have its default.
            if parameter.default is not parameter.empty:
                raise UserError(
                    f"hook {hook!r}: parameter {parameter.name!r} has a default value and would never get another",
                    remedy=f"remove the default of {parameter.name!r}",
                )
    if not implemented:
        raise UserError("it implements no hook", remedy="mark its functions with @mcframe.hookspecs.hookimpl")


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
        raise _NameTaken(
            f"two plug-ins offer {entry.kind}.{entry.name}: {taken.origin} and {entry.origin}",
            remedy="uninstall one of them, or rename one implementation",
        )


def _origin(plugin: str, distribution: str, version: str) -> str:
    """A plug-in and its package in words; the package's name is not said twice."""
    plugin = plugin.removeprefix(f"{distribution}:")
    return f"plug-in {plugin!r}" + (f" of {distribution} {version}".rstrip() if distribution else "")


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version of the package; empty where its removal was interrupted and left no metadata."""
    if point.dist is None:
        return "", ""
    metadata = dict(point.dist.metadata.json)
    return str(metadata.get("name", "")), str(metadata.get("version", ""))


def _last_line(error: BaseException) -> str:
    """The error in one line; a UserError's remedy belongs to its author and is kept."""
    text = f"{error.message}: {error.remedy}" if isinstance(error, UserError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    name = "" if isinstance(error, UserError) else type(error).__name__
    return ": ".join(filter(None, [name, lines[-1] if lines else ""]))
