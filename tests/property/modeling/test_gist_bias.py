"""The learned attention bias of gists is an additive mask, on every path through the kernel."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.substitutions import drop_gists
from mcframe.context.working_context import build_context
from mcframe.hookspecs import BaseShape
from mcframe.modeling.gpt import GPT, _biased_attention
from mcframe.modeling.rope import GaussianRope
from tests.support.modeling_builders import TREE, VOCABULARY, build_gpt, focus_tensor, geometry_of, mixed_context


def attended(query, key, value, bias):
    """One query at a time, in float64."""
    rows, heads, length, width = query.shape
    out = torch.zeros(rows, heads, length, width, dtype=torch.float64)
    for r in range(rows):
        for h in range(heads):
            for i in range(length):
                logits = [
                    (query[r, h, i].double() @ key[r, h, j].double()) / math.sqrt(width) + bias[r, j, h].double()
                    for j in range(i + 1)
                ]
                weights = torch.stack(logits).softmax(0)
                out[r, h, i] = sum(w * value[r, h, j].double() for j, w in enumerate(weights))
    return out


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 17), st.integers(1, 3), st.integers(1, 6), st.booleans(), st.integers(0, 2**32))
def test_it_is_an_additive_mask(width, heads, length, shared, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, heads, length, width, generator=generator) for _ in range(3))
    bias = 3 * torch.randn(1 if shared else 2, length, heads, generator=generator)
    found = _biased_attention(query, key, value, bias, None)
    expected = attended(query, key, value, bias.expand(2, -1, -1))
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


def biased(bias: float | None, **options: object) -> GPT:
    """The same weights with and without a bias."""
    gpt = build_gpt(TREE, gist_bias=bias, **options)
    plain = build_gpt(TREE, **options)
    gpt.load_state_dict(plain.state_dict(), strict=False)
    if bias is not None:
        with torch.no_grad():
            for block in gpt.blocks:
                block.attention.gist_bias_embed.fill_(bias)
    return gpt


@pytest.fixture
def embeddings():
    return torch.randn(3, TREE.window, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_a_bias_of_0_changes_nothing(embeddings, heads):
    context = mixed_context()
    torch.testing.assert_close(
        biased(0.0, heads=heads).hidden(embeddings, context), biased(None, heads=heads).hidden(embeddings, context)
    )


def test_a_bias_far_below_0_drops_the_gists():
    """Only the states of raw tokens are compared; they keep their positions."""
    focus = focus_tensor([[0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 2, 2, 2, 1, 0, 0]])  # a raw token comes first
    context = build_context(focus, geometry_of(TREE))
    bare = drop_gists(context)
    table = torch.randn(2, TREE.window, 16, generator=torch.Generator().manual_seed(0))

    def read(at):
        return table.gather(1, at.token[..., None].expand(-1, -1, 16))

    for bias, same in ((-30.0, True), (-1.0, False)):
        gpt = biased(bias)
        everything, dropped = gpt.hidden(read(context), context), gpt.hidden(read(bare), bare)
        raw = context.valid & (context.lod == 0)
        close = torch.allclose(everything[raw], dropped[bare.valid], atol=1e-4)
        assert close == same


def test_every_level_and_head_has_its_own_and_gets_a_gradient(embeddings):
    context = mixed_context()
    assert {1, 2} <= set(context.lod.unique().tolist())
    gpt = biased(-0.5)
    gpt.hidden(embeddings, context).mul(torch.linspace(-1, 1, 16)).sum().backward()
    for block in gpt.blocks:
        bias = block.attention.gist_bias_embed
        assert bias.shape == (TREE.levels, gpt.heads)
        assert bias.grad.all()


def test_an_uncompressed_context_has_no_bias(embeddings):
    raw = build_context(torch.zeros(3, 9, dtype=torch.long), geometry_of(TREE))
    torch.testing.assert_close(biased(-8.0).hidden(embeddings, raw), biased(None).hidden(embeddings, raw))


@pytest.mark.parametrize("start", [-8, -8.0, 0])
def test_bias_starts_at_its_setting(start):
    gpt = GPT(BaseShape(geometry_of(TREE), VOCABULARY, GaussianRope), depth=2, width=16, heads=2, gist_bias=start)
    for block in gpt.blocks:
        assert block.attention.gist_bias_embed.dtype == torch.float32
        assert (block.attention.gist_bias_embed == start).all()


def test_activation_checkpointing_keeps_its_gradient(embeddings):
    gradients = []
    for checkpointing in (False, True):
        gpt = biased(-0.5, activation_checkpointing=checkpointing)
        gpt.hidden(embeddings, mixed_context()).mul(torch.linspace(-1, 1, 16)).sum().backward()
        gradients.append([block.attention.gist_bias_embed.grad for block in gpt.blocks])
    torch.testing.assert_close(*gradients)
