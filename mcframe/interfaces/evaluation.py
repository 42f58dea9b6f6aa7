"""The interface of a question to a trained model, and what it may ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.substitutions import Condition
from mcframe.interfaces.data import SyntheticTask
from mcframe.interfaces.eval_result import EvalResult


@dataclass(frozen=True)
class EvalData:
    """Held-out sequences that a model is judged on.

    tokens     [n, T + 1] int64
    documents  [n, T + 1] int64: the document that each token belongs to; what is resampled for an interval
    loss_mask  [n, T] bool: the target that follows token t counts
    evidence   [n, T] int64: where the answer to the target at t stands, -1 where nobody knows; None for text
    chance     share of the scored targets that the best guess gets right; None where nobody knows
    """

    tokens: Tensor
    documents: Tensor
    loss_mask: Tensor
    evidence: Tensor | None = None
    chance: float | None = None


class EvalModel(Protocol):
    """The trained model that an evaluation judges. Tensors that go in and come out lie on the CPU."""

    @property
    def tree(self) -> ContextTree:
        """The tree."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    @property
    def length(self) -> float:
        """Target length of the run's working contexts, as a fraction of the window."""

    @property
    def seed(self) -> int:
        """Of everything that evaluations draw; the same for every run, so that all are judged alike."""

    @property
    def has_gists(self) -> bool:
        """Whether the model was trained with a GistNet; else it knows no `gist` and no `swap`."""

    @property
    def has_lens(self) -> bool:
        """Whether it was trained with a LensNet, so that `refocus` works."""

    @property
    def baselines(self) -> Mapping[str, EvalModel]:
        """Models to compare with: `drop`, trained to live with gaps; `mean`, trained with mean embeddings as gists."""

    def held_out(self, windows: int, task: Callable[[ContextTree], SyntheticTask] | None = None) -> EvalData:
        """Up to `windows` sequences: of `task` where one is given, else of what the run trains on."""

    def score(self, tokens: Tensor, focus: Tensor, condition: Condition = "gist") -> tuple[Tensor, Tensor]:
        """What the model makes of every target, whatever stands for the collapsed blocks.

        tokens [n, T + 1]; focus [n, blocks] or, V focuses of each sequence, [n, V, blocks] -> NLL in nats and whether
        the likeliest token was right (1.0 or 0.0), float32 [n, T] or [n, V, T]; NaN where no entry predicts the target
        (position t holds the target that follows token t). `swap` exchanges the gists of neighbours, sequences 2i
        and 2i + 1.
        """

    def refocus(self, tokens: Tensor, budget: int) -> Tensor:
        """The focus [n, blocks] of at most `budget` entries that LensNet and allocator choose for tokens [n, T + 1]."""

    def announce(self, contexts: int) -> None:
        """Say how many more working contexts are about to be judged, for the progress bar."""


class Evaluation(ABC):
    """A question to a trained model. Factory: `factory()`.

    Bits a token without compression:

        class Bits(Evaluation):
            name = "bits"

            def run(self, subject):
                held = subject.held_out(8)
                raw = torch.zeros(len(held.tokens), subject.tree.blocks, dtype=torch.int64)
                nll, _ = subject.score(held.tokens, raw, "full")
                return EvalResult({"eval/bits/plain": float(nll.nanmean()) / math.log(2)})
    """

    name: str
    """Names its metrics, `eval/NAME/...`; two evaluations of a run must differ in it."""

    @abstractmethod
    def run(self, subject: EvalModel) -> EvalResult:
        """Ask. Every rank calls it with the same subject and must ask the same things in the same order."""
