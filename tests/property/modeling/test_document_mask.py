"""With a document mask, no token of a document changes a value or a gradient of another document."""

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.config.run_config import load_run_config
from mcframe.context.entry_nll import _means
from mcframe.context.working_context import (
    build_context,
    document_numbers,
    gather_embeddings,
    raw_context,
    with_documents,
)
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape
from mcframe.interfaces import attention
from mcframe.training.build import build_components, build_model
from mcframe_plugins.lensnet import TransformerLensNet
from mcframe_plugins.loss import BagOfTokens
from tests.support import oracle
from tests.support.generators import focus_tensor, geometry_of
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, VOCABULARY, FixedVariants, build_step, equal_lengths, seeds_for

SEPARATOR = VOCABULARY - 1
SLOTS = oracle.Tree(window=36, block_size=4, levels=2, slots=2, tail=6, sink=0)
TREES = {"levels": TREE, "slots": SLOTS}
SETTINGS = LossConfig(
    next_token=0.7, variants=1.3, delta_penalty=0.9, distillation=0.8, contrast=3.0, reconstruction=0.6, lens=1.1
)
PARTS = {
    "transformer": {"gistnet": "transformer", "lensnet": "transformer"},
    "mean": {"gistnet": "mean", "lensnet": "mlp"},
    "states": {"gistnet": "last states", "lensnet": "transformer", "gist_bias": -0.5},
    "dropped": {"gistnet": None},
}
"""GistNets and LensNets that mask documents; the head has biases of gists in one of them."""


@st.composite
def windows(draw, tree):
    """Draw windows [2, T + 1] of a few documents, and one document of the first whose tokens are then changed."""
    count = tree.window + 1
    starts = sorted(draw(st.sets(st.integers(1, tree.window - 1), min_size=1, max_size=5)))
    seed = draw(st.integers(0, 999))
    tokens = torch.randint(SEPARATOR, (2, count), generator=torch.Generator().manual_seed(seed))
    tokens[:, starts] = SEPARATOR
    document = draw(st.integers(0, len(starts)))
    changed = tokens.clone()
    first, last = [0, *starts][document], [*starts, count][document]
    for t in range(first + (document > 0), last):
        changed[0, t] = (tokens[0, t] + 1 + t % (SEPARATOR - 1)) % SEPARATOR
    return tokens, changed, document


