"""Which plug-ins the command line gave a run, so that the run can be opened again without being told.

A local file is copied into the run directory: what it holds tomorrow is not what the checkpoints were trained with.
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

FOLDER, KEY = "plugins", "plugin_options"


@dataclass(frozen=True)
class Given:
    """A plug-in that `--plugin` gave a run. Of a local file, where its copy lies in the run directory, and its hash."""

    spec: str
    copy: str = ""
    sha256: str = ""


def given(registry: Registry) -> list[Given]:
    """What `--plugin` has added to what is installed."""
    return [_given(plugin) for plugin in registry.plugins.values() if plugin.spec]


def write_record(directory: Path, registry: Registry) -> dict[str, Any]:
    """Copy local files into the run directory. Returns the facts for its `provenance.json`."""
    for plugin in registry.plugins.values():
        if plugin.code:
            copy = directory / _given(plugin).copy
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(plugin.code)
    named = [vars(each) for each in given(registry)]
    return {"plugins": registry.versions(), KEY: {"named": named, "without": registry.skipped}}


def fingerprint(registry: Registry) -> list[str]:
    """What must be the same on every rank: packages with their versions, and what `--plugin` has added."""
    packages = [f"{name} {version}" for name, version in registry.versions().items()]
    return [*packages, *(f"{Path(each.spec).name} {each.sha256[:12]}".strip() for each in given(registry))]


def check_alike(fingerprints: Sequence[Sequence[str]]) -> None:
    """Raises UserError where ranks, whose fingerprints these are, do not have the same plug-ins."""
    first = set(fingerprints[0])
    for rank, other in enumerate(map(set, fingerprints)):
        if other != first:
            ours, theirs = (", ".join(sorted(only)) or "nothing" for only in (first - other, other - first))
            raise UserError(
                f"the ranks do not have the same plug-ins: rank 0 has {ours} where rank {rank} has {theirs}",
                remedy="install the same versions on every node, and keep local files on storage that all nodes share",
            )


def changes(directory: Path, now_given: Sequence[Given]) -> list[str]:
    """What differs between the plug-ins that a run was given before and now, a line each."""
    before, now = ({each.spec: each.sha256 for each in them} for them in (_read(directory)[0], now_given))
    if not (directory / PROVENANCE).exists():
        return []
    lines = {
        **{spec: f"--plugin {spec} was given before" for spec in before.keys() - now.keys()},
        **{spec: f"--plugin {spec} was not given before" for spec in now.keys() - before.keys()},
        **{spec: f"{spec} has been changed" for spec in before.keys() & now.keys() if before[spec] != now[spec]},
    }
    return [lines[spec] for spec in sorted(lines)]


def reopened(directory: Path, options: PluginOptions) -> PluginOptions:
    """The options under which a run is opened again: those of now on top of its own.

    A file or a module of now stands in for the run's of the same name; what `options.without` names is dropped.
    Raises UserError where a local file is neither in the run directory nor in its old place as it was.
    """
    recorded, without = _read(directory)
    replaced = {_name(text) for text in options.named}
    dropped = {name for name in options.without if any(name in _names(each.spec) for each in recorded)}
    kept = [each for each in recorded if _name(each.spec) not in replaced and not dropped & _names(each.spec)]
    still_there = tuple(name for name in without if any(is_called(point, name) for point in installed()))
    return PluginOptions(
        named=(*(_found(directory, each) for each in kept), *options.named),
        without=(*(name for name in options.without if name not in dropped), *still_there),
        strict=options.strict,
    )


def _given(plugin: Plugin) -> Given:
    if not plugin.code:
        return Given(plugin.spec)
    file, sha256 = Path(plugin.file), digest(plugin.code)
    return Given(plugin.spec, f"{FOLDER}/{sha256[:12]}/{file.name}", sha256)


def _read(directory: Path) -> tuple[list[Given], list[str]]:
    file = directory / PROVENANCE
    facts = json.loads(file.read_text("utf-8")).get(KEY, {}) if file.exists() else {}
    return [Given(**each) for each in facts.get("named", [])], facts.get("without", [])


def _found(directory: Path, plugin: Given) -> str:
    """Where the plug-in of a run is now, as `--plugin` names it."""
    if not plugin.copy:
        return plugin.spec
    spec = Spec.parse(plugin.spec)
    for file in (directory / plugin.copy, Path(spec.where)):
        if file.is_file() and digest(file.read_bytes()) == plugin.sha256:
            return str(Spec(str(file.resolve()), spec.attribute))
    name = Path(spec.where).name
    raise UserError(
        f"{directory} was trained with the plug-in file {spec.where}, and neither that file nor its copy "
        f"{plugin.copy} in the run directory is there as it was",
        remedy=f"put the copy back, name a {name} that stands in for it with --plugin FILE, or leave it out with "
        f"--no-plugin {name}",
        location=Location(directory / PROVENANCE),
    )


def _name(text: str) -> str:
    """What stands in for each other: files of one name, a module."""
    spec = Spec.parse(text)
    return spec.file.name if spec.file else spec.where


def _names(text: str) -> set[str]:
    """What `--no-plugin` may call a plug-in that a run was given."""
    return {text, Spec.parse(text).where, _name(text)}
