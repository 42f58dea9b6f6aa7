"""Evaluation mode for a part of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode, and back to the mode that it had."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
