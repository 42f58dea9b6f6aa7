"""The plug-ins that a run used, recorded so that the run can be opened again with the same ones.

A local file is copied into the run directory, since it may change after the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcframe.errors import Location, UserError
from mcframe.registry.discovery import PluginOptions, installed, is_called
from mcframe.registry.load_from_path import Spec, digest
from mcframe.registry.plugins import Plugin, Registry
from mcframe.training.run_directory import PROVENANCE
from mcframe.trust import PLUGIN_OPTIONS as KEY
from mcframe.trust import untrusted

FOLDER = "plugins"


@dataclass(frozen=True)
class AddedPlugin:
    """A plug-in that `--plugin` added to a run.

    Attributes:
        spec: The value of `--plugin`.
        copy: Path of the copy of a local file, in the run directory.
        sha256: Hash of a local file.
    """

    spec: str
    copy: str = ""
    sha256: str = ""


def added_plugins(registry: Registry) -> list[AddedPlugin]:
    """Return the plug-ins that `--plugin` added to the installed ones."""
    return [_added(plugin) for plugin in registry.plugins.values() if plugin.spec]


def write_record(directory: Path, registry: Registry) -> dict[str, Any]:
    """Copy local files into the run directory, and return the entries of its `provenance.json`."""
    for plugin in registry.plugins.values():
        if plugin.code:
            copy = directory / _added(plugin).copy
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(plugin.code)
    named = [vars(each) for each in added_plugins(registry)]
    return {"plugins": registry.versions(), KEY: {"named": named, "without": registry.skipped}}


def fingerprint(registry: Registry) -> list[str]:
    """Return lines that must be equal on every rank: packages with versions, and the plug-ins that `--plugin` added."""
    packages = [f"{name} {version}" for name, version in registry.versions().items()]
    return [*packages, *(f"{Path(each.spec).name} {each.sha256[:12]}".strip() for each in added_plugins(registry))]


def check_alike(fingerprints: Sequence[Sequence[str]]) -> None:
    """Raise UserError unless the fingerprints of all ranks are equal."""
    first = set(fingerprints[0])
    for rank, other in enumerate(map(set, fingerprints)):
        if other != first:
            ours, theirs = (", ".join(sorted(only)) or "nothing" for only in (first - other, other - first))
            raise UserError(
                f"the ranks do not have the same plug-ins: rank 0 has {ours} where rank {rank} has {theirs}",
                remedy="Install the same versions on every node, and keep local files on storage of all nodes.",
            )


def changes(directory: Path, added: Sequence[AddedPlugin]) -> list[str]:
    """Return a line for each difference between the plug-ins added to a run before and now."""
    before, now = ({each.spec: each.sha256 for each in them} for them in (_read(directory)[0], added))
    if not (directory / PROVENANCE).exists():
        return []
    lines = {
        **{spec: f"--plugin {spec} was passed before" for spec in before.keys() - now.keys()},
        **{spec: f"--plugin {spec} was not passed before" for spec in now.keys() - before.keys()},
        **{spec: f"{spec} was changed" for spec in before.keys() & now.keys() if before[spec] != now[spec]},
    }
    return [lines[spec] for spec in sorted(lines)]


def reopened(directory: Path, options: PluginOptions, *, trusted: bool) -> PluginOptions:
    """Return the options to open a run with: those of the run, overridden by `options`.

    A file or module in `options` replaces that of the run with the same name, and `options.without` removes others.

    Args:
        directory: The run directory.
        options: The options of the command line.
        trusted: Whether the plug-ins of the run may be executed.

    Raises:
        UserError: The run is not trusted and has a plug-in that `options` does not replace, or a local file is neither
            in the run directory nor unchanged at its old path.
    """
    recorded, without = _read(directory)
    replaced = {_name(text) for text in options.named}
    dropped = {name for name in options.without if any(name in _names(each.spec) for each in recorded)}
    kept = [each for each in recorded if _name(each.spec) not in replaced and not dropped & _names(each.spec)]
    if kept and not trusted:
        raise untrusted(
            directory,
            f"execute its plug-ins: {', '.join(each.spec for each in kept)}",
            Location(directory / PROVENANCE),
            f" Or pass your own with --plugin, or skip them: --no-plugin {Path(kept[0].spec).name}.",
        )
    still_there = tuple(name for name in without if any(is_called(point, name) for point in installed()))
    return PluginOptions(
        named=(*(_found(directory, each) for each in kept), *options.named),
        without=(*(name for name in options.without if name not in dropped), *still_there),
        strict=options.strict,
    )


def _added(plugin: Plugin) -> AddedPlugin:
    if not plugin.code:
        return AddedPlugin(plugin.spec)
    file, sha256 = Path(plugin.file), digest(plugin.code)
    return AddedPlugin(plugin.spec, f"{FOLDER}/{sha256[:12]}/{file.name}", sha256)


def _read(directory: Path) -> tuple[list[AddedPlugin], list[str]]:
    """Return the recorded plug-ins, and those that were skipped. Raises UserError if the record has another form."""
    file = directory / PROVENANCE
    if not file.exists():
        return [], []
    try:
        facts = json.loads(file.read_text("utf-8")).get(KEY, {})
        named = [AddedPlugin(**each) for each in facts.get("named", [])]
        without = list(facts.get("without", []))
        if not all(
            isinstance(text, str) for text in (*without, *(text for each in named for text in vars(each).values()))
        ):
            raise TypeError("a value is not text")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"expected the plug-ins of a run in {KEY}, got something else: {error}",
            remedy="Restore the file, or remove it and pass the run's plug-ins with --plugin.",
            location=Location(file),
        ) from error
    return named, without


def _found(directory: Path, plugin: AddedPlugin) -> str:
    """Return the plug-in of a run as a value of `--plugin`."""
    if not plugin.copy:
        return plugin.spec
    spec = Spec.parse(plugin.spec)
    for file in (directory / plugin.copy, Path(spec.where)):  # the hash makes both the file of the record
        if file.is_file() and digest(file.read_bytes()) == plugin.sha256:
            return str(Spec(str(file.resolve()), spec.attribute))
    name = Path(spec.where).name
    raise UserError(
        f"{directory} was trained with the plug-in file {spec.where}, and neither that file nor its copy "
        f"{plugin.copy} in the run directory exists unchanged",
        remedy=f"Restore the copy, pass a {name} that replaces it with --plugin FILE, or skip it with --no-plugin "
        f"{name}.",
        location=Location(directory / PROVENANCE),
    )


def _name(text: str) -> str:
    """Return the key by which one plug-in replaces another: the name of a file, or the module."""
    spec = Spec.parse(text)
    return spec.file.name if spec.file else spec.where


def _names(text: str) -> set[str]:
    """Return the values of `--no-plugin` that remove a plug-in from those that were added."""
    return {text, Spec.parse(text).where, _name(text)}
