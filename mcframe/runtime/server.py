"""An HTTP server with OpenAI's API over sessions of one model, and a page that shows a session."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mcframe.errors import UserError
from mcframe.runtime.api_requests import ChatRequest, CompletionRequest, RequestError, parsed
from mcframe.runtime.generation import Item, Job, Served, error_event

_PAGE = Path(__file__).with_name("page.html")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_OPEN = ("/", "/health")
"""Paths that need no key."""

_LOCAL = ("127.0.0.1", "localhost", "[::1]")


class Server:
    """The application.

    Args:
        served: Model, sessions and limits.
        key: The API key that requests must have. Without one only names of this machine are accepted as the host,
            which pages of other sites cannot use.
    """

    def __init__(self, served: Served, key: str = "") -> None:
        self.served, self.running = served, 0
        self._workers = ThreadPoolExecutor(served.limits.concurrent, "generate")
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/completions", self._generation(CompletionRequest), methods=["POST"]),
            Route("/v1/chat/completions", self._generation(ChatRequest), methods=["POST"]),
            Route("/v1/sessions", self._sessions),
            Route("/v1/sessions/{name}", self._session, methods=["GET", "DELETE"]),
        ]
        handlers: dict[Any, Any] = {
            RequestError: _request_error, UserError: _user_error, HTTPException: _http_error, Exception: _failure
        }  # fmt: skip
        guard = Middleware(_Guard, key=key, served=served)
        self.app = Starlette(
            routes=routes, exception_handlers=handlers, middleware=[guard], lifespan=self._lifespan
        )  # fmt: skip

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.served.closing.set()
        await asyncio.to_thread(self._workers.shutdown)
        self.served.store.close_all()

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(_PAGE.read_text("utf-8"), headers={"Content-Security-Policy": _POLICY})

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self.served.name, "running": self.running})

    async def _metrics(self, request: Request) -> Response:
        self.served.metrics.running.set(self.running)
        self.served.metrics.open_sessions.set(self.served.store.open_count)
        return Response(self.served.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self.served.name, "object": "model", "created": 0, "owned_by": "mcframe"}

    def _check_model(self, name: str) -> None:
        if name != self.served.name:
            message = f"model: expected {self.served.name!r}, got {name[:64]!r}"
            raise RequestError(404, message, "model", "model_not_found")

    async def _sessions(self, request: Request) -> Response:
        store = self.served.store
        data = await asyncio.to_thread(lambda: [store.record(name) for name in store.names()])
        return JSONResponse({"object": "list", "data": data})

    async def _session(self, request: Request) -> Response:
        name, store = request.path_params["name"], self.served.store
        if request.method == "DELETE":
            if store.show(name)["busy"]:
                raise RequestError(409, f"session: {name!r} is in use by a request", "session", "session_busy")
            await asyncio.to_thread(store.delete, name, lambda: False)
            return JSONResponse({"id": name, "object": "session.deleted", "deleted": True})
        return JSONResponse(await asyncio.to_thread(store.show, name))

    def _generation(
        self, kind: type[CompletionRequest] | type[ChatRequest]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            body = await _body(request, self.served.limits.body_bytes, self.served.limits.seconds)
            found = await asyncio.to_thread(self._checked, kind, body, request.headers.get("x-session-id"))
            return self._started(found)

        return endpoint

    def _checked(
        self, kind: type[CompletionRequest] | type[ChatRequest], body: bytes, session: str | None
    ) -> CompletionRequest | ChatRequest:
        """Return a body as a request that this model can answer."""
        found: CompletionRequest | ChatRequest = parsed(kind, body)
        self._check_model(found.model)
        if session is not None and found.session is None:
            found = found.model_copy(update={"session": session})
            parsed(kind, found.model_dump_json(exclude_none=True).encode())
        most, size = self.served.limits.tokens, self.served.tokenizer.vocab_size
        for name in ("max_tokens", "max_completion_tokens"):
            if (getattr(found, name, None) or 0) > most:
                raise RequestError(400, f"{name}: expected at most {most}, got {getattr(found, name)}", name)
        for ids in found.prompt if isinstance(found, CompletionRequest) else ():
            if not isinstance(ids, str) and max(ids, default=0) >= size:
                message = f"prompt: expected token ids from 0 to {size - 1}, got {max(ids)}"
                raise RequestError(400, message, "prompt")
        return found

    def _started(self, request: CompletionRequest | ChatRequest) -> Response:
        """Start to answer a request.

        Raises:
            RequestError: Too many requests are answered already.
        """
        if self.served.closing.is_set():
            raise RequestError(503, "the server is shutting down")
        if self.running >= self.served.limits.concurrent:
            message = f"expected at most {self.served.limits.concurrent} requests at a time; try again"
            raise RequestError(429, message, code="too_many_requests")
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item]()

        def release() -> None:
            self.running -= 1

        job = Job(
            request,
            self.served,
            lambda item: _call(loop, items.put_nowait, item),
            lambda: _call(loop, release),
        )
        self.running += 1
        self._workers.submit(job.run)
        return _Answer(job, items)


class _Answer(Response):
    """The answer of a job: JSON or a stream. The job ends when the client has gone."""

    def __init__(self, job: Job, items: asyncio.Queue[Item]) -> None:
        super().__init__()
        self._job, self._items = job, items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(self._watch(receive))
        try:
            first = await self._items.get()
            if isinstance(first, RequestError):
                await _json(first)(scope, receive, send)
            elif isinstance(first, dict):
                await JSONResponse(first)(scope, receive, send)
            else:
                await self._stream(first, send)
        except OSError:
            pass  # the client has gone
        finally:
            self._job.cancelled.set()
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._job.cancelled.set()

    async def _stream(self, item: Item, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while item is not None:
            chunk = error_event(item) if isinstance(item, RequestError) else item
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            item = await self._items.get()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Guard:
    """Check the key, and that no web page of another site sends the request; count answers."""

    def __init__(self, app: ASGIApp, key: str, served: Served) -> None:
        self.app, self._key, self._served = app, key, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._served.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        error = self._error(Request(scope))
        await (self.app if error is None else _json(error))(scope, receive, counted)

    def _error(self, request: Request) -> RequestError | None:
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if not self._key and _without_port(host) not in _LOCAL:
            return RequestError(403, f"host: expected one of {', '.join(_LOCAL)}", code="host_not_allowed")
        if origin is not None and origin.split("://")[-1] != host:
            return RequestError(403, "origin: requests of other sites are refused", code="origin_not_allowed")
        if not self._key or request.url.path in _OPEN:
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self._key.encode()):
            return None
        return RequestError(
            401, "authorization: expected 'Bearer KEY' with the key of this server", code="invalid_api_key"
        )


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


async def _body(request: Request, limit: int, seconds: float) -> bytes:
    """Return the body of a request.

    A body that is too large is read to its end, within reason, because clients read no answer before.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > 4 * limit:
                    break
    except TimeoutError:
        raise RequestError(408, f"the body: expected all of it within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise RequestError(400, "the body: incomplete") from None
    if size > limit:
        raise RequestError(413, f"the body: expected at most {limit} bytes, got more", code="body_too_large")
    return b"".join(parts)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in the loop, unless it has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *arguments)


def _json(error: RequestError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body, error.status, headers)


def _request_error(request: Request, error: RequestError) -> Response:
    return _json(error)


def _user_error(request: Request, error: UserError) -> Response:
    return _json(RequestError(500, f"{error.message}. {error.remedy}"))


def _http_error(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return JSONResponse(RequestError(error.status_code, message).body, error.status_code, error.headers)


def _failure(request: Request, error: Exception) -> Response:
    return _json(RequestError(500, "the server failed; its log has the cause"))
