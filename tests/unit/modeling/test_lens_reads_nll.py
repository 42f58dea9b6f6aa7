"""A LensNet that reads the uncompressed NLL receives it in every call, without unnecessary passes."""

from dataclasses import replace

import pytest
import torch

from mcframe.context.entry_nll import mean_block_nll
from mcframe.context.working_context import build_context, raw_context
from mcframe_plugins.allocator import GreedyAllocator, TopKAllocator
from mcframe_plugins.variants import LensGuided, RandomCollapse
from tests.support import oracle
from tests.support.generators import focus_tensor, geometry_of
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, build_step, random_tokens, seeds_for


class Passes:
    """Counts the base model's passes and stores the contexts that LensNet receives."""

    def __init__(self, model):
        self.count, self.contexts = 0, []
        states = model.gpt.states

        def counted(*arguments, **options):
            self.count += 1
            return states(*arguments, **options)

        model.gpt.states = counted
        model.lensnet.register_forward_hook(lambda _, arguments, scores: self.contexts.append(arguments[0]))


def build(lensnet, strategy=RandomCollapse, **options):
    model = build_step(TREE, strategy(geometry_of(TREE)), lensnet=lensnet, **options)
    return model, Passes(model)


def plain_nll(model, tokens):
    """Position t: the NLL of token t + 1, from tokens up to t alone, each in a pass of its own length."""
    found = []
    for position in range(tokens.shape[1] - 1):
        logits = model.model.next_logits(tokens[:, : position + 1])
        found.append(-logits.log_softmax(dim=-1).gather(1, tokens[:, position + 1 :][:, :1]))
    return torch.cat(found, dim=1)


def check_nll(context, nll, tree):
    """Entry by entry, the mean over the tokens that its node covers, of those before the cursor that were predicted."""
    repeat = context.focus.shape[0] // nll.shape[0]
    for row, focus in enumerate(context.focus.tolist()):
        own = nll[row // repeat].tolist()
        entries = [e for e in oracle.build_context(tree, focus) if e.end <= tree.cursor]
        expected = [oracle.mean([own[t - 1] for t in range(e.start, e.end) if t]) for e in entries]
        assert context.nll[row, : len(entries)].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("lensnet", ["surprise", "mlp"])
def test_training_needs_no_further_pass(lensnet):
    model, passes = build(lensnet, settings=LossConfig(distillation=1.0))
    other, fewest = build("transformer", settings=LossConfig(distillation=1.0))
    tokens = random_tokens(TREE, 3, 0)
    with torch.no_grad():
        nll = plain_nll(model, tokens)
    for each in (model, other):
        each(tokens, seeds_for(3, 2), 21)[0].backward()
    assert passes.count == fewest.count + TREE.window  # those of `plain_nll`
    (context,) = passes.contexts
    assert not context.nll.requires_grad
    check_nll(context, nll, TREE)
    assert fewest.contexts[0].nll is None


def test_strategies_receive_scores_of_a_lens_that_reads_nll():
    model, passes = build("surprise", LensGuided)
    tokens = random_tokens(TREE, 3, 0)
    model(tokens, seeds_for(3, 2), 21)
    assert passes.count == 2  # the baseline and the variants
    raw, variants = passes.contexts
    assert raw.length == TREE.cursor
    assert raw.nll.shape == (3, TREE.cursor)
    assert variants.nll.shape == (6, variants.length)
    model.model.propose(tokens[:, :-1], seeds_for(3, 2), 21)
    torch.testing.assert_close(passes.contexts[-1].nll, raw.nll)


@pytest.mark.parametrize("gistnet", ["transformer", "states"])
def test_refocusing_runs_the_uncompressed_pass_once_and_only_if_needed(gistnet):
    tokens = random_tokens(TREE, 3, 0)
    for lensnet, expected in (("surprise", 1), ("transformer", int(gistnet == "states"))):
        model, passes = build(lensnet, gistnet=gistnet)
        chooser = GreedyAllocator(model.tree, iterations=3)
        model.model.refocus(tokens[:, :-1], chooser, 21, torch.arange(3))
        assert passes.count == expected
        if lensnet == "surprise":
            assert len(passes.contexts) == 3
            with torch.no_grad():
                nll = plain_nll(model, tokens)
            for context in passes.contexts:
                check_nll(context, nll, TREE)


def test_topk_of_surprise_is_the_focus_of_the_evaluation():
    """lensnet.surprise with topk keeps the blocks that the strategy `surprise` of the evaluation keeps."""
    tree = TREE._replace(levels=1)
    model = build_step(tree, RandomCollapse(geometry_of(tree)), lensnet="surprise")
    tokens = random_tokens(tree, 6, 3)
    focus, _ = model.model.refocus(tokens[:, :-1], TopKAllocator(model.tree), 21, torch.arange(6))
    values = mean_block_nll(model.model.nll(tokens), model.tree)
    for row in range(6):
        free = [b for b in range(tree.blocks) if not oracle.is_protected(tree, b)]
        easiest = sorted(free, key=lambda b, row=row: values[row, b].item())[:4]  # 29 - 4 * 2 = 21
        assert [b for b in range(tree.blocks) if focus[row, b]] == sorted(easiest)


def test_scores_require_the_nll():
    model, _ = build("surprise")
    tokens = random_tokens(TREE, 1, 0)
    with pytest.raises(AssertionError, match="uncompressed pass"):
        model.model.scores(raw_context(model.tree, 1, tokens.device), model.model.encode(tokens[:, :-1])[0])


def test_the_prefix_has_the_nll_of_its_entries():
    context = build_context(focus_tensor([[0] * TREE.blocks]), geometry_of(TREE))
    prefix = context.before_cursor()
    assert prefix.nll is None
    nll = torch.rand(1, context.length)
    assert torch.equal(replace(context, nll=nll).before_cursor().nll, nll[:, : prefix.length])
