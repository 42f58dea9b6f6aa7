"""Interfaces of evaluations: the model and the held-out sequences that they read, and the base class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.substitutions import Condition
from mcframe.interfaces.data import SyntheticTask
from mcframe.interfaces.eval_result import EvalResult


@dataclass(frozen=True)
class EvalData:
    """Held-out sequences on which a model is evaluated.

    Attributes:
        tokens: [n, T + 1] int64.
        documents: [n, T + 1] int64, the document of each token. Intervals resample documents.
        loss_mask: [n, T] bool, True at t if the target after token t is scored.
        evidence: [n, T] int64, position of the answer to the target at t, -1 if it is unknown; None for text.
        chance: Fraction of the scored targets that the best guess predicts; None if it is unknown.
    """

    tokens: Tensor
    documents: Tensor
    loss_mask: Tensor
    evidence: Tensor | None = None
    chance: float | None = None


Arm: TypeAlias = Literal["recency", "sink_recency", "bm25", "gists", "refocus", "oracle", "full"]
"""Name of a way to fit a long history into one budget; see docs/evaluation.md."""

ARMS: Sequence[Arm] = get_args(Arm)


@dataclass(frozen=True)
class ArmScores:
    """Scores of the tokens after a history, read in one of several ways.

    Attributes:
        nll: In nats [targets].
        right: 1.0 where the most likely token is correct, else 0.0 [targets].
        entries: Entries of the context that stands for the history.
        first_ms: Milliseconds to choose and read that context: the time to the first token.
        token_ms: Milliseconds of a token after it.
        cache_bytes: Keys and values of the context.
        disk_bytes: The part of the history that must be kept.
    """

    nll: Tensor
    right: Tensor
    entries: int
    first_ms: float
    token_ms: float
    cache_bytes: int
    disk_bytes: int


class EvalModel(Protocol):
    """A trained model for evaluations. Arguments and results are tensors on the CPU."""

    @property
    def tree(self) -> ContextTree:
        """Shape of the contexts."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def length(self) -> float:
        """Target length of the run's working contexts, as a fraction of the window."""

    @property
    def budget(self) -> int:
        """Entries of a session's context, `session.budget`."""

    @property
    def seed(self) -> int:
        """Seed of all random draws of evaluations; equal for all runs, so that they are comparable."""

    @property
    def has_gists(self) -> bool:
        """Whether the model has a GistNet. Without one, conditions `gist` and `swap` are undefined."""

    @property
    def has_lens(self) -> bool:
        """Whether the model has a LensNet, which `refocus` needs."""

    @property
    def baselines(self) -> Mapping[str, EvalModel]:
        """Trained baselines: `drop`, trained with dropped blocks; `mean`, trained with mean embeddings as gists."""

    def held_out(
        self, windows: int, task: Callable[[ContextTree], SyntheticTask] | None = None, length: int | None = None
    ) -> EvalData:
        """Return up to `windows` sequences of `task`; if it is None, of the run's own task or held-out text.

        They have `length` tokens, or T if it is None.
        """

    def score(self, tokens: Tensor, focus: Tensor, condition: Condition = "gist") -> tuple[Tensor, Tensor]:
        """Score every target of every sequence under a focus.

        Args:
            tokens: [n, T + 1].
            focus: [n, blocks], or [n, V, blocks] for V focuses of each sequence.
            condition: Replacement of collapsed blocks. `swap` exchanges the gists of sequences 2i and 2i + 1.

        Returns:
            NLL in nats, and accuracy of the most likely token (1.0 or 0.0), both float32 [n, T] or [n, V, T].
            Position t is for the target after token t; it is NaN if no entry predicts that target.
        """

    def refocus(self, tokens: Tensor, budget: int) -> Tensor:
        """Return the focus [n, blocks] of LensNet and allocator for tokens [n, T + 1], of at most `budget` entries."""

    def after_history(
        self, tokens: Tensor, cursor: int, budget: int, evidence: Tensor | None = None
    ) -> Mapping[Arm, ArmScores]:
        """Score the tokens of one sequence from the cursor on, under every way to read what is before it.

        Args:
            tokens: [n + 1]; of any length.
            cursor: Tokens of the history.
            budget: Entries of a session's context, those for tokens that follow included.
            evidence: Indices of the tokens that answers are found at [m]; None if unknown.
        """

    def announce(self, contexts: int) -> None:
        """Add a number of working contexts, or of histories, to the total of the progress bar."""


class Evaluation(ABC):
    """A measurement of a trained model. Factory: `factory()`.

    This one reports bits per token without compression:

        class Bits(Evaluation):
            name = "bits"

            def run(self, model):
                data = model.held_out(8)
                raw = torch.zeros(len(data.tokens), model.tree.blocks, dtype=torch.int64)
                nll, _ = model.score(data.tokens, raw, "full")
                return EvalResult({"eval/bits/plain": float(nll.nanmean()) / math.log(2)})
    """

    name: str
    """Part of the names of its metrics, `eval/NAME/...`; unique among the evaluations of a run."""

    fractions: Sequence[float] = ()
    """Lengths of the contexts that it requests, as fractions of the window. A run warns of those out of reach."""

    @abstractmethod
    def run(self, model: EvalModel) -> EvalResult:
        """Evaluate the model. Every rank must make the same calls of `model` in the same order."""
