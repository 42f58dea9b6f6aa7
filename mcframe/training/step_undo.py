"""Undo an optimizer step on the device: weights, optimizer state and buffers become those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from mcframe.training.engine import Engine

_SCHEDULED = ("params", "lr")
"""Entries of a parameter group that are not undone: the schedule advances in a skipped step, too."""

Key = tuple[str, ...]


class StepUndo:
    """Copies of everything that a step changes.

    Tensors are restored by `torch.where`, so that nothing waits for the device. The host waits only in a step in which
    an optimizer creates its state, for counters that it keeps as numbers of Python, and for tensors of another device.

    Args:
        engine: The engine, after DeepSpeed has built its optimizer.
        device: The device of this rank.

    Attributes:
        before: The parameters and buffers before the first step that was undone since `forget`; equal to those before
            the last step if none was.
    """

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self._engine, self.device = engine, device
        self._tensors: dict[Key, Tensor] = {}
        self._numbers: dict[Key, float] = {}
        self.before: dict[str, Tensor] = {}
        self.forget()

    def forget(self) -> None:
        """Start to look for the first step that is undone."""
        self._found = torch.zeros((), dtype=torch.bool, device=self.device)

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the state before a step."""
        self._tensors = {key: tensor.clone() for key, tensor in self._held()}
        self._numbers = {key: value for key, _, value in self._counters()}

    @torch.no_grad()
    def undo_unless(self, good: Tensor) -> None:
        """Undo the step unless the flag is set, a bool scalar that is equal on all ranks."""
        before = self._tensors
        for key, tensor in self._held():
            if key in before:
                tensor.copy_(torch.where(good.to(tensor.device), tensor, before[key]))
        for key, value in before.items():
            if key[0] in ("module", "partition"):
                name = "/".join(key)
                first = self.before.get(name, value)
                self.before[name] = torch.where(self._found, first, value)
        self._found |= ~good
        self._undo_entries(good)
        self._tensors = {}
        # At ZeRO 3 some parameters stay complete between steps. The next forward pass gathers them again.
        for parameter in getattr(self._engine.wrapped.optimizer, "persistent_parameters", ()):
            parameter.partition()

    def _undo_entries(self, good: Tensor) -> None:
        """Undo changed numbers of the optimizer, and entries that its step has added."""
        added = [key for key, _ in self._held() if key[0] == "state" and key not in self._tensors]
        changed = [each for each in self._counters() if self._numbers.get(each[0]) != each[2]]
        if not (added or changed) or bool(good):
            return
        owners = list(self._engine.optimizer.state.values())
        for _, number, name in added:
            del owners[int(number)][name]
        for key, owner, _ in changed:
            if key in self._numbers:
                owner[key[-1]] = self._numbers[key]
            else:
                del owner[key[-1]]

    def _held(self) -> Iterator[tuple[Key, Tensor]]:
        """Iterate over the tensors that a step changes, each once."""
        seen = set[int]()
        for key, tensor in self._named():
            if tensor.numel() and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                yield key, tensor

    def _named(self) -> Iterator[tuple[Key, Tensor]]:
        module, optimizer = self._engine.step, self._engine.optimizer
        for name, parameter in module.named_parameters():
            if isinstance(partition := getattr(parameter, "ds_tensor", None), Tensor):
                yield ("partition", name), partition.data
            else:
                yield ("module", name), parameter.data
        for name, buffer in module.named_buffers():
            yield ("module", name), buffer
        masters = getattr(self._engine.wrapped.optimizer, "fp32_partitioned_groups_flat", ())
        groups = [each for group in optimizer.param_groups for each in group["params"]]
        for number, master in enumerate((*masters, *groups)):
            yield ("master", str(number)), master.data
        for number, state in enumerate(optimizer.state.values()):
            for name, value in state.items():
                if isinstance(value, Tensor):
                    yield ("state", str(number), name), value

    def _counters(self) -> Iterator[tuple[Key, dict[str, Any], float]]:
        """Iterate over the numbers in the state and in the groups of the optimizer: key, dictionary and value."""
        optimizer = self._engine.optimizer
        for kind, owners in (("state", optimizer.state.values()), ("group", optimizer.param_groups)):
            for number, owner in enumerate(owners):
                for name, value in owner.items():
                    if type(value) in (int, float) and name not in _SCHEDULED:
                        yield (kind, str(number), name), owner, value


def complete_weights(module: nn.Module, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters and buffers on the CPU under their names. Collective at ZeRO 3.

    Args:
        module: The train step.
        held: Values of this rank in place of the present ones: `StepUndo.before`.
    """
    found = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        partition = getattr(tensor, "ds_tensor", None)
        if partition is None:
            complete = held.get(f"module/{name}", tensor.detach())
        else:
            own = held.get(f"partition/{name}", partition.detach()).contiguous()
            parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, own)
            size, shape = getattr(tensor, "ds_numel"), getattr(tensor, "ds_shape")  # noqa: B009 - DeepSpeed adds them
            complete = torch.cat(parts)[:size].view(shape)
        found[name] = complete.to("cpu", copy=True)
    return found
