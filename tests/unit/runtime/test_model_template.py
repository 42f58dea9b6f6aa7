"""A chat in a session has the tokens of the model's chat template, wherever answers end."""

from __future__ import annotations

import pytest
import transformers
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.cli.load_run import load_run
from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.runtime.chat_template import AnswerText, ModelTemplate, PlainMessage, Transcript
from tests.support.chat_tokenizers import CHATML, END, chat_tokenizer
from tests.support.pretrained_models import saved
from tests.support.written_runs import write_run

SYSTEM, USER = PlainMessage("developer", "Be brief."), PlainMessage("user", "<|im_end|> one é?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_tokenizer(saved("llama", tmp_path_factory.mktemp("llama"), vocab_size=320))


def as_transformers(folder, messages, **options):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    plain = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(plain, tokenize=True, return_dict=True, **options)["input_ids"]


@pytest.mark.parametrize("last", [END, "separator", None])
def test_turns_of_a_session_are_those_of_the_template(folder, last):
    tokenizer = HuggingFaceTokenizer(str(folder))
    last = tokenizer.separator if last == "separator" else last
    template, transcript = ModelTemplate(tokenizer=tokenizer), Transcript()
    user = PlainMessage("user", "one é?")
    history = template.prompt([SYSTEM, user], transcript.pending, transcript.roles)
    transcript.add([SYSTEM, user])
    talk = [("system", "Be brief."), ("user", "one é?")]
    assert history == as_transformers(folder, talk, add_generation_prompt=True)
    answer = AnswerText()
    for token in (*tokenizer.encode_batch(["Yes."])[0], *([] if last is None else [last])):
        answer.add(token, tokenizer.decode([token]))
    transcript.pending = template.pending(answer, tokenizer)
    transcript.add([PlainMessage("assistant", answer.text)])
    history = [*history, *answer.tokens, *template.prompt([user], transcript.pending, transcript.roles)]
    talk += [("assistant", "Yes."), ("user", "one é?")]
    expected = as_transformers(folder, talk, add_generation_prompt=True)
    assert [each for each in history if each != tokenizer.separator] == expected
    assert template.ends == (END,)


def test_chat_writes_the_template_unless_told_otherwise(folder, tmp_path):
    settings = (
        "run.base = @base.huggingface", f"base.huggingface.path = '{folder}'",
        "run.tokenizer = @tokenizer.huggingface", f"tokenizer.huggingface.path = '{folder}'",
        "run.gistnet = @gistnet.adapter", "gistnet.adapter.layer = 2",
    )  # fmt: skip
    write_run(tmp_path / "run", settings)
    write_run(tmp_path / "plain", (*settings, "run.text = @text.chat", "text.chat.paths = 'chats.jsonl'",
                                   "text.chat.template = 'plain'"))  # fmt: skip
    tokenizer = HuggingFaceTokenizer(str(folder))
    start = [tokenizer.separator, *as_transformers(folder, [("user", "one é?")], add_generation_prompt=True)]
    plain, labelled = (
        [tokenizer.separator, *tokenizer.encode_batch([f"User: one é?\n{label}:"])[0]] for label in ("Assistant", "A")
    )
    for run, options, expected in (
        ("run", (), start),
        ("run", ("--plain",), plain),
        ("run", ("--user", "User:", "--assistant", "A:"), labelled),
        ("plain", (), plain),
    ):
        name = f"{run}{len(options)}"
        arguments = ["chat", str(tmp_path / run), "--tokens", "3", "--session", name, "--seed", "1", *options]
        result = CliRunner().invoke(app, arguments, input="one é?\nand two?\n")
        assert result.exit_code == 0, result.output
        session = load_run(tmp_path / run).session(tmp_path / run / "sessions" / name)
        found = session.history.read_tokens(0, session.history.tokens).tolist()
        session.close()
        assert found[: len(expected)] == expected
        assert (found.count(END) >= 2) == (expected is start)
