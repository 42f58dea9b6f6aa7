"""A model as evaluations see it: judged in batches, shared among the ranks, results on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.substitutions import Condition
from mcframe.errors import UserError
from mcframe.evaluation.eval_data import from_task, from_text
from mcframe.hookspecs import Allocator, EvalData, EvalModel, SyntheticTask, TextSource, Tokenizer
from mcframe.modeling.model import MegaContextModel

SEED = 0


def _silent(contexts: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class EngineEvalModel:
    """A `Subject`: a step module, or an engine around one, and the run's data.

    model      in eval mode
    text       makes the source of held-out documents; share: of them that are held out
    own_task   what the run trains on instead of text; None for text
    batch      contexts that are judged at once
    windows    taken in place of what an evaluation asks for; None leaves it the choice
    announced, contexts_done   receive numbers of contexts to come and of contexts done
    Every rank must call the methods alike: the ranks share the work and all get the whole result.
    """

    model: MegaContextModel
    tree: ContextTree
    tokenizer: Tokenizer
    text: Callable[[], TextSource]
    share: float
    own_task: Callable[[ContextTree], SyntheticTask] | None
    allocator: Allocator
    vocab_size: int
    length: float
    has_gists: bool
    has_lens: bool
    device: torch.device
    batch: int
    windows: int | None = None
    seed: int = SEED
    baselines: Mapping[str, EvalModel] = field(default_factory=dict)
    announced: Callable[[int], None] = _silent
    contexts_done: Callable[[int], None] = _silent
    _read: dict[int, EvalData] = field(default_factory=dict)

    def held_out(self, windows: int, task: Callable[[ContextTree], SyntheticTask] | None = None) -> EvalData:
        """See `Subject`. Raises UserError where there is no held-out text or the task does not fit the model."""
        count = self.windows or windows
        make = task or self.own_task
        if make is None:
            if count not in self._read:  # in training, a streaming source is not read again for every evaluation
                window = self.tree.window
                self._read[count] = from_text(self.text(), self.tokenizer, window, self.share, count)
            return self._read[count]
        made = make(self.tree)
        if made.vocab_size > self.vocab_size:
            raise UserError(
                f"the task uses {made.vocab_size:,} token ids and the model has {self.vocab_size:,}",
                remedy="lower the task's vocabulary, or evaluate a model that was trained on it",
            )
        return from_task(made, count)

    @torch.no_grad()
    def score(self, tokens: Tensor, focus: Tensor, condition: Condition = "gist") -> tuple[Tensor, Tensor]:
        """See `Subject`."""
        each = focus if focus.dim() == 3 else focus[:, None]
        variants = each.shape[1]

        def compute(some: Tensor, focuses: Tensor) -> Tensor:
            swap = torch.arange(some.shape[0], device=self.device) ^ 1 if condition == "swap" else None
            both = torch.stack(self.model.evaluate_focus(some, focuses.flatten(0, 1), condition, swap), dim=-1)
            self.contexts_done(both.shape[0])
            return both.view(some.shape[0], variants, *both.shape[1:])

        size = max(1, self.batch // variants)
        if condition == "swap":
            assert tokens.shape[0] % 2 == 0, "sequences exchange their gists in pairs"
            size = max(2, size // 2 * 2)
        both = self._spread(compute, size, tokens, each)
        nll, right = (both if focus.dim() == 3 else both[:, 0]).unbind(dim=-1)
        return nll, right

    @torch.no_grad()
    def refocus(self, tokens: Tensor, budget: int) -> Tensor:
        """See `Subject`."""
        assert self.has_lens, "a model without LensNet chooses no focus"
        seeds = variant_seeds(self.seed, torch.arange(tokens.shape[0]), 1)[:, 0]

        def compute(some: Tensor, own: Tensor) -> Tensor:
            focus: Tensor = self.model.refocus(some[:, :-1], self.allocator, budget, own)[0]
            self.contexts_done(some.shape[0])
            return focus

        return self._spread(compute, self.batch, tokens, seeds)

    def announce(self, contexts: int) -> None:
        """See `Subject`."""
        self.announced(contexts)

    def _spread(self, compute: Callable[..., Tensor], size: int, *inputs: Tensor) -> Tensor:
        """`compute` on rows of `inputs` [n, ...], `size` at a time -> [n, ...] on the CPU, the same on every rank.

        Every rank runs equally many forwards of equally many rows (ZeRO 3 gathers weights in each): what is missing
        at the end is filled with rows from the start, and left out of the result.
        """
        parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        rank, world = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
        count = inputs[0].shape[0]
        size = min(size, count)
        parts = []
        for first in range(0, count, size * world):
            rows = (torch.arange(size) + first + rank * size) % count
            own = compute(*(part[rows].to(self.device) for part in inputs))
            all_parts = [torch.empty_like(own) for _ in range(world)] if parallel else [own]
            if parallel:
                dist.all_gather(all_parts, own.contiguous())
            parts += [part.cpu() for part in all_parts]
        return torch.cat(parts)[:count]
