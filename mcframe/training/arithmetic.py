"""The matrix products of a step, recorded while it runs, and the time that they take alone: a floor for the step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_grouped_mm", "_scaled_mm")
_ATTENTION = ("_scaled_dot_product_", "_flash_attention_", "_efficient_attention_", "_cudnn_attention_")
_DEVIATION = 0.02
"""Of the random operands: exponentials of attention stay near 1, far from numbers that a CPU is slow with."""


@dataclass(frozen=True)
class _Operand:
    """Size, strides and type of a tensor, without its values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def extent(self) -> int:
        """Elements from the first to the last that the tensor can reach."""
        if 0 in self.size:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))


@dataclass(frozen=True)
class Product:
    """A matrix product or an attention, with operands of certain shapes.

    Attributes:
        operation: The operation of torch.
        leaves: Its arguments, flattened, with tensors as shapes.
        layout: Text of the structure of its arguments.
    """

    operation: Any
    leaves: tuple[Any, ...]
    layout: str


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the products that run within this context, those of backward passes included.

    Attributes:
        counts: Product -> how often it ran.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[Product] = Counter()
        self.structures: dict[str, TreeSpec] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation, and record it if it is a product."""
        kwargs = kwargs or {}
        if _is_product(func):
            leaves, structure = tree_flatten((args, kwargs))
            shapes = tuple(_operand(each) for each in leaves)
            product = Product(func, shapes, repr(structure))
            self.structures[product.layout] = structure
            self.counts[product] += 1
        return func(*args, **kwargs)


@contextmanager
def recorded_products() -> Iterator[Products]:
    """Record the products of the body, which runs eagerly: of compiled code no operation can be recorded."""
    stance = torch.compiler.set_stance("force_eager")
    with stance, Products() as products:
        yield products


def _is_product(operation: Any) -> bool:
    namespace, _, name = operation._schema.name.partition("::")
    return namespace == "aten" and (name in _PRODUCTS or name.startswith(_ATTENTION))


def _operand(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Operand(tuple(value.shape), value.stride(), value.dtype)
    return value


class Floor:
    """The recorded products alone, on random operands.

    Args:
        products: What a step has run.
        device: Where they run.
        mark: Makes a mark at this moment; see `mcframe.metrics.timers.Timers`.
    """

    def __init__(self, products: Products, device: torch.device, mark: Callable[[], Any]) -> None:
        self._mark, self._repeats = mark, 3 if device.type == "cuda" else 1
        self._calls: list[tuple[Callable[[], Any], int]] = []
        pools = _pools(products, device)
        for product, count in products.counts.items():
            args, kwargs = tree_unflatten(_filled(product, pools), products.structures[product.layout])
            self._calls.append((partial(product.operation, *args, **kwargs), count))

    @torch.no_grad()
    def milliseconds(self) -> float:
        """Return the time of all products, each as often as the step runs it."""
        marks: list[tuple[Any, Any, int]] = []
        for call, count in self._calls:
            start = self._mark()
            for _ in range(self._repeats):
                call()
            marks.append((start, self._mark(), count))
        if marks:
            marks[-1][1].synchronize()
        return sum(float(start.elapsed_time(end)) * count for start, end, count in marks) / self._repeats


def _pools(products: Products, device: torch.device) -> dict[torch.dtype, Tensor]:
    """Return random memory of each type, enough for the operands of any one product."""
    needed: dict[torch.dtype, int] = {}
    for product in products.counts:
        own: Counter[torch.dtype] = Counter()
        for leaf in product.leaves:
            if isinstance(leaf, _Operand):
                own[leaf.dtype] += leaf.extent
        needed |= {dtype: max(count, needed.get(dtype, 0)) for dtype, count in own.items()}
    pools = {}
    for dtype, count in needed.items():
        pools[dtype] = torch.zeros(count, dtype=dtype, device=device)
        if dtype.is_floating_point and dtype.itemsize > 1:
            pools[dtype].normal_(0.0, _DEVIATION)
    return pools


def _filled(product: Product, pools: dict[torch.dtype, Tensor]) -> list[Any]:
    """Return the arguments of a product, with tensors that are parts of the pools."""
    used: Counter[torch.dtype] = Counter()
    filled: list[Any] = []
    for leaf in product.leaves:
        if isinstance(leaf, _Operand):
            filled.append(pools[leaf.dtype].as_strided(leaf.size, leaf.stride, used[leaf.dtype]))
            used[leaf.dtype] += leaf.extent
        else:
            filled.append(leaf)
    return filled
