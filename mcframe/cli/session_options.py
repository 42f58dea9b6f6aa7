"""Options of the commands that use a trained model, and the sessions of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from mcframe.cli.load_run import TrainedRun
from mcframe.errors import UserError
from mcframe.runtime.api_requests import NAME
from mcframe.runtime.chat_template import ChatTemplate, ModelTemplate
from mcframe.runtime.session import Session
from mcframe.runtime.session_store import Conversation, SessionStore

FOLDER = "sessions"

Budget = Annotated[int | None, typer.Option(min=1, help="Entries of the context; default: the run's window.")]
Sink = Annotated[int | None, typer.Option(min=0, help="First blocks that stay in the context.")]
Tail = Annotated[int | None, typer.Option(min=1, help="Recent tokens that stay raw.")]
RefocusEvery = Annotated[int | None, typer.Option(min=1, metavar="TOKENS", help="Tokens between two refocuses.")]
NoRefocus = Annotated[bool, typer.Option("--no-refocus", help="Keep recent tokens in detail, without LensNet.")]
Name = Annotated[
    str | None, typer.Option("--session", metavar="NAME", help="Continue or begin a session that is kept.")
]
Sessions = Annotated[Path | None, typer.Option(metavar="DIR", help="Where sessions are kept; default: RUN/sessions.")]
Tokens = Annotated[int, typer.Option(min=1, help="The most tokens to generate.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token each time.")]
TopK = Annotated[int, typer.Option(min=0, help="Only the k most probable tokens; 0 = all.")]
TopP = Annotated[float, typer.Option(help="Only the most probable tokens that sum to p; 1 = all.")]
MinP = Annotated[float, typer.Option(help="Only tokens of this fraction of the highest probability; 0 = all.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Makes recent tokens less probable; 1 = none.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="Seed of the draws; default: a new one.")]
User = Annotated[str, typer.Option("--user", metavar="TEXT", help="Begins a turn of the user.")]
Assistant = Annotated[str, typer.Option("--assistant", metavar="TEXT", help="Begins an answer.")]
Plain = Annotated[bool, typer.Option("--plain", help="Write plain turns, not the chat template of the tokenizer.")]
System = Annotated[str, typer.Option("--system-label", metavar="TEXT", help="Begins an instruction.")]


def store_of(
    trained: TrainedRun, folder: Path | None, config: Mapping[str, Any], most: int = 2**31, most_open: int = 0
) -> SessionStore:
    """Return the sessions of a run.

    Args:
        trained: The run.
        folder: Their folder; None = the folder `sessions` of the run.
        config: Attributes of `SessionDefaults`.
        most: The most that are kept.
        most_open: The most that stay open between requests.
    """

    def open_session(at: Path | None) -> Session:
        with trained.loaded.explaining():
            return trained.session(at, **config)

    return SessionStore(trained.directory / FOLDER if folder is None else folder, open_session, most, most_open)


def session_config_of(
    budget: int | None, sink: int | None, tail: int | None, refocus_every: int | None, no_refocus: bool
) -> dict[str, int | bool]:
    """Return the options that were passed as attributes of `SessionDefaults`; the others are the run's."""
    sizes = {"budget": budget, "sink": sink, "tail": tail, "refocus_every": refocus_every}
    found: dict[str, int | bool] = {name: value for name, value in sizes.items() if value is not None}
    return found | ({"refocus": False} if no_refocus else {})


def chat_labels(user: str, assistant: str, system: str = ChatTemplate.system) -> ChatTemplate:
    """Return plain turns with these labels.

    Raises:
        UserError: A label is empty.
    """
    for option, label in (("--user", user), ("--assistant", assistant), ("--system-label", system)):
        if not label.strip():
            raise UserError(f"{option}: expected a text, got {label!r}", remedy=f"Pass a label such as {option} 'Q:'.")
    return ChatTemplate(user, assistant, system)


def chat_template(trained: TrainedRun, labels: ChatTemplate, *, plain: bool) -> ChatTemplate:
    """Return the chat template of the run's tokenizer, or plain turns.

    Plain turns are written if the tokenizer has no chat template, labels were passed, the run was tuned on plain turns,
    or `plain`.
    """
    if plain or labels != ChatTemplate() or not trained.tokenizer.has_chat_template:
        return labels
    tuned_on_plain_turns = trained.loaded.config.as_dict().get("text.chat.template") == "plain"
    return labels if tuned_on_plain_turns else ModelTemplate(tokenizer=trained.tokenizer)


def checked_name(name: str | None) -> str | None:
    """Return the name of a session.

    Raises:
        UserError: It is not a name.
    """
    if name is not None and not NAME.fullmatch(name):
        raise UserError(
            f"--session: expected 1 to 64 letters, digits, '-', '_' or '.', got {name!r}", remedy="Pass another name."
        )
    return name


def plain_text(text: str) -> str:
    """Return an argument as text that can be encoded: in an ASCII locale other bytes are surrogates."""
    return os.fsencode(text).decode("utf-8", "replace")


def held(store: SessionStore, name: str | None) -> AbstractContextManager[Conversation]:
    """Return a context that holds a session by name, saved at its end, or one in memory."""
    return store.stateless() if name is None else store.use(name, lambda: True)


def report_line(conversation: Conversation) -> str:
    """Return the state and the costs of a session in a line."""
    report = conversation.session.report
    entries = sum(report.entries.values())
    by_lod = ", ".join(f"{count} LOD{lod}" for lod, count in report.entries.items() if count)
    return (
        f"history {report.history:,} tokens, {entries:,} entries ({by_lod}), {report.dropped:,} tokens dropped; "
        f"{report.refocuses} refocuses, {report.read_entries:.1f} entries read a token; "
        f"first token {report.first_token_ms:.0f} ms, then {report.token_ms_p50:.1f} ms a token "
        f"(p95 {report.token_ms_p95:.1f} ms)"
    )
