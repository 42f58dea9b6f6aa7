"""Subsets of targets: after the cursor, at a distance after a span, and the gist's own."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import DISTANCES
from mcframe.context.substitutions import distance_after
from mcframe.context.working_context import block_lods_to_tokens
from mcframe.hookspecs import EvalData

TAIL, EVIDENCE, AFTER_SPAN, GIST_ENTRY = "tail", "evidence", "after_span", "gist_entry"

DESCRIPTIONS = {
    TAIL: "after the cursor",
    EVIDENCE: "answer in a collapsed block",
    AFTER_SPAN: "anywhere after a span",
    GIST_ENTRY: "the gist's own target",
    **{str(high): f"{low} to {high - 1} after a span" for low, high in zip((0, *DISTANCES), DISTANCES, strict=False)},
}
"""Description of each subset."""


def after_cursor(tree: ContextTree) -> Tensor:
    """Return [T] bool: the target is at or after the cursor (position t has the target after token t)."""
    return torch.arange(1, tree.window + 1) >= tree.cursor


def target_subsets(focus: Tensor, data: EvalData, tree: ContextTree) -> dict[str, Tensor]:
    """Return masks [n, T] of targets by subset, for focuses [n, blocks].

    All but `gist_entry` are targets of raw tokens, which every condition predicts. Distances are those of
    `mc/delta_after`, from the nearest span on the left; `evidence` are targets whose answer is in a collapsed block.
    """
    lod = block_lods_to_tokens(focus, tree)
    raw = (lod == 0) & data.loss_mask
    distance, _ = distance_after(lod, tree)
    found = {TAIL: raw & after_cursor(tree)}
    if data.evidence is not None:
        hidden = lod.gather(1, data.evidence.clamp(min=0)) > 0
        found[EVIDENCE] = raw & (data.evidence >= 0) & hidden
    found[AFTER_SPAN] = raw & (distance >= 0)
    for low, high in zip((0, *DISTANCES), DISTANCES, strict=False):
        found[str(high)] = raw & (distance >= low) & (distance < high)
    span = torch.pow(tree.block_size, lod)
    last = (torch.arange(tree.window) + 1) % span == 0
    found[GIST_ENTRY] = (lod > 0) & last & data.loss_mask
    return found
