"""Five ways to choose the blocks that stay raw at one budget. All but `oracle` read only tokens before the cursor."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.entry_nll import mean_block_nll
from mcframe.context.focus_ops import compressible_nodes
from mcframe.errors import UserError
from mcframe.evaluation.collapse import collapse_lowest, nodes_to_collapse, random_focus
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

        The allocator may use every level; the other strategies collapse blocks to LOD1. A note is appended if the
        allocator's own configuration excludes the budget.
        """
        tree = self._model.tree
        count = nodes_to_collapse(tree, 1, budget)
        found = {"random": random_focus(self._seeds, tree, 1, count)}
        for name, values in self._values.items():
            found[name] = collapse_lowest(values, tree, 1, count)[:, None]
        if self._model.has_lens:
            try:
                found["lens"] = self._model.refocus(self._tokens, budget)[:, None]
            except UserError as error:
                notes.append(f"no focus of LensNet at {budget} entries: {error.message}")
        return {name: found[name] for name in STRATEGIES if name in found}
