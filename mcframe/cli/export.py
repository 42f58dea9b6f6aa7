"""`mcframe export`: plain weights that load without DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import save_file
from torch import Tensor

from mcframe import __version__
from mcframe.cli.options import Run, Trust, command
from mcframe.cli.streams import echo
from mcframe.files import replaced
from mcframe.training.checkpoint_folder import find
from mcframe.training.run_directory import BOUND
from mcframe.training.weights import load_weights, model_weights
from mcframe.trust import check_links


@command
def export(
    run: Run,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")] = Path("model.safetensors"),
    trust: Trust = False,
) -> int:
    """Write a checkpoint's weights, float32, as safetensors; the run's configuration goes into its metadata."""
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
