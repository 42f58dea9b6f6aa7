"""Relative change of each module's weights in a logging interval, to detect modules that are not trained.

Losses fall even if a part of the model is not connected to them, and at ZeRO 2 and 3 a rank has no gradients of weights
that it does not own. A fixed sample of the values that this rank holds of each tensor is compared instead. Memory and
time depend on the number of tensors, not on their sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.context.step_metrics import StepMetrics

METRIC = "train/update_ratio/"
SAMPLE = 1024
"""The largest number of elements of a tensor that a rank samples."""
NOTHING = 1e-30
"""Far below the square of any weight. It replaces 0 as a denominator: without weights the change is 0."""


class UpdateRatio:
    """Relative change of the weights of each trained module, of the values that this rank holds.

    Args:
        model: The train step, wrapped by the engine. Parameters without `requires_grad` are skipped.
        device: Device of the sums.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [parameter for _, parameter in named]
        modules = [module_of(name) for name, _ in named]
        self.modules = list(dict.fromkeys(modules))
        self.names = [METRIC + module for module in self.modules]
        sizes = [_sampled(parameter).numel() for parameter in self._parameters]
        counts = torch.tensor(sizes, device=self.device)
        group = torch.tensor([self.modules.index(module) for module in modules], device=self.device)
        # A sampled element represents all elements up to the next one.
        weight = torch.tensor([_stride(_held(p).numel()) for p in self._parameters], device=self.device)
        self._group = group.repeat_interleave(counts)
        self._weight = weight.double().repeat_interleave(counts)
        self._before = self._sample()

    def collect(self) -> StepMetrics:
        """Return the change of weights since the last call. Does not synchronise with the host.

        `train/update_ratio/MODULE` is a root of [squares of changes, squares of weights], the larger sum of before and
        now. It is estimated from the sample, and exactly 0 if no element of it has changed.
        """
        now = self._sample()
        squares = torch.stack([(now - self._before).square(), self._before.square(), now.square()])
        sums = squares.new_zeros(3, len(self.modules)).index_add_(1, self._group, squares * self._weight)
        self._before = now
        weights = torch.maximum(sums[1], sums[2])
        # The change is 0 if all weights stay 0, or if this rank holds none of them.
        pairs = torch.stack([sums[0], weights.clamp(min=NOTHING)], dim=1)
        return StepMetrics(roots=dict(zip(self.names, pairs, strict=True)))

    def state(self) -> Tensor:
        """Return the last sample, on the host."""
        return self._before.cpu()

    def restore(self, state: Tensor | None) -> None:
        """Restore the value of `state`; None stands for the current weights."""
        self._before = self._sample() if state is None else state.to(self.device, copy=True)

    @torch.no_grad()
    def _sample(self) -> Tensor:
        """Return the sampled elements, float64 [n]. Does not synchronise with the host."""
        parts = [_sampled(parameter).to(self.device, torch.float64) for parameter in self._parameters]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=self.device)


def module_of(name: str) -> str:
    """Return the module of a parameter: `gpt.blocks.3` for `gpt.blocks.3.attention.query.weight`.

    It is a child of a part, or an element of the child if that is a list of layers.
    """
    owners = name.removeprefix("model.").split(".")[:-1]
    listed = len(owners) > 2 and owners[2].isdigit()
    return ".".join(owners[: 3 if listed else 2])


def _held(parameter: nn.Parameter) -> Tensor:
    """Return the values of a parameter that this rank holds, flat: its partition at ZeRO 3, otherwise all.

    DeepSpeed pads the last partitions to an equal length. The uninitialised padding is removed.
    """
    partition: Tensor | None = getattr(parameter, "ds_tensor", None)
    if partition is None:
        return parameter.detach().reshape(-1)
    size, rank = (int(getattr(parameter, name)) for name in ("ds_numel", "ds_zero_partition_rank"))
    return partition.detach().reshape(-1)[: max(size - rank * partition.numel(), 0)]


def _stride(size: int) -> int:
    """Return the distance of sampled elements. It is odd, since rows of a power of two would repeat their columns."""
    return 1 if size <= SAMPLE else -(-size // SAMPLE) | 1


def _sampled(parameter: nn.Parameter) -> Tensor:
    held = _held(parameter)
    return held[:: _stride(held.numel())]
