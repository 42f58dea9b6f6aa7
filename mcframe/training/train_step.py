"""One training step as one module with one forward: uncompressed pass, node table, variants, losses.

ZeRO, activation checkpointing and state dicts apply to the complete module. Everything is batched: no Python loop over
rows, blocks or entries, and nothing is read back to the host, so that the forward compiles to one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcframe.context.delta_nll import PairedNLL, delta_metrics, pair_nll
from mcframe.context.focus_ops import block_means
from mcframe.context.step_histograms import context_histograms, lens_histograms
from mcframe.context.step_metrics import StepMetrics, masked_sum
from mcframe.context.substitutions import drop_gists
from mcframe.context.working_context import (
    WorkingContext,
    build_context,
    gather_embeddings,
    raw_context,
    with_documents,
)
from mcframe.hookspecs import LensPass, Loss, StepView, UncompressedPass, VariantPass
from mcframe.interfaces.loss import Need
from mcframe.losses.lens_metrics import lens_metrics
from mcframe.losses.lens_targets import LensTargets, LensTargetsConfig
from mcframe.losses.terms import LossTerms
from mcframe.modeling.model import MegaContextModel, PhaseTimer


@dataclass(frozen=True)
class StepBatch:
    """A micro-batch of B sequences.

    Attributes:
        tokens: [B, T + 1].
        seeds: Seeds of the variants [B, V], int64.
        length: Entries of each variant, a reachable length; unused without variants.
        loss_mask: The targets that count [B, T], bool; None for all.
    """

    tokens: Tensor
    seeds: Tensor
    length: int
    loss_mask: Tensor | None = None

    def divided(self, every: int) -> tuple[StepBatch, StepBatch | None]:
        """Return the first of every `every` sequences, and the others; None where there are none."""
        if every == 1 or self.tokens.shape[0] == 1:
            return self, None
        count = self.tokens.shape[0]
        others = torch.arange(count - -(-count // every), device=self.tokens.device)
        others = others + others // (every - 1) + 1
        mask = self.loss_mask
        return (
            StepBatch(self.tokens[::every], self.seeds[::every], self.length, None if mask is None else mask[::every]),
            StepBatch(self.tokens[others], self.seeds[others], self.length, None if mask is None else mask[others]),
        )


class TrainStep(nn.Module):
    """The module that DeepSpeed trains.

    Args:
        model: The model.
        losses: The losses of `run.losses`, in order.
        lens_targets: The targets of LensNet's losses.
        baseline_window: Tokens at the end that the uncompressed pass reads; None for T.
        baseline_every: One of so many sequences has the uncompressed pass.
        variants_every: One of so many sequences has variants.

    Attributes:
        compiled: Replaces `compute` in training, if set.
    """

    def __init__(
        self,
        model: MegaContextModel,
        losses: Sequence[Loss],
        lens_targets: LensTargetsConfig | None = None,
        baseline_window: int | None = None,
        baseline_every: int = 1,
        variants_every: int = 1,
    ) -> None:
        super().__init__()
        self.model, self.baseline_window = model, baseline_window
        self.baseline_every, self.variants_every = baseline_every, variants_every
        self.losses = LossTerms(losses, missing_parts(model))
        config = lens_targets or LensTargetsConfig()
        self.lens_targets = None if model.lensnet is None else LensTargets(config, model.strategy.count)
        self._needs_kl = self.losses.require("kl")
        self._needs_uncompressed_scores = self.losses.require("uncompressed_scores")
        self.needs_dropped = model.gistnet is not None and (
            self.losses.require("dropped") or (model.lensnet is not None and config.condition == "drop")
        )
        self.losses.setup(model.parts)
        self.compiled: Callable[[TrainStep, StepBatch], tuple[Tensor, StepMetrics]] | None = None

    def named_parts(self) -> Iterator[tuple[str, str | None, nn.Module]]:
        """Iterate over the parts of the model and the losses: name, part of the model that is trained, and module."""
        for name, module in self.model.parts.items():
            yield name, name, module
        for loss in self.losses.each():
            yield f"loss {loss.name}", loss.part, loss

    def time_with(self, timed: PhaseTimer) -> None:
        """Time the phases of the forward with `timed`; see `mcframe.metrics.timers.PHASES`."""
        self.model.timed = timed

    def begin_step(self, progress: float) -> None:
        """Announce an optimizer step; `progress` is the fraction of training that is done."""
        self.losses.begin_step(progress)

    def after_step(self) -> None:
        """Update what losses and targets keep from step to step. Called on every rank after each optimizer step."""
        with self.model.timed("lens bookkeeping"):
            if self.lens_targets is not None:
                self.lens_targets.after_step()
            self.losses.after_step(self.model.parts)

    def forward(self, batch: StepBatch) -> tuple[Tensor, StepMetrics]:
        """Return the loss of a micro-batch, a scalar, and its metrics."""
        return self.compute(batch) if self.compiled is None or not self.training else self.compiled(self, batch)

    def compute(self, batch: StepBatch) -> tuple[Tensor, StepMetrics]:
        """Return what `forward` does, operation by operation."""
        model, timed = self.model, self.model.timed
        batch, others = batch.divided(self.baseline_every)
        with timed("base"):
            uncompressed = model.uncompressed_pass(batch.tokens, batch.loss_mask, self.baseline_window)
        metrics = StepMetrics(means={"train/loss_lod0": masked_sum(uncompressed.nll, uncompressed.loss_mask)})
        table = variants = plain = None
        if self.variants_every > 1:
            plain = self._view(uncompressed, None, None, batch.seeds)
            uncompressed, batch = uncompressed.every(self.variants_every), batch.divided(self.variants_every)[0]
        if model.strategy.count:
            with timed("build"):
                table = model.node_table(uncompressed.embeddings, uncompressed.gist_inputs, uncompressed.inputs)
            variants = self._variants(uncompressed, table, batch)
            metrics |= self._variant_metrics(variants, batch.seeds)
        bare = None if others is None else self._without_baseline(others)
        loss, more = self.losses(self._view(uncompressed, table, variants, batch.seeds), timed, bare, plain)
        return loss, metrics | more

    def _view(
        self, uncompressed: UncompressedPass, table: Tensor | None, variants: VariantPass | None, seeds: Tensor
    ) -> StepView:
        gpt = self.model.gpt
        return StepView(self.model.tree, uncompressed, table, variants, seeds, gpt.nll, gpt.logits, gpt.hidden)

    def _without_baseline(self, batch: StepBatch) -> StepView:
        """Return the variants of sequences without the uncompressed pass, for losses that compare with nothing."""
        model = self.model
        with model.timed("build"):
            uncompressed = model.no_pass(batch.tokens, batch.loss_mask)
            table = model.node_table(uncompressed.embeddings, uncompressed.embeddings, uncompressed.inputs)
        context, entries, hidden = self._contexts(uncompressed, table, batch)
        with model.timed("variant"):
            paired, _ = self._pair(hidden, context, uncompressed, with_kl=False)
        return self._view(uncompressed, table, VariantPass(entries, hidden, paired), batch.seeds)

    def _contexts(
        self, uncompressed: UncompressedPass, table: Tensor, batch: StepBatch
    ) -> tuple[WorkingContext, Tensor, Tensor]:
        """Return the proposed variants: contexts, embeddings of their entries and final states [R, L, D]."""
        model, timed = self.model, self.model.timed
        focus = model.propose_from(uncompressed.inputs, table, batch.seeds, batch.length, uncompressed.nll)
        with timed("sampling"):
            context = model.with_documents(build_context(focus, model.tree, batch.length), uncompressed.inputs)
            context = drop_gists(context) if model.gistnet is None else context
        with timed("pack"):
            entries = gather_embeddings(table, context)
        with timed("variant"):
            return context, entries, model.gpt.hidden(entries, context)

    def _variants(self, uncompressed: UncompressedPass, table: Tensor, batch: StepBatch) -> VariantPass:
        model, timed = self.model, self.model.timed
        context, entries, hidden = self._contexts(uncompressed, table, batch)
        with timed("variant"):
            paired, kl = self._pair(hidden, context, uncompressed, with_kl=self._needs_kl)
            dropped = self._drop(table, context, uncompressed) if self.needs_dropped else None
        lens = None
        if model.lensnet is not None:
            lens = self._lens(entries.detach(), paired, dropped, table, batch.seeds, uncompressed.nll)
        return VariantPass(entries, hidden, paired, kl, dropped, lens)

    def _pair(
        self, hidden: Tensor, context: WorkingContext, uncompressed: UncompressedPass, *, with_kl: bool
    ) -> tuple[PairedNLL, Tensor | None]:
        """Pair the variants' NLL with the uncompressed NLL at the same targets; with the KL [R, L] if `with_kl`."""
        gpt = self.model.gpt
        repeat = context.focus.shape[0] // uncompressed.nll.shape[0]
        targets = context.targets(uncompressed.next_tokens.repeat_interleave(repeat, dim=0))
        kl = None
        if with_kl:
            index = (context.end - 1)[..., None].expand(-1, -1, hidden.shape[-1])
            teacher = uncompressed.hidden.detach().repeat_interleave(repeat, dim=0).gather(1, index)
            nll, kl = gpt.nll_and_kl(hidden, targets, teacher)
        else:
            nll = gpt.nll(hidden, targets)
        return pair_nll(context, nll, uncompressed.nll, uncompressed.loss_mask, uncompressed.target_mask), kl

    @torch.no_grad()
    def _drop(self, table: Tensor, context: WorkingContext, uncompressed: UncompressedPass) -> PairedNLL:
        """Pair the same contexts with their gists dropped, at the targets that every context predicts.

        A block that ends at the cursor predicts the first target after it. That target is masked: a context that drops
        the block has no entry that predicts it.
        """
        gpt, tree = self.model.gpt, self.model.tree
        bare = drop_gists(context)
        repeat = context.focus.shape[0] // uncompressed.nll.shape[0]
        targets = bare.targets(uncompressed.next_tokens.repeat_interleave(repeat, dim=0))
        nll = gpt.nll(gpt.hidden(gather_embeddings(table, bare), bare), targets)
        position, last_block = torch.arange(tree.window, device=nll.device), tree.cursor // tree.block_size
        always_predicted = (position < tree.cursor - 1) | (position >= last_block * tree.block_size)
        return pair_nll(bare, nll, uncompressed.nll, uncompressed.loss_mask & always_predicted)

    def _lens(
        self, entries: Tensor, paired: PairedNLL, dropped: PairedNLL | None, table: Tensor, seeds: Tensor, nll: Tensor
    ) -> LensPass:
        """Score the variants with LensNet. `entries` [R, L, D] are detached: LensNet's losses train LensNet alone."""
        model, targets = self.model, self.lens_targets
        assert targets is not None
        with model.timed("lens"):
            prefix = model.lens_prefix(paired.context, nll)
            embeddings = entries[:, : prefix.length]
            scores = model.lens_scores(prefix, embeddings)
            uncompressed_scores = None
            if self._needs_uncompressed_scores:
                raw = raw_context(model.tree, table.shape[0], table.device)
                documents = None if prefix.documents is None else prefix.documents[:: seeds.shape[1]]
                raw = with_documents(raw, documents)
                uncompressed_scores = block_means(model.scores(raw, table, nll), raw.before_cursor())
        with model.timed("lens bookkeeping"):
            compared = dropped if dropped is not None and targets.config.condition == "drop" else paired
            delta, block_scores = targets.targets(compared, seeds), block_means(scores, prefix)
            scale = targets.scale(delta.dtype)
            pairs = targets.pairs(prefix, delta, block_scores)
            return LensPass(prefix, embeddings, scores, block_scores, delta, scale, pairs, uncompressed_scores)

    def _variant_metrics(self, variants: VariantPass, seeds: Tensor) -> StepMetrics:
        with self.model.timed("metrics"):
            metrics = delta_metrics(variants.paired) | context_histograms(variants.paired)
        if variants.lens is not None:
            with self.model.timed("lens bookkeeping"):
                lens = variants.lens
                metrics |= lens_metrics(lens, variants.paired)
                metrics |= lens_histograms(lens.scores, lens.prefix, variants.paired, seeds)
        return metrics


def missing_parts(model: MegaContextModel) -> set[Need]:
    """Return what a loss may require and the model does not have."""
    count = model.strategy.count
    present: dict[Need, bool] = {
        "variants": count > 0,
        "pairs": count != 1,  # without variants, the loss is skipped for them
        "gists": model.gistnet is not None,
        "scores": model.lensnet is not None,
    }
    return {need for need, exists in present.items() if not exists}
