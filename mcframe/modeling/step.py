"""One training step as one module: base model, GistNet and LensNet, their contexts, their comparison.

Because everything happens in one `forward`, ZeRO 0-3, activation checkpointing and state dicts work on the whole.
All of it is batched; nothing loops over rows, blocks or entries and nothing is read back to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import PairedNLL, pair_nll, pairing_statistics, tail_delta
from mcframe.context.entry_nll import mean_entry_nll
from mcframe.context.focus_ops import block_means
from mcframe.context.step_histograms import context_histograms, lens_histograms
from mcframe.context.step_metrics import StepMetrics, masked_mean, masked_sum
from mcframe.context.substitutions import Condition, drop_gists, mean_table, scatter_to_targets, swap_gists
from mcframe.context.working_context import WorkingContext, build_context, gather_embeddings, raw_context, trim_padding
from mcframe.hookspecs import (
    Allocator,
    GistNet,
    LensNet,
    Sequences,
    StepView,
    UncompressedPass,
    VariantPass,
    VariantStrategy,
)
from mcframe.modeling.added_objectives import AddedObjectives
from mcframe.modeling.gpt import GPT
from mcframe.modeling.lens_memory import LensMemory, Remembered
from mcframe.modeling.lens_objective import lens_objective
from mcframe.modeling.node_table import build_node_table
from mcframe.modeling.objectives import Objectives, distillation, gist_delta_penalty, variant_loss
from mcframe.modeling.preference import shuffled
from mcframe.modeling.reconstruction import Reconstruction
from mcframe.registry.checks import check_focus, check_scores, check_shape

Timed = Callable[[str], AbstractContextManager[None]]
"""Takes the name of a phase, such as `build`; what is run inside is timed as that phase."""


def no_timer(phase: str) -> AbstractContextManager[None]:
    """Nobody wants to know how long it takes."""
    return nullcontext()


class MegaContextStep(nn.Module):
    """The whole that DeepSpeed trains.

    A plain twin has a strategy of no variants; GistNet and LensNet are then not built, so that what is compared with
    is a plain language model and nothing else. Variants without a GistNet drop what they collapse: the twin that has
    learned to live with gaps.
    """

    def __init__(
        self,
        gpt: GPT,
        gistnet: GistNet | None,
        lensnet: LensNet | None,
        strategy: VariantStrategy,
        tree: ContextTree,
        objectives: Objectives,
        reconstruction: Reconstruction | None = None,
        added: AddedObjectives | None = None,
    ) -> None:
        super().__init__()
        self.added = AddedObjectives(()) if added is None else added
        self.gpt, self.gistnet, self.lensnet = gpt, gistnet, lensnet
        self.reconstruction = reconstruction
        self.lens_memory: LensMemory | None = None
        if lensnet is not None and LensMemory.wanted(objectives):
            self.lens_memory = LensMemory(lensnet, objectives)
        self.strategy, self.tree, self.objectives = strategy, tree, objectives
        self.timed: Timed = no_timer
        self._seen_once: set[str] = set()

    def forward(self, *arguments: Any, task: str = "losses", **options: Any) -> Any:
        """Run a task of this module: `losses` (training), `validate`, `judge`, `refocus`, `proposals` or `next_logits`.

        Everything goes through here, so that DeepSpeed's hooks on `forward` see all that is run.
        """
        return getattr(self, task)(*arguments, **options)

    def losses(
        self, tokens: Tensor, seeds: Tensor, length: int, loss_mask: Tensor | None = None, rebuild: int = 1
    ) -> tuple[Tensor, StepMetrics]:
        """Loss and statistics of a micro-batch.

        tokens [B, T + 1]; seeds [B, V] int64; length: entries of each variant (reachable; ignored without variants);
        scored [B, T] bool: the targets that count, None for all of them; rebuild: neighbouring blocks that
        reconstruction tells at once.
        """
        with self.timed("base"):
            baseline = self._baseline(tokens, loss_mask)
            loss = self.objectives.baseline_weight * masked_mean(baseline.nll, baseline.loss_mask, dim=1).mean()
        statistics = StepMetrics(means={"train/loss_lod0": masked_sum(baseline.nll, baseline.loss_mask)})
        table = variants = None
        if self.strategy.count:
            with self.timed("build"):
                table = self.table(baseline.embeddings, baseline.gist_inputs)
            extra, more, variants = self._variants(baseline, table, seeds, length, rebuild)
            loss, statistics = loss + extra, statistics | more
        if self.added:
            view = StepView(self.tree, baseline, table, variants, seeds, self.gpt.nll, self.gpt.logits)
            with self.timed("losses"):
                extra, more = self.added(view)
            loss, statistics = loss + extra, statistics | more
        statistics.means["train/loss"] = masked_sum(loss[None], baseline.loss_mask.new_ones(1))
        return loss, statistics

    def after_step(self) -> None:
        """An optimizer step is done: what is remembered from step to step takes it in. Called on every rank."""
        if self.lens_memory is not None and self.lensnet is not None:
            with self.timed("lens bookkeeping"):
                self.lens_memory.after_step(self.lensnet)

    def _baseline(self, tokens: Tensor, loss_mask: Tensor | None) -> UncompressedPass:
        inputs, next_tokens = tokens[:, :-1], tokens[:, 1:]
        embeddings = self.gpt.embed(inputs)
        layer = 0 if self.gistnet is None else self.gistnet.reads_layer
        hidden, gist_inputs = self.gpt.states(embeddings, raw_context(self.tree, 1, tokens.device), layer)
        nll = self.gpt.nll(hidden, next_tokens)
        if loss_mask is None:
            loss_mask = nll.new_ones(()).bool().expand_as(nll)
        return UncompressedPass(inputs, next_tokens, embeddings, gist_inputs, hidden, nll, loss_mask)

    def _variants(
        self, baseline: UncompressedPass, table: Tensor, seeds: Tensor, length: int, rebuild: int
    ) -> tuple[Tensor, StepMetrics, VariantPass]:
        """What the variants add to the loss, their statistics, and their pass."""
        weights, one = self.objectives, baseline.loss_mask.new_ones(1)
        focus = self.propose(baseline.inputs, table, seeds, length, baseline.nll)
        with self.timed("sampling"):
            context = build_context(focus, self.tree, length)
            context = drop_gists(context) if self.gistnet is None else context
        with self.timed("pack"):
            entries = gather_embeddings(table, context)
        with self.timed("variant"):
            hidden = self.gpt.hidden(entries, context)
            pairing, divergence = self._compare(hidden, context, baseline)
            dropped = self._dropped(table, context, baseline) if self.needs_dropped else None
            penalty = gist_delta_penalty(pairing)
            loss = weights.variant_weight * variant_loss(pairing) + weights.gist_delta_weight * penalty
            if divergence is not None:
                # What a token would lose without the span shows how much of it the gist has to carry.
                loss = loss + weights.gist_kl_weight * distillation(divergence, pairing, dropped, weights)
        with self.timed("metrics"):
            statistics = pairing_statistics(pairing) | context_histograms(pairing)
            statistics.means["mc/gist_delta_penalty"] = masked_sum(penalty[None], one)
            if divergence is not None:
                statistics.means["mc/gist_kl"] = masked_sum(divergence, pairing.loss_mask)
        if self.reconstruction is not None:
            with self.timed("losses"):
                rebuilt = self.reconstruction(self.gpt, table, baseline.inputs, rebuild, seeds[:, 0])
                loss = loss + weights.reconstruction_weight * rebuilt.mean()
                statistics.means["mc/reconstruction_loss"] = masked_sum(rebuilt, torch.ones_like(rebuilt).bool())
        scores = None
        if self.lensnet is not None:
            judge = pairing if dropped is None or weights.lens_judge == "gist" else dropped
            lens, about_lens, scores = self._train_lens(table, entries.detach(), pairing, judge, seeds, baseline.nll)
            loss, statistics = loss + weights.lens_weight * lens, statistics | about_lens
        return loss, statistics, VariantPass(entries, hidden, pairing, scores)

    def _train_lens(
        self, table: Tensor, entries: Tensor, pairing: PairedNLL, judge: PairedNLL, seeds: Tensor, nll: Tensor
    ) -> tuple[Tensor, StepMetrics, Tensor]:
        """LensNet's loss, metrics and scores.

        entries [R, L, D], gathered from the table, are detached: LensNet's loss must not shape what it judges. judge:
        the pairing by which contexts are compared; nll [B, T] of the uncompressed pass.
        """
        assert self.lensnet is not None
        count, weights = self.strategy.count, self.objectives
        with self.timed("lens"):
            seen = self._seen(pairing.context, nll)
            read = entries[:, : seen.length]
            scores = self._scored(seen, read)
            uncompressed = None
            if weights.attribution_weight:
                raw = raw_context(self.tree, table.shape[0], table.device)
                uncompressed = block_means(self.scores(raw, table, nll), raw.before_cursor())
        with self.timed("lens bookkeeping"):
            verdict = tail_delta(judge).detach()
            verdict = shuffled(verdict, seeds) if weights.lens_shuffle else verdict
        known = Remembered()
        if self.lens_memory is not None:
            with self.timed("lens"):
                known = self.lens_memory(seen, read, verdict, count)
        with self.timed("lens bookkeeping"):
            loss, statistics = lens_objective(scores, seen, pairing, verdict, count, weights, known, uncompressed)
            statistics.means["mc/lens_loss"] = masked_sum(loss[None], verdict.new_ones(1).bool())
            statistics = statistics | lens_histograms(scores, seen, pairing, seeds)
        return loss, statistics, scores

    def _compare(
        self, hidden: Tensor, context: WorkingContext, baseline: UncompressedPass
    ) -> tuple[PairedNLL, Tensor | None]:
        """Pair working contexts with the baseline; with their KL [R, L] from it where distillation is on."""
        repeat = context.focus.shape[0] // baseline.nll.shape[0]
        targets = context.targets(baseline.next_tokens.repeat_interleave(repeat, dim=0))
        if not self.objectives.gist_kl_weight:
            return pair_nll(context, self.gpt.nll(hidden, targets), baseline.nll, baseline.loss_mask), None
        index = (context.end - 1)[..., None].expand(-1, -1, hidden.shape[-1])
        teacher = baseline.hidden.detach().repeat_interleave(repeat, dim=0).gather(1, index)
        nll, divergence = self.gpt.nll_and_kl(hidden, targets, teacher)
        return pair_nll(context, nll, baseline.nll, baseline.loss_mask), divergence

    @property
    def needs_dropped(self) -> bool:
        """Whether an objective wants to know what dropping the collapsed blocks would cost."""
        weights = self.objectives
        judge = self.lensnet is not None and weights.lens_judge == "drop"
        return self.gistnet is not None and (judge or bool(weights.gist_kl_weight and weights.kl_contrast))

    @torch.no_grad()
    def _dropped(self, table: Tensor, context: WorkingContext, baseline: UncompressedPass) -> PairedNLL:
        """The same contexts with their gists dropped, paired with the baseline."""
        bare = drop_gists(context)
        repeat = context.focus.shape[0] // baseline.nll.shape[0]
        targets = bare.targets(baseline.next_tokens.repeat_interleave(repeat, dim=0))
        nll = self.gpt.nll(self.gpt.hidden(gather_embeddings(table, bare), bare), targets)
        # A block that ends at the cursor predicts the first target behind it, and nobody does where it is dropped: two
        # contexts are judged by the targets that every context has.
        position, cursor = torch.arange(self.tree.window, device=nll.device), self.tree.cursor
        everywhere = (position < cursor - 1) | (position >= cursor // self.tree.block_size * self.tree.block_size)
        return pair_nll(bare, nll, baseline.nll, baseline.loss_mask & everywhere)

    def table(self, embeddings: Tensor, gist_inputs: Tensor) -> Tensor:
        """The node table [B, rows, D]: of tokens alone where there is no GistNet."""
        if self.gistnet is None:
            return embeddings
        return build_node_table(embeddings, self.gistnet, self.tree, gist_inputs)

    def _read(self, inputs: Tensor, *, asks: bool) -> tuple[Tensor, Tensor | None]:
        """The node table of inputs [B, T]; with it, where LensNet `asks` for it, the NLL [B, T] it `reads_nll` of."""
        embeddings = self.gpt.embed(inputs)
        gist_inputs, nll = embeddings, None
        layer = 0 if self.gistnet is None else self.gistnet.reads_layer
        wanted = asks and self.lensnet is not None and self.lensnet.reads_nll
        if layer or wanted:
            raw = raw_context(self.tree, 1, inputs.device)
            hidden, gist_inputs = self.gpt.states(embeddings, raw, layer)
            if wanted:  # what follows the last token is not known, and nobody asks
                nll = F.pad(self.gpt.nll(hidden[:, :-1], inputs[:, 1:]), (0, 1))
        return self.table(embeddings, gist_inputs), nll

    def _table_of(self, inputs: Tensor) -> Tensor:
        """The node table of inputs [B, T]."""
        return self._read(inputs, asks=False)[0]

    def propose(self, inputs: Tensor, table: Tensor, seeds: Tensor, length: int, nll: Tensor | None = None) -> Tensor:
        """Focuses of the variants [B * V, blocks]; the strategy sees LensNet's scores where it asks for them.

        nll [B, T]: of the uncompressed pass, for a LensNet that reads it.
        """
        scores = None
        if self.strategy.needs_scores:
            raw = raw_context(self.tree, inputs.shape[0], inputs.device)
            with torch.no_grad(), self.timed("variant"):
                scores = self.scores(raw, table, nll)
        with self.timed("sampling"):
            focus = self.strategy.propose(Sequences(inputs, self.tree), scores, length, seeds)
        shape = (*seeds.shape, self.tree.blocks)
        check_shape(self.strategy, "propose", "a focus [B, V, blocks]", focus, shape, torch.int64)
        if self._first("propose", focus):
            check_focus(self.strategy, "propose", focus.flatten(0, 1), self.tree, length)
        return focus.flatten(0, 1)

    def _first(self, method: str, values: Tensor) -> bool:
        """Is this a plug-in's first call? The values that it returns are then looked at, which waits for the device.

        On the meta device there are none.
        """
        new = method not in self._seen_once and not values.is_meta
        self._seen_once.add(method)
        return new

    def _seen(self, context: WorkingContext, nll: Tensor | None) -> WorkingContext:
        """What LensNet is given of a context: the entries before the cursor, with their surprise if it asks for it."""
        seen = context.before_cursor()
        if self.lensnet is None or not self.lensnet.reads_nll:
            return seen
        assert nll is not None, "a LensNet that reads_nll needs the uncompressed pass"
        return replace(seen, nll=mean_entry_nll(nll, seen))

    def scores(self, context: WorkingContext, table: Tensor, nll: Tensor | None = None) -> Tensor:
        """LensNet's scores [R, Lc] of the entries before the cursor."""
        assert self.lensnet is not None
        seen = self._seen(context, nll)
        return self._scored(seen, gather_embeddings(table, seen).detach())

    def _scored(self, seen: WorkingContext, entries: Tensor) -> Tensor:
        """Scores [R, L] of entries whose embeddings are [R, L, D], float32."""
        assert self.lensnet is not None
        scores = self.lensnet(seen, entries)
        check_shape(self.lensnet, "forward", "a score an entry [R, L]", scores, entries.shape[:2])
        if self._first("score", scores):
            check_scores(self.lensnet, torch.where(seen.valid, scores.detach(), 0.0))
        known: Tensor = scores.float()
        return known

    def validate(self, tokens: Tensor) -> Tensor:
        """Plain NLL in nats, float32 [B, T], of windows [B, T + 1] that are not compressed."""
        raw = raw_context(self.tree, 1, tokens.device)
        return self.gpt.nll(self.gpt.hidden(self.gpt.embed(tokens[:, :-1]), raw), tokens[:, 1:])

    def refocus(self, inputs: Tensor, allocator: Allocator, budget: int, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """The focus that LensNet and the allocator choose, starting from the uncompressed context.

        inputs [B, T]; seeds [B] int64 -> (focus [B, blocks], rounds that changed something [B]).
        """
        table, nll = self._read(inputs, asks=True)
        context = raw_context(self.tree, inputs.shape[0], inputs.device)
        age = torch.full_like(context.focus, torch.iinfo(torch.int32).max)
        rounds = torch.zeros_like(seeds)
        for _ in range(allocator.iterations):
            seen = context.before_cursor()
            focus = allocator.allocate(self.scores(context, table, nll), seen, budget, seeds)
            check_shape(allocator, "allocate", "a focus [R, blocks]", focus, context.focus.shape, torch.int64)
            if self._first("allocate", focus):
                check_focus(allocator, "allocate", focus, self.tree)
            changed = focus != context.focus
            rounds += changed.any(dim=1)
            age = torch.where(changed, 0, age + 1)
            context = replace(build_context(focus, self.tree), age=age)
        return context.focus, rounds

    def proposals(self, inputs: Tensor, seeds: Tensor, length: int) -> Tensor:
        """What the variant strategy proposes for inputs [B, T] and seeds [B, V] -> focus [B * V, blocks]."""
        table, nll = self._read(inputs, asks=self.strategy.needs_scores)
        return self.propose(inputs, table, seeds, length, nll)

    def judge(
        self, tokens: Tensor, focus: Tensor, condition: Condition = "gist", baseline_nll: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the model makes of every target under a focus, whatever stands for its collapsed blocks.

        tokens [B, T + 1]; focus [R, blocks], row r of sequence r // (R // B); partner [B]: whose gists `swap` takes.
        Without a GistNet there is nothing to read or to swap, so `gist` and `swap` are `drop`, as in training.
        -> NLL in nats [R, T] and whether the likeliest token was right [R, T] (1.0 or 0.0), both NaN where no entry
        predicts the target. Position t holds the target that follows token t.
        """
        inputs, next_tokens = tokens[:, :-1], tokens[:, 1:]
        if condition == "full":
            focus = torch.zeros_like(focus)
        elif condition != "mean" and self.gistnet is None:
            condition = "drop"
        context = build_context(focus, self.tree)
        if condition in ("full", "drop"):
            table = self.gpt.embed(inputs)
            context = drop_gists(context)
        elif condition == "mean":
            table = mean_table(self.gpt.embed(inputs), self.tree)
        else:
            table = self._table_of(inputs)
        if condition == "swap":
            assert baseline_nll is not None, "swap needs to know whose gists to take"
            table = swap_gists(table, self.tree, baseline_nll)
        context = trim_padding(context)
        targets = context.targets(next_tokens.repeat_interleave(focus.shape[0] // tokens.shape[0], dim=0))
        nll, right = self.gpt.tail_mask(self.gpt.hidden(gather_embeddings(table, context), context), targets)
        return scatter_to_targets(nll, context), scatter_to_targets(right, context)

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, vocabulary], float32, of the token that follows tokens [B, L]; L up to the window."""
        raw = raw_context(self.tree, 1, tokens.device, tokens.shape[1])
        return self.gpt.logits(self.gpt.hidden(self.gpt.embed(tokens), raw)[:, -1])
