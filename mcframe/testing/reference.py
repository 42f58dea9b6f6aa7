"""The least that each part of a model can be and still keep every clause; a plug-in under test trains beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.context.controls import slot_means
from mcframe.context.focus import block_means, compressible_nodes, lowest, over_blocks, over_nodes
from mcframe.context.geometry import Geometry
from mcframe.context.seeding import below, mix, priorities
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import (
    API_VERSION,
    Allocator,
    GistNet,
    LensNet,
    ModelShape,
    Register,
    Sequences,
    VariantStrategy,
    hookimpl,
)

mcframe_api = API_VERSION


class LinearGistNet(GistNet):
    """A linear map of each slot's mean child, and a vector for the level."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.slots = shape.geometry.slots
        self.map = nn.Linear(shape.width, shape.width, bias=False)
        self.lod_embed = nn.Parameter(torch.randn(shape.geometry.levels, shape.width) * 0.02)

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """children [B, nodes, C, D] -> [B, nodes, G, D]."""
        gists: Tensor = self.map(slot_means(children, self.slots)) + self.lod_embed[lod - 1]
        return gists


class LinearLensNet(LensNet):
    """Scores each entry for itself, by its embedding and its level."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.score_embed = nn.Linear(shape.width, 1)
        self.lod_embed = nn.Parameter(torch.randn(shape.geometry.levels + 1) * 0.02)

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """embeddings [R, L, D] -> scores [R, L] in [-1, 1]."""
        scores: Tensor = self.score_embed(embeddings).squeeze(-1) + self.lod_embed[context.lod]
        return scores.tanh()


class LowestFirst(Allocator):
    """Keeps what fits; else raises to LOD1 the raw blocks with the lowest scores, and undoes all above LOD1."""

    highest_lod = 1

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Focus [R, blocks]. Raises UserError where LOD1 does not bring the context within the budget."""
        geometry = Geometry(
            self.geometry.window, self.geometry.block_size, 1, self.geometry.slots, self.geometry.tail,
            self.geometry.sink,
        )  # fmt: skip
        _, ((needed,),) = geometry.reachable(budget)
        gist = context.focus.clamp(max=1)
        raw = compressible_nodes(geometry, 1, scores.device) & (gist == 0)
        missing = (needed - gist.sum(dim=1)).clamp(min=0)
        return gist + lowest(block_means(scores.float(), context), raw, missing).long()


class RandomNodes(VariantStrategy):
    """Two random focuses a sequence: a mix of levels of that length, then random nodes, the highest level first."""

    count = 2

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focus [B, V, blocks] of exactly `length` entries."""
        geometry = sequences.geometry
        _, mixes = geometry.reachable(length)
        known = torch.tensor(mixes, device=seeds.device)
        # The second draws again where it would repeat the first, some times.
        focus = _placed(known[below(seeds, len(mixes))], seeds, geometry)
        for attempt in range(1, 5):
            again = _placed(known[below(mix(seeds, attempt), len(mixes))], mix(seeds, attempt), geometry)
            repeats = (focus == focus[:, :1]).all(dim=-1, keepdim=True)
            repeats = repeats & (torch.arange(seeds.shape[1], device=seeds.device) > 0)[:, None]
            focus = torch.where(repeats, again, focus)
        return focus


def _placed(counts: Tensor, seeds: Tensor, geometry: Geometry) -> Tensor:
    """Collapse `counts` [..., levels] random nodes of every level -> focus [..., blocks]."""
    focus = counts.new_zeros(*counts.shape[:-1], geometry.blocks)
    for lod in range(geometry.levels, 0, -1):
        if geometry.nodes(lod) == 0:
            continue
        free = (over_nodes(focus, geometry, lod) == 0).all(dim=-1) & compressible_nodes(geometry, lod, seeds.device)
        chosen = lowest(priorities(mix(seeds, -lod), geometry.nodes(lod)), free, counts[..., lod - 1])
        focus = torch.where(over_blocks(chosen, geometry, lod), lod, focus)
    return focus


@hookimpl
def register_gistnets(register: Register) -> None:
    """Offer it."""
    register("linear", LinearGistNet)


@hookimpl
def register_lensnets(register: Register) -> None:
    """Offer it."""
    register("linear", LinearLensNet)


@hookimpl
def register_allocators(register: Register) -> None:
    """Offer it."""
    register("lowest_first", LowestFirst)


@hookimpl
def register_variants(register: Register) -> None:
    """Offer it."""
    register("random_nodes", RandomNodes)
