"""Sessions by name: folders that outlive requests and the process; a few are open at a time."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mcframe.errors import UserError
from mcframe.files import replaced
from mcframe.runtime.api_requests import NAME, RequestError
from mcframe.runtime.chat_template import Transcript
from mcframe.runtime.session import Session

RECORD = "conversation.json"
"""Name of the file with what the server keeps of a session, in its folder."""


@dataclass
class Conversation:
    """A session that is open, and the messages that it holds."""

    session: Session
    transcript: Transcript = field(default_factory=Transcript)
    created: int = field(default_factory=lambda: int(time.time()))


class SessionStore:
    """Open, keep and delete sessions.

    Args:
        folder: Has a folder for each session.
        open_session: Opens the session of a folder, or one in memory for None.
        most: The most sessions that are kept.
        most_open: The most that stay open between requests; an open one holds the keys and values of its context.
    """

    def __init__(self, folder: Path, open_session: Callable[[Path | None], Session], most: int, most_open: int) -> None:
        self.folder, self.open_session, self.most, self.most_open = folder, open_session, most, most_open
        self._open: OrderedDict[str, Conversation] = OrderedDict()
        self._locks: dict[str, threading.Lock] = {}
        self._users: dict[str, int] = {}
        self._own = threading.Lock()

    @contextmanager
    def use(self, name: str, ended: Callable[[], bool]) -> Iterator[Conversation]:
        """Hold a session, which is made if it is new; it is saved at the end, or forgotten after an error.

        Args:
            name: The session.
            ended: Whether to stop waiting for another request that uses it.
        """
        with self._held(name, ended):
            conversation = self.open(name)
            try:
                yield conversation
                self.save(name, conversation)
            except BaseException:
                self.close(name)  # the next request opens what was saved
                raise
        self._close_old()

    @contextmanager
    def stateless(self) -> Iterator[Conversation]:
        """Hold a session that is not kept."""
        conversation = Conversation(self.open_session(None))
        try:
            yield conversation
        finally:
            conversation.session.close()

    def names(self) -> list[str]:
        """Return the names of all sessions."""
        return sorted(each.parent.name for each in self.folder.glob(f"*/{RECORD}"))

    def record(self, name: str) -> dict[str, Any]:
        """Return what is known of a session without opening it.

        Raises:
            RequestError: Missing.
        """
        if not NAME.fullmatch(name) or not self._path(name).exists():
            raise RequestError(404, f"session: no session {name[:64]!r}", "session", "session_not_found")
        return {"id": name, "object": "session", "open": name in self._open, **self._read(name)}

    def show(self, name: str) -> dict[str, Any]:
        """Return a record with the report and the context of a session that is open and idle."""
        record = self.record(name)
        with self._own:
            conversation = self._open.get(name)
            if conversation is None or self._users.get(name):
                return record | {"busy": bool(self._users.get(name))}
            return record | {"busy": False} | context_of(conversation.session)

    def delete(self, name: str, ended: Callable[[], bool]) -> None:
        """Delete a session and its history.

        Raises:
            RequestError: Missing.
        """
        self.record(name)
        with self._held(name, ended):
            self.record(name)  # another request may have deleted it
            self.close(name)
            self._path(name).unlink()
            shutil.rmtree(self.folder / name)

    def close_all(self) -> None:
        """Close every session that is open. Requests save theirs when they end."""
        for name in list(self._open):
            self.close(name)

    @property
    def open_count(self) -> int:
        """Sessions that are open."""
        return len(self._open)

    @contextmanager
    def _held(self, name: str, ended: Callable[[], bool]) -> Iterator[None]:
        with self._own:
            lock = self._locks.setdefault(name, threading.Lock())
            self._users[name] = self._users.get(name, 0) + 1
        try:
            while not lock.acquire(timeout=0.1):
                if ended():
                    raise RequestError(
                        429, f"session: {name!r} is in use by another request", "session", "session_busy"
                    )
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._own:
                self._users[name] -= 1
                if not self._users[name]:  # locks of names that are not in use do not collect
                    del self._users[name], self._locks[name]

    def open(self, name: str) -> Conversation:
        """Return a session, opened or made; for a caller that holds it, or that is alone."""
        with self._own:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
            known = self._path(name).exists()
            if not known and len(self.names()) >= self.most:
                message = f"session: expected at most {self.most} sessions; delete one first"
                raise RequestError(429, message, "session", "too_many_sessions")
            if not known:  # counts from now on
                self._write(name, {"created": int(time.time()), "tokens": 0, "transcript": asdict(Transcript())})
        record = self._read(name)
        session = self.open_session(self.folder / name)
        conversation = Conversation(session, Transcript(**record["transcript"]), record["created"])
        with self._own:
            self._open[name] = conversation
        return conversation

    def save(self, name: str, conversation: Conversation) -> None:
        """Write a session and its record."""
        conversation.session.save()
        tokens = conversation.session.history.tokens
        record = {
            "created": conversation.created, "tokens": tokens, "transcript": asdict(conversation.transcript)
        }  # fmt: skip
        self._write(name, record)

    def _read(self, name: str) -> dict[str, Any]:
        """Return the record of a session.

        Raises:
            UserError: It is damaged.
        """
        path = self._path(name)
        try:
            record = json.loads(path.read_text("utf-8"))
            Transcript(**record["transcript"])
            return {"created": int(record["created"]), "tokens": int(record["tokens"]), **record}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: expected the record of a session", remedy="Restore the file, or delete the folder."
            ) from error

    def _write(self, name: str, record: dict[str, Any]) -> None:
        with replaced(self._path(name)) as path:
            path.write_text(json.dumps(record), "utf-8")

    def _close_old(self) -> None:
        """Close sessions that were not used for longest, while more are open than may be."""
        with self._own:
            idle = [name for name in self._open if not self._users.get(name)]
            for name in idle[: max(0, len(self._open) - self.most_open)]:
                self._open.pop(name).session.close()

    def close(self, name: str) -> None:
        """Close a session if it is open; what was not saved is lost."""
        with self._own:
            conversation = self._open.pop(name, None)
            if conversation is not None:
                conversation.session.close()

    def _path(self, name: str) -> Path:
        return self.folder / name / RECORD


def context_of(session: Session) -> dict[str, Any]:
    """Return the report of a session, and its context as [LOD, first token, tokens, change] of each node."""
    focus = session.focus
    return {
        "report": asdict(session.report),
        "context": [[span.lod, span.first, span.tokens, span.change] for span in session.strip],
        "expanded": [] if focus is None else list(focus.expanded),
        "collapsed": [] if focus is None else list(focus.collapsed),
        "block_size": session.model.tree.block_size,
        "budget": session.config.budget,
    }
