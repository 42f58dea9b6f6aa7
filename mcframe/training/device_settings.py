"""Settings of memory and arithmetic of every process that trains."""

from __future__ import annotations

import ctypes
import os

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt` (malloc.h)."""
_LARGEST = 32 * 2**20
"""Bytes of the largest block that glibc can take from memory that was freed; larger ones are new each time."""
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def prepare_allocator() -> None:
    """Let torch grow its blocks of memory, unless the user has set another policy. Call it before CUDA starts.

    Lengths of variants change along a run. With blocks of fixed sizes, free memory would be in pieces that are too
    small for the next length.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[1]] = "expandable_segments:True"


def keep_freed_memory() -> bool:
    """Keep memory that a step frees for the next one, with glibc's allocator and unless the user has set it up.

    By default the memory of a graph goes back to the system after each backward pass, and every page of it is cleared
    and mapped again in the next step: 8 % of quickstart's time.

    Returns:
        True if it is kept.
    """
    set_up = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if set_up or not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, -1))


def _has_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError):  # another system; another C library
        return False


def set_float32_products(device: torch.device, tf32: bool) -> None:
    """Set whether a GPU computes products of float32 matrices in TF32; a CPU is not affected."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
