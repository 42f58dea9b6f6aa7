"""A model for evaluations: it runs in batches, on all ranks, with results on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.collective import fail_together
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.substitutions import Condition
from mcframe.errors import UserError
from mcframe.evaluation.eval_data import from_task, from_text
from mcframe.evaluation.history_arms import HistoryArms
from mcframe.hookspecs import Allocator, EvalData, EvalModel, SyntheticTask, TextSource, Tokenizer
from mcframe.interfaces.evaluation import Arm, ArmScores
from mcframe.modeling.model import MegaContextModel
from mcframe.runtime.gist_encoder import history_shape
from mcframe.runtime.history import History
from mcframe.runtime.session_config import SessionDefaults


class RanksDisagree(Exception):
    """The ranks do not make the same calls of an `EvalModel`."""


def _no_progress(contexts: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class EngineEvalModel:
    """An `EvalModel` of a model in eval mode and its run's data.

    Every rank must make the same calls. The ranks divide the work, and each gets the complete result.

    Attributes:
        model: The model, in eval mode.
        text: Returns the source of held-out documents.
        validation_fraction: Fraction of the documents that is held out.
        own_task: Task on which the run trains; None for text.
        batch: Contexts per forward pass.
        windows: Number of sequences for every evaluation; None for the evaluation's own number.
        announced, contexts_done: Receive numbers of working contexts, before and after they are computed.
    """

    model: MegaContextModel
    tree: ContextTree
    tokenizer: Tokenizer
    text: Callable[[], TextSource]
    validation_fraction: float
    own_task: Callable[[ContextTree], SyntheticTask] | None
    allocator: Callable[[ContextTree], Allocator]
    vocab_size: int
    length: float
    has_gists: bool
    has_lens: bool
    device: torch.device
    batch: int
    windows: int | None = None
    seed: int = 0
    session: SessionDefaults = field(default_factory=SessionDefaults)
    baselines: Mapping[str, EvalModel] = field(default_factory=dict)
    announced: Callable[[int], None] = _no_progress
    contexts_done: Callable[[int], None] = _no_progress
    _texts: dict[tuple[int, int], EvalData] = field(default_factory=dict)

    def held_out(
        self, windows: int, task: Callable[[ContextTree], SyntheticTask] | None = None, length: int | None = None
    ) -> EvalData:
        """Implement `EvalModel.held_out`.

        Raises:
            UserError: No document is held out, or the task does not fit the model.
        """
        count = self.windows or windows
        make = task or self.own_task
        if make is None:
            key = (count, length or self.tree.window)
            if key not in self._texts:  # while training, a streaming source is read once for all evaluations
                self._texts[key] = from_text(self.text(), self.tokenizer, key[1], self.validation_fraction, count)
            return self._texts[key]
        made = make(self.tree.with_window(length or self.tree.window))
        if made.vocab_size > self.vocab_size:
            raise UserError(
                f"expected a task of at most {self.vocab_size:,} token ids, got {made.vocab_size:,}",
                remedy="Lower the task's vocabulary, or evaluate a model that was trained on it.",
            )
        return from_task(made, count)

    @torch.no_grad()
    def score(self, tokens: Tensor, focus: Tensor, condition: Condition = "gist") -> tuple[Tensor, Tensor]:
        """Implement `EvalModel.score`."""
        each = focus if focus.dim() == 3 else focus[:, None]
        variants = each.shape[1]

        def compute(some: Tensor, focuses: Tensor) -> Tensor:
            swap = torch.arange(some.shape[0], device=self.device) ^ 1 if condition == "swap" else None
            both = torch.stack(self.model.evaluate_focus(some, focuses.flatten(0, 1), condition, swap), dim=-1)
            return both.view(some.shape[0], variants, *both.shape[1:])

        self.check_ranks(f"score of {list(focus.shape)} focuses under {condition!r}")
        size = max(1, self.batch // variants)
        if condition == "swap":
            assert tokens.shape[0] % 2 == 0, "sequences exchange their gists in pairs"
            size = max(2, size // 2 * 2)
        both = self._on_all_ranks(compute, size, variants, tokens, each)
        nll, right = (both if focus.dim() == 3 else both[:, 0]).unbind(dim=-1)
        return nll, right

    @torch.no_grad()
    def refocus(self, tokens: Tensor, budget: int) -> Tensor:
        """Implement `EvalModel.refocus`."""
        assert self.has_lens, "a model without LensNet has no refocus"
        seeds = variant_seeds(self.seed, torch.arange(tokens.shape[0]), 1)[:, 0]
        allocator = self.allocator(self.tree)

        def compute(some: Tensor, own: Tensor) -> Tensor:
            focus: Tensor = self.model.refocus(some[:, :-1], allocator, budget, own)[0]
            return focus

        self.check_ranks(f"refocus of {tokens.shape[0]} sequences")
        return self._on_all_ranks(compute, self.batch, 1, tokens, seeds)

    @property
    def budget(self) -> int:
        """Implement `EvalModel.budget`."""
        return self.session.config(self.tree).budget

    def after_history(
        self, tokens: Tensor, cursor: int, budget: int, evidence: Tensor | None = None
    ) -> Mapping[Arm, ArmScores]:
        """Implement `EvalModel.after_history`. Every rank computes all of it.

        Raises:
            UserError: No context of the budget holds sink, tail and the tokens that follow.
        """
        self.check_ranks(f"after_history of {len(tokens)} tokens")
        words = self.own_task is None and evidence is None
        arms = HistoryArms(
            self.model,
            self.allocator,
            replace(self.session, budget=budget).config(self.tree, self.model.gpt.positions.bounded),
            lambda: History.create(history_shape(self.model, self.vocab_size)),
            lambda text: (
                self.tokenizer.decode(text.tolist()).lower().split() if words else list(map(str, text.tolist()))
            ),
        )
        found = arms.score(tokens, cursor, evidence, arms.available(cursor, evidence is not None))
        self.contexts_done(1)
        return found

    def announce(self, contexts: int) -> None:
        """Implement `EvalModel.announce`."""
        self.announced(contexts)

    def check_ranks(self, call: str) -> None:
        """Raise RanksDisagree unless every rank is about to make the same call. Collective."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        calls = [""] * dist.get_world_size()
        dist.all_gather_object(calls, call)
        if len(set(calls)) > 1:
            raise RanksDisagree("; ".join(f"rank {rank}: {each}" for rank, each in enumerate(calls)))

    def _on_all_ranks(self, compute: Callable[..., Tensor], size: int, contexts: int, *inputs: Tensor) -> Tensor:
        """Return `compute` of the rows of `inputs` [n, ...] on the CPU, the same [n, ...] on every rank.

        Every rank runs equally many forward passes of `size` rows, because ZeRO 3 gathers weights in each. At the end
        rows from the start are computed again, and dropped from the result. A row has `contexts` contexts.
        """
        parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        rank, world = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
        count = inputs[0].shape[0]
        size = min(size, count)
        parts = []
        for first in range(0, count, size * world):
            rows = (torch.arange(size) + first + rank * size) % count
            own = fail_together(
                lambda rows=rows: compute(*(part[rows].to(self.device) for part in inputs)),  # type: ignore[misc]
                self.device,
            )
            all_parts = [torch.empty_like(own) for _ in range(world)] if parallel else [own]
            if parallel:
                dist.all_gather(all_parts, own.contiguous())
            parts += [part.cpu() for part in all_parts]
            self.contexts_done(contexts * min(size * world, count - first))
        return torch.cat(parts)[:count]
