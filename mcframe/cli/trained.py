"""A trained run opened for reading: its recipe, model and tokenizer, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcframe.discovery import INSTALLED, PluginOptions
from mcframe.errors import Place, UserError
from mcframe.hookspecs import Tokenizer
from mcframe.modeling.step import MegaContextStep
from mcframe.named_plugins import NotLoaded, Spec
from mcframe.recipe import Loaded, load_recipe
from mcframe.training.assembly import build_model
from mcframe.training.checkpoints import Checkpoint, find
from mcframe.training.plugin_record import reopened
from mcframe.training.run_directory import BOUND, PROVENANCE
from mcframe.training.settings import Recipe
from mcframe.training.weights import load_weights


@dataclass(frozen=True)
class TrainedRun:
    """What a checkpoint holds, in float32 on the CPU, in eval mode."""

    recipe: Recipe
    tokenizer: Tokenizer
    model: MegaContextStep
    checkpoint: Checkpoint
    loaded: Loaded


def open_trained(
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
        loaded = load_recipe([config, *files], overrides, options)
    except NotLoaded as error:
        if error.spec in {str(Spec.parse(text)) for text in plugins.named}:
            raise
        # Nobody typed it now: the run says that it was given.
        raise error.at(Place(directory / PROVENANCE)) from error
    recipe = loaded.recipe
    tokenizer = recipe.tokenizer()
    model = build_model(recipe, tokenizer.vocab_size)
    try:
        model.load_state_dict(load_weights(checkpoint))
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint.path} does not fit this configuration: {str(error).splitlines()[1].strip()}",
            remedy="leave out overrides that change the model: settings of evaluations and of the allocator may differ",
        ) from error
    return TrainedRun(recipe, tokenizer, model.eval(), checkpoint, loaded)
