"""`mcframe generate`: continue a text of any length with a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mcframe.cli.load_run import load_run
from mcframe.cli.options import Json, Run, Trust, command
from mcframe.cli.session_options import (
    Budget,
    MinP,
    Name,
    NoRefocus,
    Penalty,
    RefocusEvery,
    Seed,
    Sessions,
    Sink,
    Tail,
    Temperature,
    Tokens,
    TopK,
    TopP,
    checked_name,
    held,
    plain_text,
    report_line,
    session_config_of,
    store_of,
)
from mcframe.data.file_readers import decoded
from mcframe.errors import UserError
from mcframe.registry.discovery import PluginOptions
from mcframe.runtime.sampling import Sampling
from mcframe.runtime.session_store import Conversation, context_of
from mcframe.runtime.text_stream import Piece
from mcframe.safe_text import printable


@command
def generate(
    plugins: PluginOptions,
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with text before it; - is the input.")
    ] = None,
    tokens: Tokens = 200,
    budget: Budget = None,
    sink: Sink = None,
    tail: Tail = None,
    refocus_every: RefocusEvery = None,
    no_refocus: NoRefocus = False,
    session: Name = None,
    sessions: Sessions = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Annotated[list[str], typer.Option(metavar="TEXT", help="Ends the generation; may be repeated.")] = [],  # noqa: B006
    report: Annotated[bool, typer.Option("--report", help="Print the session's state and costs at the end.")] = False,
    json_: Json = False,
    trust: Trust = False,
) -> int:
    """Continue a text. The context is compressed to the budget; nothing of the text is cut off."""
    if prompt is None and file is None and session is None:
        raise UserError("missing a text to continue", remedy="Pass --prompt TEXT or --file FILE.")
    sampling = Sampling(
        repetition_penalty=repetition_penalty, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    text = ("" if file is None else _content(file)) + plain_text(prompt or "")
    trained = load_run(run, plugins=plugins, trust=trust)
    store = store_of(trained, sessions, session_config_of(budget, sink, tail, refocus_every, no_refocus))
    with held(store, checked_name(session)) as conversation, trained.loaded.explaining():
        begin(conversation, text)
        pieces = conversation.session.generate(tokens, sampling, stop)
        if json_:
            write(json.dumps(_as_json([*pieces], conversation)))
        else:
            write(plain_text(prompt or ""))
            for piece in pieces:
                write(piece.text)
        write("\n")
        conversation.transcript.pending = ""
        if report:
            print(report_line(conversation), file=sys.stderr)  # noqa: T201
    return 0


def _as_json(pieces: Sequence[Piece], conversation: Conversation) -> dict[str, Any]:
    """Return the text, its tokens, and the state of the session."""
    text, reason = "".join(piece.text for piece in pieces), pieces[-1].finish_reason
    tokens = [asdict(each) for each in pieces]
    return {"text": text, "finish_reason": reason, "tokens": tokens, **context_of(conversation.session)}


def begin(conversation: Conversation, prompt: str | list[int]) -> None:
    """Append a text or token ids to the history of a session, which begins with the separator."""
    session = conversation.session
    start = [] if session.history.tokens else [session.tokenizer.separator]
    session.append([*start, *(session.tokenizer.encode_batch([prompt])[0] if isinstance(prompt, str) else prompt)])


def write(text: str) -> None:
    """Write a part of a text without its control characters, at once."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def _content(path: Path) -> str:
    """Return the text of a file, or of the standard input.

    Raises:
        UserError: It cannot be read, or is not text.
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UserError(f"--file: {path}: {error.strerror}", remedy="Pass a file of text.") from error
    return decoded(raw, None)[0]
