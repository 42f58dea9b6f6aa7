import pytest
import torch
import torch.nn.functional as F

import mcframe.interfaces.attention
from mcframe.context.working_context import raw_context
from mcframe.errors import UserError
from mcframe.hookspecs import BaseShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.rope import GaussianRope
from tests.support.modeling_builders import TREE, build_gpt, geometry_of, mixed_context, random_tokens


@pytest.fixture
def gpt():
    return build_gpt(TREE)


@pytest.fixture
def passed(gpt):
    """Return a padded context, embeddings of its entries, and their hidden states."""
    context = mixed_context()
    embeddings = torch.randn(3, context.length, gpt.width, generator=torch.Generator().manual_seed(0))
    return context, embeddings, gpt.hidden(embeddings, context)


def test_attention_is_causal(gpt, passed):
    context, embeddings, before = passed
    for position in (0, 7, 12):
        moved = embeddings.clone()
        moved[:, position] += 1.0
        after = gpt.hidden(moved, context)
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=0)
        assert ((after - before).abs().amax(dim=-1)[:, position : position + 3] > 1e-6).all()


def test_padding_changes_no_valid_entry(gpt, passed):
    context, embeddings, before = passed
    after = gpt.hidden(torch.where(context.valid[..., None], embeddings, 99.0), context)
    torch.testing.assert_close(after[context.valid], before[context.valid])


def test_one_row_of_a_context_is_broadcast(gpt):
    embeddings = gpt.embed(random_tokens(TREE, 4, 0)[:, :-1])
    one = gpt.hidden(embeddings, raw_context(geometry_of(TREE), 1, embeddings.device))
    four = gpt.hidden(embeddings, raw_context(geometry_of(TREE), 4, embeddings.device))
    torch.testing.assert_close(one, four)


def test_queries_and_keys_are_normalised(gpt, passed):
    context, embeddings, before = passed
    with torch.no_grad():
        for block in gpt.blocks:
            block.attention.query.weight *= 50
            block.attention.key.weight *= 0.2
    torch.testing.assert_close(gpt.hidden(embeddings, context), before, atol=1e-4, rtol=1e-4)


def test_keys_are_normalised_before_the_rotation_damps_them(gpt):
    """With every query and key the same vector, attention to a gist falls with its spread."""
    attention = gpt.blocks[0].attention
    seen: list[torch.Tensor] = []
    original = F.scaled_dot_product_attention
    x = torch.ones(1, 2, gpt.width)
    cosine, sine = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    cosine[..., 1, :] = 0.25

    def spy(query, key, value, **options):
        seen.append(key)
        return original(query, key, value, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mcframe.interfaces.attention.F, "scaled_dot_product_attention", spy)
        attention(x, cosine, sine, torch.zeros(1, 2, dtype=torch.long))
    norms = seen[0].norm(dim=-1)
    torch.testing.assert_close(norms[..., 1], 0.25 * norms[..., 0])
    torch.testing.assert_close(norms[..., 0], torch.full((1, 2), 8**0.5))


def test_the_norm_of_an_embedding_is_ignored_and_its_lod_is_not(gpt, passed):
    context, embeddings, before = passed
    torch.testing.assert_close(gpt.hidden(embeddings * 9, context), before, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        gpt.lod_embed.weight[2] += 1
    changed = ((gpt.hidden(embeddings, context) - before).abs().amax(dim=-1) > 1e-6) & context.valid
    first = [next((c for c, e in enumerate(row) if e == 2), None) for row in context.lod.tolist()]
    for row, column in enumerate(first):
        if column is None:
            assert not changed[row].any()
        else:
            assert changed[row, column]
            assert not changed[row, :column].any()
    assert any(column is not None for column in first)


def test_activation_checkpointing_changes_no_gradient(passed):
    context, embeddings, _ = passed
    gradients = []
    for checkpointing in (False, True):
        gpt = build_gpt(TREE, activation_checkpointing=checkpointing)
        read = embeddings.clone().requires_grad_()
        hidden = gpt.hidden(read, context)
        (hidden * torch.linspace(-1, 1, 16)).sum().backward()
        gradients.append([hidden.detach(), read.grad, *(p.grad for p in gpt.blocks.parameters())])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
        assert plain.count_nonzero() > 0


def test_activation_checkpointing_recomputes_the_blocks():
    gpt = build_gpt(TREE, activation_checkpointing=True)
    calls = []
    for block in gpt.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    embeddings = gpt.embed(random_tokens(TREE, 1, 0)[:, :-1])
    gpt.hidden(embeddings, raw_context(geometry_of(TREE), 1, embeddings.device)).sum().backward()
    assert len(calls) == 2 * gpt.depth


def test_parameters_are_counted_as_documented():
    gpt = GPT(BaseShape(geometry_of(TREE), 100, GaussianRope), depth=3, width=32, heads=4)
    blocks = 12 * 3 * 32**2
    assert gpt.non_embedding_parameters == blocks + 100 * 32
    assert sum(p.numel() for p in gpt.parameters()) == blocks + 2 * 100 * 32 + 3 * 32


def test_an_untrained_model_is_near_uniform():
    torch.manual_seed(0)
    gpt = GPT(BaseShape(geometry_of(TREE), 256, GaussianRope), depth=2, width=64, heads=4)
    tokens = torch.randint(256, (2, TREE.window + 1))
    hidden = gpt.hidden(gpt.embed(tokens[:, :-1]), raw_context(geometry_of(TREE), 1, tokens.device))
    assert gpt.nll(hidden, tokens[:, 1:]).mean().item() == pytest.approx(5.545, abs=0.1)


@pytest.mark.parametrize("settings", [{"heads": 3}, {"heads": 16}, {"head_width": 3}, {"vocab_size": 5}])
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=r"gpt\."):
        GPT(BaseShape(geometry_of(TREE), 10, GaussianRope), **{"depth": 1, "width": 16, "heads": 2} | settings)
