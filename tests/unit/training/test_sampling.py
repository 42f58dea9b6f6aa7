"""Continuations at any temperature."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.config.training_schema import SamplingConfig
from mcframe.errors import UserError
from mcframe.training.sampling import continuation

TOKENIZER = SimpleNamespace(separator=0, vocab_size=5, encode_batch=lambda _: [[1]], decode=list)


def sample(logits, temperature, seed=0):
    model = SimpleNamespace(tree=SimpleNamespace(window=8), next_logits=lambda _: torch.tensor([logits]))
    config = SamplingConfig(length=3, temperature=temperature)
    return continuation(model, TOKENIZER, "", config, torch.device("cpu"), seed)


@given(
    st.floats(0, 1e300),
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=5, max_size=5),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=50, deadline=None)
def test_every_temperature_and_seed_yields_tokens(temperature, logits, seed):
    assert set(sample(logits, temperature, seed)) <= set(range(5))


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-40, 1e-10])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature):
    assert sample([0.1, 0.3, 0.2, 0.0, 0.1], temperature) == [1, 1, 1]


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(UserError, match="not finite"):
        sample([0.0, float("nan"), 0.0, 0.0, 0.0], 1.0)
