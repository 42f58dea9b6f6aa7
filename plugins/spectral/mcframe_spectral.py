"""A GistNet that keeps the lowest frequencies of a block, and variants that collapse evenly spaced blocks.

`gistnet.spectral` treats the children of a block as a signal and maps the first coefficients of its cosine transform to
the gist, as Fourier Transformer (He et al., 2023, arXiv:2305.15099) shortens sequences. The first coefficient alone is
the mean. `variants.strided` draws systematic samples (Madow and Madow, 1944) instead of random ones: the blocks that a
variant collapses are spread over the window, and the variants of a sequence collapse different blocks.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.context.focus_ops import bottomk_mask, compressible_nodes, expand_to_blocks, group_by_node
from mcframe.context.substitutions import slot_means
from mcframe.errors import UserError
from mcframe.hookspecs import GistNet, ModelShape, Register, Sequences, VariantStrategy, hookimpl
from torch import Tensor, nn

mcframe_api = "0.1"

_GOLDEN = (math.sqrt(5) - 1) / 2
"""Golden section: its multiples modulo 1 are the most even sequence in [0, 1)."""


class SpectralGistNet(GistNet):
    """A linear map of the lowest frequencies of a block's children, added to their mean.

    Args:
        shape: Supplied by the framework.
        frequencies: Coefficients of the cosine transform that the map reads; 1 is the mean alone.
    """

    def __init__(self, shape: ModelShape, *, frequencies: int = 4) -> None:
        super().__init__()
        if not 1 <= frequencies <= shape.tree.block_size:
            raise UserError(
                f"gistnet.spectral.frequencies: expected 1 to {shape.tree.block_size}, got {frequencies}",
                binding="gistnet.spectral.frequencies",
                remedy=f"set it to a number from 1 to {shape.tree.block_size}",
            )
        self.frequencies, self.slots = frequencies, shape.tree.slots
        self.head = nn.Linear(frequencies * shape.width, self.slots * shape.width, bias=False)

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return gists [B, nodes, G, D] of the nodes at `lod` from children [B, nodes, C, D]."""
        spectrum = (cosines(children.shape[2], self.frequencies, children) @ children).flatten(2)
        learned: Tensor = self.head(F.rms_norm(spectrum, spectrum.shape[-1:]))
        return slot_means(children, self.slots) + learned.view(*children.shape[:2], self.slots, -1)


def cosines(length: int, frequencies: int, like: Tensor) -> Tensor:
    """Return the first rows of the orthonormal cosine transform (DCT-II): [frequencies, length]."""
    position = torch.arange(length, device=like.device) + 0.5
    frequency = torch.arange(frequencies, device=like.device)
    basis = torch.cos(frequency[:, None] * position * (math.pi / length)) * math.sqrt(2 / length)
    return torch.where(frequency[:, None] == 0, math.sqrt(1 / length), basis).to(like.dtype)


class StridedVariants(VariantStrategy):
    """Focuses with evenly spaced collapsed nodes, different ones in each variant.

    Args:
        tree: Supplied by the framework.
        count: Variants a sequence.
        attempts: Largest number of draws until the variants of a sequence differ.
    """

    def __init__(self, tree: ContextTree, *, count: int = 2, attempts: int = 6) -> None:
        if count < 1:
            raise UserError(
                f"variants.strided.count: expected at least 1, got {count}",
                binding="variants.strided.count",
                remedy="for none, set run.variants = @variants.none",
            )
        self.tree, self.count, self.attempts = tree, count, attempts

    def order(self, seeds: Tensor, lod: int, tree: ContextTree) -> Tensor:
        """Return the order in which nodes at `lod` collapse, lowest first: [B, V, nodes(lod)].

        Node n is at the n-th multiple of the golden section on a circle, and a variant collapses the nodes of one arc.
        The arcs of a sequence start at a random point and at equal distances.
        """
        node = torch.arange(tree.nodes(lod), device=seeds.device)
        first = (random_keys(hash_combine(seeds[:, :1], lod), 1) >> 12).double() / 2**52
        arc = torch.arange(seeds.shape[1], device=seeds.device)[:, None] / self.count
        return (node * _GOLDEN + first - arc) % 1.0

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Return focuses [B, V, blocks] of exactly `length` entries; a repeated one is drawn again."""
        focus = self._draw(seeds, length, sequences.tree)
        for attempt in range(1, self.attempts):
            same = (focus[:, :, None] == focus[:, None]).all(dim=-1).tril(diagonal=-1).any(dim=-1)
            again = self._draw(hash_combine(seeds, (1 << 32) + attempt), length, sequences.tree)
            focus = torch.where(same[..., None], again, focus)
        return focus

    def _draw(self, seeds: Tensor, length: int, tree: ContextTree) -> Tensor:
        mixes = _mixes(tree, length, seeds.device)
        counts = mixes[randint(seeds, len(mixes))]  # nodes to collapse at each level [B, V, levels]
        focus = counts.new_zeros(*seeds.shape, tree.blocks)
        for lod in range(tree.levels, 0, -1):
            if tree.nodes(lod) == 0:  # the window is shorter than one node of this level
                continue
            free = (group_by_node(focus, tree, lod) == 0).all(dim=-1)
            allowed = free & compressible_nodes(tree, lod, seeds.device)
            chosen = bottomk_mask(self.order(seeds, lod, tree), allowed, counts[..., lod - 1])
            focus = torch.where(expand_to_blocks(chosen, tree, lod), lod, focus)
        return focus


@lru_cache(maxsize=256)
def _mixes(tree: ContextTree, length: int, device: torch.device) -> Tensor:
    """Return the numbers of nodes [mixes, levels] with this length; cached on the device for later steps."""
    reached, mixes = tree.reachable(length)
    if reached != length:
        raise ValueError(f"no working context has exactly {length} entries; the next shorter one has {reached}")
    return torch.tensor(mixes, device=device)


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the GistNet and the variant strategy under their names in gin files."""
    register("spectral", SpectralGistNet)
    register("strided", StridedVariants)
