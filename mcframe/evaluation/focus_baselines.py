"""Five ways to choose the blocks that stay raw, with equally many entries of each level in each sequence.

All but `oracle` read only tokens before the cursor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.entry_nll import mean_block_nll
from mcframe.context.focus_ops import compressible_nodes
from mcframe.errors import UserError
from mcframe.evaluation.collapse import collapse_as_many, collapse_lowest, nodes_to_collapse, shuffle_nodes
from mcframe.evaluation.target_subsets import after_cursor
from mcframe.hookspecs import EvalData, EvalModel

STRATEGIES = ("random", "recency", "surprise", "lens", "oracle")


def oracle_values(model: EvalModel, data: EvalData, full: Tensor) -> Tensor:
    """Return [n, blocks], the mean increase of NLL after the cursor if a block alone is dropped.

    It is 0 for blocks that may not be collapsed. It reads the scored targets, which no other strategy may.

    Args:
        model: The model.
        data: n sequences.
        full: [n, T] uncompressed NLL.
    """
    tree = model.tree
    free = compressible_nodes(tree, 1, full.device).nonzero().flatten()
    counts = tail_targets(data, tree)
    values = torch.zeros(full.shape[0], tree.blocks)
    for block in free.tolist():
        alone = torch.zeros(full.shape[0], tree.blocks, dtype=torch.long)
        alone[:, block] = 1
        nll, _ = model.score(data.tokens, alone, "drop")
        values[:, block] = torch.where(counts, nll - full, 0.0).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
    return values


def tail_targets(data: EvalData, tree: ContextTree) -> Tensor:
    """Return [n, T] bool, scored targets after the cursor that follow a token which is raw in every focus.

    If a block ends at the cursor, the first target after it is that block's own, and nothing predicts it if the block
    is dropped.
    """
    always_raw = torch.arange(tree.window) >= tree.cursor // tree.block_size * tree.block_size
    return data.loss_mask & after_cursor(tree) & always_raw


class Strategies:
    """Focuses of held-out sequences at any budget. Values that do not depend on the budget are computed once.

    Args:
        model: The model.
        data: The sequences.
        draws: Random focuses of each sequence.
    """

    def __init__(self, model: EvalModel, data: EvalData, draws: int) -> None:
        self._model, self._tokens = model, data.tokens
        tree, rows = model.tree, data.tokens.shape[0]
        raw = torch.zeros(rows, tree.blocks, dtype=torch.long)
        self.full, _ = model.score(data.tokens, raw, "full")
        self._seeds = variant_seeds(model.seed, torch.arange(rows), draws)
        self._values = {
            "recency": torch.arange(tree.blocks, dtype=torch.float32).expand(rows, -1),
            "surprise": mean_block_nll(self.full, tree),
            "oracle": oracle_values(model, data, self.full),
        }

    def focuses(self, budget: int, notes: list[str]) -> dict[str, Tensor]:
        """Return each strategy's focuses [n, V, blocks] of at most `budget` entries; V is 1 except for `random`.

        LensNet and the allocator decide how many nodes of each level a sequence has. Every other strategy has as many.
        Without a focus of LensNet, blocks are collapsed to LOD1. Notes are appended for what is skipped.
        """
        tree, found = self._model.tree, dict[str, Tensor]()
        like = self._of_lens(budget, notes) if self._model.has_lens else None
        if like is not None:
            found["lens"] = like[:, None]
        elif (count := nodes_to_collapse(tree, 1, budget)) <= tree.compressible_nodes(1):
            like = collapse_lowest(self._values["recency"], tree, 1, count)
        else:
            notes.append(f"a budget of {budget} entries is skipped: contexts of LOD0 and LOD1 do not reach it")
            return {}
        found["random"] = shuffle_nodes(like, self._seeds, tree)
        for name, values in self._values.items():
            found[name] = collapse_as_many(values, like, tree)[:, None]
        return {name: found[name] for name in STRATEGIES if name in found}

    def _of_lens(self, budget: int, notes: list[str]) -> Tensor | None:
        """Return the focus [n, blocks] of LensNet; None, with a note, if the allocator excludes the budget."""
        try:
            return self._model.refocus(self._tokens, budget)
        except UserError as error:
            notes.append(f"no focus of LensNet at {budget} entries: {error.message}")
            return None
