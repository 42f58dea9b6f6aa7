"""`mcframe sample`: continue a prompt with a trained model."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from typing import Annotated

import torch
import typer

from mcframe.cli.load_run import load_run
from mcframe.cli.options import Run, Trust, command
from mcframe.cli.streams import echo
from mcframe.errors import UserError
from mcframe.registry.discovery import PluginOptions
from mcframe.training.sampling import continuation


@command
def sample(
    plugins: PluginOptions,
    run: Run,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    length: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Another seed, another continuation.")] = 0,
    trust: Trust = False,
) -> int:
    """Continue a prompt. A prompt longer than the model's window loses its beginning."""
    if not math.isfinite(temperature):
        raise UserError(f"--temperature: expected a number from 0, got {temperature}", remedy="Pass a finite number.")
    prompt = os.fsencode(prompt).decode("utf-8", "replace")  # in an ASCII locale every other byte is a surrogate
    trained = load_run(run, plugins=plugins, trust=trust)
    window = trained.model.tree.window
    size = len(trained.tokenizer.encode_batch([prompt])[0])
    if size > window:
        print(f"note: of {size} tokens of the prompt the model reads the last {window}", file=sys.stderr)  # noqa: T201
    sampling = replace(trained.run_config.sampling, length=length, temperature=temperature)
    with trained.loaded.explaining():
        text = continuation(trained.model, trained.tokenizer, prompt, sampling, torch.device("cpu"), seed)
    echo(prompt + text)
    return 0
