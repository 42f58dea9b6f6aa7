"""GistNets that break one requirement each: a wrong output, or one that depends on what it must not."""

import torch
import torch.nn.functional as F
from torch import nn

from mcframe.hookspecs import ParamGroup
from mcframe.testing.reference import LinearGistNet
from tests.support.planted import breaks


@breaks("G1", "gistnet")
class OneSlotOnly(LinearGistNet):
    """Makes one slot, however many the tree has."""

    def forward(self, children, lod):
        return super().forward(children, lod)[:, :, :1]


@breaks("G1", "gistnet")
class AlwaysFloat32(LinearGistNet):
    """Computes in float32 and forgets to go back."""

    def forward(self, children, lod):
        means = children.float().mean(dim=2, keepdim=True).expand(-1, -1, self.slots, -1)
        return means @ self.map.weight.float().T + self.lod_embed[lod - 1].float()


@breaks("G1", "gistnet")
class DividesByItsNorm(LinearGistNet):
    """Normalises children that may be zero."""

    def forward(self, children, lod):
        return super().forward(children / children.norm(dim=-1, keepdim=True), lod)


@breaks("G2", "gistnet")
class StatesInAWindow(LinearGistNet):
    """Reads states, which have read everything, and declares that it reads two blocks."""

    context_blocks, reads_layer = 2, 1


@breaks("G3", "gistnet")
class ReadsTheNext(LinearGistNet):
    """A gist knows the block that follows it."""

    def forward(self, children, lod):
        next_tokens = torch.cat((children[:, 1:], torch.zeros_like(children[:, :1])), dim=1)
        return super().forward(children + 0.1 * next_tokens, lod)


@breaks("G3", "gistnet")
class MasksNoDocuments(LinearGistNet):
    """Reads the block before its own, and declares that it masks documents."""

    context_blocks, masks_documents = 1, True

    def forward(self, children, lod):
        before = torch.cat((torch.zeros_like(children[:, :1]), children[:, :-1]), dim=1)
        return super().forward(children + 0.5 * before, lod)


@breaks("G3", "gistnet")
class NormalisesOverNodes(LinearGistNet):
    """One scale for the sequence, so later nodes affect earlier ones."""

    context_blocks = None

    def forward(self, children, lod):
        scale = children.square().mean(dim=(1, 2, 3), keepdim=True) + 1
        return super().forward(children / scale.sqrt(), lod)


@breaks("G3", "gistnet")
class ReadsMoreThanItDeclares(LinearGistNet):
    """Declares that it is isolated and reads the block before."""

    def forward(self, children, lod):
        before = torch.cat((torch.zeros_like(children[:, :1]), children[:, :-1]), dim=1)
        return super().forward(children + 0.1 * before, lod)


@breaks("G3", "gistnet")
class ReadsEverythingToItsLeft(LinearGistNet):
    """Declares four blocks, more than small trees have, and reads them all."""

    context_blocks = 4

    def forward(self, children, lod):
        return super().forward(children + 0.1 * (children.cumsum(dim=1) - children), lod)


@breaks("G4", "gistnet")
class IgnoresItsChildren(LinearGistNet):
    """Every gist is the same."""

    def forward(self, children, lod):
        return super().forward(torch.ones_like(children), lod)


@breaks("G4", "gistnet")
class DetachesItsChildren(LinearGistNet):
    """Nothing that is below it can learn from it."""

    def forward(self, children, lod):
        return super().forward(children.detach(), lod)


@breaks("G4", "gistnet")
class ReadsLessThanItDeclares(LinearGistNet):
    """Declares two blocks to its left and reads one."""

    context_blocks = 2

    def forward(self, children, lod):
        before = torch.cat((torch.zeros_like(children[:, :1]), children[:, :-1]), dim=1)
        return super().forward(children + 0.1 * before, lod)


@breaks("G4", "gistnet")
class ReadsFiveOfSix(LinearGistNet):
    """Declares six blocks to its left and reads five."""

    context_blocks = 6

    def forward(self, children, lod):
        before = F.pad(children, (0, 0, 0, 0, 5, 0)).unfold(1, 6, 1).mean(dim=-1)
        return super().forward(children + 0.1 * before, lod)


# ---- as a part of a model --------------------------------------------------------------------------
@breaks("M1", "gistnet")
class WritesToItsChildren(LinearGistNet):
    """Saves a tensor by working in place."""

    def forward(self, children, lod):
        return super().forward(children.mul_(0.5), lod)


@breaks("M1", "gistnet")
class CountsItsCalls(LinearGistNet):
    """Every call shifts the next."""

    def __init__(self, shape):
        super().__init__(shape)
        self.calls = 0

    def forward(self, children, lod):
        self.calls += 1
        return super().forward(children, lod) + 0.01 * self.calls


@breaks("M1", "gistnet")
class DropsOutInEvalMode(LinearGistNet):
    """Dropout that never ends."""

    def forward(self, children, lod):
        return F.dropout(super().forward(children, lod), 0.1, training=True)


