"""NLL and KL in chunks of rows, against all logits at once: values, gradients and memory."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.interfaces import base_model
from tests.support.modeling_builders import TREE, VOCABULARY, build_gpt

ROWS, WORDS, WIDTH = 1024, 2048, 16
SMALLER = 16_384 * 65_536 // (ROWS * WORDS)
"""The size that is measured is that much smaller than the size that the bound is for."""


def expected(gpt, hidden, targets, teacher):
    """Return NLL and KL [rows, length] from all logits."""
    predicted = gpt.lm_head(hidden).log_softmax(-1)
    known = gpt.lm_head(teacher).log_softmax(-1).detach()
    nll = -(predicted * torch.nn.functional.one_hot(targets, VOCABULARY)).sum(-1)
    return nll, (known.exp() * (known - predicted)).sum(-1)


def found(gpt, hidden, targets, teacher):
    return gpt.nll_and_kl(hidden, targets, teacher)


def alone(gpt, hidden, targets, teacher):
    return gpt.nll(hidden, targets), gpt.nll_and_kl(hidden, targets, teacher)[1]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 9),
    at_once=st.integers(1, 30 * VOCABULARY),
    frozen=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_all_logits(rows, length, at_once, frozen, seed):
    gpt, generator = build_gpt(TREE), torch.Generator().manual_seed(seed)
    gpt.lm_head.requires_grad_(not frozen)
    hidden, teacher = (2 * torch.randn(rows, length, gpt.width, generator=generator) for _ in range(2))
    targets = torch.randint(VOCABULARY, (rows, length), generator=generator)
    upstream = torch.randn(2, rows, length, generator=generator)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "LOGITS_AT_ONCE", at_once)
        for compute in (expected, found, alone):
            gpt.zero_grad()
            inputs = hidden.clone().requires_grad_()
            both = torch.stack(compute(gpt, inputs, targets, teacher))
            (both * upstream).sum().backward()
            results.append((both.detach(), inputs.grad, None if frozen else gpt.lm_head.weight.grad.clone()))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def benchmark(root):
    spec = importlib.util.spec_from_file_location("loss_memory", root / "benchmarks" / "loss_memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fractions(benchmark):
    """Return the peak memory of each loss, as a fraction of all logits in float32."""
    cpu = torch.device("cpu")
    steps = benchmark.losses(benchmark.head(WORDS, WIDTH), ROWS, cpu)
    return {name: benchmark.peak_bytes(step, cpu) / (4 * ROWS * WORDS) for name, step in steps.items()}


def test_memory_is_a_fraction_of_all_logits(benchmark, monkeypatch):
    """At most 15 % at 16,384 rows and 65,536 entries; measured where rows, entries and chunks are smaller."""
    monkeypatch.setattr(base_model, "LOGITS_AT_ONCE", base_model.LOGITS_AT_ONCE // SMALLER)
    measured = fractions(benchmark)
    assert measured.keys() == {"nll", "nll and kl"}
    assert max(measured.values()) < 0.15
    monkeypatch.setattr(base_model, "LOGITS_AT_ONCE", 2**62)
    assert min(fractions(benchmark).values()) > 2


def test_little_is_computed_once(monkeypatch):
    """Up to `LOGITS_AT_ONCE` logits nothing is computed again in the backward pass."""
    gpt, calls = build_gpt(TREE), []
    gpt.lm_head.register_forward_hook(lambda *_: calls.append(1))
    hidden = torch.randn(1, 8, gpt.width, requires_grad=True)
    for at_once, count in ((8 * VOCABULARY, 1), (8 * VOCABULARY - 1, 16)):
        monkeypatch.setattr(base_model, "LOGITS_AT_ONCE", at_once)
        calls.clear()
        gpt.nll(hidden, torch.zeros(1, 8, dtype=torch.long)).sum().backward()
        assert len(calls) == count
