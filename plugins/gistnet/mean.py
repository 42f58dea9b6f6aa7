"""A gist is the mean of what it replaces: no parameters, the control every learned GistNet must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.hookspecs import GistNet, ModelShape


def slot_means(children: Tensor, slots: int) -> Tensor:
    """Mean over the stretch of children that each slot stands for: [..., C, D] -> [..., slots, D].

    Child c of C belongs to slot `c * slots // C`, so stretches tile the block as evenly as they can.
    """
    count = children.shape[-2]
    slot = torch.arange(count, device=children.device) * slots // count
    member = (slot == torch.arange(slots, device=children.device)[:, None]).to(children.dtype)
    return (member / member.sum(dim=1, keepdim=True)) @ children


class MeanGistNet(GistNet):
    """Mean embedding of each slot's stretch of children."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.slots = shape.geometry.slots

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """children [B, nodes, K * slots(lod - 1), D] -> [B, nodes, G, D]."""
        return slot_means(children, self.slots)
