"""One training step as one module: base model, GistNet and LensNet, their contexts, their comparison.

Because everything happens in one `forward`, ZeRO 0-3, activation checkpointing and state dicts work on the whole.
All of it is batched; nothing loops over rows, blocks or entries and nothing is read back to the host.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mcframe.context.geometry import Geometry
from mcframe.context.pairing import Pairing, pair, pairing_statistics
from mcframe.context.statistics import Statistics, masked_sum
from mcframe.context.working_context import WorkingContext, gather_embeddings, raw_context, unroll
from mcframe.hookspecs import Allocator, GistNet, LensNet, Sequences, VariantStrategy
from mcframe.modeling.gpt import GPT
from mcframe.modeling.node_table import build_node_table
from mcframe.modeling.objectives import Objectives, gist_delta_penalty, variant_loss
from mcframe.modeling.preference import lens_objective


class MegaContextStep(nn.Module):
    """The whole that DeepSpeed trains.

    A plain twin has a strategy of no variants; GistNet and LensNet are then not built, so that what is compared with
    is a plain language model and nothing else.
    """

    def __init__(
        self,
        gpt: GPT,
        gistnet: GistNet | None,
        lensnet: LensNet | None,
        strategy: VariantStrategy,
        geometry: Geometry,
        objectives: Objectives,
    ) -> None:
        super().__init__()
        self.gpt, self.gistnet, self.lensnet = gpt, gistnet, lensnet
        self.strategy, self.geometry, self.objectives = strategy, geometry, objectives

    def forward(self, *arguments: Any, task: str = "losses", **options: Any) -> Any:
        """Run one of this module's tasks: `losses` (training), `validate`, `refocus`, `proposals`, `next_logits`.

        Everything goes through here, so that DeepSpeed's hooks on `forward` see all that is run.
        """
        return getattr(self, task)(*arguments, **options)

    def losses(self, tokens: Tensor, seeds: Tensor, length: int) -> tuple[Tensor, Statistics]:
        """Loss and statistics of a micro-batch.

        tokens [B, T + 1]; seeds [B, V] int64; length: entries of each variant (reachable; ignored without variants).
        """
        inputs, following = tokens[:, :-1], tokens[:, 1:]
        embeddings = self.gpt.embed(inputs)
        raw = raw_context(self.geometry, 1, tokens.device)
        baseline = self.gpt.nll(self.gpt.hidden(embeddings, raw), following)
        loss = self.objectives.baseline_weight * baseline.mean()
        everything = baseline.new_ones(()).bool().expand_as(baseline)
        statistics = Statistics(means={"train/loss_lod0": masked_sum(baseline, everything)})
        if self.strategy.count and self.gistnet is not None and self.lensnet is not None:
            extra, more = self._variants(tokens, embeddings, baseline, seeds, length)
            loss, statistics = loss + extra, statistics | more
        statistics.means["train/loss"] = masked_sum(loss[None], everything[0, :1])
        return loss, statistics

    def _variants(
        self, tokens: Tensor, embeddings: Tensor, baseline: Tensor, seeds: Tensor, length: int
    ) -> tuple[Tensor, Statistics]:
        """What the variants add to the loss, and their statistics."""
        assert self.gistnet is not None
        assert self.lensnet is not None
        table = build_node_table(embeddings, self.gistnet, self.geometry)
        context = unroll(self.propose(tokens[:, :-1], table, seeds, length), self.geometry, length)
        entries = gather_embeddings(table, context)
        pairing = self.compare(entries, context, tokens[:, 1:], baseline)
        seen = context.before_cursor()
        # LensNet reads detached embeddings: its loss must not shape what it judges.
        scores = self.lensnet(seen, entries[:, : seen.length].detach()).float()
        lens, about_lens = lens_objective(scores, seen, pairing, self.strategy.count, self.objectives)
        penalty = gist_delta_penalty(pairing)
        loss = (
            self.objectives.variant_weight * variant_loss(pairing)
            + self.objectives.gist_delta_weight * penalty
            + self.objectives.lens_weight * lens
        )
        one = pairing.scored.new_ones(1)
        own = {"mc/lens_loss": masked_sum(lens[None], one), "mc/gist_delta_penalty": masked_sum(penalty[None], one)}
        return loss, pairing_statistics(pairing) | about_lens | Statistics(means=own)

    def propose(self, inputs: Tensor, table: Tensor, seeds: Tensor, length: int) -> Tensor:
        """Focuses of the variants [B * V, blocks]; the strategy sees LensNet's scores where it asks for them."""
        scores = None
        if self.strategy.needs_scores:
            raw = raw_context(self.geometry, inputs.shape[0], inputs.device)
            scores = self.scores(raw, table).detach()
        focus = self.strategy.propose(Sequences(inputs, self.geometry), scores, length, seeds)
        return focus.flatten(0, 1)

    def compare(self, entries: Tensor, context: WorkingContext, following: Tensor, baseline: Tensor) -> Pairing:
        """Run working contexts (embeddings [R, L, D]) and pair their NLL with the baseline's [B, T]."""
        rows = context.focus.shape[0]
        targets = context.targets(following.repeat_interleave(rows // following.shape[0], dim=0))
        return pair(context, self.gpt.nll(self.gpt.hidden(entries, context), targets), baseline)

    def scores(self, context: WorkingContext, table: Tensor) -> Tensor:
        """LensNet's scores [R, Lc] of the entries before the cursor."""
        assert self.lensnet is not None
        seen = context.before_cursor()
        scores: Tensor = self.lensnet(seen, gather_embeddings(table, seen).detach())
        return scores.float()

    def validate(self, tokens: Tensor) -> Tensor:
        """Plain NLL in nats, float32 [B, T], of windows [B, T + 1] that are not compressed."""
        raw = raw_context(self.geometry, 1, tokens.device)
        return self.gpt.nll(self.gpt.hidden(self.gpt.embed(tokens[:, :-1]), raw), tokens[:, 1:])

    def refocus(self, inputs: Tensor, allocator: Allocator, budget: int, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """The focus that LensNet and the allocator choose, starting from the uncompressed context.

        inputs [B, T]; seeds [B] int64 -> (focus [B, blocks], rounds that changed something [B]).
        """
        assert self.gistnet is not None
        table = build_node_table(self.gpt.embed(inputs), self.gistnet, self.geometry)
        context = raw_context(self.geometry, inputs.shape[0], inputs.device)
        age = torch.full_like(context.focus, torch.iinfo(torch.int32).max)
        rounds = torch.zeros_like(seeds)
        for _ in range(allocator.iterations):
            seen = context.before_cursor()
            focus = allocator.allocate(self.scores(context, table), seen, budget, seeds)
            changed = focus != context.focus
            rounds += changed.any(dim=1)
            age = torch.where(changed, 0, age + 1)
            context = replace(unroll(focus, self.geometry), age=age)
        return context.focus, rounds

    def proposals(self, inputs: Tensor, seeds: Tensor, length: int) -> Tensor:
        """What the variant strategy proposes for inputs [B, T] and seeds [B, V] -> focus [B * V, blocks]."""
        assert self.gistnet is not None
        table = build_node_table(self.gpt.embed(inputs), self.gistnet, self.geometry)
        return self.propose(inputs, table, seeds, length)

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, vocabulary], float32, of the token that follows tokens [B, L]; L up to the window."""
        raw = raw_context(self.geometry, 1, tokens.device, tokens.shape[1])
        return self.gpt.logits(self.gpt.hidden(self.gpt.embed(tokens), raw)[:, -1])
