"""Side effects of code: synchronisation with the host, operations, random states."""

from __future__ import annotations

import pickle
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mcframe.testing.assertions import NotConforming

READS = frozenset(
    {
        "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "masked_select",
        "unique_dim", "_unique2", "unique_consecutive", "equal", "allclose", "bincount", "repeat_interleave.Tensor",
    }
)  # fmt: skip
"""aten operations whose result, or its size, depends on data: the host waits for the device."""

METHODS = frozenset({"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"})
"""Methods that copy a tensor to the host, some of them without an operation if it is on the CPU."""


_RECURRENT = frozenset({"gru", "lstm", "rnn_tanh", "rnn_relu"})


class NoHostSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises NotConforming for an operation that waits for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check and run an operation."""
        packet, overload = func.overloadpacket.__name__, func._overloadname
        masked = packet in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if masked or packet in READS or f"{packet}.{overload}" in READS:
            name = "indexing by a mask" if masked else f"{packet}"
            raise NotConforming(f"{name} waits for the device ({_caller()})")
        return func(*args, **(kwargs or {}))


class _NoReadingMethods(TorchFunctionMode):
    """Raises NotConforming for a method that copies a tensor to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check and run a function."""
        name = getattr(func, "__name__", "")
        if name in METHODS and getattr(Tensor, name, None) is func:
            raise NotConforming(f"Tensor.{name} waits for the device ({_caller()})")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Raise NotConforming for operations and methods that wait for the device."""
    with NoHostSync(), _NoReadingMethods():  # type: ignore[no-untyped-call]
        yield


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run an operation."""
        self.count += 1
        return func(*args, **(kwargs or {}))


class _FusedRecurrence(TorchFunctionMode):
    """Counts a recurrent layer as one operation, as on a GPU; on a CPU it runs one operation a time step."""

    def __init__(self, counted: _Operations) -> None:
        super().__init__()
        self._counted = counted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function."""
        before, result = self._counted.count, func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _RECURRENT:
            self._counted.count = before + 1
        return result


def operations(call: Callable[[], object]) -> int:
    """Return the number of operations of the second call; the first one may fill caches."""
    call()
    with _Operations() as counted, _FusedRecurrence(counted):  # type: ignore[no-untyped-call]
        call()
    found: int = counted.count
    return found


@contextmanager
def random_states(seed: int) -> Iterator[None]:
    """Seed the global random states of torch, numpy and Python, and restore them afterwards."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def random_state() -> tuple[Any, ...]:
    """Return a value that differs if a global random state differs."""
    return torch.get_rng_state().numpy().tobytes(), pickle.dumps(np.random.get_state()), random.getstate()


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether shape and dtype are equal, floats up to rounding and integers exactly."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one.float(), other.float(), atol=1e-5, rtol=1e-4, equal_nan=True)


def _caller() -> str:
    """Return the innermost line that belongs neither to torch nor to this module."""
    ours = (str(torch.__path__[0]), str(__file__))
    lines = [frame for frame in traceback.extract_stack()[:-1] if not frame.filename.startswith(ours)]
    return f"{lines[-1].filename}:{lines[-1].lineno}" if lines else "unknown line"
