"""The global random states of a process: of Python, numpy, torch, and the CUDA device."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_random_states(*key: object) -> None:
    """Seed all global random states from a key, such as `run.seed` and a name."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=7).digest()
    seed = int.from_bytes(digest, "big")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """Return all global random states."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set all global random states to those that `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def unchanged_host_states() -> Iterator[None]:
    """Leave the global random states of Python and numpy as they were before the context."""
    python, numpy_ = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)


@contextmanager
def unchanged_random_states() -> Iterator[None]:
    """Leave the global random states as they were before the context."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
