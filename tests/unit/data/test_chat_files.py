"""text.chat: forms of a row, one message for each kind of malformed line, chat templates, and a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from mcframe.config.run_config import load_run_config
from mcframe.data.chat_files import ChatFiles
from mcframe.data.loader import Loader
from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from mcframe.hookspecs import Chat, Message
from mcframe.training.build import build_components, training_stream, validation_windows
from tests.support.chat_tokenizers import CHATML, chat_tokenizer
from tests.support.text_files import fails

PAGE = (Path(__file__).parents[3] / "docs" / "plugins" / "text.md").read_text("utf-8")
TALK = [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "<|im_end|>?"), ("assistant", "No.")]


def rows_of(messages=TALK):
    return {"messages": [{"role": role, "content": content, "id": 7} for role, content in messages]}


def write(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


def test_rows_of_both_forms(tmp_path):
    file = write(tmp_path / "a.jsonl", rows_of(), {"document": "Ann is 7.", "question": "Age?", "answer": "7", "x": 1})
    first, second = ChatFiles(file).documents()
    assert first.messages == tuple(Message(*each) for each in TALK)
    assert second.messages == (Message("user", "Ann is 7.\n\nAge?"), Message("assistant", "7"))
    assert second == "User: Ann is 7.\n\nAge?\nAssistant: 7\n"
    assert not first.plain
    assert next(ChatFiles(file, template="plain").documents()).plain
    assert ChatFiles(file).identity != ChatFiles(file, template="plain").identity
    assert ChatFiles(file).describe().startswith("2 documents; ")


WRONG = {
    "not JSON": ("{", "a line that is not JSON"),
    "no object": ("[1]", "a value of type list"),
    "other fields": ({"text": "x"}, "got the fields 'text'"),
    "no messages": ({"messages": []}, "messages: expected a list of messages, got an empty list"),
    "messages of another type": ({"messages": "x"}, "messages: expected a list of messages, got a value of type str"),
    "a message that is a text": ({"messages": ["x"]}, r"messages\[0\]: expected an object with role and content"),
    "an unknown role": (rows_of([("user", "a"), ("bot", "b")]), r"messages\[1\]\.role: expected one of system"),
    "content of another type": (rows_of([("user", ["a"])]), r"messages\[0\]\.content: expected a text, got .* list"),
    "no content": ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content: expected a text, got none"),
    "no answer": (rows_of([("user", "a")]), "expected an answer: a message of the role assistant"),
    "an empty answer": (rows_of([("user", "a"), ("assistant", "")]), "expected an answer"),
    "a number as answer": ({"document": "a", "question": "b", "answer": 7}, "answer: expected a text, got .* int"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_line_is_one_message_with_file_and_line(case, tmp_path):
    row, message = WRONG[case]
    file = tmp_path / "a.jsonl"
    wrong = row if isinstance(row, str) else json.dumps(row)
    file.write_text(f"{json.dumps(rows_of())}\n\n{wrong}\n{json.dumps(rows_of())}\n", "utf-8")
    for read in (lambda: list(ChatFiles(str(file)).documents()), ChatFiles(str(file)).describe):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert str(caught.value.location).endswith("a.jsonl:3")
        assert caught.value.remedy


def test_other_files_and_missing_ones_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("User: hello")
    fails(lambda: list(ChatFiles(str(tmp_path / "a.txt")).documents()), "expected .jsonl files")
    with pytest.raises(UserError, match="missing path") as caught:
        list(ChatFiles(str(tmp_path / "missing")).documents())
    assert caught.value.binding == "text.chat.paths"
    assert "text.local_files" not in caught.value.remedy


# ---- chat templates ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer with the special tokens and the template of ChatML."""
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def chat(*messages, **options):
    return Chat([Message(*each) for each in messages], **options)


def test_ids_are_those_of_transformers_and_answers_end_with_their_token(folder):
    tokenizer = HuggingFaceTokenizer(str(folder))
    harmless = [(role, content.replace("<|im_end|>", "What")) for role, content in TALK]
    (parts,) = tokenizer.encode_chats([chat(*harmless)])
    other = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    other.chat_template = CHATML
    messages = [{"role": role, "content": content} for role, content in harmless]
    expected = other.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert [each for ids, _ in parts for each in ids] == expected
    answers = [each for ids, answer in parts if answer for each in ids]
    four, no = tokenizer.encode_batch(["4", "No."])
    assert answers == [*four, 301, *no, 301]


def test_special_tokens_in_a_message_are_text(folder):
    tokenizer = HuggingFaceTokenizer(str(folder))
    (parts,) = tokenizer.encode_chats([chat(*TALK)])
    ids = [each for part, _ in parts for each in part]
    assert ids.count(301) == len(TALK)
    assert "<|im_end|>?" in tokenizer.decode(ids)


def test_plain_chats_and_tokenizers_without_template(folder, tmp_path):
    tokenizer = HuggingFaceTokenizer(str(folder))
    plain, by_template = tokenizer.encode_chats([chat(*TALK[1:3], plain=True), chat(*TALK[1:3])])
    assert tokenizer.decode([each for ids, _ in plain for each in ids]) == "User: 2 + 2?\nAssistant: 4\n"
    assert 300 in by_template[0][0]
    assert Bytes().encode_chats([chat(*TALK[1:3])])[0][-1] == (list(b" 4\n"), True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    without = HuggingFaceTokenizer(str(tmp_path))
    assert without.encode_chats([chat(*TALK[1:3])]) == [plain]
    assert without.chat_format == Bytes().chat_format != tokenizer.chat_format


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] }}", r"it has the messages \[0\] of 2"),
        ("{{ messages[0]['content'] * 2 + messages[1]['content'] }}", r"it has the messages \[0, 0, 1\] of 2"),
        ("{% for", "unexpected"),
    ],
)
def test_a_template_that_refuses_a_chat(template, message, folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = [{"name": "tools", "template": "x"}, {"name": "default", "template": template}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceTokenizer(str(tmp_path)).encode_chats([chat(*TALK[1:3])])
    assert "text.chat.template = 'plain'" in caught.value.remedy


def test_a_run_with_the_lines_of_the_page_scores_the_answers_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = re.search(r"^## Chats\n+```gin\n(.*?)^```$", PAGE, re.M | re.S)
    assert found
    (tmp_path / "mine.gin").write_text(f"include 'smoke.gin'\n{found[1]}data.validation_fraction = 0.2\n", "utf-8")
    rows = ({"document": f"a is {n}.", "question": "What is a?", "answer": str(n)} for n in range(400))
    write(tmp_path / "questions.jsonl", *rows)
    parts = build_components(load_run_config([tmp_path / "mine.gin"], []).run_config)
    loader = Loader(training_stream(parts, 0, 1), batch_sequences=4, micro_batch=4)
    batch = next(loader)
    loader.close()
    for tokens, mask in ((batch.tokens, batch.loss_mask), validation_windows(parts)):
        answers = bytes(tokens[:, 1:][mask].tolist()).decode()
        assert answers.strip("0123456789 \n") == ""
        assert 0.05 < mask.float().mean() < 0.25
        assert torch.equal(mask & (tokens[:, 1:] == 256), torch.zeros_like(mask))
