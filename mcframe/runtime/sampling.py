"""Sampling of the next token: temperature, filters, repetition penalty, seeds, log-probabilities."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mcframe.context.counter_rng import hash_combine, uniform
from mcframe.errors import UserError, require


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of sampling. The filters apply in the order of the attributes, each to what the earlier ones kept.

    Attributes:
        repetition_penalty: Logits of tokens that occur in the context are divided by this if positive, and multiplied
            by it if negative; 1 = none.
        temperature: Divides the logits; 0 selects the most probable token.
        top_k: Keep the k most probable tokens; 0 = all.
        top_p: Keep the most probable tokens whose probabilities sum to p or more; 1 = all.
        min_p: Keep tokens of at least this fraction of the highest probability; 0 = all.
        seed: Seed of the draws, from 0 to 2**64 - 1; None draws one.
        logprobs: Most probable tokens whose log-probabilities are returned with each token.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        positive = math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0
        require(positive, "repetition_penalty", self.repetition_penalty, "a finite number above 0")
        finite = math.isfinite(self.temperature) and self.temperature >= 0
        require(finite, "temperature", self.temperature, "a finite number from 0")
        require(self.top_k >= 0, "top_k", self.top_k, "0 or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        require(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        require(self.seed is None or 0 <= self.seed < 2**64, "seed", self.seed, "from 0 to 2**64 - 1")
        require(self.logprobs >= 0, "logprobs", self.logprobs, "0 or more")


@dataclass(frozen=True)
class Choice:
    """A sampled token.

    Attributes:
        token: Its id.
        logprob: Its log-probability in nats under the model, before penalty, temperature and filters.
        top: The most probable tokens with theirs, as many as `Sampling.logprobs`.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Draw tokens. Draw n depends on the seed, n and the logits alone, so that the state is two integers.

    Args:
        sampling: Settings.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._draws = 0

    def next(self, logits: Tensor, recent: Tensor) -> Choice:
        """Draw the next token.

        Args:
            logits: Logits of the model [V].
            recent: Tokens to which the repetition penalty applies [n], int64.

        Raises:
            UserError: A logit is NaN or positive infinity, or all are negative infinity.
        """
        logits = logits.detach().cpu().double()
        highest = float(logits.max())
        if not math.isfinite(highest):  # the maximum of NaN and anything is NaN
            raise UserError(
                "the model returns logits that are not finite", remedy="Take an earlier checkpoint of the run."
            )
        draw, self._draws = self._draws, self._draws + 1
        kept = filtered(penalised(logits, recent.cpu(), self.sampling.repetition_penalty), self.sampling)
        token = int(kept.argmax()) if self.sampling.temperature == 0 else _drawn(kept, self._seed, draw)
        logprobs = logits.log_softmax(dim=0)
        values, ids = logprobs.topk(min(self.sampling.logprobs, len(logits)))
        return Choice(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def state(self) -> dict[str, int]:
        """Return the state as JSON."""
        return {"seed": self._seed, "draws": self._draws}

    def restore(self, state: Mapping[str, int]) -> None:
        """Resume from a state."""
        self._seed, self._draws = int(state["seed"]), int(state["draws"])


def penalised(logits: Tensor, recent: Tensor, penalty: float) -> Tensor:
    """Return logits [V] with those of recent tokens [n] lowered (Keskar et al., CTRL, 2019)."""
    if penalty == 1:
        return logits
    recent = torch.unique(recent[recent < len(logits)])
    found = logits[recent]
    return logits.index_copy(0, recent, torch.where(found > 0, found / penalty, found * penalty))


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return logits [V] divided by the temperature, with tokens that the filters remove at negative infinity.

    The most probable token always remains. Of tokens with equal logits, those of lower ids come first.
    """
    # Below 0, where no temperature above 0 overflows. A difference of 0 stays 0.
    logits = logits - logits.max()
    if sampling.temperature > 0:
        logits = torch.where(logits == 0, 0.0, logits / sampling.temperature)
    logits, order = logits.sort(descending=True, stable=True)
    if sampling.top_k:
        logits[sampling.top_k :] = -math.inf
    if sampling.top_p < 1:
        probabilities = logits.softmax(dim=0)
        before = probabilities.cumsum(dim=0) - probabilities
        before[0] = 0.0
        logits = logits.masked_fill(before >= sampling.top_p, -math.inf)
    if sampling.min_p:
        logits = logits.masked_fill(logits < math.log(sampling.min_p), -math.inf)
    return torch.empty_like(logits).scatter(0, order, logits)


def _drawn(logits: Tensor, seed: int, draw: int) -> int:
    """Return a draw from the softmax of logits [V]: the inverse of the cumulative distribution at a hash."""
    signed = seed - 2**64 if seed >= 2**63 else seed
    below = logits.softmax(dim=0).cumsum(dim=0)
    at = uniform(hash_combine(torch.tensor(signed), draw)) * below[-1]
    return int(torch.searchsorted(below, at))
