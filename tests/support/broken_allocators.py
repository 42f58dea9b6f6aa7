"""Allocators that break one requirement each."""

from dataclasses import replace

import torch

from mcframe.context.focus_ops import block_means, bottomk_mask, compressible_nodes
from mcframe.testing.reference import LowestFirst
from tests.support.planted import breaks


@breaks("A1", "allocator")
class NarrowIntegers(LowestFirst):
    """int32, which nothing can be gathered with."""

    def allocate(self, scores, context, budget, seeds):
        return super().allocate(scores, context, budget, seeds).int()


@breaks("A1", "allocator")
class HalfANode(LowestFirst):
    """Calls a single block a node of LOD2."""

    def allocate(self, scores, context, budget, seeds):
        focus = super().allocate(scores, context, budget, seeds)
        first = (focus > 0) & ((focus > 0).cumsum(dim=1) == 1)
        return torch.where(first & scores.any(dim=1, keepdim=True), 2, focus)


@breaks("A1", "allocator")
class ForgetsTheSink(LowestFirst):
    """Compresses the first block, protected or not."""

    def allocate(self, scores, context, budget, seeds):
        focus = super().allocate(scores, context, budget, seeds)
        selected = scores.any(dim=1) & (context.tree.sink > 0)
        return torch.cat((torch.where(selected, 1, focus[:, 0])[:, None], focus[:, 1:]), dim=1)


@breaks("A1", "allocator")
class CompressesAcrossTheCursor(LowestFirst):
    """The block in which the cursor stands reaches into the tail."""

    def allocate(self, scores, context, budget, seeds):
        focus = super().allocate(scores, context, budget, seeds)
        tree, block = context.tree, torch.arange(focus.shape[1])
        over = (block == tree.cursor // tree.block_size) & (tree.cursor % tree.block_size > 0)
        over = over & torch.ones(()).bool() if tree.tail else over & False
        return torch.where(over.to(focus.device) & scores.any(dim=1, keepdim=True), 1, focus)


@breaks("A1", "allocator")
class SpendsMore(LowestFirst):
    """Three entries beyond the budget."""

    def allocate(self, scores, context, budget, seeds):
        replace(self.tree, levels=1).reachable(budget)
        return super().allocate(scores, context, budget + 3, seeds)


@breaks("A2", "allocator")
class CompressesOneMore(LowestFirst):
    """One block more than the budget calls for, where there is one."""

    def allocate(self, scores, context, budget, seeds):
        focus = super().allocate(scores, context, budget, seeds)
        free = compressible_nodes(context.tree, 1, scores.device) & (focus == 0)
        more = (focus != context.focus.clamp(max=1)).any(dim=1).long()
        return focus + bottomk_mask(block_means(scores.float(), context), free, more).long()


@breaks("A3", "allocator")
class RestartsFromRaw(LowestFirst):
    """Forgets what is compressed already."""

    def allocate(self, scores, context, budget, seeds):
        return super().allocate(scores, replace(context, focus=torch.zeros_like(context.focus)), budget, seeds)


@breaks("A4", "allocator")
class IgnoresASmallBudget(LowestFirst):
    """Silently leaves a budget unmet."""

    def allocate(self, scores, context, budget, seeds):
        return super().allocate(scores, context, max(budget, replace(self.tree, levels=1).minimum_length), seeds)


@breaks("A4", "allocator")
class OmitsTheLeastBudget(LowestFirst):
    """An error without the least budget."""

    def allocate(self, scores, context, budget, seeds):
        if budget < replace(self.tree, levels=1).minimum_length:
            raise ValueError("budget")
        return super().allocate(scores, context, budget, seeds)


@breaks("A5", "allocator")
class HighestFirst(LowestFirst):
    """A sign the wrong way round."""

    def allocate(self, scores, context, budget, seeds):
        return super().allocate(-scores, context, budget, seeds)


@breaks("A6", "allocator")
class NeverRuns(LowestFirst):
    """No round at all."""

    iterations = 0


@breaks("M1", "allocator")
class LearnsFromItsCalls(LowestFirst):
    """Remembers the scores of the call before."""

    before = 0.0

    def allocate(self, scores, context, budget, seeds):
        mixed, self.before = (
            scores + self.before,
            scores.sum() * torch.arange(scores.shape[1], device=scores.device).sin(),
        )
        return super().allocate(mixed, context, budget, seeds)


@breaks("M1", "allocator")
class BreaksTiesByChance(LowestFirst):
    """torch's global random state instead of the seeds."""

    follows_scores = False

    def allocate(self, scores, context, budget, seeds):
        return super().allocate(scores + torch.rand_like(scores), context, budget, seeds)


@breaks("M3", "allocator")
class OneRowAtATime(LowestFirst):
    """Loops over rows."""

    def allocate(self, scores, context, budget, seeds):
        rows = []
        for row in range(len(scores)):
            one = replace(
                context, focus=context.focus[[row]], token=context.token[[row]], lod=context.lod[[row]],
                valid=context.valid[[row]],
            )  # fmt: skip
            rows.append(super().allocate(scores[[row]], one, budget, seeds[[row]]))
        return torch.cat(rows)
