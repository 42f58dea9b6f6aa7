"""`mcframe export`: plain weights that load without DeepSpeed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import save_file
from torch import Tensor

from mcframe import __version__
from mcframe.cli.exported import write_export
from mcframe.cli.load_run import load_run
from mcframe.cli.options import Run, Trust, command
from mcframe.cli.streams import echo
from mcframe.errors import UserError
from mcframe.files import replaced
from mcframe.modeling.pretrained_base import HuggingFaceBase
from mcframe.registry.discovery import PluginOptions
from mcframe.training.checkpoint_folder import find
from mcframe.training.run_directory import BOUND
from mcframe.training.weights import load_weights, model_weights
from mcframe.trust import check_links

_FILE = ".safetensors"


@command
def export(
    plugins: PluginOptions,
    run: Run,
    out: Annotated[
        Path, typer.Option(metavar="PATH", help="The file to write; for a pretrained base model, or a new folder.")
    ] = Path("model.safetensors"),
    copy_base: Annotated[bool, typer.Option("--copy-base", help="Copy a frozen base model into the folder.")] = False,
    trust: Trust = False,
) -> int:
    """Write a checkpoint's weights, float32, as safetensors; the run's configuration goes into the metadata.

    For a pretrained base model, a PATH not ending in .safetensors is a folder that transformers and mcframe load.
    """
    if out.suffix != _FILE and _names_pretrained(run):
        trained = load_run(run, plugins=plugins, trust=trust)
        if isinstance(trained.model.gpt, HuggingFaceBase):
            line = write_export(trained, out, copy_base)
            echo(f"{out}: after {trained.checkpoint.tokens:,} tokens; {line}")
            return 0
    if copy_base:
        raise UserError(
            f"--copy-base: expected --out FOLDER and a pretrained base model, got {out}",
            remedy="Pass --out with a path that does not end in .safetensors, or remove --copy-base.",
        )
    checkpoint = find(run)
    check_links(checkpoint.path.parents[1], trust)
    state = model_weights(load_weights(checkpoint))
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    config = checkpoint.path.parents[1] / BOUND
    facts = {"mcframe": __version__, "tokens": str(checkpoint.tokens)}
    if config.exists():
        facts["config.gin"] = config.read_text("utf-8")
    with replaced(out) as partial:
        save_file(weights, partial, metadata=facts)
    count = sum(tensor.numel() for tensor in weights.values())
    echo(f"{out}: {len(weights)} tensors, {count:,} parameters, after {checkpoint.tokens:,} tokens")
    return 0


def _names_pretrained(run: Path) -> bool:
    """Return whether the configuration of a run, read as text, has a pretrained base model: nothing is executed."""
    found = next((each for each in (run, *run.resolve().parents) if (each / BOUND).is_file()), None)
    return found is not None and bool(
        re.search(r"^run\.base = @base\.huggingface\b", (found / BOUND).read_text("utf-8"), re.M)
    )
