"""`mcframe chat`: a chat with a trained model in the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from mcframe.cli.generate import begin, write
from mcframe.cli.load_run import load_run
from mcframe.cli.options import Run, Trust, command
from mcframe.cli.session_options import (
    Assistant,
    Budget,
    MinP,
    Name,
    NoRefocus,
    Penalty,
    Plain,
    RefocusEvery,
    Seed,
    Sessions,
    Sink,
    Tail,
    Temperature,
    Tokens,
    TopK,
    TopP,
    User,
    chat_labels,
    chat_template,
    checked_name,
    plain_text,
    report_line,
    session_config_of,
    store_of,
)
from mcframe.cli.user_errors import show
from mcframe.errors import UserError
from mcframe.metrics.context_text import colored, key
from mcframe.registry.discovery import PluginOptions
from mcframe.runtime.chat_template import AnswerText, ChatTemplate, PlainMessage, Transcript
from mcframe.runtime.sampling import Sampling
from mcframe.runtime.session_store import Conversation, SessionStore

HELP = """/context  show the working context by level of detail, and the session's costs
/save [NAME]  save the session, or a copy; `--session NAME` continues it
/reset  forget the history
/quit  end; so does the end of the input
Ctrl-C stops an answer."""


@command
def chat(
    plugins: PluginOptions,
    run: Run,
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
    user: User = ChatTemplate.user,
    assistant: Assistant = ChatTemplate.assistant,
    plain: Plain = False,
    strip: Annotated[bool, typer.Option("--strip", help="Show the working context after each answer.")] = False,
    trust: Trust = False,
) -> int:
    """Chat with a model. The history has no end: /context shows what of it is in the context, and in what detail."""
    options = {"repetition_penalty": repetition_penalty, "temperature": temperature, "top_k": top_k}
    sampling = Sampling(**options, top_p=top_p, min_p=min_p, seed=seed)  # type: ignore[arg-type]
    labels = chat_labels(user, assistant)
    trained = load_run(run, plugins=plugins, trust=trust)
    template = chat_template(trained, labels, plain=plain)
    store = store_of(trained, sessions, session_config_of(budget, sink, tail, refocus_every, no_refocus))
    talk = Chat(store, template, sampling, tokens, strip)
    talk.open(checked_name(session))
    try:
        with trained.loaded.explaining():
            talk.run()
    finally:
        talk.close()
    return 0


class Chat:
    """A chat in the terminal.

    Args:
        store: The sessions that are kept.
        template: Turns.
        sampling: Settings of sampling; with a seed, turn n has the seed plus n.
        tokens: The most tokens of an answer.
        strip: Whether the context is shown after each answer.
    """

    def __init__(
        self, store: SessionStore, template: ChatTemplate, sampling: Sampling, tokens: int, strip: bool
    ) -> None:
        self.store, self.template, self.sampling = store, template, sampling
        self.tokens, self.strip = tokens, strip
        self._console = Console()
        self._name: str | None = None
        self._conversation: Conversation | None = None
        self._copies: set[str] = set()

    def open(self, name: str | None) -> None:
        """Open a session by name, or one in memory."""
        self._name = name
        self._conversation = Conversation(self.store.open_session(None)) if name is None else self.store.open(name)

    def close(self) -> None:
        """Save the session if it has a name, and close it."""
        conversation, self._conversation = self._conversation, None
        if conversation is None:
            return
        if self._name is None:
            conversation.session.close()
        else:
            self.store.save(self._name, conversation)
            self.store.close(self._name)

    @property
    def conversation(self) -> Conversation:
        """The session that is open."""
        assert self._conversation is not None
        return self._conversation

    def run(self) -> None:
        """Read lines and answer them until the end of the input."""
        interactive = sys.stdin.isatty()
        while True:
            try:
                line = plain_text(input(f"{self.template.user} " if interactive else ""))
            except EOFError:
                return
            except KeyboardInterrupt as error:
                if getattr(error, "number", signal.SIGINT) != signal.SIGINT or not interactive:
                    raise
                write("\n")
                return
            word, _, rest = line.strip().partition(" ")
            if word == "/quit":
                return
            try:
                self._command(word, rest.strip()) if word.startswith("/") else self._answer(line)
            except UserError as error:
                show(error)

    def _command(self, word: str, rest: str) -> None:
        if word == "/context":
            self._context()
        elif word == "/save":
            self._save(checked_name(rest or self._name))
        elif word == "/reset":
            self._reset()
        else:
            write(f"{HELP}\n")

    def _answer(self, line: str) -> None:
        """Append a turn and stream the answer."""
        if not line.strip():
            return
        session, transcript, answer = self.conversation.session, self.conversation.transcript, AnswerText()
        message = PlainMessage("user", line)
        begin(self.conversation, self.template.prompt([message], transcript.pending, transcript.roles))
        transcript.add([message])
        write(f"{self.template.assistant} ")
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = Sampling(**{**vars(sampling), "seed": (sampling.seed + transcript.messages) % 2**64})
        with _interruptible() as stopped:
            for piece in session.generate(self.tokens, sampling, self.template.stop, self.template.ends):
                write(answer.add(piece.token, piece.text))
                if stopped:
                    break
        write("\n")
        transcript.pending = self.template.pending(answer, session.tokenizer)
        transcript.add([PlainMessage("assistant", answer.text)])
        if self.strip:
            self._context()

    def _context(self) -> None:
        """Show the context, a character a block, and the costs."""
        focus = self.conversation.session.focus
        if focus is None:
            write("the context is empty: nothing was generated yet\n")
            return
        tree = focus.window.tree
        self._console.print(colored(focus.window.focus[0].tolist(), tree))
        self._console.print(key(tree))
        self._console.print(report_line(self.conversation), highlight=False)

    def _save(self, name: str | None) -> None:
        """Save the session, or a copy of it under another name."""
        if name is None:
            raise UserError("/save: missing a name", remedy="Type /save NAME.")
        conversation = self.conversation
        if name != self._name:
            conversation = self._copy(name)
        self.store.save(name, conversation)
        if name != self._name:
            self.store.close(name)
        write(f"saved {conversation.session.history.tokens:,} tokens in {self.store.folder / name}\n")

    def _copy(self, name: str) -> Conversation:
        """Return a new session with this history. A copy that this chat has made before is replaced."""
        if name in self._copies:
            self.store.delete(name, lambda: True)
        elif name in self.store.names():
            raise UserError(f"/save: the session {name!r} exists already", remedy="Type another name.")
        self._copies.add(name)
        copy, history = self.store.open(name), self.conversation.session.history
        copy.session.append(history.read_tokens(0, history.tokens))
        copy.transcript = Transcript(**vars(self.conversation.transcript))
        return copy

    def _reset(self) -> None:
        name = self._name
        self.close()
        if name is not None:
            self.store.delete(name, lambda: True)
        self.open(name)
        write("the history is empty\n")


@contextmanager
def _interruptible() -> Iterator[list[Any]]:
    """Collect interrupts instead of raising them, so that no token is left half-computed; the second one is raised."""
    stopped: list[Any] = []
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if stopped and callable(before):
            before(number, frame)
        stopped.append(number)

    signal.signal(signal.SIGINT, handle)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
