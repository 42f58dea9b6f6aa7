"""tokenizer.huggingface: byte-level tokenizers of pretrained models, and what is refused."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    HuggingFaceTokenizer.example_settings(path)
    fields = json.loads((path / "tokenizer.json").read_text("utf-8"))
    fields["added_tokens"].append({**fields["added_tokens"][0], "id": 300, "content": "<|im_start|>"})
    fields["added_tokens"].append({**fields["added_tokens"][0], "id": 301, "content": "    ", "special": False})
    (path / "tokenizer.json").write_text(json.dumps(fields), "utf-8")
    return path


def test_text_survives_and_special_tokens_are_silent(folder):
    tokenizer = HuggingFaceTokenizer(str(folder))
    assert tokenizer.vocab_size == 302
    texts = ["Über  1,234\n\tx", "a <|im_start|> b", "    indented"]
    ids = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(each) for each in ids] == texts
    assert 300 not in ids[1]
    assert tokenizer.decode([tokenizer.separator, *ids[0], 300]) == texts[0]
    lengths = tokenizer.byte_lengths()
    assert [int(lengths[each].sum()) for each in ids] == [len(text.encode()) for text in texts]
    assert (int(lengths[300]), int(lengths[301])) == (0, 4)


def test_the_identity_changes_with_file_and_separator(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    first = HuggingFaceTokenizer(str(folder)).identity
    assert HuggingFaceTokenizer(str(tmp_path)).identity == first
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_start|>"}}))
    assert HuggingFaceTokenizer(str(tmp_path)).identity != first


def words(folder):
    """A tokenizer that replaces unknown words."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "a"}')


REFUSED = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "expected a folder with tokenizer.json"),
    "damaged": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: "),
    "no end of text": (lambda folder: (folder / "tokenizer_config.json").unlink(), "tokenizer_config.json with one of"),
    "words": (words, "expected a byte-level tokenizer, which keeps every text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_remedy(case, tmp_path):
    change, message = REFUSED[case]
    HuggingFaceTokenizer.example_settings(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceTokenizer(str(tmp_path))
    assert caught.value.remedy
    assert caught.value.binding == "tokenizer.huggingface.path"
