"""GGUF files as base models: the same logits as the model that was written, one conversion, damaged files."""

from __future__ import annotations

import pytest
import torch
import transformers

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import raw_context
from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.errors import UserError
from mcframe.hookspecs import BaseShape
from mcframe.modeling.pretrained_base import HuggingFaceBase
from mcframe.modeling.rope import GaussianRope
from mcframe.pretrained import model_files
from tests.support.gguf_files import write_gguf
from tests.support.pretrained_models import saved

TREE = ContextTree(window=96, block_size=8, levels=2, slots=1, tail=16)
TEXT = "def answer():\n    return 42  # Ω\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of a Llama with a tokenizer, and the same as a GGUF file."""
    folder = tmp_path_factory.mktemp("llama")
    saved("llama", folder, vocab_size=320, rope_parameters={"rope_type": "default", "rope_theta": 5e4})
    HuggingFaceTokenizer.example_settings(folder)
    return folder, write_gguf(folder, folder / "tiny.gguf")


@torch.no_grad()
def test_a_gguf_file_is_the_model_that_was_written(written):
    folder, file = written
    tokens = torch.randint(300, (1, TREE.window), generator=torch.Generator().manual_seed(0))
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
    tokenizer = HuggingFaceTokenizer(str(file))
    base = HuggingFaceBase(BaseShape(TREE, tokenizer.vocab_size, GaussianRope), path=str(file)).eval()
    logits = base.logits(base.hidden(base.embed(tokens), raw_context(TREE, 1, tokens.device)))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    before = HuggingFaceTokenizer(str(folder))
    assert tokenizer.encode_batch([TEXT]) == before.encode_batch([TEXT])
    assert tokenizer.decode(tokenizer.encode_batch([TEXT])[0]) == TEXT
    assert tokenizer.separator == before.separator


def test_a_file_is_converted_once(written, monkeypatch):
    _, file = written
    first = model_files(str(file))
    monkeypatch.setattr("mcframe.pretrained._convert", lambda *_: pytest.fail("converted again"))
    again = model_files(str(file))
    assert (again.folder, again.origin, again.digest) == (first.folder, str(file), first.digest)


@pytest.mark.parametrize("length", [0, 100, 20_000])
def test_a_damaged_file_is_refused_each_time(length, written, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(written[1].read_bytes()[:length])
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be converted") as caught:
            model_files(str(damaged))
        assert "Name a GGUF file" in caught.value.remedy
