"""mcframe: a config-driven plug-in framework for MegaContext language models.

`mcframe.load_run(RUN)` opens a trained run: its model, tokenizer, settings and checkpoint.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without imports, `python -m mcframe` handles signals tens of milliseconds earlier
if TYPE_CHECKING:
    from typing import Any

__version__: str


def __getattr__(name: str) -> Any:
    """Import `load_run`, which needs torch, and read the version on first use."""
    if name == "load_run":
        from importlib import import_module

        return import_module("mcframe.cli.load_run").load_run
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("mcframe")
        except PackageNotFoundError:  # a checkout without an installation; run.py prints the remedy
            return "0+not-installed"
    raise AttributeError(f"module 'mcframe' has no attribute {name!r}")
