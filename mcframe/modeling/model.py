"""The MegaContext model: base model, GistNet and LensNet. It is trained, exported, loaded and evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.entry_nll import mean_entry_nll
from mcframe.context.substitutions import Condition, drop_gists, mean_table, scatter_to_targets, swap_gists
from mcframe.context.working_context import (
    WorkingContext,
    build_context,
    document_numbers,
    gather_embeddings,
    last_entries,
    raw_context,
    trim_padding,
    with_documents,
)
from mcframe.hookspecs import Allocator, BaseModel, GistNet, LensNet, Sequences, UncompressedPass, VariantStrategy
from mcframe.modeling.node_table import build_node_table
from mcframe.registry.checks import check_focus, check_shape

PhaseTimer = Callable[[str], AbstractContextManager[None]]
"""Takes the name of a phase, such as `build`, and returns a context manager that times its body as that phase."""


def no_timer(phase: str) -> AbstractContextManager[None]:
    """Return a context manager that times nothing."""
    return nullcontext()


class MegaContextModel(nn.Module):
    """A language model that reads working contexts.

    The plain baseline has a strategy without variants, and neither GistNet nor LensNet. The drop baseline has variants
    without a GistNet: its collapsed blocks are dropped.

    Args:
        gpt: The base model.
        gistnet: Compresses blocks; None drops what is collapsed.
        lensnet: Scores entries; None without focus.
        strategy: Proposes the variants that training compares.
        tree: The context tree.
        separator: The token that begins a document; attention, gists and LensNet do not cross documents. None: they do.
    """

    def __init__(
        self,
        gpt: BaseModel,
        gistnet: GistNet | None,
        lensnet: LensNet | None,
        strategy: VariantStrategy,
        tree: ContextTree,
        separator: int | None = None,
    ) -> None:
        super().__init__()
        self.gpt, self.gistnet, self.lensnet = gpt, gistnet, lensnet
        self.strategy, self.tree, self.separator = strategy, tree, separator
        self.timed: PhaseTimer = no_timer

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The modules that exist, by the names of `run.trainable`."""
        found = {"base": self.gpt, "gistnet": self.gistnet, "lensnet": self.lensnet}
        return {name: module for name, module in found.items() if module is not None}

    def forward(self, tokens: Tensor) -> Tensor:
        """Return next-token logits [B, L, vocabulary], float32, of uncompressed tokens [B, L]; L up to the window."""
        return self.gpt.logits(self._uncompressed_hidden(tokens))

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Return logits [B, vocabulary], float32, of the token after tokens [B, L]; L up to the window."""
        return self.gpt.logits(self._uncompressed_hidden(tokens)[:, -1])

    def nll(self, tokens: Tensor) -> Tensor:
        """Return the uncompressed NLL in nats, float32 [B, T], of windows [B, T + 1]."""
        return self.gpt.nll(self._uncompressed_hidden(tokens[:, :-1]), tokens[:, 1:])

    def _uncompressed_hidden(self, tokens: Tensor) -> Tensor:
        raw = self.with_documents(raw_context(self.tree, 1, tokens.device, tokens.shape[1]), tokens)
        return self.gpt.hidden(self.gpt.embed(tokens), raw)

    def documents(self, tokens: Tensor) -> Tensor | None:
        """Return the document of every token [B, L] of tokens [B, L]; None where documents are not masked."""
        return None if self.separator is None else document_numbers(tokens, self.separator)

    def with_documents(self, context: WorkingContext, inputs: Tensor) -> WorkingContext:
        """Return a context of inputs [B, T] that masks their documents, if documents are masked."""
        return with_documents(context, self.documents(inputs))

    # ---- node table ------------------------------------------------------------------------------
    def uncompressed_pass(
        self, tokens: Tensor, loss_mask: Tensor | None = None, window: int | None = None
    ) -> UncompressedPass:
        """Run the base model on uncompressed windows.

        Args:
            tokens: [B, T + 1].
            loss_mask: The targets that count [B, T], bool; None for all.
            window: Tokens at the end that the base model reads; None for T.
        """
        inputs, next_tokens = tokens[:, :-1], tokens[:, 1:]
        embeddings = self.gpt.embed(inputs)
        first = 0 if window is None else inputs.shape[1] - window
        raw = last_entries(self.with_documents(raw_context(self.tree, 1, tokens.device), inputs), first)
        hidden, gist_inputs = self.gpt.states(embeddings[:, first:], raw, self._gist_layer)
        nll = self.gpt.nll(hidden, next_tokens[:, first:])
        if first:  # GistNet reads embeddings: the states of earlier tokens do not exist
            gist_inputs, hidden, nll = embeddings, F.pad(hidden, (0, 0, first, 0)), F.pad(nll, (first, 0))
        target_mask = nll.new_ones(()).bool().expand_as(nll) if loss_mask is None else loss_mask
        mask = target_mask & (torch.arange(nll.shape[1], device=nll.device) >= first) if first else target_mask
        return UncompressedPass(inputs, next_tokens, embeddings, gist_inputs, hidden, nll, mask, target_mask)

    def no_pass(self, tokens: Tensor, loss_mask: Tensor | None = None) -> UncompressedPass:
        """Return an uncompressed pass without the base model: it predicts nothing, `nll` and `hidden` are NaN.

        Args:
            tokens: [B, T + 1].
            loss_mask: The targets that count [B, T], bool; None for all.
        """
        inputs, embeddings = tokens[:, :-1], self.gpt.embed(tokens[:, :-1])
        nothing = torch.zeros_like(inputs, dtype=torch.bool)
        target_mask = ~nothing if loss_mask is None else loss_mask
        nan = embeddings.new_full((), torch.nan)  # a loss that reads them all the same is found
        hidden, nll = nan.expand_as(embeddings), nan.float().expand_as(inputs)
        return UncompressedPass(inputs, tokens[:, 1:], embeddings, embeddings, hidden, nll, nothing, target_mask)

    @property
    def _gist_layer(self) -> int:
        return 0 if self.gistnet is None else self.gistnet.reads_layer

    def node_table(self, embeddings: Tensor, gist_inputs: Tensor, inputs: Tensor) -> Tensor:
        """Return the node table [B, rows, D]; without a GistNet it holds the tokens alone.

        Args:
            embeddings: Token embeddings [B, T, D].
            gist_inputs: What GistNet reads for each token [B, T, D].
            inputs: Token ids [B, T].
        """
        if self.gistnet is None:
            return embeddings
        return build_node_table(embeddings, self.gistnet, self.tree, gist_inputs, self.documents(inputs))

    def encode(self, inputs: Tensor, *, with_nll: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the node table of inputs [B, T], and the NLL that a LensNet with `reads_nll` needs.

        Args:
            inputs: Token ids [B, T].
            with_nll: Return the NLL [B, T] if LensNet reads it, else None. Its last position is 0: the token after
                the window is unknown.
        """
        embeddings = self.gpt.embed(inputs)
        gist_inputs, nll = embeddings, None
        with_nll = with_nll and self.lensnet is not None and self.lensnet.reads_nll
        if self._gist_layer or with_nll:
            raw = self.with_documents(raw_context(self.tree, 1, inputs.device), inputs)
            hidden, gist_inputs = self.gpt.states(embeddings, raw, self._gist_layer)
            if with_nll:
                nll = F.pad(self.gpt.nll(hidden[:, :-1], inputs[:, 1:]), (0, 1))
        return self.node_table(embeddings, gist_inputs, inputs), nll

    # ---- variants and focus ----------------------------------------------------------------------
    def propose(self, inputs: Tensor, seeds: Tensor, length: int) -> Tensor:
        """Return the focuses [B * V, blocks] that the variant strategy proposes for inputs [B, T]; seeds [B, V]."""
        table, nll = self.encode(inputs, with_nll=self.strategy.needs_scores)
        return self.propose_from(inputs, table, seeds, length, nll)

    def propose_from(
        self, inputs: Tensor, table: Tensor, seeds: Tensor, length: int, nll: Tensor | None = None
    ) -> Tensor:
        """Return the proposed focuses [B * V, blocks], given the node table.

        Args:
            inputs: Token ids [B, T].
            table: Their node table [B, rows, D].
            seeds: Seeds of the variants [B, V], int64.
            length: Entries of each variant.
            nll: Uncompressed NLL [B, T], for a LensNet that reads it.
        """
        scores = None
        if self.strategy.needs_scores:
            raw = self.with_documents(raw_context(self.tree, inputs.shape[0], inputs.device), inputs)
            with torch.no_grad(), self.timed("variant"):
                scores = self.scores(raw, table, nll)
        with self.timed("sampling"):
            return self.strategy.propose(Sequences(inputs, self.tree), scores, length, seeds).flatten(0, 1)

    def lens_prefix(self, context: WorkingContext, nll: Tensor | None) -> WorkingContext:
        """Return what LensNet may see of a context: the entries before the cursor, with their NLL if it reads it."""
        prefix = context.before_cursor()
        if self.lensnet is None or not self.lensnet.reads_nll:
            return prefix
        assert nll is not None, "a LensNet that reads_nll needs the uncompressed pass"
        return replace(prefix, nll=mean_entry_nll(nll, prefix))

    def lens_scores(self, prefix: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return LensNet's scores [R, Lc], float32, of entries with embeddings [R, Lc, D]."""
        assert self.lensnet is not None
        scores: Tensor = self.lensnet(prefix, embeddings)
        return scores.float()

    def scores(self, context: WorkingContext, table: Tensor, nll: Tensor | None = None) -> Tensor:
        """Return LensNet's scores [R, Lc] of the entries before the cursor of a context."""
        prefix = self.lens_prefix(context, nll)
        return self.lens_scores(prefix, gather_embeddings(table, prefix).detach())

    def refocus(self, inputs: Tensor, allocator: Allocator, budget: int, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the focus that LensNet and the allocator choose, starting from the uncompressed context.

        Args:
            inputs: Token ids [B, T].
            allocator: Turns scores into a focus; called `allocator.iterations` times.
            budget: The most entries of the working context.
            seeds: One seed a sequence [B], int64.

        Returns:
            The focus [B, blocks], and the number of iterations that changed it [B].

        Raises:
            ContractError: The allocator returns something else than a valid focus.
        """
        table, nll = self.encode(inputs, with_nll=True)
        context = self.with_documents(raw_context(self.tree, inputs.shape[0], inputs.device), inputs)
        age = torch.full_like(context.focus, torch.iinfo(torch.int32).max)
        rounds = torch.zeros_like(seeds)
        for _ in range(allocator.iterations):
            focus = allocator.allocate(self.scores(context, table, nll), context.before_cursor(), budget, seeds)
            check_shape(allocator, "allocate", "a focus [R, blocks]", focus, context.focus.shape, torch.int64)
            check_focus(allocator, "allocate", focus, self.tree)
            changed = focus != context.focus
            rounds += changed.any(dim=1)
            age = torch.where(changed, 0, age + 1)
            context = replace(self.with_documents(build_context(focus, self.tree), inputs), age=age)
        return context.focus, rounds

    def evaluate_focus(
        self, tokens: Tensor, focus: Tensor, condition: Condition = "gist", swap: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate every target under a focus, with a substitute for collapsed blocks.

        Without a GistNet, `gist` and `swap` are `drop`, as in training.

        Args:
            tokens: [B, T + 1].
            focus: [R, blocks]; row r belongs to sequence r // (R // B).
            condition: The substitute.
            swap: For `swap`: the sequence whose gists each sequence reads [B].

        Returns:
            The NLL in nats [R, T], and 1.0 where the most likely token is correct, else 0.0 [R, T]. Position t is for
            the target after token t; both are NaN where no entry predicts it.
        """
        inputs, next_tokens = tokens[:, :-1], tokens[:, 1:]
        if condition == "full":
            focus = torch.zeros_like(focus)
        elif condition != "mean" and self.gistnet is None:
            condition = "drop"
        context = self.with_documents(build_context(focus, self.tree), inputs)
        if condition in ("full", "drop"):
            context = drop_gists(context)
        table = self._substituted_table(inputs, condition, swap)
        context = trim_padding(context)
        targets = context.targets(next_tokens.repeat_interleave(focus.shape[0] // tokens.shape[0], dim=0))
        nll, correct = self.gpt.nll_and_correct(self.gpt.hidden(gather_embeddings(table, context), context), targets)
        return scatter_to_targets(nll, context), scatter_to_targets(correct, context)

    def _substituted_table(self, inputs: Tensor, condition: Condition, swap: Tensor | None) -> Tensor:
        if condition in ("full", "drop"):
            return self.gpt.embed(inputs)
        if condition == "mean":
            return mean_table(self.gpt.embed(inputs), self.tree, self.documents(inputs))
        table = self.encode(inputs)[0]
        if condition == "swap":
            assert swap is not None, "the condition 'swap' needs the sequences whose gists are read"
            table = swap_gists(table, self.tree, swap)
        return table