class Seen:
    """Everything that a step computes for one window, by document."""

    def __init__(self, tree, parts, tokens, separator=SEPARATOR, **options):
        focuses, length = equal_lengths(tree, 2, 2, seed=5)
        shape = ModelShape(16, geometry_of(tree))
        more = [] if PARTS[parts]["gistnet"] is None else [BagOfTokens(shape)]
        step = build_step(
            tree, FixedVariants(focuses), settings=SETTINGS, losses=more, separator=separator, **PARTS[parts], **options
        )
        model, inputs = step.model, tokens[:, :-1]
        views = []
        for loss in step.losses.each():
            loss.register_forward_hook(lambda _, arguments, __: views.append(arguments[0]))
        step(tokens, seeds_for(2, 2), length)
        view = views[0]
        self.context, self.step, self.view = view.variants.paired.context, step, view
        self.of_token = document_numbers(inputs, SEPARATOR)
        self.of_entry = with_documents(self.context, self.of_token).document
        self.tokens = {
            "hidden": view.uncompressed.hidden, "nll": view.uncompressed.nll, "logits": model(inputs),
            "nll of the model": model.nll(tokens),
        }  # fmt: skip
        variants = view.variants
        self.entries = {"hidden of variants": variants.hidden, "nll of variants": variants.paired.nll}
        if variants.kl is not None:
            self.entries["kl"] = variants.kl
        if variants.lens is not None:
            self.entries["scores"] = variants.lens.scores

    def compare(self, other, sequence, document):
        """Check that values of `sequence` are equal in the documents other than `document`."""
        for name, value in self.tokens.items():
            self._equal(name, value[sequence], other.tokens[name][sequence], self.of_token[sequence] != document)
        for row in (2 * sequence, 2 * sequence + 1):
            valid = self.context.predicts[row] & (self.of_entry[row] != document)
            for name, value in self.entries.items():
                keep = valid[: value.shape[1]]
                self._equal(name, value[row], other.entries[name][row], keep)

    @staticmethod
    def _equal(name, one, other, where):
        torch.testing.assert_close(one[where], other[where], atol=1e-5, rtol=1e-5, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("parts", PARTS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_other_documents_keep_their_values(tree, parts, data):
    tokens, changed, document = data.draw(windows(TREES[tree]))
    one, other = (Seen(TREES[tree], parts, each) for each in (tokens, changed))
    one.compare(other, 0, document)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("parts", ["transformer", "states"])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_losses_of_a_document_have_no_gradient_in_another(tree, parts, data):
    tokens, _, document = data.draw(windows(TREES[tree]))
    seen = Seen(TREES[tree], parts, tokens)
    uncompressed, paired = seen.view.uncompressed, seen.view.variants.paired
    nll = torch.where(seen.of_token == document, uncompressed.nll, 0.0).sum()
    nll = nll + torch.where(paired.loss_mask & (seen.of_entry == document), paired.nll, 0.0).sum()
    nll = nll + torch.where(paired.loss_mask & (seen.of_entry == document), seen.view.variants.kl, 0.0).sum()
    (gradient,) = torch.autograd.grad(nll, uncompressed.embeddings)
    assert not gradient[seen.of_token != document].any()
    assert gradient[seen.of_token == document].any() or (seen.of_token == document).sum() <= 1


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("parts", ["transformer", "mean", "states"])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_gists_belong_to_the_document_of_their_last_token(tree, parts, data):
    """A gist of a node of several documents changes with its last document alone."""
    tokens, changed, document = data.draw(windows(TREES[tree]))
    shape = geometry_of(TREES[tree])
    step = build_step(TREES[tree], FixedVariants([[[0] * shape.blocks]]), separator=SEPARATOR, **PARTS[parts])
    of_token = document_numbers(tokens[:, :-1], SEPARATOR)[0].tolist()
    one, other = (step.model.encode(each[:, :-1])[0][0] for each in (tokens, changed))
    for lod in range(1, shape.levels + 1):
        for node in range(shape.nodes(lod)):
            row = shape.offset(lod) + node * shape.slots
            if of_token[(node + 1) * shape.span(lod) - 1] != document:
                torch.testing.assert_close(one[row : row + shape.slots], other[row : row + shape.slots])


@pytest.mark.parametrize("parts", ["transformer", "states"])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_reconstruction_and_bags_stay_within_a_document(parts, data):
    """A token is reconstructed where it is of the document of its block's gist, and reads that document alone."""
    tokens, _, _ = data.draw(windows(TREE))
    seen = Seen(TREE, parts, tokens)
    loss = seen.step.reconstruction
    loss.fraction, size = 1.0, TREE.block_size
    nll = loss.reconstruct(seen.view)[0]
    assert (~nll.isnan()).any()
    blocks = seen.of_token[0][: nll.shape[0] * size].view(-1, size)
    covered = (blocks == blocks[:, -1:]).sum()
    assert int((~nll.isnan()).sum()) == int(covered)


def test_documents_restart_the_model():
    """A document in the middle of a window is predicted as at the window's start, with relative positions."""
    tree = geometry_of(TREE)
    step = build_step(TREE, FixedVariants([[[0] * tree.blocks]]), separator=SEPARATOR)
    tokens = torch.randint(SEPARATOR, (1, TREE.window + 1), generator=torch.Generator().manual_seed(1))
    tokens[0, [9, 20]] = SEPARATOR
    within = step.model.nll(tokens)[0, 9:20]
    alone = step.model.nll(tokens[:, 9:21])[0]
    torch.testing.assert_close(within, alone, atol=1e-4, rtol=1e-4)


def without_documents(forward):
    return lambda self, context, embeddings: forward(self, dataclasses.replace(context, documents=None), embeddings)


def reads_everything(documents, tree, lod, children):
    return torch.ones(documents.shape[0], tree.nodes(lod), children, 1, dtype=torch.bool)


BREAKS = {
    "attention": ("transformer", "mcframe.modeling.gpt.document_mask", lambda document: None),
    "gists": ("transformer", "mcframe.modeling.node_table.own_children", reads_everything),
    "LensNet": (
        "transformer",
        "mcframe_plugins.lensnet.transformer.TransformerLensNet.forward",
        without_documents(TransformerLensNet.forward),
    ),
    "NLL of entries": (
        "mean",
        "mcframe.context.entry_nll._means",
        lambda nll, start, end, tree, documents: _means(nll, start, end, tree),
    ),
}


def crossed(parts, **options):
    """Return whether a change of some document changes another one."""
    tokens = torch.randint(SEPARATOR, (2, TREE.window + 1), generator=torch.Generator().manual_seed(1))
    tokens[:, [4, 10, 16, 22]] = SEPARATOR
    plain = Seen(TREE, parts, tokens, **options)
    for document, first in enumerate((0, 5, 11, 17)):
        changed = tokens.clone()
        changed[0, first : first + 4] = (tokens[0, first : first + 4] + 1) % SEPARATOR
        try:
            plain.compare(Seen(TREE, parts, changed, **options), 0, document)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_mask_is_found(broken, monkeypatch):
    parts, name, otherwise = BREAKS[broken]
    assert not crossed(parts)
    monkeypatch.setattr(name, otherwise)
    assert crossed(parts)


def test_without_a_mask_documents_are_crossed():
    assert crossed("transformer", separator=None)


def test_the_nearest_gist_is_of_the_same_document():
    tokens = torch.randint(SEPARATOR, (2, TREE.window + 1), generator=torch.Generator().manual_seed(1))
    tokens[:, [7, 16]] = SEPARATOR
    seen = Seen(TREE, "transformer", tokens)
    paired, document = seen.view.variants.paired, seen.of_entry
    near = paired.nearest >= 0
    assert near.any()
    assert (document.gather(1, paired.nearest.clamp(min=0)) == document)[near].all()
    for row, entry in (~near & paired.context.valid).nonzero().tolist():
        before = paired.context.predicts[row, : entry + 1] & (paired.context.lod[row, : entry + 1] > 0)
        assert not (before & (document[row, : entry + 1] == document[row, entry])).any()


SMOKE = "gin/smoke.gin"
ACROSS = {
    "GistNet": (["run.gistnet = @gistnet.contextual"], r"run\.gistnet \(ContextualGistNet\)\n"),
    "LensNet": (["run.lensnet = @lensnet.matching"], r"run\.lensnet \(MatchingLensNet\)\n"),
    "both": (
        ["run.gistnet = @gistnet.contextual", "run.lensnet = @lensnet.surprise"],
        r"run\.gistnet \(ContextualGistNet\) and run\.lensnet \(SurpriseLensNet\)\n",
    ),
    "task": (["run.task = @task.recall"], r"run\.task, which has no documents\n"),
}


@pytest.mark.parametrize("case", ACROSS)
def test_parts_that_read_across_documents_are_refused_together(root, case):
    settings, message = ACROSS[case]
    config = load_run_config([root / SMOKE], ["data.document_mask = True", *settings]).run_config
    with pytest.raises(UserError, match=r"data\.document_mask: expected .*, got " + message) as caught:
        build_model(config, 257, 256)
    assert caught.value.remedy
    assert caught.value.binding == "data.document_mask"


def test_a_run_takes_the_separator_of_its_tokenizer(root):
    for masked in (False, True):
        config = load_run_config([root / SMOKE], [f"data.document_mask = {masked}"]).run_config
        step = build_components(config).step
        assert step.model.separator == (config.tokenizer().separator if masked else None)


def test_entries_of_a_context_carry_documents():
    tree, rng = geometry_of(SLOTS), random.Random(3)
    focuses = [oracle.random_focus(SLOTS, rng, 0.5) for _ in range(4)]
    documents = document_numbers(torch.tensor([[0, 5, 0, 5] * 9, [5, 1, 1, 1] * 9]), 5)
    assert documents[0, :4].tolist() == [0, 1, 1, 2]
    context = with_documents(build_context(focus_tensor(focuses), tree), documents)
    for row, focus in enumerate(focuses):
        entries = oracle.build_context(SLOTS, focus)
        found = context.document[row, : len(entries)].tolist()
        assert found == [int(documents[row // 2, entry.end - 1]) for entry in entries]
    assert raw_context(tree, 1, documents.device).document is None
    shared = with_documents(raw_context(tree, 1, documents.device), documents)
    assert torch.equal(shared.document, documents)
    table = torch.randn(2, tree.table_rows, 4)
    assert gather_embeddings(table, context).shape[0] == 4
    mask = attention.document_mask(shared.document)
    assert [attention.document_mask(None), mask.dtype, *mask.shape] == [None, torch.bool, 2, 1, 36, 36]
    assert dataclasses.replace(shared, documents=None).document is None


def test_a_masked_step_is_one_graph():
    focuses, length = equal_lengths(TREE, 2, 2, seed=5)
    step = build_step(TREE, FixedVariants(focuses), lensnet="transformer", settings=SETTINGS, separator=SEPARATOR)
    tokens = torch.randint(VOCABULARY, (2, TREE.window + 1), generator=torch.Generator().manual_seed(1))
    expected = step(tokens, seeds_for(2, 2), length)[0]
    torch._dynamo.reset()
    loss = torch.compile(step, fullgraph=True, backend="eager")(tokens, seeds_for(2, 2), length)[0]
    torch.testing.assert_close(loss, expected)
