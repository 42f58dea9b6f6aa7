"""A trained run opened for reading: its recipe, model and tokenizer, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcframe.config.run_config import Loaded, load_run_config
from mcframe.config.schema import RunConfig
from mcframe.errors import Location, UserError
from mcframe.hookspecs import Tokenizer
from mcframe.modeling.model import MegaContextModel
from mcframe.registry.discovery import INSTALLED, PluginOptions
from mcframe.registry.load_from_path import NotLoaded, Spec
from mcframe.training.build import build_model
from mcframe.training.checkpoints import Checkpoint, find
from mcframe.training.provenance import reopened
from mcframe.training.run_directory import BOUND, PROVENANCE
from mcframe.training.weights import load_weights, model_weights


@dataclass(frozen=True)
class TrainedRun:
    """What a checkpoint holds, in float32 on the CPU, in eval mode."""

    run_config: RunConfig
    tokenizer: Tokenizer
    model: MegaContextModel
    checkpoint: Checkpoint
    loaded: Loaded


def load_run(
    place: Path,
    files: Sequence[Path | str] = (),
    overrides: Sequence[str] = (),
    plugins: PluginOptions = INSTALLED,
) -> TrainedRun:
    """Open a run directory (its newest checkpoint) or one checkpoint of it. Raises UserError where that fails.

    files, overrides   gin files and `--set` bindings that are read on top of the run's own
    plugins            plug-ins on top of those that the run was given
    """
    checkpoint = find(place)
    directory = checkpoint.path.parents[1]
    config = directory / BOUND
    if not config.exists():
        raise UserError(
            f"{config} is missing, so nobody knows what the checkpoint's model was",
            remedy="put the run's config.gin back, beside its folder checkpoints",
        )
    options = reopened(directory, plugins)
    try:
        loaded = load_run_config([config, *files], overrides, options)
    except NotLoaded as error:
        if error.spec in {str(Spec.parse(text)) for text in plugins.named}:
            raise
        # Nobody typed it now: the run says that it was given.
        raise error.at(Location(directory / PROVENANCE)) from error
    run_config = loaded.run_config
    tokenizer = run_config.tokenizer()
    model = build_model(run_config, tokenizer.vocab_size)
    try:
        model.load_state_dict(model_weights(load_weights(checkpoint)))
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint.path} does not fit this configuration: {str(error).splitlines()[1].strip()}",
            remedy="leave out overrides that change the model: settings of evaluations and of the allocator may differ",
        ) from error
    return TrainedRun(run_config, tokenizer, model.eval(), checkpoint, loaded)
