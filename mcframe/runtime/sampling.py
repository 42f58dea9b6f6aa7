"""Sampling of the next token: temperature, filters, repetition penalty, seeds, log-probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mcframe.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is sampled. Filters are applied in the order of the attributes.

    Attributes:
        repetition_penalty: Divides the positive logits of recent tokens and multiplies their negative ones (Keskar et
            al., CTRL, 2019); 1 = none.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Only the k most likely tokens; 0 = all.
        top_p: The most likely tokens whose probabilities sum to this, and the one that crosses it (Holtzman et al.,
            2020); 1 = all.
        min_p: Only tokens of at least this fraction of the highest probability (Nguyen et al., 2024); 0 = all.
        seed: Seed of the draws; None draws one.
        logprobs: Most likely tokens whose log-probabilities are returned with each token.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number above 0"),
            ("temperature", 0 <= self.temperature < math.inf, "a number from 0"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**64, "from 0 to 2**64 - 1"),
            ("logprobs", self.logprobs >= 0, "0 or more"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise UserError(f"{name}: expected {rule}, got {getattr(self, name)}", remedy=f"Set {name} to {rule}.")


@dataclass(frozen=True)
class Choice:
    """A sampled token.

    Attributes:
        token: Its id.
        logprob: Its log-probability under the model, before temperature and filters, in nats.
        top: The most likely tokens and their log-probabilities, the most likely first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Draw tokens one after the other.

    Args:
        sampling: Temperature and filters.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def next(self, logits: Tensor, recent: Tensor) -> Choice:
        """Return the next token.

        Args:
            logits: Of every token [vocabulary], float32.
            recent: Recent token ids [n], which the repetition penalty makes less likely.
        """
        sampling, logits = self.sampling, logits.float().cpu()
        logprobs = logits.log_softmax(dim=0)
        if sampling.temperature == 0:
            token = int(penalised(logits, recent, sampling.repetition_penalty).argmax())
        else:
            weights = probabilities(logits, recent, sampling)
            token = int(torch.multinomial(weights, 1, generator=self._generator))
        best = logprobs.topk(min(sampling.logprobs, len(logprobs)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Choice(token, float(logprobs[token]), top)


def probabilities(logits: Tensor, recent: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities [vocabulary] from which a token is drawn, for a temperature above 0."""
    scaled = penalised(logits, recent, sampling.repetition_penalty).double() / sampling.temperature
    order = scaled.argsort(descending=True, stable=True)
    ranked = scaled[order].softmax(dim=0)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if sampling.top_k:
        keep[sampling.top_k :] = False
        ranked = _renormalised(ranked, keep)
    keep &= ranked.cumsum(dim=0) - ranked < sampling.top_p
    ranked = _renormalised(ranked, keep)
    keep &= ranked >= sampling.min_p * ranked[0]
    return torch.zeros_like(ranked).scatter(0, order, _renormalised(ranked, keep))


def penalised(logits: Tensor, recent: Tensor, penalty: float) -> Tensor:
    """Return logits [vocabulary] with those of recent tokens [n] made smaller by a penalty above 1."""
    if penalty == 1.0 or not len(recent):
        return logits
    result, seen = logits.clone(), torch.tensor(sorted(set(recent.tolist())))
    result[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return result


def _renormalised(probabilities: Tensor, keep: Tensor) -> Tensor:
    kept = torch.where(keep, probabilities, 0.0)
    return kept / kept.sum()
