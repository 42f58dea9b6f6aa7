"""NLL, divergence and likeliest tokens of hidden states, against one row at a time in float64."""

import pytest
import torch

import mcframe.interfaces.base_model
from mcframe.context.working_context import raw_context
from tests.support.modeling_builders import TREE, VOCABULARY, build_gpt, geometry_of, random_tokens


@pytest.fixture
def gpt():
    return build_gpt(TREE)


def drawn(gpt, shape=(3, 11)):
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = (2 * torch.randn(*shape, gpt.width, generator=generator) for _ in range(2))
    targets = torch.randint(VOCABULARY, shape, generator=generator)
    return hidden.requires_grad_(), targets, teacher.requires_grad_()


def slow(gpt, hidden, targets, teacher):
    """Return NLL, KL, and whether the likeliest token is the target, for one row."""
    head = gpt.lm_head.weight.detach().double()
    predicted, known = ((head @ x.detach().double()).softmax(0) for x in (hidden, teacher))
    divergence = sum(p * (p.log() - q.log()) for p, q in zip(known, predicted, strict=True))
    return -predicted[targets].log(), divergence, float(max(range(VOCABULARY), key=lambda i: predicted[i]) == targets)


@pytest.mark.parametrize("at_once", [2**28, VOCABULARY * 4, 1])
def test_rows_equal_those_in_float64(gpt, monkeypatch, at_once):
    monkeypatch.setattr(mcframe.interfaces.base_model, "LOGITS_AT_ONCE", at_once)
    hidden, targets, teacher = drawn(gpt)
    nll, divergence = gpt.nll_and_kl(hidden, targets, teacher)
    again, right = gpt.nll_and_correct(hidden, targets)
    assert nll.shape == divergence.shape == again.shape == right.shape == targets.shape
    assert nll.dtype == divergence.dtype == torch.float32
    for r, c in torch.cartesian_prod(torch.arange(3), torch.arange(11)).tolist():
        expected = slow(gpt, hidden[r, c], targets[r, c], teacher[r, c])
        found = (nll[r, c], divergence[r, c], right[r, c])
        assert [x.item() for x in found] == pytest.approx([float(x) for x in expected], abs=1e-5, rel=1e-5)
    torch.testing.assert_close(again, nll)
    torch.testing.assert_close(gpt.nll(hidden, targets), nll)
    assert 0 < right.sum() < right.numel()


HEADS = {
    "nll": lambda gpt, hidden, targets, teacher: gpt.nll(hidden, targets),
    "nll of two": lambda gpt, *drawn: gpt.nll_and_kl(*drawn)[0],
    "kl": lambda gpt, *drawn: gpt.nll_and_kl(*drawn)[1],
}


@pytest.mark.parametrize("head", HEADS)
def test_chunks_change_no_gradient_and_the_teacher_gets_none(gpt, monkeypatch, head):
    results = []
    weight = torch.randn(3, 11, generator=torch.Generator().manual_seed(3))
    for at_once in (2**28, VOCABULARY * 4, 1):
        monkeypatch.setattr(mcframe.interfaces.base_model, "LOGITS_AT_ONCE", at_once)
        gpt.zero_grad()
        hidden, targets, teacher = drawn(gpt)
        (HEADS[head](gpt, hidden, targets, teacher) * weight).sum().backward()
        assert teacher.grad is None
        assert hidden.grad.any(dim=-1).all()
        results.append((hidden.grad, gpt.lm_head.weight.grad.clone()))
    for chunked in results[1:]:
        torch.testing.assert_close(chunked, results[0], atol=1e-5, rtol=1e-4)


def test_the_head_gets_the_gradient_of_the_student_alone(gpt):
    """The head's gradient is that of KL to a teacher whose probabilities are constants."""
    hidden, targets, teacher = drawn(gpt)
    known = (teacher.detach() @ gpt.lm_head.weight.detach().T).softmax(-1)
    gpt.nll_and_kl(hidden, targets, teacher)[1].sum().backward()
    found = gpt.lm_head.weight.grad.clone()
    gpt.zero_grad()
    predicted = (hidden.detach() @ gpt.lm_head.weight.T).log_softmax(-1)
    (known * (known.log() - predicted)).sum().backward()
    assert found.any()
    torch.testing.assert_close(found, gpt.lm_head.weight.grad, atol=1e-4, rtol=1e-4)


def test_a_student_equal_to_its_teacher_has_no_divergence(gpt):
    hidden, targets, _ = drawn(gpt)
    divergence = gpt.nll_and_kl(hidden, targets, hidden)[1]
    assert divergence.abs().max() < 1e-5
    divergence.sum().backward()
    assert hidden.grad.abs().max() < 1e-5


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_after_a_number_of_blocks(layer, checkpointing):
    gpt = build_gpt(TREE, activation_checkpointing=checkpointing)
    embeddings = gpt.embed(random_tokens(TREE, 2, 0)[:, :-1])
    context = raw_context(geometry_of(TREE), 1, embeddings.device)
    outputs = [embeddings]
    for block in gpt.blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    final, kept = gpt.states(embeddings, context, layer)
    assert torch.equal(kept, outputs[layer])
    assert torch.equal(final, gpt.hidden(embeddings, context))
    kept.sum().backward()
    reached = [any(p.grad is not None for p in block.parameters()) for block in gpt.blocks]
    assert reached == [number <= layer for number in (1, 2)]
