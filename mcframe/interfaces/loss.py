"""The interface of a loss term that is added to a training step, and what it sees of the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import PairedNLL


@dataclass(frozen=True)
class UncompressedPass:
    """The uncompressed pass over a micro-batch.

    inputs, following   [B, T] tokens and the tokens that follow them
    embeddings          [B, T, D] of the inputs
    readable            [B, T, D] what GistNet reads: the embeddings, or the states after `reads_layer` blocks
    hidden              [B, T, D] final hidden states
    nll, scored         [B, T] in nats, and which targets count
    """

    inputs: Tensor
    next_tokens: Tensor
    embeddings: Tensor
    gist_inputs: Tensor
    hidden: Tensor
    nll: Tensor
    loss_mask: Tensor


@dataclass(frozen=True)
class VariantPass:
    """The pass over the variants of a micro-batch, V of each sequence.

    entries   [R, L, D] embeddings of the entries: rows of the node table
    hidden    [R, L, D] final hidden states
    pairing   the variants against the baseline: `context`, `nll` and `partner` [R, L] in nats, `scored`, `nearest`
    scores    [R, entries before the cursor] LensNet's, with gradient; None where there is no LensNet
    """

    entries: Tensor
    hidden: Tensor
    pairing: PairedNLL
    scores: Tensor | None = None


@dataclass(frozen=True)
class StepView:
    """What an objective sees of a micro-batch. Nothing is detached but what says so.

    table     [B, rows, D] embeddings of every node (`ContextTree.offset` says where a level begins); tokens alone
              without a GistNet, and None without variants
    variants  None without variants
    seeds     [B, V] int64, of each sequence's variants: what is drawn must be a function of them
    nll       (hidden [n, l, D], targets [n, l]) -> NLL [n, l] in nats, float32; never holds all logits of a large
              vocabulary
    logits    hidden [..., D] -> logits [..., vocabulary], float32
    """

    tree: ContextTree
    baseline: UncompressedPass
    table: Tensor | None
    variants: VariantPass | None
    seeds: Tensor
    nll: Callable[[Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]

    def by_sequence(self, values: Tensor) -> Tensor:
        """Means over the variants of each sequence: values [R] -> [B]."""
        return values.view(self.baseline.inputs.shape[0], -1).mean(dim=1)


@dataclass(frozen=True)
class LossTerm:
    """What an objective returns.

    loss      [B] one figure a sequence, differentiable. The framework takes their mean, so that cutting a batch into
              micro-batches and ranks changes nothing
    metrics   more figures to log, by name, of any shape: their mean, without those that are NaN
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Loss(nn.Module, ABC):
    """A loss term beside those of the framework. Factory: `factory(shape)`.

    shape is a `ModelShape`. Parameters that it has are trained and kept in checkpoints. Small final states:

        class SmallStates(Loss):
            name, needs = "small_states", "baseline"

            def __init__(self, shape, *, weight: float = 0.01):
                super().__init__()
                self.weight = weight

            def forward(self, view):
                return LossTerm(view.baseline.hidden.square().mean(dim=(1, 2)))
    """

    name: str
    """Names its metrics, `loss/NAME` (the loss, unweighted) and `loss/NAME/METRIC`; two objectives of a
    run must differ in it. Letters, digits and underscores."""

    weight: float = 1.0
    """What the loss is multiplied with in the step's; 0.0 computes and logs it, and trains nothing."""

    needs: Literal["baseline", "variants", "gists", "scores"] = "variants"
    """What it cannot do without: the uncompressed pass alone, variants, a GistNet, a LensNet. A run that lacks it, such
    as the plain twin, leaves the objective out and says so."""

    @abstractmethod
    def forward(self, view: StepView) -> LossTerm:
        """The loss of each sequence.

        view holds the tensors of a micro-batch of B sequences, R = B * V rows -> a `LossTerm` whose loss is [B].
        The loss of a sequence depends on that sequence alone. Runs within the step's one forward, in every micro-batch,
        in training only: nothing may be read back to the host, and every parameter takes part every time. Anything
        else than a `LossTerm` of that shape ends the run with a message that names the plug-in.
        """
