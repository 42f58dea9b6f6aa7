"""Small models with random weights as evaluations see them, and held-out sequences whose documents are known."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mcframe.data.tokenizers import Bytes
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.hookspecs import EvalData
from mcframe_plugins.allocator import TopKAllocator
from mcframe_plugins.variants import RandomCollapse
from tests.support import oracle
from tests.support.generators import geometry_of
from tests.support.modeling_builders import Step, build_step, random_tokens

TREE = oracle.Tree(window=29, block_size=3, levels=2, slots=1, tail=6, sink=0)
FLAT = oracle.Tree(window=25, block_size=3, levels=1, slots=1, tail=7, sink=0)


@dataclass(frozen=True)
class GivenSubject(EngineEvalModel):
    """A model judged on these sequences, whatever is asked for."""

    held: EvalData | None = None

    def held_out(self, windows, task=None):
        return self.held


def build_model(tree: oracle.Tree, seed: int = 0, **options: object) -> Step:
    """In float64, so that only the logits round."""
    return build_step(tree, RandomCollapse(geometry_of(tree)), seed=seed, **options).double().eval()


def build_subject(model: Step, held: EvalData, **options: object) -> GivenSubject:
    settings = {
        "model": model.model, "tree": model.tree, "tokenizer": Bytes(), "text": None, "share": 0.1, "own_task": None,
        "allocator": TopKAllocator(model.tree), "vocab_size": model.gpt.vocab_size, "length": 0.75,
        "has_gists": model.gistnet is not None, "has_lens": model.lensnet is not None,
        "device": torch.device("cpu"), "batch": 4, "held": held,
    }  # fmt: skip
    return GivenSubject(**(settings | options))


def some_sequences(tree: oracle.Tree, count: int, seed: int, evidence: bool = False) -> EvalData:
    """Random tokens; a sequence has three documents of its own, most targets count, some answers have a place."""
    rng = random.Random(seed)
    cuts = [sorted(rng.sample(range(2, tree.window), 2)) for _ in range(count)]
    documents = [
        [10 * row + sum(t >= cut for cut in cuts[row]) for t in range(tree.window + 1)] for row in range(count)
    ]
    loss_mask = [[rng.random() < 0.8 for _ in range(tree.window)] for _ in range(count)]
    places = [[rng.randrange(tree.cursor) if rng.random() < 0.5 else -1 for _ in range(tree.window)] for _ in loss_mask]
    return EvalData(
        random_tokens(tree, count, seed), torch.tensor(documents), torch.tensor(loss_mask),
        torch.tensor(places) if evidence else None,
    )  # fmt: skip


def changed(held: EvalData, tokens: Tensor) -> EvalData:
    return replace(held, tokens=tokens)
