import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.data.cache import cache_dir
from mcframe.data.sources import StandardLibrary
from mcframe.data.split import is_validation
from mcframe.data.tokenizers import BPE, SEPARATOR, Bytes, bpe_file, train_bpe
from mcframe.errors import UserError
from mcframe.testing import check_plugin
from tests.support.memory_source import MemorySource

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file of 400 entries, trained on json/ of the standard library."""
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe(StandardLibrary("json/*.py"), 400, file, share=0.0)
    return file


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request, trained):
    return Bytes() if request.param == "bytes" else BPE(400, file=str(trained))


@given(st.lists(TEXTS, max_size=5))
def test_encoding_is_lossless_and_bytes_are_counted_exactly(tokenizer, texts):
    lengths = tokenizer.byte_lengths()
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.separator not in ids
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert lengths[torch.tensor(ids, dtype=torch.int64)].sum() == len(text.encode())


def test_every_byte_has_an_entry_and_its_length(tokenizer):
    lengths = tokenizer.byte_lengths()
    assert (lengths.dtype, lengths.shape) == (torch.int64, (tokenizer.vocab_size,))
    assert lengths[tokenizer.separator] == 0
    assert (lengths == 0).sum() == 1
    assert (lengths == 1).sum() == 256


def test_the_separator_decodes_to_nothing_and_spelling_it_is_text(tokenizer):
    (ids,) = tokenizer.encode_batch([f"a{SEPARATOR}b"])
    assert tokenizer.decode([tokenizer.separator, *ids, tokenizer.separator]) == f"a{SEPARATOR}b"


def test_broken_text_goes_through(tokenizer):
    ids = tokenizer.encode_batch(["é", "x\ud800y"])
    assert tokenizer.decode(ids[1]) == "x?y"
    assert tokenizer.decode([195] if isinstance(tokenizer, Bytes) else tokenizer.encode_batch(["\x00"])[0])


def test_bytes_that_are_no_utf8_are_replaced():
    assert Bytes().decode([104, 195, 105]) == "h\ufffdi"


def test_bpe_keeps_every_requirement(trained):
    settings = [f"tokenizer.bpe.file = '{trained}'", "tokenizer.bpe.vocab_size = 400"]
    outcomes = {each.requirement: each.outcome for each in check_plugin("tokenizer.bpe", settings)}
    assert set(outcomes.values()) == {"passed"}, outcomes


def test_bpe_compresses_and_names_itself_by_content(trained, tmp_path):
    tokenizer = BPE(400, file=str(trained))
    text = (StandardLibrary("json/*.py")._files()[0]).read_text()
    assert len(tokenizer.encode_batch([text])[0]) < 0.6 * len(text.encode())
    copy = tmp_path / "copy.json"
    copy.write_bytes(trained.read_bytes())
    assert BPE(400, file=str(copy)).identity == tokenizer.identity
    other = tmp_path / "other.json"
    train_bpe(StandardLibrary("email/*.py"), 400, other, share=0.0, max_characters=50_000)
    assert BPE(400, file=str(other)).identity != tokenizer.identity


def test_training_and_the_run_agree_on_the_cached_file():
    assert bpe_file(300, "small").is_relative_to(cache_dir())
    train_bpe(StandardLibrary("json/*.py"), 300, bpe_file(300, "small"), share=0.0)
    assert BPE(300, "small").vocab_size == 300
    assert [file.name for file in bpe_file(300).parent.iterdir()] == ["small-300.json"]


def test_training_reads_the_training_split_only_and_stops_at_its_limits(tmp_path):
    texts = [f"{i} " + ("held" if is_validation(f"{i} held", 0.3) else "seen") for i in range(600)]
    texts = [text for text in texts if text.endswith("held") == is_validation(text, 0.3)]
    assert any(text.endswith("held") for text in texts)
    file = tmp_path / "t.json"
    train_bpe(MemorySource(texts), 264, file, share=0.3)
    entries = json.loads(file.read_text())["model"]["vocab"]
    assert any("een" in entry for entry in entries)
    assert not any("el" in entry or "ld" in entry for entry in entries)

    source, reports = MemorySource([f"word {i}" for i in range(5_000)]), []
    train_bpe(source, 260, file, share=0.0, max_documents=700, progress=reports.append)
    assert source.read == 700
    assert reports == [sum(len(f"word {i}") for i in range(n)) for n in (256, 512, 700)]
    source = MemorySource(["word" * 100 + str(i) for i in range(5_000)])
    train_bpe(source, 260, file, share=0.0, max_characters=250_000)
    assert source.read == 768


def fails(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.remedy
    for word in words:
        assert word in str(caught.value)


def test_mistakes_are_explained(trained, tmp_path):
    fails(lambda: BPE(512), "default-512.json", "mcframe tokenizer --gin FILE")
    fails(lambda: BPE(512, file=str(trained)), "400", "512", "tokenizer.bpe.vocab_size")
    fails(lambda: BPE(512, file=str(tmp_path)), "cannot read")
    fails(lambda: BPE(512, name="../x"), "tokenizer.bpe.name")
    for content in ("{", "[]", "{}", '{"model": {"type": "BPE", "vocab": {}}, "pre_tokenizer": null}'):
        (tmp_path / "broken.json").write_text(content)
        fails(lambda: BPE(512, file=str(tmp_path / "broken.json")), "byte-level BPE")


def test_failed_training_leaves_no_file(tmp_path):
    file = tmp_path / "new" / "t.json"
    fails(lambda: train_bpe(MemorySource(["ab"]), 5_000, file, share=0.0), "5,000", "more text")
    fails(lambda: train_bpe(MemorySource([]), 300, file, share=0.0), "no document")
    fails(lambda: train_bpe(MemorySource(["ab"]), 256, file, share=0.0), "257")
    fails(lambda: train_bpe(StandardLibrary("*.nothing"), 300, file, share=0.0), "standard library")
    assert not file.parent.exists()
