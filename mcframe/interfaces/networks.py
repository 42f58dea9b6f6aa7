"""Interfaces of the networks: GistNet, LensNet, and the positions that the base model rotates with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext
from mcframe.interfaces.param_groups import TrainableModule


@dataclass(frozen=True)
class ModelShape:
    """The shape that a network must fit: the base model's width D and the tree.

    `neutral` is an embedding [D] of the base model that stands for no content; None outside of a model.
    """

    width: int
    tree: ContextTree
    neutral: Tensor | None = field(default=None, compare=False)


class GistNet(TrainableModule, ABC):
    """Compress the K children of each node into one gist of G slots. Factory: `factory(shape)`.

    shape is a `ModelShape`. The last children of each block, as its gist:

        class Last(GistNet):
            def __init__(self, shape):
                super().__init__()
                self.slots = shape.tree.slots

            def forward(self, children, lod):
                return children[:, :, -self.slots :]
    """

    context_blocks: int | None = 0
    """Blocks to its left that a gist may read in addition to its own; 0 = isolated, None = everything to its left.
    With `reads_layer` always None, since those states depend on everything to the left."""

    reads_layer: int = 0
    """The representation of a token among the children: 0 = its embedding; n = its state in the uncompressed pass after
    n blocks of the base model. Such states depend on everything to their left: gists are contextual at no cost."""

    reads_tokens: bool = False
    """True where gists of every level are made from tokens (`K**lod` children) instead of the gists one level below."""

    masks_documents: bool | None = None
    """True if a gist depends on the children of its own node alone; states of the base model may depend on more. None:
    if `context_blocks` is 0. Required by `data.document_mask`, where children of other documents are 0."""

    @abstractmethod
    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return the gists of every node at `lod`.

        children [B, nodes, K * slots(lod - 1), D] -> gists [B, nodes, G, D], same dtype and device
        (children [B, nodes, K**lod, D] with `reads_tokens`).
        Differentiable; deterministic in eval mode; node i depends on nodes i - context_blocks .. i only
        (on nodes up to i where that is None).
        Called once a level in every step, level 1 first. Another shape ends the run with a message that names the
        plug-in.
        """


class LensNet(TrainableModule, ABC):
    """Score every working-context entry: > 0 "expand me", < 0 "collapse me". Factory: `factory(shape)`.

    shape is a `ModelShape`. A learned direction:

        class Direction(LensNet):
            def __init__(self, shape):
                super().__init__()
                self.score_embed = nn.Parameter(torch.zeros(shape.width))

            def forward(self, context, embeddings):
                return (embeddings @ self.score_embed).tanh()
    """

    reads_nll: bool = False
    """True where it needs `context.nll`, each entry's NLL under the uncompressed model in nats. An attribute of the
    class or of an instance. Training has that pass anyway; refocusing runs it again for such a LensNet."""

    masks_documents: bool = False
    """True if the score of an entry depends on entries of its own `context.document` alone. Required by
    `data.document_mask`."""

    @abstractmethod
    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return scores in [-1, 1].

        context has the entries before the cursor only; embeddings [R, L, D] are detached -> scores [R, L].
        `context.nll` [R, L] with `reads_nll`, else None: mean NLL of the tokens that the entry's node covers, of those
        before the cursor, detached; 0 for the window's first token, which has no prediction.
        Must ignore entries where `context.valid` is False. Deterministic in eval mode. Another shape ends the run with
        a message that names the plug-in.
        """


@dataclass(frozen=True)
class HeadShape:
    """The shape that positions must fit: number of attention heads, width of a head (even), and the tree.

    `frequencies` are those that a pretrained base model rotates with, one a pair, in radians a token; None if it is
    trained from scratch.
    """

    heads: int
    width: int
    tree: ContextTree
    frequencies: tuple[float, ...] | None = None


class Positions(TrainableModule, ABC):
    """Encode an entry's position as a rotation of its queries and keys. Factory: `factory(shape)`.

    shape is a `HeadShape`. No positions at all, the rotation by nothing:

        class Nowhere(Positions):
            def __init__(self, shape):
                super().__init__()
                self.pairs = shape.width // 2

            def forward(self, context):
                size = (*context.token.shape[:1], 1, context.length, self.pairs)
                ones = torch.ones(size, device=context.token.device)
                return ones, torch.zeros_like(ones)
    """

    bounded: bool = False
    """True where positions stay in the trained range after a history of any length. Otherwise sessions cover no more
    than T tokens."""

    @abstractmethod
    def forward(self, context: WorkingContext) -> tuple[Tensor, Tensor]:
        """Return the rotation of every entry: cosine and sine, damped where an entry covers many positions.

        context has R rows of L entries, R = 1 where it serves all rows -> cosine, sine [R, 1, L, width / 2] or
        [R, heads, L, width / 2], float32 in every precision of the model (2,047 and 2,048 are equal in bf16).
        Pairs (i, i + width / 2) of a head are turned: (a, b) becomes (a * cosine - b * sine, a * sine + b * cosine).
        Called once in every pass of the base model, training or not; deterministic. May be learned. Later entries must
        not change it. Another shape ends the run with a message that names the plug-in.
        """
