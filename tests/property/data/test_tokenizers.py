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
    train_bpe(StandardLibrary("json/*.py"), 400, file, fraction=0.0)
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


def test_half_a_surrogate_pair_becomes_a_question_mark(tokenizer):
    ids = tokenizer.encode_batch(["é", "x\ud800y"])
    assert tokenizer.decode(ids[1]) == "x?y"
    assert tokenizer.decode([195] if isinstance(tokenizer, Bytes) else tokenizer.encode_batch(["\x00"])[0])


def test_bytes_that_are_not_utf8_are_replaced():
    assert Bytes().decode([104, 195, 105]) == "h\ufffdi"


def test_bpe_keeps_every_requirement(trained):
    settings = [f"tokenizer.bpe.file = '{trained}'", "tokenizer.bpe.vocab_size = 400"]
    outcomes = {each.requirement: each.outcome for each in check_plugin("tokenizer.bpe", settings)}
    assert set(outcomes.values()) == {"passed"}, outcomes


def test_bpe_compresses_and_its_identity_follows_the_content(trained, tmp_path):
    tokenizer = BPE(400, file=str(trained))
    text = next(StandardLibrary("json/*.py").documents())
    assert len(tokenizer.encode_batch([text])[0]) < 0.6 * len(text.encode())
    copy = tmp_path / "copy.json"
    copy.write_bytes(trained.read_bytes())
    assert BPE(400, file=str(copy)).identity == tokenizer.identity
    other = tmp_path / "other.json"
    train_bpe(StandardLibrary("email/*.py"), 400, other, fraction=0.0, max_characters=50_000)
    assert BPE(400, file=str(other)).identity != tokenizer.identity


def test_training_writes_the_cached_file_of_a_run():
    assert bpe_file(300, "small").is_relative_to(cache_dir())
    train_bpe(StandardLibrary("json/*.py"), 300, bpe_file(300, "small"), fraction=0.0)
    assert BPE(300, "small").vocab_size == 300
    assert [file.name for file in bpe_file(300).parent.iterdir()] == ["small-300.json"]


def test_training_reads_the_training_split_only_and_stops_at_its_limits(tmp_path):
    texts = [f"{i} " + ("held" if is_validation(f"{i} held", 0.3) else "seen") for i in range(600)]
    texts = [text for text in texts if text.endswith("held") == is_validation(text, 0.3)]
    assert any(text.endswith("held") for text in texts)
    file = tmp_path / "t.json"
    train_bpe(MemorySource(texts, streaming=True), 264, file, fraction=0.3)
    entries = json.loads(file.read_text())["model"]["vocab"]
    assert any("een" in entry for entry in entries)
    assert not any("el" in entry or "ld" in entry for entry in entries)

    source = MemorySource(["word" * 100 + str(i) for i in range(5_000)])
    reports = []
    train_bpe(source, 260, file, fraction=0.0, max_characters=250_000, progress=reports.append)
    assert source.read == 768
    assert reports == [sum(map(len, source.texts[:n])) for n in (256, 512, 768)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "default-512.json"),
        ({"file": "TRAINED"}, "expected 512 entries, got 400"),
        ({"file": "FOLDER"}, "cannot read"),
        ({"name": "../x"}, "tokenizer.bpe.name"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(trained, tmp_path, options, message):
    paths = {"TRAINED": str(trained), "FOLDER": str(tmp_path)}
    with pytest.raises(UserError, match=message):
        BPE(512, **{name: paths.get(value, value) for name, value in options.items()})


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {"type": "BPE", "vocab": {}}, "pre_tokenizer": null}'])
def test_a_file_of_another_kind_is_an_error(tmp_path, content):
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(UserError, match="byte-level BPE"):
        BPE(512, file=str(tmp_path / "broken.json"))


@pytest.mark.parametrize(
    ("source", "vocab_size", "message"),
    [
        (MemorySource(["ab"]), 5_000, "5,000"),
        (MemorySource([]), 300, "expected documents, got none"),
        (MemorySource(["ab"]), 256, "expected 257"),
        (StandardLibrary("*.nothing"), 300, "standard_library"),
    ],
)
def test_failed_training_leaves_no_file(tmp_path, source, vocab_size, message):
    file = tmp_path / "new" / "t.json"
    with pytest.raises(UserError, match=message):
        train_bpe(source, vocab_size, file, fraction=0.0)
    assert not file.parent.exists()


def changed(file, target, **parts):
    """Write a tokenizer file with other parts, and return its path."""
    target.write_text(json.dumps(json.loads(file.read_text()) | parts))
    return str(target)


BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, r"normalizer Lowercase\(\)"),
        ({"normalizer": {"type": "NFKC"}}, r"normalizer NFKC\(\)"),
        ({"normalizer": {"type": "NFC"}}, r"normalizer NFC\(\)"),
        (
            {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
            r"Strip\(strip_left, strip_right\)",
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}},
            r"Sequence\(NFD\(\), StripAccents\(\)\)",
        ),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "ByteLevel.add_prefix_space"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, None),
    ],
)
def test_a_tokenizer_that_alters_text_is_an_error(trained, tmp_path, parts, message):
    file = changed(trained, tmp_path / "t.json", **parts)
    if message is None:  # the bytes of the entries decode, not the file's decoder
        assert BPE(400, file=file).decode(BPE(400, file=file).encode_batch(["it 's 1"])[0]) == "it 's 1"
        return
    with pytest.raises(UserError, match=f"alters text.*{message}"):
        BPE(400, file=file)


def test_added_entries_have_their_own_bytes(trained, tmp_path):
    from tokenizers import AddedToken, Tokenizer

    added = Tokenizer.from_file(str(trained))
    added.add_tokens(["\u4f60\u597d", "na\u00efve"])
    added.add_special_tokens(["<|\u00fc|>"])
    added.save(str(tmp_path / "added.json"))
    tokenizer = BPE(403, file=str(tmp_path / "added.json"))
    text = "read \u4f60\u597d, na\u00efve <|\u00fc|> <|separator|>"
    ids = tokenizer.encode_batch([text])[0]
    assert {400, 401} <= set(ids)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode())
    assert tokenizer.byte_lengths()[400:].tolist() == [6, 6, 6]
    added.add_tokens([AddedToken("strip", lstrip=True, rstrip=True)])
    added.save(str(tmp_path / "strip.json"))
    with pytest.raises(UserError, match=r"alters text.*strip"):
        BPE(404, file=str(tmp_path / "strip.json"))


def test_a_broken_file_is_an_error(trained, tmp_path):
    model = json.loads(trained.read_text())["model"]
    for number, parts in enumerate(({"merges": [["zz", "qq"]]}, {"vocab": model["vocab"] | {"hole": 999}})):
        with pytest.raises(UserError, match=r"out of vocabulary|got 999"):
            BPE(401, file=changed(trained, tmp_path / f"{number}.json", model=model | parts))
    (tmp_path / "mark.json").write_text("\ufeff" + trained.read_text())
    with pytest.raises(UserError, match=r"mark\.json"):
        BPE(400, file=str(tmp_path / "mark.json"))
