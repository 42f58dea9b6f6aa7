"""Small random models and sessions over them, and the logits of a session computed without a cache."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mcframe.hookspecs import Tokenizer
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.node_table import build_node_table
from mcframe.runtime.session import Session
from mcframe_plugins.variants import RandomCollapse
from tests.support import oracle
from tests.support.generators import geometry_of
from tests.support.modeling_builders import VOCABULARY, build_step


class Digits(Tokenizer):
    """Characters as ids modulo the vocabulary; the last id is the separator."""

    vocab_size, separator, identity = VOCABULARY, VOCABULARY - 1, "digits"

    def encode_batch(self, texts):
        return [[ord(character) % self.separator for character in text] for text in texts]

    def decode(self, ids):
        return "".join(chr(48 + i) for i in ids if i != self.separator)

    def byte_lengths(self):
        return (torch.arange(self.vocab_size) != self.separator).long()


def small_model(
    seed: int = 0, *, block_size: int = 3, levels: int = 2, slots: int = 1, window: int = 40, **options: object
) -> MegaContextModel:
    tree = oracle.Tree(window=window, block_size=block_size, levels=levels, slots=slots, tail=6, sink=0)
    return build_step(tree, RandomCollapse(geometry_of(tree)), seed=seed, **options).model.eval()


@torch.no_grad()
def recomputed_logits(session: Session) -> Tensor:
    """Return the logits after a session's history, from a node table of the complete history and one plain pass."""
    model, plan = session.model, session._decoder.plan
    assert plan is not None
    count = session.history.tokens
    tokens = session.history.read_tokens(0, count)
    tree = replace(model.tree, window=count, tail=0)
    embeddings = model.gpt.embed(tokens[None])
    table = embeddings if model.gistnet is None else build_node_table(embeddings, model.gistnet, tree)
    last = plan.entries(count)
    context = replace(
        plan.context, token=plan.context.token[:, :last], lod=plan.context.lod[:, :last],
        valid=plan.context.valid[:, :last],
    )  # fmt: skip
    rows = []
    for token, lod in zip(plan.window.history_index(context.token[0]).tolist(), context.lod[0].tolist(), strict=True):
        span = tree.span(lod)
        rows.append(table[0, tree.offset(lod) + token // span * tree.slots_at(lod) + token % span])
    hidden = model.gpt.hidden(torch.stack(rows)[None], context)
    return model.gpt.logits(hidden[0, -1])
