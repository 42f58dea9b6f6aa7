"""Settings of every process that trains on a GPU."""

from __future__ import annotations

import os

import torch

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def prepare_allocator() -> None:
    """Let torch grow its blocks of memory, unless the user has set another policy. Call it before CUDA starts.

    Lengths of variants change along a run. With blocks of fixed sizes, free memory would be in pieces that are too
    small for the next length.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[1]] = "expandable_segments:True"


def set_float32_products(device: torch.device, tf32: bool) -> None:
    """Set whether a GPU computes products of float32 matrices in TF32; a CPU is not affected."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
