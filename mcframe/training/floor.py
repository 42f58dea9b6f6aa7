"""The floor of a step: its networks alone, forward and backward, on exactly the inputs of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from mcframe.training.train_step import StepBatch, TrainStep

_METHODS = {"base": ("embed", "states", "logits", "nll", "nll_and_kl", "nll_and_correct")}
"""The methods of a part that are recorded, next to `forward`."""


@dataclass(frozen=True)
class Call:
    """A call of a network.

    Attributes:
        function: What was called.
        args: Its positional arguments; tensors are cut from the graph that made them.
        kwargs: Its keyword arguments, likewise.
        with_graph: True if it builds a graph.
        reached: Numbers of the tensors of its result that a gradient has reached in the step.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    with_graph: bool
    reached: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Run it forward, and backward from gradients of ones where the step has gradients."""
        args, kwargs = tree_map_only(Tensor, _leaf, (self.args, self.kwargs))
        with torch.set_grad_enabled(self.with_graph):
            outputs = _tensors(self.function(*args, **kwargs))
        ends = [outputs[number] for number in sorted(self.reached)]
        if ends:
            torch.autograd.backward(ends, [torch.ones_like(each) for each in ends])


def _note(reached: set[int], number: int, gradient: Tensor) -> None:
    reached.add(number)


def _tensors(result: Any) -> list[Tensor]:
    return [each for each in tree_leaves(result) if isinstance(each, Tensor)]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


class Floor:
    """The networks of a step alone: neither contexts nor losses over them, metrics, DeepSpeed or an optimizer.

    Args:
        step: A step of its own, which no engine holds: gradients stay in its parameters.
        batch: A micro-batch. The step runs on it once, forward and backward, and its calls of networks are recorded.
        mark: Makes a mark at this moment; see `mcframe.metrics.timers.Timers`.
    """

    def __init__(self, step: TrainStep, batch: StepBatch, mark: Callable[[], Any]) -> None:
        self._step, self._mark = step, mark
        step.begin_step(0.0)
        with recorded_calls(step) as self.calls:
            step.compute(batch)[0].backward()  # type: ignore[no-untyped-call]
        step.zero_grad()

    def milliseconds(self) -> float:
        """Return the time of all calls."""
        start = self._mark()
        for call in self.calls:
            call.run()
        end = self._mark()
        end.synchronize()
        self._step.zero_grad()
        return float(start.elapsed_time(end))


@contextmanager
def recorded_calls(step: TrainStep) -> Iterator[list[Call]]:
    """Record the calls of the parts of a model in the body, not those that they make themselves."""
    calls: list[Call] = []
    inside = False

    def recorder(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            inside = True
            try:
                own_args, own_kwargs = tree_map_only(Tensor, _leaf, (args, kwargs))
                recorded = Call(function, own_args, own_kwargs, torch.is_grad_enabled())
                calls.append(recorded)
                inputs, result = {id(each) for each in _tensors((args, kwargs))}, function(*args, **kwargs)
                for number, tensor in enumerate(_tensors(result)):
                    if tensor.grad_fn is not None and id(tensor) not in inputs:  # nothing is computed for an input
                        tensor.register_hook(partial(_note, recorded.reached, number))  # type: ignore[no-untyped-call]
                return result
            finally:
                inside = False

        return call

    replaced: list[tuple[nn.Module, str, Any]] = []
    try:
        for name, part in step.model.parts.items():
            for method in ("forward", *_METHODS.get(name, ())):
                replaced.append((part, method, vars(part).get(method)))
                setattr(part, method, recorder(getattr(part, method)))
        yield calls
    finally:
        for part, method, before in replaced:
            if before is None:
                delattr(part, method)
            else:
                setattr(part, method, before)
