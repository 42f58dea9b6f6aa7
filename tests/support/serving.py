"""A server in a thread over sessions of a small random model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn

from mcframe.runtime.chat_template import ChatTemplate
from mcframe.runtime.generation import Served, ServerLimits
from mcframe.runtime.gist_encoder import history_shape
from mcframe.runtime.history import META, History
from mcframe.runtime.server import Server
from mcframe.runtime.server_metrics import ServerMetrics
from mcframe.runtime.session import Session
from mcframe.runtime.session_config import SessionDefaults
from mcframe.runtime.session_store import SessionStore
from mcframe_plugins.allocator import GreedyAllocator
from tests.support.modeling_builders import VOCABULARY
from tests.support.runtime_models import Digits, small_model

NAME = "tiny"


def opener(seed: int = 3, budget: int = 60):
    """Return a function that opens a session of a small model, in a folder or in memory."""
    model = small_model(seed, gistnet="transformer", lensnet="transformer", levels=3)
    with torch.no_grad():
        for parameter in model.gpt.parameters():
            parameter.mul_(2)  # draws depend on the context
    config = SessionDefaults(budget=budget).config(model.tree)

    def open_session(folder: Path | None) -> Session:
        shape = history_shape(model, VOCABULARY)
        known = folder is not None and (folder / META).exists()
        history = History.open(folder, shape) if folder is not None and known else History.create(shape, folder)
        return Session(model, Digits(), GreedyAllocator, history, config)

    return open_session


@contextmanager
def serving(folder: Path, key: str = "", **limits: float) -> Iterator[tuple[str, Server]]:
    """Run a server on a free port; yield its address and the server."""
    bounds = ServerLimits(**limits)
    store = SessionStore(folder, opener(), bounds.sessions, bounds.open_sessions)
    served = Served(NAME, Digits(), store, ChatTemplate(), bounds, ServerMetrics(), threading.Event())
    server = Server(served, key)
    http = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=http.run)
    thread.start()
    try:
        while not http.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}", server
    finally:
        served.closing.set()
        http.should_exit = True
        thread.join()
