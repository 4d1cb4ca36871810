"""HTTP as OpenAI's clients expect it: errors in their form, keys, bodies of limited size, clients that go away."""

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20  # bytes of JSON
BODY_SECONDS = 60.0  # in which a body must have come
RETRY_AFTER = "1"  # seconds

Found = TypeVar("Found")

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """What a request is answered with instead: a status, a sentence, the field at fault and a code for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = {"Retry-After": RETRY_AFTER} if self.status == 429 else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def busy() -> Refused:
    """Try again later."""
    return Refused(429, "the queue is full: try again in a moment", code="queue_full")


async def body_of(request: Request, most: int = MAX_BODY) -> bytes:
    """The body. Raises Refused if it has more than `most` bytes or does not come."""
    too_large = Refused(413, f"the body has more than {most:,} bytes, the most that is read here", code="too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and len(length) < 20 and int(length) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise too_large
    except TimeoutError as error:
        raise Refused(408, f"the body did not come within {BODY_SECONDS:g} seconds") from error
    return bytes(data)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Found]) -> Found:
    """The result of `work`, which is cancelled if the client goes away: then raises ClientDisconnect."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks: tuple[asyncio.Task[Any], asyncio.Task[Found]] = asyncio.create_task(gone()), asyncio.create_task(work)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[1].done():
            raise ClientDisconnect
        return tasks[1].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event(data: dict[str, Any] | str) -> bytes:
    """A server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


async def begin_events(send: Send) -> None:
    """Begin a stream of server-sent events."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


class Gate:
    """Around the application: the key, and a limit of requests at once. It counts replies.

    Without a key, what a page of another site makes a browser send is refused: by its Origin, and by a name of the host
    (`hosts`; None: any) that is not this machine's. `open_paths` can be read by anybody.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None,
        most: int,
        hosts: frozenset[str] | None = None,
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        self._app, self._key, self._most, self._hosts, self._open = app, key, most, hosts, open_paths
        self._active = 0
        self.replies: Counter[int] = Counter()  # by status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.replies[message["status"]] += 1
            await send(message)

        self._active += 1
        try:
            self._check(scope)
            await self._app(scope, receive, counted)
        except Refused as refused:
            await refused.response()(scope, receive, counted)
        except Exception:  # the application has replied to it
            logging.getLogger(__name__).exception("a request failed")
        finally:
            self._active -= 1

    def _check(self, scope: Scope) -> None:
        if scope["path"] in self._open:
            return
        headers = dict(scope["headers"])
        if self._key is None:
            host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin", b"").decode("latin-1")
            foreign = self._hosts is not None and _name(host) not in self._hosts
            if foreign or (origin and origin.partition("//")[2] != host):
                raise Refused(403, "another site's page asks, and this server has no key: start it with --api-key")
        else:
            given = headers.get(b"authorization", b"")
            if not secrets.compare_digest(given, b"Bearer " + self._key.encode()):
                raise Refused(
                    401, "wrong key, or none: send the header Authorization: Bearer KEY", code="invalid_api_key"
                )
        if self._active > self._most:
            raise busy()


def _name(host: str) -> str | None:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
