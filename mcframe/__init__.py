"""mcframe: a config-driven plug-in framework for MegaContext language models.

`mcframe.load_run(RUN)` opens a trained run: its model, tokenizer, settings and checkpoint.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("mcframe")
except PackageNotFoundError:  # a checkout without an installation; run.py prints the remedy
    __version__ = "0+not-installed"


def __getattr__(name: str) -> Any:
    """Import `load_run` on first use, since it imports torch."""
    if name == "load_run":
        return import_module("mcframe.cli.load_run").load_run
    raise AttributeError(f"module 'mcframe' has no attribute {name!r}")
