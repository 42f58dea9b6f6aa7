"""`mcframe serve`: a trained model over OpenAI's API."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from mcframe.cli.load_run import TrainedRun, load_run
from mcframe.cli.options import Run, Trust, command
from mcframe.cli.session_options import (
    Assistant,
    Budget,
    NoRefocus,
    Plain,
    RefocusEvery,
    Sessions,
    Sink,
    System,
    Tail,
    User,
    chat_labels,
    chat_template,
    session_config_of,
    store_of,
)
from mcframe.cli.streams import echo
from mcframe.errors import UserError
from mcframe.registry.discovery import PluginOptions
from mcframe.runtime.chat_template import ChatTemplate

if TYPE_CHECKING:
    from mcframe.runtime.generation import Served

KEY = "MCFRAME_API_KEY"
_GRACE_S = 10


@command
def serve(
    plugins: PluginOptions,
    run: Run,
    host: Annotated[str, typer.Option(help="Address; others than this machine's need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = a free one.")] = 8000,
    budget: Budget = None,
    sink: Sink = None,
    tail: Tail = None,
    refocus_every: RefocusEvery = None,
    no_refocus: NoRefocus = False,
    sessions: Sessions = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the run's folder.")] = None,
    user: User = ChatTemplate.user,
    assistant: Assistant = ChatTemplate.assistant,
    plain: Plain = False,
    system_label: System = ChatTemplate.system,
    concurrent: Annotated[int, typer.Option(min=1, help="Requests at a time; more get 429.")] = 16,
    body_mib: Annotated[int, typer.Option("--body-mib", min=1, help="Largest body; larger ones get 413.")] = 16,
    max_sessions: Annotated[int, typer.Option(min=1, help="Sessions that are kept.")] = 1000,
    open_sessions: Annotated[int, typer.Option(min=0, help="Sessions that stay open between requests.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that a request may generate.")] = 4096,
    seconds: Annotated[float, typer.Option(min=1, help="Time of a request.")] = 600.0,
    trust: Trust = False,
) -> int:
    """Serve a model over OpenAI's API, with a page at /. MCFRAME_API_KEY is the key that requests need."""
    try:
        import uvicorn  # noqa: F401

        from mcframe.runtime.generation import Served, ServerLimits
        from mcframe.runtime.server_metrics import ServerMetrics
    except ImportError as error:
        raise UserError(
            f"mcframe serve: missing the package {error.name}", remedy="Install it: pip install 'mcframe[serve]'."
        ) from error
    local, key = _is_local(host), os.environ.get(KEY, "")
    if not local and not key:
        raise UserError(
            f"--host: expected an address of this machine without a key, got {host}",
            remedy=f"Set {KEY}, or pass --host 127.0.0.1.",
        )
    limits = ServerLimits(
        concurrent=concurrent, body_bytes=body_mib * 2**20, sessions=max_sessions, open_sessions=open_sessions,
        tokens=max_tokens, seconds=seconds,
    )  # fmt: skip
    labels = chat_labels(user, assistant, system_label)
    trained = load_run(run, plugins=plugins, trust=trust)
    template = chat_template(trained, labels, plain=plain)
    config = session_config_of(budget, sink, tail, refocus_every, no_refocus)
    store = store_of(trained, sessions, config, max_sessions, open_sessions)
    store.open_session(None).close()  # settings that do not fit the run are reported at once
    served = Served(
        name or _name(trained), trained.tokenizer, store, template, limits, ServerMetrics(), threading.Event()
    )  # fmt: skip
    return _listen(served, host, port, key)


def _listen(served: Served, host: str, port: int, key: str) -> int:
    """Serve until a signal ends it; answers that are under way end within seconds, and sessions are saved."""
    import uvicorn

    from mcframe.runtime.server import Server

    listener = _bound(host, port)
    config = uvicorn.Config(
        Server(served, key).app, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=_GRACE_S, timeout_keep_alive=30,
        limit_concurrency=max(64, 8 * served.limits.concurrent),
    )  # fmt: skip

    class Http(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            served.closing.set()
            super().handle_exit(sig, frame)

    shown = f"[{host}]" if ":" in host else host
    echo(f"serving {served.name} at http://{shown}:{listener.getsockname()[1]}/  (Ctrl-C ends)")
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after it has ended
        Http(config).run(sockets=[listener])
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        UserError: The address is in use, or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen at {host} port {port}: {error.strerror}", remedy="Pass another --port or --host."
        ) from error
    return listener


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(trained: TrainedRun) -> str:
    """Return the name of a run's folder."""
    return trained.directory.resolve().name
