"""The server as an ASGI application: OpenAI's endpoints, adapters, vLLM's loading of adapters, health and metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from t2l_jax.algebra import mix
from t2l_jax.errors import UserError
from t2l_jax.io.peft import load_peft
from t2l_jax.llm import LLM
from t2l_jax.serving import page
from t2l_jax.serving.about import Nearest, norms_of
from t2l_jax.serving.adapters import MIXED, Entry, Registry, Unknown, below, from_zip, most_bytes, to_gguf, to_zip
from t2l_jax.serving.choices import Choices, prompts_of
from t2l_jax.serving.described import PREFIX
from t2l_jax.serving.engine import Busy, Engine
from t2l_jax.serving.http import Gate, Refused, begin_events, body_of, busy, event, while_connected
from t2l_jax.serving.metrics import exposition
from t2l_jax.serving.openai import ChatShape, Shape, TextShape
from t2l_jax.serving.schemas import (
    ChatCompletion,
    Completion,
    LoadAdapter,
    NewAdapter,
    TextCompletion,
    UnloadAdapter,
    parsed,
)

OWNER = "t2l_jax"


@dataclass
class Server:
    """What the endpoints share. `name` is the base model's, `folder` where adapters may be loaded from."""

    llm: LLM
    engine: Engine
    registry: Registry
    folder: Path | None = None
    seconds: float = 600.0
    """How long a completion may take."""
    _uploading: asyncio.Lock = field(default_factory=asyncio.Lock)  # one at a time, so that memory is enough
    _prompts: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "prompts"))
    _comparing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "comparing"))
    _nearest: Nearest = field(init=False)

    @property
    def name(self) -> str:
        return self.registry.model.config.base_name

    def __post_init__(self) -> None:
        self._nearest = Nearest(self.registry.model)

    async def health(self, request: Request) -> Response:
        alive = self.engine.alive and self.registry.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def models(self, request: Request) -> Response:
        base = {"id": self.name, "object": "model", "created": 0, "owned_by": OWNER, "root": self.name, "parent": None}
        return JSONResponse({"object": "list", "data": [base, *map(self._model, self.registry.named())]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name == self.name:
            return JSONResponse({"id": name, "object": "model", "created": 0, "owned_by": OWNER})
        return JSONResponse(self._model(self._get(name)))

    async def chat(self, request: Request) -> Response:
        return await self._complete(request, ChatCompletion, ChatShape)

    async def text(self, request: Request) -> Response:
        return await self._complete(request, TextCompletion, TextShape)

    async def list_adapters(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._adapter(entry) for entry in self.registry.named()]})

    async def make_adapter(self, request: Request) -> Response:
        body = parsed(NewAdapter, await body_of(request))
        if (body.description is None) == (body.mix is None):
            raise Refused(400, "give either a description or a mix", "description")
        if body.name is not None:
            with _refusing("name"):
                self.registry.check(body.name)
        return await while_connected(request.receive, self._make(body))

    async def get_adapter(self, request: Request) -> Response:
        return JSONResponse(self._adapter(self._get(request.path_params["name"])))

    async def delete_adapter(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.registry.remove(self._get(name).name)
        return JSONResponse({"id": name, "object": "adapter", "deleted": True})

    async def norms(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(norms_of, self._get(request.path_params["name"])))

    async def nearest(self, request: Request) -> Response:
        entry = self._get(request.path_params["name"])
        with _refusing("name"):
            found = await asyncio.get_running_loop().run_in_executor(self._comparing, self._nearest.to, entry)
        return JSONResponse(found)

    async def download_peft(self, request: Request) -> Response:
        entry = self._get(request.path_params["name"])
        with _refusing("name"):
            data = await asyncio.to_thread(to_zip, entry, self.name)
        return _file(data, f"{_stem(entry)}.zip", "application/zip")

    async def download_gguf(self, request: Request) -> Response:
        entry = self._get(request.path_params["name"])
        with _refusing("name"):
            data = await asyncio.to_thread(to_gguf, entry, self.registry.model)
        return _file(data, f"{_stem(entry)}.gguf", "application/octet-stream")

    async def examples(self, request: Request) -> Response:
        examples = [example.model_dump() for example in self.registry.model.descriptions.examples]
        return JSONResponse({"base": self.name, "examples": examples})

    async def upload(self, request: Request) -> Response:
        name, registry = request.path_params["name"], self.registry
        with _refusing("name"):
            registry.check(name)
        async with self._uploading:
            data = await body_of(request, most_bytes(registry.spec))
            with _refusing(None):
                adapter = await asyncio.to_thread(from_zip, data, registry.base, registry.spec)
                entry = registry.add(Entry(name, adapter, "upload"))
        return JSONResponse(self._adapter(entry), 201)

    async def load(self, request: Request) -> Response:
        body = parsed(LoadAdapter, await body_of(request))
        with _refusing("lora_name"):
            self.registry.check(body.lora_name, replace=body.load_inplace)
        with _refusing("lora_path"):
            path = below(self.folder, body.lora_path)
            try:
                adapter = await asyncio.to_thread(
                    load_peft, path, self.registry.base, most_rank=self.registry.spec.rank
                )
            except UserError as error:  # where the folder lies is nobody's business
                raise UserError(str(error).replace(str(path), "the folder")) from error
            self.registry.add(Entry(body.lora_name, adapter, "folder"), replace=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        body = parsed(UnloadAdapter, await body_of(request))
        self.registry.remove(self._get(body.lora_name, "lora_name").name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def close(self, *, drain: bool = True) -> None:
        """End the threads: after the jobs that they have, or at once."""
        self._nearest.close()
        self.engine.close(drain=drain)
        self.registry.close()
        self._prompts.shutdown()
        self._comparing.shutdown()

    async def _complete(self, request: Request, kind: type[Completion], shape: type[Shape]) -> Response:
        body = parsed(kind, await body_of(request))
        if body.stream:
            return _Streamed(partial(self._stream, body, shape))
        return JSONResponse(await while_connected(request.receive, self._reply(body, shape)))

    async def _reply(self, body: Completion, shape: type[Shape]) -> dict[str, Any]:
        prompts = await self._prepared(body)
        with await self._using(body.model) as entry, self._choices(body, prompts, entry) as choices:
            return await shape(choices).reply()

    async def _stream(self, body: Completion, shape: type[Shape], send: Send) -> None:
        """Send a reply in chunks. Before the first one it may raise Refused; later an event says what is wrong."""
        prompts = await self._prepared(body)
        with await self._using(body.model) as entry, self._choices(body, prompts, entry) as choices:
            await begin_events(send)
            try:
                async for chunk in shape(choices).chunks():
                    await send({"type": "http.response.body", "body": event(chunk), "more_body": True})
            except Refused as refused:
                await send({"type": "http.response.body", "body": event(refused.body()), "more_body": True})
            await send({"type": "http.response.body", "body": event("[DONE]")})

    async def _prepared(self, body: Completion) -> Any:
        with _refusing("prompt" if isinstance(body, TextCompletion) else "messages"):
            return await asyncio.get_running_loop().run_in_executor(self._prompts, prompts_of, self.llm, body)

    def _choices(self, body: Completion, prompts: Any, entry: Entry | None) -> Choices:
        adapter = None if entry is None else entry.adapter
        return Choices(self.engine, self.llm, body, prompts, adapter, self.seconds)

    async def _using(self, name: str) -> AbstractContextManager[Entry | None]:
        """The adapter that a model's name stands for, kept for a block; None for the base."""
        if name == self.name:
            return nullcontext()
        return self.registry.using(await self._found(name, "model"))

    async def _found(self, name: str, param: str) -> Entry:
        """The adapter of a name, or of the description in it."""
        with _refusing(param):
            future = self.registry.find(name)
            return await asyncio.shield(asyncio.wrap_future(future))

    async def _make(self, body: NewAdapter) -> Response:
        registry, name = self.registry, body.name
        if body.description is not None:
            found = await self._found(PREFIX + body.description, "description")
            if name is None:
                return JSONResponse(self._adapter(found), 201)
            entry = replace(found, name=name, created=int(time.time()), users=0)
        else:
            parts = [await self._found(share.name, "mix") for share in body.mix or ()]
            weights = [share.weight for share in body.mix or ()]
            for part in parts:
                if part.origin in ("upload", "folder"):
                    raise Refused(
                        400, f"{part.name} was not generated here: its factors do not add up with others", "mix"
                    )
            with _refusing("mix"):
                adapter = await asyncio.to_thread(mix, [part.adapter for part in parts], weights)
            if name is None:
                return JSONResponse(self._adapter(registry.keep(adapter)), 201)
            entry = Entry(name, adapter, "mix")
        with _refusing("name"):
            return JSONResponse(self._adapter(registry.add(entry)), 201)

    def _get(self, name: str, param: str = "name") -> Entry:
        with _refusing(param):
            return self.registry.get(name)

    def _model(self, entry: Entry) -> dict[str, Any]:
        return {
            "id": entry.name,
            "object": "model",
            "created": entry.created,
            "owned_by": OWNER,
            "root": entry.name,
            "parent": self.name,
        }

    def _adapter(self, entry: Entry) -> dict[str, Any]:
        spec = entry.adapter.spec
        return {
            "id": entry.name,
            "object": "adapter",
            "created": entry.created,
            "base": self.name,
            "origin": entry.origin,
            "description": entry.description,
            "modules": list(spec.names),
            "rank": spec.rank,
            "parameters": spec.size,
            "seconds": entry.seconds,
        }


def _stem(entry: Entry) -> str:
    return entry.name.removeprefix(PREFIX).removeprefix(MIXED)[:80].strip(". ") or "adapter"


def _file(data: bytes, name: str, kind: str) -> Response:
    """A file to be saved under this name."""
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
    return Response(data, headers=headers, media_type=kind)


class _Streamed(Response):
    """A reply that is sent piece by piece, until the client goes away."""

    def __init__(self, work: Callable[[Send], Coroutine[Any, Any, None]]) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await while_connected(receive, self._work(send))


class _refusing(AbstractContextManager[None]):
    """Errors of the block as replies; `param` is the field that is to blame."""

    def __init__(self, param: str | None) -> None:
        self._param = param

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Unknown):
            name = str(error)[:80]
            raise Refused(404, f"the model {name!r} does not exist", self._param, "model_not_found") from error
        if isinstance(error, UserError):
            raise Refused(400, str(error), self._param) from error
        if isinstance(error, Busy):
            raise busy() from error


class _Name(Convertor[str]):
    """Any name in a path: slashes and line breaks may be in a description."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", _Name())


def application(server: Server, key: str | None = None, hosts: frozenset[str] | None = None) -> Gate:
    """The ASGI application of a server; with a key, only for those who send it. It closes the server when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(exposition(server.engine, server.registry, gate.replies))

    routes = [
        *page.routes(framed=key is not None),  # notebooks do; without a key, clicks could be stolen
        Route("/health", server.health),
        Route("/metrics", metrics),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:name}", server.model),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.text, methods=["POST"]),
        Route("/v1/examples", server.examples),
        Route("/v1/adapters", server.list_adapters),
        Route("/v1/adapters", server.make_adapter, methods=["POST"]),
        Route("/v1/adapters/{name:name}/norms", server.norms),
        Route("/v1/adapters/{name:name}/nearest", server.nearest),
        Route("/v1/adapters/{name:name}/adapter.gguf", server.download_gguf),
        Route("/v1/adapters/{name:name}/peft.zip", server.download_peft),
        Route("/v1/adapters/{name:name}/peft.zip", server.upload, methods=["PUT"]),
        Route("/v1/adapters/{name:name}", server.get_adapter),
        Route("/v1/adapters/{name:name}", server.delete_adapter, methods=["DELETE"]),
        Route("/v1/load_lora_adapter", server.load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", server.unload, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        Refused: _reply_to,
        HTTPException: _reply_to,
        ClientDisconnect: _reply_to,
        Exception: _reply_to,
    }
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    limits = server.engine.limits
    gate = Gate(app, key, 2 * (limits.rows + limits.queue), hosts, frozenset({"/health", *page.PATHS}))
    return gate


def _reply_to(request: Request, error: Exception) -> Response:
    """An error in OpenAI's form."""
    if isinstance(error, HTTPException):
        error = Refused(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}")
    elif isinstance(error, ClientDisconnect):
        error = Refused(499, "the client went away")
    elif not isinstance(error, Refused):
        error = Refused(500, "the server failed: its log says why")
    return error.response()
