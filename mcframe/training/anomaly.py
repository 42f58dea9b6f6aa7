"""Find the module in which a loss or a gradient first becomes NaN or infinite, or whose backward pass fails.

A run keeps the micro-batches since its last log line. Once a loss or a gradient is not finite, these are run again with
hooks on every module and on every node of the autograd graph. A run without such a loss pays nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Origin:
    """The origin of a value that is not finite.

    Attributes:
        module: The path of the innermost module, empty for the step itself.
        gradient: Whether a gradient is not finite, as opposed to an output.
        what: The operation of a gradient, or the kind of value of an output.
        file, line: The line that computes it; empty and 0 for an output.
    """

    module: str
    gradient: bool
    what: str
    file: str = ""
    line: int = 0


def find_origin(step: nn.Module, batch: Any) -> Origin | None:
    """Run a micro-batch forward and backward; return where a value first is not finite, None if all are finite.

    If the backward pass raises an error, return where. Gradients of parameters are left as they are.
    """
    watch = _Watch(step)
    with watch.forward():
        loss = step(batch)[0]
    if not bool(loss.isfinite()):
        return watch.origin or watch.masked or Origin("", gradient=False, what="NaN")
    parameters = [each for each in step.parameters() if each.requires_grad]
    try:
        with watch.backward(loss):
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError:
        if watch.entered is None:
            raise
        return watch.entered
    return watch.origin if _kind(gradients) else None


def usable(step: nn.Module) -> bool:
    """Return whether the weights of a step are finite, and small enough that a sound module cannot overflow."""
    largest = [each.detach().abs().max() for each in step.parameters() if each.numel()]
    return bool((torch.stack([each.float() for each in largest]) < 1e4).all()) if largest else True


@torch.no_grad()
def restore(step: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the parameters and buffers of a step."""
    for name, value in (*step.named_parameters(), *step.named_buffers()):
        if name in weights and weights[name].shape == value.shape:
            value.copy_(weights[name])


class _Watch:
    """Hooks of one pass over a step.

    The nodes of the autograd graph are numbered in the order of their creation, so that the numbers at the beginning
    and the end of a module's forward identify the nodes that it created.
    """

    def __init__(self, step: nn.Module) -> None:
        self._step = step
        self._counter = torch.zeros((), requires_grad=True)
        self._open: dict[str, int] = {}
        self._spans: list[tuple[int, int, str]] = []
        self.origin: Origin | None = None
        self.masked: Origin | None = None  # negative infinity, which masks hold
        self.entered: Origin | None = None  # the node whose backward pass runs

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watch the outputs of modules, and record the lines that create nodes, within this context."""
        handles: list[RemovableHandle] = []
        for path, module in self._step.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: self._begin(path)))
            handles.append(module.register_forward_hook(lambda _, __, output, path=path: self._end(path, output)))
        try:
            with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True, check_nan=False):
                warnings.simplefilter("ignore")
                yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def backward(self, loss: Tensor) -> Iterator[None]:
        """Watch the gradients at every node below `loss` within this context."""
        handles = []
        for node in _nodes(loss):
            handles.append(node.register_prehook(lambda _, node=node: self._enter(node)))
            handles.append(node.register_hook(lambda made, taken, node=node: self._compare(node, made, taken)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _now(self) -> int:
        with torch.enable_grad():
            return int((self._counter + 0).grad_fn._sequence_nr())  # type: ignore[union-attr]

    def _begin(self, path: str) -> None:
        self._open[path] = self._now()

    def _end(self, path: str, output: Any) -> None:
        self._spans.append((self._open.pop(path), self._now(), path))
        if self.origin is None and (kind := _kind(_tensors(output))):
            found = Origin(path, gradient=False, what=kind)
            self.masked = self.masked or found
            self.origin = found if kind != "-inf" else None

    def _enter(self, node: Any) -> None:
        self.entered = self._origin_of(node, node.name())

    def _compare(self, node: Any, made: Iterable[Any], taken: Iterable[Any]) -> None:
        """Record the first node that makes gradients that are not finite from finite ones."""
        if self.origin is None and (kind := _kind(made)) and not _kind(taken):
            self.origin = self._origin_of(node, f"{node.name()} returned {kind}")

    def _origin_of(self, node: Any, what: str) -> Origin:
        number = node._sequence_nr()
        around = [(start, path) for start, end, path in self._spans if start <= number < end]
        file, line = _line_of(node)
        return Origin(max(around, default=(0, ""))[1], gradient=True, what=what, file=file, line=line)


def _nodes(loss: Tensor) -> list[Any]:
    """Return the nodes of the graph below a loss."""
    found, pending = {loss.grad_fn}, [loss.grad_fn]
    while pending:
        for node, _ in pending.pop().next_functions:  # type: ignore[union-attr]
            if node is not None and node not in found:
                found.add(node)
                pending.append(node)
    return list(found)


def _line_of(node: Any) -> tuple[str, int]:
    """Return the innermost line outside torch that created a node."""
    for text in reversed(node.metadata.get("traceback_", ())):
        frame = _FRAME.search(text)
        if frame and not frame["file"].startswith(_TORCH) and frame["file"] != __file__:
            return frame["file"], int(frame["line"])
    return "", 0


def _kind(tensors: Iterable[Any]) -> str:
    """Return `NaN`, `inf` or `-inf` if one of the tensors holds it, in this order; else an empty string."""
    floats = [each for each in tensors if isinstance(each, Tensor) and each.is_floating_point()]
    kinds = {"NaN": torch.isnan, "inf": torch.isposinf, "-inf": torch.isneginf}
    return next((name for name, test in kinds.items() if any(bool(test(each).any()) for each in floats)), "")


def _tensors(output: Any) -> Iterator[Tensor]:
    """Iterate over the tensors of a module's output; of a `LossTerm` only its loss, as a metric may be NaN."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(each)
    elif is_dataclass(output):
        yield from _tensors(getattr(output, fields(output)[0].name))
