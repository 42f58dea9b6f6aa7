"""`mcframe tokenizer`: train the BPE tokenizer of a gin file, and cache it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from mcframe.cli.options import Gin, Set, command
from mcframe.config.run_config import load_run_config
from mcframe.data.tokenizers import bpe_file, train_bpe
from mcframe.errors import UserError
from mcframe.files import user_path
from mcframe.registry.discovery import PluginOptions


@command
def tokenizer(
    plugins: PluginOptions,
    gin: Gin,
    set_: Set = [],  # noqa: B006 - typer copies it
    characters: Annotated[int, typer.Option(min=1, help="Characters of training text to read.")] = 500_000_000,
) -> int:
    """Train the tokenizer of a gin file on its training documents and cache it where runs look for it."""
    loaded = load_run_config(gin, set_, plugins)
    bound = loaded.config.as_dict()
    if str(bound.get("run.tokenizer", "")).lstrip("@") != "tokenizer.bpe":
        raise UserError(
            f"{gin[-1]} uses {bound.get('run.tokenizer')}, which is not trained",
            remedy="Set run.tokenizer = @tokenizer.bpe, or train at once.",
        )
    size, name = int(bound.get("tokenizer.bpe.vocab_size", 65536)), str(bound.get("tokenizer.bpe.name", "default"))
    stated = bound.get("tokenizer.bpe.file")
    file = bpe_file(size, name) if stated is None else user_path(stated, "tokenizer.bpe.file")
    console = Console()
    with loaded.explaining(), console.status(f"Reading up to {characters:,} characters") as status:
        train_bpe(
            loaded.run_config.text(),
            size,
            file,
            fraction=loaded.run_config.data.validation_fraction,
            max_characters=characters,
            progress=lambda read: status.update(f"Read {read:,} of up to {characters:,} characters"),
        )
    console.print(f"{size:,} entries in {file}", highlight=False)
    return 0
