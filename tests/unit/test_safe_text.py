"""Secrets and control characters in what is printed and recorded."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from rich.table import Table

from mcframe.cli.streams import echo
from mcframe.cli.user_errors import show
from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.review.record import read_config
from mcframe.safe_text import printable, redacted, redacted_setting
from mcframe.training.run_directory import write_provenance

TERMINAL = "\udc80\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:hunter2@host/x", "https://***@host/x"),
        ("--set=a.url = 'https://ghp_0123456789abcdef@host/x'", "--set=a.url = 'https://***@host/x'"),
        ("s3://bucket/key?X-Amz-Signature=abc&part=1", "s3://bucket/key?X-Amz-Signature=***&part=1"),
        ("logger.x.api_key = 'a b'", "logger.x.api_key = ***"),
        ('logger.x.password="a"', "logger.x.password=***"),
        ("of kJ8_the_token_1", "of ***"),
        ("hf://datasets/user/name@revision/file", "hf://datasets/user/name@revision/file"),
        ("logger.x.api_key = %key", "logger.x.api_key = %key"),
        ("gpt.width = 8; a run of 512 tokens", "gpt.width = 8; a run of 512 tokens"),
        ("SHORT_KEY is yes", "SHORT_KEY is yes"),
    ],
)
def test_secrets_are_hidden_in_texts(monkeypatch, text, expected):
    monkeypatch.setenv("HF_TOKEN", "kJ8_the_token_1")
    monkeypatch.setenv("SHORT_KEY", "yes")
    assert redacted(text) == expected


def test_secrets_are_hidden_in_settings():
    assert redacted_setting("api_key", "x") == "***"
    assert redacted_setting("eos_token", "</s>") == "</s>"
    assert redacted_setting("password", None) is None


def test_no_record_of_a_run_has_secrets(monkeypatch, tmp_path, root):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    bindings = ["text.local_files.paths = ['https://me:hunter2@host/0123456789abcdef']", "PASSWORD = 'hunter2'"]
    monkeypatch.setattr("sys.argv", ["mcframe", *bindings])
    config = load_run_config([root / "gin/smoke.gin"], bindings).config
    write_provenance(tmp_path, config.bound(), {})
    written = [config.bound(), config.operative(), json.dumps(config.as_dict()), json.dumps(config.parameters())]
    for text in (*written, (tmp_path / "provenance.json").read_text(), (tmp_path / "config.gin").read_text()):
        assert "hunter2" not in text
        assert "0123456789abcdef" not in text
    assert "https://***@host/***" in config.bound()
    assert not [each for each in config.bindings.values() if "hunter2" in str(each.location)]
    load_run_config([tmp_path / "config.gin"], [])  # still a gin file


def test_no_error_has_secrets(monkeypatch, capsys):
    show(UserError("cannot reach ftp://me:hunter2@host", remedy="Set x.password = 'hunter2'."))
    assert "hunter2" not in capsys.readouterr().err


def test_configurations_of_older_runs_are_read_without_secrets(tmp_path):
    (tmp_path / "operative.gin").write_text("a.api_key = 'hunter2'\na.url = \\\n    'https://me:hunter2@host'\n")
    assert "hunter2" not in str(read_config(tmp_path / "operative.gin"))


def test_a_terminal_executes_nothing_that_is_printed(capsys):
    assert printable(f"a\tb\n{TERMINAL}") == "a\tb\n" + r"\udc80\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e"
    echo(TERMINAL)
    show(UserError(TERMINAL, remedy=TERMINAL))
    output = io.StringIO()
    table = Table(TERMINAL)
    table.add_row(TERMINAL)
    console = Console(file=output, width=200)
    console.print(TERMINAL, markup=False)
    console.print(table)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err, output.getvalue()):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
