"""Low-rank changes that read gists: without gists the model is the pretrained one, also in a cache and backwards."""

from __future__ import annotations

import pytest
import torch

from mcframe.context.context_tree import ContextTree
from mcframe.context.substitutions import drop_gists
from mcframe.context.working_context import build_context, raw_context, with_documents
from mcframe.hookspecs import BaseShape
from mcframe.interfaces.kv_cache import KVCache
from mcframe.modeling.pretrained_base import HuggingFaceBase
from mcframe.modeling.rope import GaussianRope
from tests.support.pretrained_models import saved

TREE = ContextTree(window=64, block_size=8, levels=1, slots=1, tail=16)
FIRST_GIST = 16


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("llama"))


def base_of(folder, **options):
    base = HuggingFaceBase(BaseShape(TREE, 257, GaussianRope), path=str(folder), **options).eval()
    for seed, (name, each) in enumerate(base.named_parameters()):
        if "lora_" in name:
            each.data.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return base


@pytest.fixture
def read():
    """A context whose blocks 2 and 4 are gists, and embeddings of its entries."""
    focus = torch.zeros(1, TREE.blocks, dtype=torch.long)
    focus[0, [2, 4]] = 1
    context = build_context(focus, TREE, TREE.length((2,)))
    assert int(context.lod[0].argmax()) == FIRST_GIST
    return context, torch.randn(1, context.length, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_model_is_the_pretrained_one_before_the_first_gist(llama, read):
    context, embeddings = read
    frozen, everywhere = base_of(llama), base_of(llama, trained="lora").states(embeddings, context)[0]
    base = base_of(llama, trained="lora", lora_from="gist")
    found, expected = (each.states(embeddings, context)[0] for each in (base, frozen))
    assert torch.equal(found[:, :FIRST_GIST], expected[:, :FIRST_GIST])
    changed = (found - expected)[0, FIRST_GIST:].abs().amax(dim=1)
    assert changed.min() > 1e-2
    assert (everywhere - expected)[0, :FIRST_GIST].abs().max() > 1e-2
    inputs = torch.randn(1, TREE.window, 32, generator=torch.Generator().manual_seed(1))
    raw = raw_context(TREE, 1, torch.device("cpu"))
    dropped = drop_gists(context)
    for other in (raw, dropped, build_context(torch.zeros_like(context.focus), TREE)):
        states = [each.states(inputs[:, : other.length], other)[0] for each in (base, frozen)]
        assert torch.equal(*(each[other.valid] for each in states))


@torch.no_grad()
def test_a_gist_of_another_document_changes_nothing(llama, read):
    context, embeddings = read
    documents = torch.arange(TREE.window)[None] // 27  # borders in the block after the first gist, and in the tail
    context = with_documents(context, documents)
    bases = (base_of(llama, trained="lora", lora_from="gist"), base_of(llama))
    found, expected = (each.states(embeddings, context)[0][0] for each in bases)
    own, lod = context.document[0].tolist(), context.lod[0].tolist()
    for entry in range(context.length):
        after = any(lod[j] > 0 and own[j] == own[entry] for j in range(entry + 1))
        changed = float((found[entry] - expected[entry]).abs().max())
        assert changed > 1e-2 if after else changed == 0
    assert len(set(own)) == 3


@pytest.mark.parametrize("lora_from", ["gist", "start"])
@pytest.mark.parametrize("first", [8, FIRST_GIST, FIRST_GIST + 1, 30])
@torch.no_grad()
def test_entries_that_follow_a_cache_are_read_alike(first, lora_from, llama, read):
    context, embeddings = read
    base = base_of(llama, trained="lora", lora_from=lora_from)
    expected = base.states(embeddings, context)[0]
    cache = KVCache(base.depth, base.kv_heads, base.head_width, 64, embeddings)
    found = []
    for part in (slice(0, first), slice(first, context.length)):
        rotation = tuple(each[:, :, part] for each in base.positions(context))
        found.append(base.extend(embeddings[:, part], context.lod[:, part], rotation, cache))
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_come_from_contexts_with_gists_alone(recompute, llama, read):
    context, embeddings = read
    base = base_of(llama, trained="lora", lora_from="gist", activation_checkpointing=recompute)
    changes = [each for name, each in base.named_parameters() if "lora_" in name]
    raw = raw_context(TREE, 1, torch.device("cpu"))
    inputs = torch.randn(1, TREE.window, 32)
    assert not base.states(inputs, raw)[0].requires_grad
    loss = base.states(embeddings, context)[0].sin().sum()
    base.states(inputs, raw)  # another pass before the backward pass, which repeats the first one
    loss.backward()
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in changes)
    if recompute:
        plain = base_of(llama, trained="lora", lora_from="gist")
        plain.states(embeddings, context)[0].sin().sum().backward()
        others = [each.grad for name, each in plain.named_parameters() if "lora_" in name]
        torch.testing.assert_close([each.grad for each in changes], others)
