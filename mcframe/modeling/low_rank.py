"""Low-rank changes of the layers of a pretrained model, by peft; optionally only where a context has gists."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcframe.context.working_context import WorkingContext
from mcframe.interfaces.attention import document_mask
from mcframe.pretrained import needs_extra

_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LowRankChanges:
    """Adds low-rank changes to every map of layers.

    Args:
        layers: Layers of transformers.
        rank: Rank of the changes.
        alpha: Factor on the changes, times rank.
        from_gist: Whether an entry is changed only if it is a gist or follows one. The first gist decides for all
            entries after it, so that their keys and values are as they were when more entries follow.

    Source:
        LoRA (Hu et al., 2021). Changes that act from a position on: activated LoRA (arXiv 2504.12397).

    Attributes:
        acts: 1.0 where the changes act [R, L, 1], else 0.0; None for everywhere. Set before a layer runs.
    """

    def __init__(self, layers: nn.ModuleList, rank: int, alpha: float, *, from_gist: bool) -> None:
        with needs_extra():
            import peft
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(_MAPS), bias="none")
        peft.inject_adapter_in_model(config, layers)
        self.from_gist = from_gist
        self.acts: Tensor | None = None
        if from_gist:
            for name, module in layers.named_modules():
                if name.endswith("lora_B.default"):
                    module.register_forward_hook(self._gate)

    def acts_on(self, context: WorkingContext) -> Tensor | None:
        """Return `acts` for a context. A context without gists has an empty tensor: no gradient is computed."""
        if not self.from_gist:
            return None
        if not context.compressed:
            return context.lod.new_empty(0)
        if (mask := document_mask(context.document)) is not None:
            return (mask[:, 0] & (context.lod > 0)[:, None]).any(dim=-1)[..., None].float()
        return _from_first_gist(context.lod)

    def acts_after(self, before: Tensor, lod: Tensor) -> Tensor | None:
        """Return `acts` for entries of levels lod [1, n] that follow entries of levels before [1, L]."""
        if not self.from_gist:
            return None
        return _from_first_gist(torch.cat((before, lod), dim=1))[:, before.shape[1] :]

    def _gate(self, module: nn.Module, inputs: tuple[Tensor, ...], change: Tensor) -> Tensor:
        assert self.acts is not None, "a layer runs before `acts` is set"
        if self.acts.numel() == 0:
            return torch.zeros_like(change)
        return change * self.acts.to(change.dtype)


def changes_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the changes in a module, by name."""
    return {name: each.detach() for name, each in module.named_parameters() if ".lora_" in name}


@torch.no_grad()
def set_changes(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the weights that `changes_of` returned."""
    for name, each in changes_of(module).items():
        each.copy_(weights[name])


def _from_first_gist(lod: Tensor) -> Tensor:
    """Return 1.0 for the first gist of a row and every entry after it, else 0.0: [R, L] -> [R, L, 1]."""
    return (lod > 0).cumsum(dim=1).clamp(max=1)[..., None].float()
