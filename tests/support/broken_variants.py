"""Variant strategies that break one requirement each."""

import random

import torch

from mcframe.context.counter_rng import hash_combine
from mcframe.testing.reference import RandomNodes
from tests.support.planted import breaks


@breaks("V1", "variants")
class OneTooFew(RandomNodes):
    """Declares two variants and proposes one."""

    def propose(self, sequences, scores, length, seeds):
        return super().propose(sequences, scores, length, seeds)[:, :1]


@breaks("V1", "variants")
class HalvesANode(RandomNodes):
    """A first node at LOD1 is labelled LOD2."""

    def propose(self, sequences, scores, length, seeds):
        focus = super().propose(sequences, scores, length, seeds)
        return torch.where((focus == 1) & ((focus > 0).cumsum(dim=-1) == 1), 2, focus)


@breaks("V1", "variants")
class ForgetsTheTail(RandomNodes):
    """Exchanges the first compressed block of LOD1 for the last block."""

    def propose(self, sequences, scores, length, seeds):
        focus = super().propose(sequences, scores, length, seeds)
        first = (focus == 1) & ((focus == 1).cumsum(dim=-1) == 1)
        last = torch.arange(focus.shape[-1], device=focus.device) == focus.shape[-1] - 1
        can = first.any(dim=-1, keepdim=True) & (focus[..., -1:] == 0)
        return torch.where(can & last, 1, torch.where(can & first, 0, focus))


@breaks("V1", "variants")
class MissesTheLength(RandomNodes):
    """One block less than it takes."""

    def propose(self, sequences, scores, length, seeds):
        focus = super().propose(sequences, scores, length, seeds)
        return torch.where((focus == 1) & ((focus == 1).cumsum(dim=-1) == 1), 0, focus)


@breaks("V2", "variants")
class RepeatsAVariant(RandomNodes):
    """Both variants are the first."""

    def propose(self, sequences, scores, length, seeds):
        return super().propose(sequences, scores, length, seeds)[:, :1].expand(-1, 2, -1).clone()


@breaks("V2", "variants")
class IgnoresItsSeeds(RandomNodes):
    """The same two focuses for ever."""

    def propose(self, sequences, scores, length, seeds):
        number = torch.arange(seeds.shape[1], device=seeds.device).expand_as(seeds)
        return super().propose(sequences, scores, length, number)


@breaks("V3", "variants")
class ReadsTokensAfterTheCursor(RandomNodes):
    """The tokens that evaluate a focus choose it."""

    def propose(self, sequences, scores, length, seeds):
        after = sequences.tokens[:, sequences.tree.cursor :].sum(dim=1)
        return super().propose(sequences, scores, length, hash_combine(seeds, after[:, None]))


@breaks("V4", "variants")
class RequestsUnusedScores(RandomNodes):
    """Requests scores and ignores them."""

    needs_scores = True


@breaks("M1", "variants")
class DrawsFromPythonInAVariant(RandomNodes):
    """Python's random numbers: other ranks throw other ones."""

    def propose(self, sequences, scores, length, seeds):
        return super().propose(sequences, scores, length, hash_combine(seeds, random.randrange(1000)))


@breaks("M2", "variants")
class DependsOnItsRow(RandomNodes):
    """A sequence has other variants in another row of the batch."""

    def propose(self, sequences, scores, length, seeds):
        row = torch.arange(len(seeds), device=seeds.device)[:, None]
        return super().propose(sequences, scores, length, hash_combine(seeds, row))


@breaks("M3", "variants")
class SynchronisesOnRepeats(RandomNodes):
    """Waits for the device to know whether to draw again."""

    def propose(self, sequences, scores, length, seeds):
        focus = super().propose(sequences, scores, length, seeds)
        if torch.equal(focus[:, 0], focus[:, 1]):
            return super().propose(sequences, scores, length, hash_combine(seeds, 7))
        return focus
