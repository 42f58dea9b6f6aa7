"""`mcframe generate`, `mcframe chat` and the options of `mcframe serve`, over a small random model."""

from __future__ import annotations

import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mcframe.cli import chat, generate, serve
from mcframe.cli.app import app
from mcframe.runtime.sampling import Sampling
from tests.support.runtime_models import Digits
from tests.support.serving import opener


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory; commands open it with a small random model."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.gin").touch()
    trained = SimpleNamespace(
        directory=directory, tokenizer=Digits(), session=lambda at, **options: opener()(at),
        loaded=SimpleNamespace(explaining=nullcontext),
    )  # fmt: skip
    for module in (generate, chat, serve):
        monkeypatch.setattr(module, "load_run", lambda *_, **__: trained)
    return directory


def invoke(*arguments, text=None):
    return CliRunner().invoke(app, list(map(str, arguments)), input=text)


def drawn(prompts, count, seed=11, temperature=1.0):
    """The texts after each prompt of one session."""
    session, texts = opener()(None), []
    session.append([Digits.separator])
    for prompt in prompts:
        session.append(prompt)
        pieces = session.generate(count, Sampling(seed=seed, temperature=temperature))
        texts.append("".join(piece.text for piece in pieces))
    return texts


OPTIONS = ("--tokens", 12, "--seed", 11, "--temperature", 1)


def test_generate_continues_a_prompt_and_a_file(run, tmp_path):
    (tmp_path / "text").write_text("abc")
    found = invoke("generate", run, "--prompt", "d", "--file", tmp_path / "text", *OPTIONS, "--report")
    assert found.exit_code == 0, found.output
    assert found.stdout == "d" + drawn(["abcd"], 12)[0] + "\n"
    assert "history" in found.stderr
    assert invoke("generate", run, "--file", "-", *OPTIONS, text="abcd").stdout == found.stdout[1:]
    as_json = json.loads(invoke("generate", run, "--prompt", "abcd", *OPTIONS, "--json").stdout)
    assert as_json["text"] == drawn(["abcd"], 12)[0]
    assert as_json["report"]["history"] == 5 + len(as_json["tokens"])


def test_generate_continues_a_session(run):
    texts = [invoke("generate", run, "--prompt", p, "--session", "s", *OPTIONS).stdout for p in ("ab", "cd")]
    assert [text[2:-1] for text in texts] == drawn(["ab", "cd"], 12)
    assert [each.name for each in (run / "sessions").iterdir()] == ["s"]


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"created": 1}', '{"created": 1, "tokens": 1, "transcript": {"x": 1}}']
)
def test_a_damaged_record_is_one_message(run, record):
    (run / "sessions" / "s").mkdir(parents=True)
    (run / "sessions" / "s" / "conversation.json").write_text(record)
    found = invoke("generate", run, "--prompt", "a", "--session", "s")
    assert (found.exit_code, "conversation.json: expected the record" in found.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "run"), "missing a text to continue"),
        (("generate", "run", "--file", "none.txt"), "--file: none.txt: No such file"),
        (("generate", "run", "--prompt", "a", "--session", "../x"), "--session: expected"),
        (("generate", "run", "--prompt", "a", "--top-p", "0"), "top_p: expected above 0"),
        (("generate", "run", "--prompt", "a", "--min-p", "2"), "min_p: expected from 0 to 1"),
        (("generate", "run", "--prompt", "a", "--temperature", "nan"), "temperature"),
        (("generate", "run", "--prompt", "a", "--repetition-penalty", "0"), "repetition_penalty: expected"),
        (("chat", "run", "--user", " "), "--user: expected a text"),
        (("chat", "run", "--session", "a/b"), "--session: expected"),
        (("serve", "run", "--host", "0.0.0.0"), "expected an address of this machine without a key"),
        (("serve", "run", "--host", "192.0.2.1"), "Set MCFRAME_API_KEY"),
    ],
)
def test_wrong_options_are_one_message(run, monkeypatch, arguments, message):
    monkeypatch.chdir(run)
    monkeypatch.delenv("MCFRAME_API_KEY", raising=False)
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert message in found.output
    assert "Traceback" not in found.output


def test_a_folder_that_cannot_be_written_is_one_message(run):
    (run / "sessions").touch()
    for arguments, text in (("generate", "--prompt", "a"), ""), (("chat",), "a\n"):
        found = invoke(arguments[0], run, *arguments[1:], "--session", "s", text=text)
        assert (found.exit_code, "cannot be written" in found.output) == (2, True), found.output


def test_serve_reports_a_port_that_is_in_use(run):
    busy = serve._bound("127.0.0.1", 0)
    busy.listen()
    with busy:
        found = invoke("serve", run, "--port", busy.getsockname()[1])
    assert found.exit_code == 2
    assert "cannot listen at 127.0.0.1" in found.output


def test_chat_answers_keeps_and_forgets(run):
    greedy = ("--tokens", 8, "--temperature", 0)
    found = invoke("chat", run, *greedy, text="one\n/context\n/save kept\n\n/reset\none\n/unknown\n/quit\n")
    assert found.exit_code == 0, found.output
    answers = [line for line in found.output.splitlines() if line.startswith("Assistant:")]
    assert len(answers) == 2
    assert answers[0] == answers[1]  # the history was forgotten
    assert "gist" in found.output
    assert "history 29 tokens" in found.output
    assert "saved" in found.output
    assert "/reset  forget the history" in found.output
    kept = run / "sessions" / "kept" / "conversation.json"  # /reset forgets the history here, not the copy
    assert json.loads(kept.read_text())["tokens"] == 29
    invoke("chat", run, "--session", "kept", text="/reset\n")
    assert json.loads(kept.read_text())["tokens"] == 0


def test_a_kept_chat_continues_where_it_ended(run):
    greedy = ("--tokens", 8, "--temperature", 0)
    at_once = invoke("chat", run, *greedy, text="one\ntwo\nthree\n").output
    parts = [
        invoke("chat", run, *greedy, "--session", "s", text=f"{line}\n").output for line in ("one", "two", "three")
    ]
    assert "".join(parts) == at_once
    copied = (
        invoke("chat", run, *greedy, text="one\n/save t\n").output
        + invoke("chat", run, *greedy, "--session", "t", text="two\nthree\n").output
    )
    assert [line for line in copied.splitlines() if "saved" not in line] == at_once.splitlines()


def test_an_interrupt_stops_the_answer_and_not_the_chat(run, monkeypatch):
    count = 0

    def write(text):
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(chat, "write", write)
    before = signal.getsignal(signal.SIGINT)
    found = invoke("chat", run, "--tokens", 50, "--temperature", 0, "--session", "s", text="one\n/context\n")
    assert found.exit_code == 0, found.output
    assert count < 12
    assert signal.getsignal(signal.SIGINT) is before
    saved = json.loads((run / "sessions" / "s" / "conversation.json").read_text())
    assert saved["transcript"]["messages"] == 2
