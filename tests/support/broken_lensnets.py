"""LensNets that break one requirement each."""

import torch
from torch import nn

from mcframe.testing.reference import LinearLensNet
from tests.support.planted import breaks


@breaks("L1", "lensnet")
class ForgetsToSqueeze(LinearLensNet):
    """One dimension too many."""

    def forward(self, context, embeddings):
        return super().forward(context, embeddings)[..., None]


@breaks("L1", "lensnet")
class HasNoBounds(LinearLensNet):
    """A score may be anything."""

    def forward(self, context, embeddings):
        return self.score_embed(embeddings).squeeze(-1) + self.lod_embed[context.lod]


@breaks("L1", "lensnet")
class IsNoNumberAtZero(LinearLensNet):
    """Normalises embeddings that may be zero."""

    def forward(self, context, embeddings):
        return super().forward(context, embeddings / embeddings.norm(dim=-1, keepdim=True))


@breaks("L2", "lensnet")
class AveragesOverThePadding(LinearLensNet):
    """The mean of a context counts entries that do not exist."""

    def forward(self, context, embeddings):
        return super().forward(context, embeddings - embeddings.mean(dim=1, keepdim=True))


@breaks("L2", "lensnet")
class CountsThePadding(LinearLensNet):
    """Scores depend on how wide the batch happens to be."""

    def forward(self, context, embeddings):
        return super().forward(context, embeddings) * (1 - 1 / (2 + context.length))


@breaks("L4", "lensnet")
class ComparesDocuments(LinearLensNet):
    """Subtracts the mean of all entries, and declares that it masks documents."""

    masks_documents = True

    def forward(self, context, embeddings):
        valid = context.valid[..., None]
        mean = torch.where(valid, embeddings, 0.0).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(
            min=1
        )
        return super().forward(context, embeddings - mean)


HOOKS = []
"""The registered hooks; tests remove them."""
_seen = {"last": torch.zeros(())}


def _look(module, inputs, output):
    if isinstance(module, nn.Embedding):
        _seen["last"] = output.detach()[:, -1].mean()


@breaks("L3", "lensnet")
class ReadsAfterTheCursor(LinearLensNet):
    """Listens to every module of the process, and so to the embedding of tokens after the cursor."""

    def __init__(self, shape):
        super().__init__(shape)
        if not HOOKS:
            HOOKS.append(nn.modules.module.register_module_forward_hook(_look))

    def forward(self, context, embeddings):
        return super().forward(context, embeddings + _seen["last"].to(embeddings))


@breaks("M2", "lensnet")
class RanksOverTheBatch(LinearLensNet):
    """A score depends on the largest score of all rows."""

    def forward(self, context, embeddings):
        scores = super().forward(context, embeddings)
        return scores * (1 - 0.1 * torch.where(context.valid, scores, 0.0).abs().amax(dim=0, keepdim=True))


@breaks("M3", "lensnet")
class LoopsOverEntries(LinearLensNet):
    """One entry after another."""

    def forward(self, context, embeddings):
        columns = [self.score_embed(embeddings[:, i]) for i in range(context.length)]
        return (torch.cat(columns, dim=1) + self.lod_embed[context.lod]).tanh()


@breaks("L1", "lensnet")
class MixesTypes(LinearLensNet):
    """A constant in float32 meets bfloat16."""

    def forward(self, context, embeddings):
        turn = torch.eye(embeddings.shape[-1], device=embeddings.device)
        return super().forward(context, embeddings @ turn)


@breaks("N3", "lensnet")
class MasksOnlyPadding(LinearLensNet):
    """A parameter for padding, which contexts of equal length do not have: at ZeRO 3 it keeps an old gradient."""

    def __init__(self, shape):
        super().__init__(shape)
        self.padding_embed = nn.Parameter(torch.zeros(()))

    def forward(self, context, embeddings):
        scores = super().forward(context, embeddings)
        return torch.where(context.valid, scores, self.padding_embed) if context.padded else scores
