"""The interface of a loss, and the tensors of a training step that a loss reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import PairedNLL
from mcframe.context.preference_pairs import PreferencePairs
from mcframe.context.step_metrics import StepMetrics
from mcframe.context.working_context import WorkingContext
from mcframe.interfaces.param_groups import TrainableModule

Need = Literal["variants", "pairs", "gists", "scores", "kl", "dropped", "uncompressed_scores"]
"""A part of a run, or a tensor of the step, that a loss requires.

The first four are parts of a run: variants; two or more variants a sequence; a GistNet; a LensNet. The others are
computed in a step only if a loss requires them.
"""

PARTS: tuple[Need, ...] = ("variants", "gists", "scores")
"""A loss that requires one of these is skipped, with a notice, in a run without it."""


@dataclass(frozen=True)
class UncompressedPass:
    """The uncompressed pass over a micro-batch of B sequences.

    Attributes:
        inputs: Token ids [B, T].
        next_tokens: The targets [B, T]: the token after each input.
        embeddings: Input embeddings [B, T, D].
        gist_inputs: What GistNet reads [B, T, D]: the embeddings, or the hidden states after `reads_layer` blocks.
        hidden: Final hidden states [B, T, D].
        nll: NLL of the targets [B, T], in nats.
        loss_mask: The targets that count and that the pass predicts [B, T], bool.
        target_mask: The targets that count [B, T], bool; more than `loss_mask` with `context.baseline_window`. Before
            the tokens that the pass then reads, `hidden` and `nll` are 0. In sequences without the pass
            (`context.baseline_every`) they are NaN, and `loss_mask` is empty.
    """

    inputs: Tensor
    next_tokens: Tensor
    embeddings: Tensor
    gist_inputs: Tensor
    hidden: Tensor
    nll: Tensor
    loss_mask: Tensor
    target_mask: Tensor

    def every(self, step: int) -> UncompressedPass:
        """Return the pass over the first of every `step` sequences."""
        return UncompressedPass(*(getattr(self, each.name)[::step] for each in fields(self)))


@dataclass(frozen=True)
class LensPass:
    """LensNet's scores of the variants, and the targets that LensNet is trained on.

    Attributes:
        prefix: The entries before the cursor, Lc a row.
        embeddings: Their embeddings [R, Lc, D], detached.
        scores: LensNet's scores [R, Lc], with gradient.
        block_scores: The scores averaged over each block [R, blocks].
        tail_delta: The target [R]: each variant's mean ΔNLL after the cursor in nats, detached. Lower is better.
        scale_nats: Scalar; the difference of `tail_delta` that counts as a clear preference.
        pairs: Preference pairs of variants; None with one variant.
        uncompressed: Scores of the uncompressed sequence, averaged over each block [B, blocks]; None unless a loss
            requires `uncompressed_scores`.
    """

    prefix: WorkingContext
    embeddings: Tensor
    scores: Tensor
    block_scores: Tensor
    tail_delta: Tensor
    scale_nats: Tensor
    pairs: PreferencePairs | None
    uncompressed: Tensor | None


@dataclass(frozen=True)
class VariantPass:
    """The pass over the variants of a micro-batch: R = B * V rows of L entries.

    Attributes:
        entries: Embeddings of the entries [R, L, D], rows of the node table.
        hidden: Final hidden states [R, L, D].
        paired: Their NLL next to the NLL of the uncompressed pass at the same targets.
        kl: KL from the uncompressed prediction to the variant's [R, L], in nats; None unless a loss requires `kl`.
        dropped: The same contexts with their gists dropped; None unless a loss or LensNet's targets require it.
        lens: LensNet's scores and targets; None without a LensNet.
    """

    entries: Tensor
    hidden: Tensor
    paired: PairedNLL
    kl: Tensor | None = None
    dropped: PairedNLL | None = None
    lens: LensPass | None = None


@dataclass(frozen=True)
class StepView:
    """The tensors of a micro-batch, for losses. Tensors carry gradients unless they are documented as detached.

    Attributes:
        tree: The context tree.
        uncompressed: The uncompressed pass.
        table: Node table [B, rows, D], `ContextTree.offset` is the first row of a level; the tokens alone without a
            GistNet, None without variants.
        variants: The pass over the variants; None without variants.
        seeds: Seeds of the variants [B, V], int64. Random numbers of a loss must be a function of them.
        nll: (hidden [n, l, D], targets [n, l]) -> NLL [n, l] in nats, float32, computed in chunks of the vocabulary.
        logits: hidden [..., D] -> logits [..., vocabulary], float32.
        run_base: (embeddings [n, l, D], context) -> final hidden states [n, l, D] of the base model.
    """

    tree: ContextTree
    uncompressed: UncompressedPass
    table: Tensor | None
    variants: VariantPass | None
    seeds: Tensor
    nll: Callable[[Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    run_base: Callable[[Tensor, WorkingContext], Tensor]

    @property
    def documents(self) -> Tensor | None:
        """The document of every token [B, T]; None where documents are not masked, and without variants."""
        documents = None if self.variants is None else self.variants.paired.context.documents
        return None if documents is None else documents[:: self.seeds.shape[1]]

    def by_sequence(self, values: Tensor) -> Tensor:
        """Return the mean over the variants of each sequence: values [R] or [R, ...] -> [B]."""
        return values.reshape(self.uncompressed.inputs.shape[0], -1).mean(dim=1)

    def with_variants(self) -> VariantPass:
        """Return the variants, for a loss that requires them."""
        assert self.variants is not None, "a loss that reads variants must list 'variants' in `needs`"
        return self.variants

    def with_lens(self) -> LensPass:
        """Return LensNet's pass, for a loss that requires `scores`."""
        lens = self.with_variants().lens
        assert lens is not None, "a loss that reads LensNet must list 'scores' in `needs`"
        return lens

    def with_table(self) -> Tensor:
        """Return the node table, for a loss that requires variants or gists."""
        assert self.table is not None, "a loss that reads the node table must list 'gists' in `needs`"
        return self.table


