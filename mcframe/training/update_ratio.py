"""How far each module's weights move between two lines of the log: what stands still does not learn.

Losses fall although a part of the model is connected to nothing. Gradients do not tell either: weights that a rank does
not own have none at ZeRO 2 and 3. So the weights themselves are looked at, a fixed sample of each tensor, of the share
that this rank holds; memory and time depend on the number of tensors, not on their sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.context.step_metrics import StepMetrics

METRIC = "train/update_ratio/"
SAMPLE = 1024
"""The most elements of a tensor that a rank looks at."""
NOTHING = 1e-30
"""Far below any weight's square, and not zero: the change of nothing is 0, not 0 / 0."""


class UpdateRatio:
    """Relative change of the weights of each module that trains. One per rank, of what this rank holds.

    model   the step module, wrapped by the engine; parameters that require no gradient are left out
    device  where the sums are made
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
        # An element stands for as many as lie between it and the next that is looked at.
        weight = torch.tensor([_stride(_held(p).numel()) for p in self._parameters], device=self.device)
        self._group = group.repeat_interleave(counts)
        self._weight = weight.double().repeat_interleave(counts)
        self._before = self._sample()

    def collect(self) -> StepMetrics:
        """How far weights have moved since the last call, for the accumulator: nothing is read back here.

        `train/update_ratio/MODULE` as roots: a rank's [squares of changes, squares of weights], the larger of then and
        now. Estimated from the sample, and 0 exactly where none of its elements has moved.
        """
        now = self._sample()
        squares = torch.stack([(now - self._before).square(), self._before.square(), now.square()])
        sums = squares.new_zeros(3, len(self.modules)).index_add_(1, self._group, squares * self._weight)
        self._before = now
        weights = torch.maximum(sums[1], sums[2])
        # Weights that are and stay 0 have not moved, and a rank that holds none adds nothing to the others' sum.
        pairs = torch.stack([sums[0], weights.clamp(min=NOTHING)], dim=1)
        return StepMetrics(roots=dict(zip(self.names, pairs, strict=True)))

    def state(self) -> Tensor:
        """The sample that the next one is compared with, on the host."""
        return self._before.cpu()

    def restore(self, state: Tensor | None) -> None:
        """Go on from what `state` returned; None, from older checkpoints: from the weights as they are."""
        self._before = self._sample() if state is None else state.to(self.device, copy=True)

    @torch.no_grad()
    def _sample(self) -> Tensor:
        """The elements that are looked at, float64 [n]. No host synchronisation."""
        parts = [_sampled(parameter).to(self.device, torch.float64) for parameter in self._parameters]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=self.device)


def module_of(name: str) -> str:
    """The module that a parameter is counted with: `gpt.blocks.3` for `gpt.blocks.3.attention.query.weight`.

    A part and its child, or the child's element where the child is a list of layers.
    """
    owners = name.removeprefix("model.").split(".")[:-1]
    listed = len(owners) > 2 and owners[2].isdigit()
    return ".".join(owners[: 3 if listed else 2])


def _held(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter, flat: its partition at ZeRO 3, else all of it.

    DeepSpeed pads the last partitions to an equal length and leaves the padding uninitialised: it is no weight.
    """
    partition: Tensor | None = getattr(parameter, "ds_tensor", None)
    if partition is None:
        return parameter.detach().reshape(-1)
    size, rank = (int(getattr(parameter, name)) for name in ("ds_numel", "ds_zero_partition_rank"))
    return partition.detach().reshape(-1)[: max(size - rank * partition.numel(), 0)]


def _stride(size: int) -> int:
    """An odd distance, so that a row of a power of two is not met in the same columns again and again."""
    return 1 if size <= SAMPLE else -(-size // SAMPLE) | 1


def _sampled(parameter: nn.Parameter) -> Tensor:
    held = _held(parameter)
    return held[:: _stride(held.numel())]
