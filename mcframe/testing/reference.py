"""Minimal conforming plug-ins of the kinds of a model, as the other parts of a training step under test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.context.focus_ops import block_means, bottomk_mask, compressible_nodes, expand_to_blocks, group_by_node
from mcframe.context.step_metrics import masked_mean
from mcframe.context.substitutions import slot_means
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import (
    API_VERSION,
    Allocator,
    GistNet,
    LensNet,
    Loss,
    LossTerm,
    ModelShape,
    ParamGroup,
    Register,
    Sequences,
    StepView,
    VariantStrategy,
    group_parameters,
    hookimpl,
)

mcframe_api = API_VERSION


class LinearGistNet(GistNet):
    """A linear map of the mean child of each slot, plus a vector for the level."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.slots = shape.tree.slots
        self.map = nn.Linear(shape.width, shape.width, bias=False)
        self.lod_embed = nn.Parameter(torch.randn(shape.tree.levels, shape.width) * 0.02)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: a table of levels."""
        return group_parameters(self, embedding=[self.lod_embed])

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return gists [B, nodes, G, D] of children [B, nodes, C, D]."""
        gists: Tensor = self.map(slot_means(children, self.slots)) + self.lod_embed[lod - 1]
        return gists


class LinearLensNet(LensNet):
    """Scores each entry by its own embedding and level."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.score_embed = nn.Linear(shape.width, 1)
        self.lod_embed = nn.Parameter(torch.randn(shape.tree.levels + 1) * 0.02)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: a thin map."""
        return group_parameters(self, embedding=[self.score_embed, self.lod_embed])

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return scores [R, L] in [-1, 1] of embeddings [R, L, D]."""
        scores: Tensor = self.score_embed(embeddings).squeeze(-1) + self.lod_embed[context.lod]
        return scores.tanh()


class LowestFirst(Allocator):
    """Compresses the raw blocks with the lowest scores to LOD1 until the context fits; reduces levels above LOD1."""

    highest_lod = 1

    def __init__(self, tree: ContextTree) -> None:
        self.tree = tree

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Return the focus [R, blocks]. Raises UserError if no focus of LOD1 fits the budget."""
        tree = ContextTree(
            self.tree.window, self.tree.block_size, 1, self.tree.slots, self.tree.tail,
            self.tree.sink,
        )  # fmt: skip
        _, ((needed,),) = tree.reachable(budget)
        gist = context.focus.clamp(max=1)
        raw = compressible_nodes(tree, 1, scores.device) & (gist == 0)
        missing = (needed - gist.sum(dim=1)).clamp(min=0)
        return gist + bottomk_mask(block_means(scores.float(), context), raw, missing).long()


class RandomNodes(VariantStrategy):
    """Two random focuses a sequence: random counts of levels with that length, then random nodes of each level."""

    count = 2

    def __init__(self, tree: ContextTree) -> None:
        self.tree = tree

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Return focuses [B, V, blocks] of exactly `length` entries."""
        tree = sequences.tree
        _, mixes = tree.reachable(length)
        known = torch.tensor(mixes, device=seeds.device)
        # The second variant is drawn again, up to twice, if it repeats the first one.
        focus = _random_focus(known[randint(seeds, len(mixes))], seeds, tree)
        for attempt in range(1, 3):
            again = _random_focus(
                known[randint(hash_combine(seeds, attempt), len(mixes))], hash_combine(seeds, attempt), tree
            )
            repeats = (focus == focus[:, :1]).all(dim=-1, keepdim=True)
            repeats = repeats & (torch.arange(seeds.shape[1], device=seeds.device) > 0)[:, None]
            focus = torch.where(repeats, again, focus)
        return focus


def _random_focus(counts: Tensor, seeds: Tensor, tree: ContextTree) -> Tensor:
    """Return a focus [..., blocks] that collapses `counts` [..., levels] random nodes of every level."""
    focus = counts.new_zeros(*counts.shape[:-1], tree.blocks)
    for lod in range(tree.levels, 0, -1):
        if tree.nodes(lod) == 0:
            continue
        free = (group_by_node(focus, tree, lod) == 0).all(dim=-1) & compressible_nodes(tree, lod, seeds.device)
        chosen = bottomk_mask(random_keys(hash_combine(seeds, -lod), tree.nodes(lod)), free, counts[..., lod - 1])
        focus = torch.where(expand_to_blocks(chosen, tree, lod), lod, focus)
    return focus


class ReferenceLoss(Loss):
    """A loss that trains every part: next-token NLL, NLL of the variants, and the squared error of LensNet's scores."""

    name, needs = "reference", ()

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()

    def forward(self, view: StepView) -> LossTerm:
        """Return the loss of each sequence [B]."""
        loss = masked_mean(view.uncompressed.nll, view.uncompressed.loss_mask, dim=1)
        if view.variants is not None:
            paired, lens = view.variants.paired, view.variants.lens
            loss = loss + view.by_sequence(masked_mean(paired.nll, paired.loss_mask, dim=1))
            if lens is not None:
                error = (lens.scores - torch.tanh(lens.tail_delta)[:, None]).square()
                loss = loss + view.by_sequence(masked_mean(error, lens.prefix.valid, dim=1))
        return LossTerm(loss)


@hookimpl
def register_plugins(register: Register) -> None:
    """Register one implementation of each kind."""
    register("linear", LinearGistNet)
    register("linear", LinearLensNet)
    register("lowest_first", LowestFirst)
    register("random_nodes", RandomNodes)