@breaks("M2", "gistnet")
class NormalisesOverTheBatch(LinearGistNet):
    """A gist is the distance from its neighbours in the batch: other micro-batches, other gists."""

    def forward(self, children, lod):
        return super().forward(children + 0.1 * children.mean(dim=0, keepdim=True), lod)


@breaks("M3", "gistnet")
class ReadsItsScale(LinearGistNet):
    """A branch on data."""

    def forward(self, children, lod):
        if children.abs().max() > 100:
            return super().forward(children, lod) * 0.5
        return super().forward(children, lod)


@breaks("M3", "gistnet")
class GoesThroughNumpy(LinearGistNet):
    """On the CPU it costs nothing, and no operation shows it."""

    def forward(self, children, lod):
        largest = float(children.detach().abs().max().float().cpu().numpy() > 1e9)
        return super().forward(children, lod) * (1 - largest)


@breaks("M3", "gistnet")
class LoopsOverRows(LinearGistNet):
    """One sequence after another."""

    def forward(self, children, lod):
        return torch.cat([super(LoopsOverRows, self).forward(row[None], lod) for row in children])


@breaks("M3", "gistnet")
class LoopsOverNodes(LinearGistNet):
    """One block after another."""

    def forward(self, children, lod):
        gist = super().forward
        return torch.cat([gist(children[:, node : node + 1], lod) for node in range(children.shape[1])], dim=1)


@breaks("M4", "gistnet")
class KeepsAPlainTensor(LinearGistNet):
    """Neither parameter nor buffer: it stays on the CPU."""

    def __init__(self, shape):
        super().__init__(shape)
        self.scale = torch.full((shape.width,), 0.9)

    def forward(self, children, lod):
        return super().forward(children * self.scale.to(children), lod)


@breaks("M4", "gistnet")
class MakesATensorOnTheCPU(LinearGistNet):
    """Creates a tensor without `device=`."""

    def forward(self, children, lod):
        weights = torch.linspace(0.5, 1.0, children.shape[-1]).to(children.dtype)
        return super().forward(children * weights, lod)


@breaks("M5", "gistnet")
class HoldsALambda(LinearGistNet):
    """Pickle cannot find it."""

    def __init__(self, shape):
        super().__init__(shape)
        self.activation = lambda x: x * 2

    def forward(self, children, lod):
        return self.activation(super().forward(children, lod))


@breaks("M6", "gistnet")
class ExplodesInTraining(LinearGistNet):
    """Well behaved in eval mode."""

    def forward(self, children, lod):
        gists = super().forward(children, lod)
        return gists / torch.zeros_like(gists) if self.training else gists


# ---- as a module -----------------------------------------------------------------------------------
@breaks("N1", "gistnet")
class DrawsFromPython(LinearGistNet):
    """Its initialisation comes from an unseeded generator."""

    def __init__(self, shape):
        super().__init__(shape)
        import random

        with torch.no_grad():
            self.map.weight.mul_(random.uniform(0.5, 2))


@breaks("N1", "gistnet")
class KeepsStateOutsideItsStateDict(LinearGistNet):
    """A number that was drawn when it was built, and that no checkpoint holds."""

    def __init__(self, shape):
        super().__init__(shape)
        self.scale = 1 + torch.initial_seed() % 1000 / 100

    def forward(self, children, lod):
        return super().forward(children, lod) * self.scale


@breaks("N2", "gistnet")
class BreaksTheGraph(LinearGistNet):
    """Compiled code falls back to Python here."""

    def forward(self, children, lod):
        torch._dynamo.graph_break()
        return super().forward(children, lod)


@breaks("N3", "gistnet")
class HasAPartItDoesNotUse(LinearGistNet):
    """A level more than there are."""

    def __init__(self, shape):
        super().__init__(shape)
        self.unused = nn.Linear(shape.width, shape.width)


@breaks("N4", "gistnet")
class DeclaresATableAsAMatrix(LinearGistNet):
    """Muon would orthogonalise it."""

    def __init__(self, shape):
        super().__init__(shape)
        self.levels = nn.Embedding(shape.tree.levels, shape.width)

    def param_groups(self):
        return [ParamGroup("matrix", tuple(self.parameters()))]

    def forward(self, children, lod):
        return super().forward(children, lod) + self.levels.weight[lod - 1]


@breaks("N4", "gistnet")
class DeclaresNoSlots(LinearGistNet):
    """A row for every slot, and one slot is what runs have."""

    def __init__(self, shape):
        super().__init__(shape)
        self.shifts = nn.Parameter(torch.zeros(shape.tree.slots, shape.width))

    def forward(self, children, lod):
        return super().forward(children, lod) + self.shifts


@breaks("N5", "gistnet")
class WeighsAParameterByNothing(LinearGistNet):
    """It takes part, and never learns."""

    def __init__(self, shape):
        super().__init__(shape)
        self.shift_embed = nn.Parameter(torch.zeros(shape.width))

    def forward(self, children, lod):
        return super().forward(children, lod) + 0.0 * self.shift_embed
