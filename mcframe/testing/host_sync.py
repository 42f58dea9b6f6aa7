"""What a piece of code does besides returning something: reads of the device, operations, random states."""

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

from mcframe.testing.requirements import NotConforming

READS = frozenset(
    {
        "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "masked_select",
        "unique_dim", "_unique2", "unique_consecutive", "equal", "allclose", "bincount", "repeat_interleave.Tensor",
    }
)  # fmt: skip
"""Operations of aten whose result, or whose size, depends on data: the host waits for the device."""

METHODS = frozenset({"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"})
"""Methods of tensors that copy to the host, some of them without any operation where the tensor is there already."""


class NoHostSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it an operation that waits for the device raises NotConforming."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse it, or run it."""
        packet, overload = func.overloadpacket.__name__, func._overloadname
        masked = packet in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if masked or packet in READS or f"{packet}.{overload}" in READS:
            what = "indexing by a mask" if masked else f"{packet}"
            raise NotConforming(f"{what} waits for the device ({_caller()})")
        return func(*args, **(kwargs or {}))


class NoReadingMethods(TorchFunctionMode):
    """The same for methods that leave no operation behind on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse it, or run it."""
        name = getattr(func, "__name__", "")
        if name in METHODS and getattr(Tensor, name, None) is func:
            raise NotConforming(f"Tensor.{name} waits for the device ({_caller()})")
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count it and run it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> int:
    """How many operations of aten a call makes, the second time it is made: the first may fill caches."""
    call()
    with Operations() as counted:
        call()
    found: int = counted.count
    return found


@contextmanager
def random_states(seed: int) -> Iterator[None]:
    """Everybody's global random states, torch's, numpy's and Python's, from a seed; afterwards as they were."""
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
    """Something that differs when any global random state does."""
    return torch.get_rng_state().numpy().tobytes(), pickle.dumps(np.random.get_state()), random.getstate()


def same(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding, and exactly where they are whole numbers; of one shape and type."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one.float(), other.float(), atol=1e-5, rtol=1e-4, equal_nan=True)


def _caller() -> str:
    """The line of the plug-in that is running: the innermost that is neither torch's nor the kit's."""
    ours = (str(torch.__path__[0]), str(__file__))
    lines = [frame for frame in traceback.extract_stack()[:-1] if not frame.filename.startswith(ours)]
    return f"{lines[-1].filename}:{lines[-1].lineno}" if lines else "nobody knows where"
