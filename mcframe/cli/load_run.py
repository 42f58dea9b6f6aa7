"""Open a trained run for reading: its configuration, model and tokenizer, without an engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcframe.cli import exported
from mcframe.config.gin_reader import GinReader
from mcframe.config.run_config import Loaded, load_run_config
from mcframe.config.schema import RunConfig
from mcframe.config.values import leaves
from mcframe.errors import Location, UserError
from mcframe.hookspecs import Tokenizer
from mcframe.modeling.model import MegaContextModel
from mcframe.registry.discovery import INSTALLED, PluginOptions
from mcframe.registry.load_from_path import NotLoaded, Spec
from mcframe.runtime.commit_log import checksum
from mcframe.runtime.gist_encoder import history_shape
from mcframe.runtime.history import History
from mcframe.runtime.history_folder import META
from mcframe.runtime.session import Session
from mcframe.training.build import build_model
from mcframe.training.checkpoint_folder import Checkpoint, find
from mcframe.training.provenance import reopened
from mcframe.training.run_directory import BOUND, PROVENANCE
from mcframe.training.weights import load_weights, model_weights
from mcframe.trust import leads_out, open_run, untrusted


@dataclass(frozen=True)
class TrainedRun:
    """The model of a checkpoint, in float32 on the CPU, in eval mode, with its configuration and tokenizer."""

    run_config: RunConfig
    tokenizer: Tokenizer
    model: MegaContextModel
    checkpoint: Checkpoint
    loaded: Loaded

    @property
    def directory(self) -> Path:
        """The run directory, or the folder that `mcframe export` wrote."""
        return next(parent for parent in self.checkpoint.path.parents if (parent / BOUND).exists())

    def session(self, folder: Path | str | None = None, **options: Any) -> Session:
        """Return a session of this model: a history without end, and text that is generated from it.

        Args:
            folder: Where the history is kept; a folder that has one is opened. None = in memory.
            **options: Attributes of `SessionDefaults`, such as `budget`, in place of the run's bindings.

        Raises:
            UserError: The options do not fit together, or the folder has a history that does not fit this run.
        """
        config = replace(self.run_config.session, **options).config(self.model.tree, self.model.gpt.positions.bounded)
        weights = checksum(json.dumps(dict(self.checkpoint.facts), sort_keys=True).encode())
        shape = history_shape(self.model, self.tokenizer.vocab_size, self.tokenizer.identity, weights)
        path = None if folder is None else Path(folder)
        known = path is not None and (path / META).exists()
        history = History.open(path, shape) if path is not None and known else History.create(shape, path)
        return Session(self.model, self.tokenizer, self.run_config.allocator, history, config)


def load_run(
    path: Path | str,
    files: Sequence[Path | str] = (),
    overrides: Sequence[str] = (),
    plugins: PluginOptions = INSTALLED,
    trust: bool = False,
) -> TrainedRun:
    """Open a run directory (its newest checkpoint), one checkpoint of it, or a folder that `mcframe export` wrote.

    Args:
        path: The run directory, the checkpoint or the folder.
        files: Gin files that are read on top of the run's own configuration.
        overrides: `--set` bindings that are read on top of both.
        plugins: Plug-ins on top of those that were passed to the run.
        trust: Whether a run that this user has not made may execute the plug-ins that it names, follow links out of
            its folder and read paths of its configuration. The run is trusted from then on.

    Raises:
        UserError: The run cannot be opened, or is not trusted and would need to be.
    """
    if exported.is_export(path := Path(path)):
        checkpoint = exported.read_manifest(path)
        loaded = load_settings(path, files, [*exported.bindings(checkpoint), *overrides], plugins, trust)
        return _opened(checkpoint, loaded)
    checkpoint = find(path)
    archived = checkpoint.path.parent.name == "superseded"  # of a branch that the run no longer follows
    directory = checkpoint.path.parents[2 if archived else 1]
    return _opened(checkpoint, load_settings(directory, files, overrides, plugins, trust))


def _opened(checkpoint: Checkpoint, loaded: Loaded) -> TrainedRun:
    """Build the model of a configuration and load its weights."""
    run_config = loaded.run_config
    tokenizer = run_config.tokenizer()
    model = build_model(run_config, tokenizer.vocab_size, tokenizer.separator)
    try:
        if exported.is_export(checkpoint.path.parent):
            exported.load_parts(model, checkpoint)
        else:
            model.load_state_dict(model_weights(load_weights(checkpoint)))
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint.path} does not fit this configuration: {str(error).splitlines()[1].strip()}",
            remedy="Remove overrides that change the model. Only bindings of evaluations and the allocator may differ.",
        ) from error
    return TrainedRun(run_config, tokenizer, model.eval(), checkpoint, loaded)


def load_settings(
    directory: Path,
    files: Sequence[Path | str] = (),
    overrides: Sequence[str] = (),
    plugins: PluginOptions = INSTALLED,
    trust: bool = False,
) -> Loaded:
    """Load the configuration of a run directory with its plug-ins; arguments and errors as for `load_run`."""
    trusted, config = open_run(directory, trust), directory / BOUND
    if not config.exists():
        raise UserError(
            f"missing {config}, which describes the run's model",
            remedy="Restore the run's config.gin next to its folder checkpoints.",
        )
    config = config.resolve() if trust else config  # the reader refuses a link out of the run directory
    options = reopened(directory, plugins, trusted=trusted)
    if not trusted:
        _check_paths(directory, config)
    try:
        return load_run_config([config, *files], overrides, options)
    except NotLoaded as error:
        if error.spec in {str(Spec.parse(text)) for text in plugins.named}:
            raise
        # The plug-in is not on this command line: the run's provenance names it.
        raise error.at(Location(directory / PROVENANCE)) from error


def _check_paths(directory: Path, config: Path) -> None:
    """Raise UserError if the configuration of a run names a file or folder outside the run directory."""
    reader = GinReader()
    reader.file(config)
    for binding in reader.bindings.values():
        for leaf in leaves(binding.value):
            if binding.key != "run.start_from" and isinstance(leaf, str) and leads_out(leaf, directory):
                raise untrusted(directory, f"open {leaf!r}, which {binding.key} names", binding.location)