@dataclass(frozen=True)
class LossTerm:
    """The value of a loss.

    Attributes:
        loss: One value a sequence [B], differentiable. The step takes their mean, so that the result does not depend on
            micro-batches and ranks.
        metrics: More values to log. A mapping name -> tensor of any shape is logged as `loss/NAME/name`, the mean
            without NaN. A `StepMetrics` is logged under the names that it holds.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] | StepMetrics = field(default_factory=dict)


class Loss(TrainableModule, ABC):
    """A term of the training loss. Factory: `factory(shape)`, with a `ModelShape`.

    Its parameters are trained and stored in checkpoints. Small final hidden states:

        class SmallStates(Loss):
            name, needs = "small_states", ()

            def __init__(self, shape, *, weight: float = 0.01):
                super().__init__()
                self.weight = weight

            def forward(self, view):
                return LossTerm(view.uncompressed.hidden.square().mean(dim=(1, 2)))
    """

    name: str
    """Names its metrics: `loss/NAME`, unweighted, and `loss/NAME/METRIC`. Letters, digits and underscores; unique in a
    run."""

    weight: float = 1.0
    """Factor of the loss in the total. With 0.0 the loss is computed and logged, and trains nothing."""

    needs: tuple[Need, ...] = ("variants",)
    """The parts of a run and the tensors of a step that the loss requires. A run that has no variants, no GistNet or no
    LensNet skips the losses that require them, and reports it."""

    part: Literal["base", "gistnet", "lensnet"] | None = None
    """The part of the model that the parameters of this loss belong to: they are frozen with it by `run.trainable`."""

    compares: bool = True
    """False where the loss compares with nothing: it reads neither `hidden` nor `nll` of the uncompressed pass, no
    `loss_mask`, and nothing of LensNet. It is also computed for sequences without that pass
    (`context.baseline_every`)."""

    max_zero_stage: int = 3
    """The highest ZeRO stage that the loss supports."""

    stage: int = 0
    """The stage of a curriculum, if the loss has one. `begin_step` sets it; the cost of a step may depend on it."""

    @abstractmethod
    def forward(self, view: StepView) -> LossTerm:
        """Return the loss of each sequence.

        The loss of a sequence depends on that sequence alone. The call is part of the step's one forward, in training
        only: no tensor is read back to the host, and every parameter takes part in every call.

        Args:
            view: The tensors of a micro-batch of B sequences and R = B * V variants.

        Returns:
            A `LossTerm` with a loss of shape [B].
        """

    def setup(self, parts: Mapping[str, nn.Module]) -> None:
        """Prepare the loss once all parts of the model exist, before the optimizer is built.

        Args:
            parts: The modules `base`, `gistnet` and `lensnet`, as far as the run has them. Keep no reference to them.
        """
        return

    def begin_step(self, progress: float) -> None:
        """Receive the fraction of training that is done, from 0 to 1, before each optimizer step."""
        return

    def after_step(self, parts: Mapping[str, nn.Module]) -> None:
        """Update what the loss keeps from step to step. Called on every rank after each optimizer step."""
        return
