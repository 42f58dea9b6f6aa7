"""Bytes that ranks send each other in a step: measured, and by a formula."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PERSISTENT = 100_000
"""Elements up to which DeepSpeed keeps a weight on every rank at ZeRO 3 (`stage3_param_persistence_threshold`)."""


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the collectives that run within this context, those of backward passes included.

    Attributes:
        bytes: Collective -> bytes of its complete messages: what is reduced, or what is gathered from all ranks.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation, and add its message if it is a collective."""
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "c10d":
            sizes = [sum(_size(each) for each in tree_leaves(argument)) for argument in args]
            self.bytes[_collective(name)] += max(sizes, default=0)
        return func(*args, **(kwargs or {}))


def _size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _collective(name: str) -> str:
    for kind in ("reduce_scatter", "allreduce", "allgather", "broadcast", "barrier"):
        if kind in name:
            return kind
    return name.strip("_")


@dataclass(frozen=True)
class Exchange:
    """Complete messages of an optimizer step in bytes.

    Attributes:
        reduced: Gradients that every rank receives the mean of.
        scattered: Gradients of which a rank receives its part of the mean.
        gathered: Weights that are gathered from all ranks.
    """

    reduced: float = 0.0
    scattered: float = 0.0
    gathered: float = 0.0

    def sent(self, ranks: int) -> float:
        """Return the bytes that a rank sends, and receives, with rings: a reduction has two rounds."""
        return (2 * self.reduced + self.scattered + self.gathered) * (ranks - 1) / ranks


def exchange(*, trained: int, large: int, width: int, stage: int, accumulation: int, calls: float = 1.0) -> Exchange:
    """Return the messages of a step with DeepSpeed.

    At ZeRO 1 and 2 DeepSpeed reduces gradients to every rank, and each keeps its part. At ZeRO 2 it does so in every
    micro-batch, at 0 and 1 in the last one. At ZeRO 3 weights above `PERSISTENT` elements are gathered when a module
    needs them, and the others after the step.

    Args:
        trained: Trained parameters.
        large: Those of them that ZeRO 3 gathers in every micro-batch.
        width: Bytes of a gradient and of a weight.
        stage: ZeRO stage.
        accumulation: Micro-batches of a step.
        calls: How often a micro-batch gathers a weight.
    """
    size = float(trained * width)
    if stage == 0:
        return Exchange(reduced=size)
    if stage < 3:
        return Exchange(reduced=size * (accumulation if stage == 2 else 1), gathered=size)
    gathered = large * width * calls * accumulation + (trained - large) * width
    return Exchange(scattered=size * accumulation, gathered=float(gathered))
