"""Sampling against slow, obvious oracles."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.errors import UserError
from mcframe.runtime.sampling import Sampler, Sampling, filtered, penalised

LOGITS = st.lists(st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.5, 0.5, 2.0, 4.0, -math.inf]), min_size=1, max_size=12)
SETTINGS = st.builds(
    Sampling,
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, 6),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.sampled_from([None, 0, 7, 2**63, 2**64 - 1]),
    logprobs=st.integers(0, 5),
)


def slow_distribution(logits: list[float], recent: list[int], sampling: Sampling) -> dict[int, float]:
    """The probability of every token that can be drawn, one filter after the other."""
    logits = list(logits)
    for token in set(recent):
        logits[token] *= sampling.repetition_penalty ** (-1 if logits[token] > 0 else 1)
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if sampling.temperature == 0:
        return {order[0]: 1.0}
    top = logits[order[0]]
    weights = {token: math.exp((logits[token] - top) / sampling.temperature) for token in order}
    if sampling.top_k:
        weights = {token: weights[token] for token in order[: sampling.top_k]}
    total, below, kept = sum(weights.values()), 0.0, {}
    for token, weight in weights.items():
        if below < sampling.top_p - 1e-12 or not kept:
            kept[token] = weight
        below += weight / total
    highest = max(kept.values())
    kept = {token: weight for token, weight in kept.items() if weight >= sampling.min_p * highest and weight > 0}
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


@given(LOGITS.filter(lambda logits: max(logits) > -math.inf), st.data(), SETTINGS)
@settings(max_examples=50, deadline=None)
def test_the_distribution_is_that_of_the_slow_filters(logits, data, sampling):
    recent = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=4))
    expected = slow_distribution(logits, recent, sampling)
    row = torch.tensor(logits, dtype=torch.float64)
    found = filtered(penalised(row, torch.tensor(recent, dtype=torch.int64), sampling.repetition_penalty), sampling)
    if sampling.temperature == 0:
        assert int(found.argmax()) == next(iter(expected))
    else:
        probabilities = found.softmax(dim=0)
        assert {t: pytest.approx(p) for t, p in enumerate(probabilities.tolist()) if p > 0} == expected
    sampler = Sampler(sampling)
    for _ in range(5):
        choice = sampler.next(row, torch.tensor(recent, dtype=torch.int64))
        assert choice.token in expected
        assert choice.logprob == pytest.approx(float(row.log_softmax(0)[choice.token]))
        assert len(choice.top) == min(sampling.logprobs, len(logits))
        assert [value for _, value in choice.top] == sorted((v for _, v in choice.top), reverse=True)


def test_draws_have_the_frequencies_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampler = Sampler(Sampling(temperature=1.0, seed=3))
    drawn = torch.tensor([sampler.next(logits, torch.zeros(0, dtype=torch.int64)).token for _ in range(1000)])
    frequency = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(frequency, logits.softmax(0), atol=0.06)


@given(st.integers(0, 2**64 - 1), st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_a_saved_sampler_resumes_with_the_same_tokens(seed, after):
    sampling, empty = Sampling(temperature=1.0, seed=seed), torch.zeros(0, dtype=torch.int64)
    logits = torch.linspace(-1, 1, 50)
    sampler = Sampler(sampling)
    for _ in range(after):
        sampler.next(logits, empty)
    resumed = Sampler(sampling)
    resumed.restore(json.loads(json.dumps(sampler.state())))
    assert [sampler.next(logits, empty) for _ in range(5)] == [resumed.next(logits, empty) for _ in range(5)]


@pytest.mark.parametrize("temperature", [1e-300, 1e-8, 1.0, 1e300])
def test_no_temperature_above_zero_overflows(temperature):
    choice = Sampler(Sampling(temperature=temperature)).next(
        torch.tensor([1e4, -1e4, 0.0]), torch.zeros(0, dtype=torch.int64)
    )
    assert choice.token in range(3)


@pytest.mark.parametrize("logits", [[math.nan, 1.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_are_an_error_of_the_run(logits):
    with pytest.raises(UserError, match="logits that are not finite"):
        Sampler(Sampling()).next(torch.tensor(logits), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1}, {"top_p": 0.0},
        {"top_p": 1.1}, {"top_p": math.nan}, {"min_p": -0.1}, {"min_p": 1.5}, {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf}, {"seed": -1}, {"seed": 2**64}, {"logprobs": -1},
    ],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
