"""`mcframe sample`: continue a prompt with a trained model."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import typer

from mcframe.cli.load_run import load_run
from mcframe.cli.options import NoPlugin, Plugin, Run, StrictPlugins, Traceback, plugin_options
from mcframe.cli.user_errors import report_user_errors
from mcframe.training.sampling import continuation


def sample(
    run: Run,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    length: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Another seed, another continuation.")] = 0,
    plugin: Plugin = [],  # noqa: B006 - typer copies it
    no_plugin: NoPlugin = [],  # noqa: B006
    strict_plugins: StrictPlugins = False,
    traceback: Traceback = False,
) -> None:
    """Continue a prompt. A prompt longer than the model's window loses its beginning."""

    def act() -> int:
        trained = load_run(run, plugins=plugin_options(plugin, no_plugin, strict_plugins))
        window = trained.model.tree.window
        size = len(trained.tokenizer.encode_batch([prompt])[0])
        if size > window:
            typer.echo(f"note: of {size} tokens of the prompt the model reads the last {window}", err=True)
        sampling = replace(trained.run_config.sampling, length=length, temperature=temperature)
        device = torch.device("cpu")
        with trained.loaded.explaining():
            typer.echo(prompt + continuation(trained.model, trained.tokenizer, prompt, sampling, device, seed))
        return 0

    raise typer.Exit(report_user_errors(act, traceback=traceback))
