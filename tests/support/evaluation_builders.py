"""Small models with random weights for evaluations, held-out sequences with known documents, and slow scores."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from mcframe.data.tokenizers import Bytes
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.hookspecs import EvalData
from mcframe_plugins.allocator import TopKAllocator
from mcframe_plugins.variants import RandomCollapse
from tests.support import oracle
from tests.support.generators import geometry_of
from tests.support.modeling_builders import Step, build_step, random_tokens
from tests.support.step_oracle import SlowStep

TREE = oracle.Tree(window=29, block_size=3, levels=2, slots=1, tail=6, sink=0)
FLAT = oracle.Tree(window=25, block_size=3, levels=1, slots=1, tail=7, sink=0)


@dataclass(frozen=True)
class FixedEvalModel(EngineEvalModel):
    """A model whose held-out sequences are fixed."""

    data: EvalData | None = None

    def held_out(self, windows, task=None, length=None):
        return self.data


def build_model(tree: oracle.Tree, seed: int = 0, **options: object) -> Step:
    """Return a random model in float64, so that only the logits are rounded."""
    return build_step(tree, RandomCollapse(geometry_of(tree)), seed=seed, **options).double().eval()


def build_eval_model(model: Step, data: EvalData | None, **options: object) -> FixedEvalModel:
    arguments = {
        "model": model.model, "tree": model.tree, "tokenizer": Bytes(), "text": None, "validation_fraction": 0.1,
        "own_task": None, "allocator": TopKAllocator, "vocab_size": model.gpt.vocab_size, "length": 0.75,
        "has_gists": model.gistnet is not None, "has_lens": model.lensnet is not None,
        "device": torch.device("cpu"), "batch": 4, "data": data,
    }  # fmt: skip
    return FixedEvalModel(**(arguments | options))


def some_sequences(tree: oracle.Tree, count: int, seed: int, evidence: bool = False) -> EvalData:
    """Return random tokens; a sequence has three documents, most targets are scored, and half have evidence."""
    rng = random.Random(seed)
    cuts = [sorted(rng.sample(range(2, tree.window), 2)) for _ in range(count)]
    documents = [
        [10 * row + sum(t >= cut for cut in cuts[row]) for t in range(tree.window + 1)] for row in range(count)
    ]
    loss_mask = [[rng.random() < 0.8 for _ in range(tree.window)] for _ in range(count)]
    answers = [[rng.randrange(tree.cursor) if rng.random() < 0.5 else -1 for _ in range(tree.window)] for _ in cuts]
    return EvalData(
        random_tokens(tree, count, seed), torch.tensor(documents), torch.tensor(loss_mask),
        torch.tensor(answers) if evidence else None,
    )  # fmt: skip


class SlowScores:
    """NLL and accuracy of every target, computed one entry at a time. Equal contexts are computed once."""

    def __init__(self, model: Step, tree: oracle.Tree, tokens: Sequence[Sequence[int]]) -> None:
        self.slow, self.tree, self.tokens = SlowStep(model, tree), tree, tokens
        self.table = cache(lambda row: self.slow.table_of(self.tokens[row]))
        self._cached = cache(self._score)

    def score(self, row: int, focus: Sequence[int], condition: str) -> tuple[list[float], list[float]]:
        """Return [T] NLL and accuracy of the most likely token of a sequence, NaN where no entry predicts."""
        if condition == "full":
            focus = [0] * self.tree.blocks
        elif condition in ("gist", "swap") and self.slow.gistnet is None:
            condition = "drop"
        return self._cached(row, tuple(focus), condition)

    @torch.no_grad()
    def _score(self, row: int, focus: tuple[int, ...], condition: str) -> tuple[list[float], list[float]]:
        tokens, table = self.tokens[row], self.table(row)
        entries = [e for e in oracle.build_context(self.tree, list(focus)) if condition != "drop" or e.lod == 0]
        inputs = []
        for e in entries:
            if e.lod == 0 or condition == "gist":
                inputs.append(table[e.lod, e.start, e.slot])
            elif condition == "swap":
                inputs.append(self.table(row ^ 1)[e.lod, e.start, e.slot])
            else:
                slot = [t for t in range(e.start, e.end) if (t - e.start) * e.slots // e.span == e.slot]
                inputs.append(sum(table[0, t, 0] for t in slot) / len(slot))
        nll, right = [math.nan] * self.tree.window, [math.nan] * self.tree.window
        for e, log_probabilities in zip(entries, self.slow.predictions(inputs, entries), strict=True):
            if e.predicts:
                nll[e.end - 1] = -log_probabilities[tokens[e.end]].item()
                right[e.end - 1] = float(int(log_probabilities.argmax()) == tokens[e.end])
        return nll, right
