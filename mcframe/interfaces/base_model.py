"""The interface of base models: embeddings of mixed level of detail in, hidden states and logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext
from mcframe.interfaces.kv_cache import KVCache
from mcframe.interfaces.networks import HeadShape, Positions
from mcframe.interfaces.param_groups import TrainableModule

LOGITS_AT_ONCE = 2**26
"""Logits computed in one piece (256 MiB in float32), so that nothing is computed twice."""
CHUNKS_AT_ONCE = 4
"""More logits are computed in chunks of `LOGITS_AT_ONCE / CHUNKS_AT_ONCE`, and again in the backward pass. A chunk
takes three times its memory for the NLL, and five times with the KL."""


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters of a module, also at ZeRO 3, where a rank holds only partitions."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in module.parameters())


@dataclass(frozen=True)
class BaseShape:
    """The shape that a base model must fit: the tree, the tokenizer's number of entries, and the positions of the run.

    `positions` builds the positions for a `HeadShape`.
    """

    tree: ContextTree
    vocab_size: int
    positions: Callable[[HeadShape], Positions]


class BaseModel(TrainableModule, ABC):
    """A causal decoder over the entries of a working context. Factory: `factory(shape)`, with a `BaseShape`.

    Each state depends on its entry and the entries before it. Entries may have gaps between their positions, and are
    one sequence nevertheless. A model without attention, which predicts from the last entry alone:

        class Bigram(BaseModel):
            depth, heads, head_width = 1, 1, 2

            def __init__(self, shape):
                super().__init__()
                self.vocab_size, self.width = shape.vocab_size, 8
                self.positions = shape.positions(HeadShape(1, 2, shape.tree))
                self.table = nn.Embedding(self.vocab_size, 8)

            def embed(self, tokens):
                return self.table(tokens)

            def states(self, embeddings, context, layer=0):
                return embeddings, embeddings

            def extend(self, embeddings, lod, rotation, cache):
                cache.advance(lod.shape[1])
                return embeddings

            def logits(self, hidden):
                return (hidden @ self.table.weight.T).float()
    """

    vocab_size: int
    """Number of logits; at least the tokenizer's entries."""
    width: int
    """D, width of an embedding and of a state."""
    depth: int
    """Number of layers."""
    heads: int
    """Attention heads."""
    head_width: int
    """Width of a head, even."""
    positions: Positions
    """The positions, built by `shape.positions` for `heads` and `head_width`."""
    activation_checkpointing: bool = False
    """True if layers are recomputed in the backward pass."""
    masks_documents: bool = False
    """True if `states` masks documents: an entry reads the entries of its own `context.document` alone."""
    external_weights: frozenset[str] = frozenset()
    """Names of frozen parameters that are read from files of the user; checkpoints omit them. The state dict must omit
    them, too, and its extra state should have a checksum."""

    # ---- what a base model implements ------------------------------------------------------------
    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of token ids: tokens [B, T] -> [B, T, D], the LOD0 rows of the node table."""

    @abstractmethod
    def states(self, embeddings: Tensor, context: WorkingContext, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Return the final hidden states, and the states after `layer` layers (0: the embeddings as they came).

        embeddings [R, L, D] -> two of [R, L, D]. `context` has R rows, or one that serves all. Padding is at the right.
        Rotations are those of `positions(context)`. Differentiable by the embeddings, also if all weights are frozen.
        """

    @abstractmethod
    def extend(self, embeddings: Tensor, lod: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache) -> Tensor:
        """Return the final hidden states of entries that follow those in the cache, and store them there.

        embeddings [1, n, D], lod [1, n] -> [1, n, D], the last n final states of `states` for all entries. `rotation`
        are cosines and sines [1, 1 or H, n, head_width / 2] as `positions` returns them. Every layer calls
        `cache.append`; `cache.advance(n)` ends the call.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits of the next token: hidden [..., D] -> [..., vocab_size], float32."""

    # ---- what follows from it --------------------------------------------------------------------
    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; fewer than `heads` with grouped queries."""
        return self.heads

    @property
    def attention_width(self) -> int:
        """Width of all heads together; what attention costs is proportional to it."""
        return self.heads * self.head_width

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters that take part in matrix products for every token: layers and head."""
        return sum(parameter_count(each) for each in self.modules() if isinstance(each, nn.Linear))

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters."""
        return next(self.parameters()).dtype

    def kv_cache(self, capacity: int) -> KVCache:
        """Return an empty cache for `extend` of at most `capacity` entries."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return KVCache(self.depth, self.kv_heads, self.head_width, capacity, like)

    def neutral_embedding(self) -> Tensor:
        """Return an embedding [D] that stands for no content: where gists of an adapter start. 0 by default."""
        return torch.zeros(self.width, dtype=self.dtype, device=self.device)

    def states_after(self, embeddings: Tensor, context: WorkingContext, layer: int) -> Tensor:
        """Return the second result of `states` alone. Override it to omit the layers that follow."""
        return self.states(embeddings, context, layer)[1]

    def hidden(self, embeddings: Tensor, context: WorkingContext) -> Tensor:
        """Return the final hidden states [R, L, D] of working contexts whose embeddings are [R, L, D]."""
        return self.states(embeddings, context)[0]

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats, float32 [R, L], of targets [R, L], from hidden states [R, L, D]."""
        return self._chunked(self._nll, hidden, targets)

    def nll_and_kl(self, hidden: Tensor, targets: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """NLL, and KL(teacher ‖ student) over the vocabulary, in nats, float32 [R, L] each.

        `teacher` [R, L, D] are hidden states that predict the same targets; no gradient flows into them or through
        their use of the head.
        """
        both = self._chunked(self._nll_and_kl, hidden, targets, teacher.detach())
        return both[..., 0], both[..., 1]

    def nll_and_correct(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """NLL in nats [R, L], and 1.0 where the likeliest token is the target, else 0.0 [R, L]."""
        both = self._chunked(self._nll_and_correct, hidden, targets)
        return both[..., 0], both[..., 1]

    def _chunked(self, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`compute` on inputs [R, L, ...] flattened to [n, ...] -> [R, L, ...].

        Logits of a large vocabulary are never all in memory: chunks of rows are recomputed in the backward pass.
        """
        shape, flat = inputs[0].shape[:2], [part.flatten(0, 1) for part in inputs]
        if flat[0].shape[0] * self.vocab_size <= LOGITS_AT_ONCE:
            result = compute(*flat)
            return result.view(*shape, *result.shape[1:])
        count = max(1, LOGITS_AT_ONCE // CHUNKS_AT_ONCE // self.vocab_size)
        chunks = zip(*(torch.split(part, count) for part in flat), strict=True)
        parts = [checkpoint(compute, *chunk, use_reentrant=False) for chunk in chunks]
        result = torch.cat(parts)
        return result.view(*shape, *result.shape[1:])

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(hidden), targets, reduction="none")

    def _nll_and_correct(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.logits(hidden)
        nll = F.cross_entropy(logits, targets, reduction="none")
        return torch.stack((nll, (logits.argmax(dim=-1) == targets).float()), dim=-1)

    def _nll_and_kl(self, hidden: Tensor, targets: Tensor, teacher: Tensor) -> Tensor:
        student = self.logits(hidden).log_softmax(dim=-1)
        with torch.no_grad():
            known = self.logits(teacher).log_softmax(dim=-1)
        nll = -student.gather(1, targets[:, None])[:, 0]
        return torch.stack((nll, (known.exp() * (known - student)).sum(dim=-1)), dim=-1)
