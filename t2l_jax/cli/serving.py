"""`t2l serve`: the base model and its adapters behind OpenAI's protocol."""

import os
import queue
import signal
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from t2l_jax.cli.models import ModelLocation
from t2l_jax.errors import UserError

if TYPE_CHECKING:
    from t2l_jax.model import Model
    from t2l_jax.serving.app import Server

KEY_VARIABLE = "T2L_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Serve:
    """Serve the base model and its adapters to OpenAI's clients: chat and text completions, streamed or whole.

    The same address, opened in a browser, is a page to describe tasks, see their adapters and ask them.

    The name of the model in a request is the base model's, that of an adapter, or `t2l:` and a sentence that describes
    a task: its adapter is generated when it is first asked for. Requests with different adapters are decoded together.
    POST /v1/adapters {"name", "description"} gives an adapter a name. SIGTERM stops the server when the requests that
    it has are done.

    Examples:
      t2l serve
      t2l serve --model runs/words/model --port 9000 --api-key secret
      curl http://127.0.0.1:8000/v1/chat/completions -d '{"model": "t2l:Answer with the last word.",
        "messages": [{"role": "user", "content": "red green blue"}], "temperature": 0}'
      python -c 'from openai import OpenAI; client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none");
        print(client.models.list())'
    """

    model: ModelLocation = None
    """Hypernetwork; it determines the base model. Default: the bundled one."""
    adapters: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder below which clients may load PEFT folders by /v1/load_lora_adapter."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only."""
    port: int = 8000
    """Port to listen on; 0 lets the system choose one."""
    api_key: Annotated[str | None, arg(metavar="KEY")] = None
    """Key that clients must send. Default: $T2L_API_KEY, if set."""
    rows: int = 64
    """Number of completions that decode at once, as far as the cache has room for them."""
    cache_tokens: int = 2**16
    """Room of the cache: completions at once times the tokens of the longest, both rounded up to powers of two."""
    context: int = 2048
    """Maximum number of tokens of a completion, with its prompt."""
    queue: int = 256
    """Number of completions that may wait; further ones are told to try again."""
    timeout: float = 600.0
    """Seconds that a completion may take; also how long a stop waits for those that run."""
    max_rank: int | None = None
    """Largest rank of adapters that clients load. Default: the hypernetwork's."""
    trust_remote_code: bool = False
    """Run Python code that comes with the text encoder. Only for an architecture that neither this package nor
    transformers knows; minilm and gte-large do not need it."""

    def run(self) -> None:
        try:
            import starlette  # noqa: F401
            import uvicorn
        except ImportError as error:
            raise UserError(f"{error.name} is not installed: pip install 't2l_jax[serve]'") from error
        key = self.api_key or os.environ.get(KEY_VARIABLE) or None
        self._check(key)
        listener = self._bind()
        try:
            server = self._load()
        except BaseException:
            listener.close()
            raise
        from t2l_jax.serving.app import application

        config = uvicorn.Config(
            application(server, key, frozenset(LOOPBACK) if self.host in LOOPBACK else None),
            log_level="warning",
            timeout_graceful_shutdown=max(1, int(self.timeout)),
            server_header=False,
        )
        running = uvicorn.Server(config)

        def stop(number: int, frame: object) -> None:
            running.should_exit = True

        signal.signal(signal.SIGTERM, stop)  # which uvicorn raises again when it has stopped
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        listener.listen()  # who reads the next line can connect
        print(f"serving {server.name} at http://{shown}:{port}", flush=True)
        running.run(sockets=[listener])

    def _check(self, key: str | None) -> None:
        for name, value in (("--rows", self.rows), ("--context", self.context), ("--queue", self.queue)):
            if not 1 <= value <= 2**16:
                raise UserError(f"{name} must be from 1 to {2**16}, got {value}")
        if not self.context <= self.cache_tokens <= 2**24:
            raise UserError(
                f"--cache-tokens must be from --context, {self.context}, to {2**24}, got {self.cache_tokens}"
            )
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port must be from 0 to {2**16 - 1}, got {self.port}")
        if not 0 < self.timeout <= 86_400:
            raise UserError(f"--timeout must be above 0 and at most 86400 seconds, got {self.timeout}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError("the key must consist of printable ASCII characters: it is sent in a header")
        if self.adapters is not None and not self.adapters.is_dir():
            raise UserError(f"--adapters {self.adapters}: no such folder")
        if self.host not in LOOPBACK and key is None:
            print(
                f"t2l: warning: listening on {self.host} without a key: whoever reaches it can use the model; give "
                "--api-key",
                file=sys.stderr,
            )

    def _bind(self) -> socket.socket:
        """The port, taken before the models are loaded, so that one that is in use is known at once."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
        except OSError as error:
            listener.close()
            raise UserError(f"cannot listen on {self.host}, port {self.port}: {error.strerror or error}") from error
        return listener

    def _load(self) -> "Server":
        from t2l_jax import load
        from t2l_jax.io.published import WORDS
        from t2l_jax.serving.adapters import Registry
        from t2l_jax.serving.app import Server
        from t2l_jax.serving.engine import Engine, Job, Limits

        model: Model = load(self.model, trust_remote_code=self.trust_remote_code)
        config = model.config
        if config.reads != "description":
            raise UserError(
                f"this hypernetwork reads {WORDS[config.reads]}, and a request has a description only: give one that "
                "reads descriptions"
            )
        rank = config.lora.rank if self.max_rank is None else self.max_rank
        if not config.lora.rank <= rank <= 1024:
            raise UserError(f"--max-rank must be from {config.lora.rank}, the hypernetwork's rank, to 1024, got {rank}")
        print(f"loading {config.base_name} and the hypernetwork for it", file=sys.stderr, flush=True)
        model.generate(["Say hello."])  # its text encoder is loaded, and the programs compiled
        llm = model.load_base()
        spec = replace(config.lora, rank=rank)
        limits = Limits(self.rows, self.context, self.cache_tokens, self.queue)
        engine = Engine(llm.decoder, llm.params, llm.stop_ids, spec, limits)
        ended: queue.Queue[str] = queue.Queue()
        engine.submit(Job([0], lambda _, reason: ended.put(reason) if reason else None, max_tokens=2))
        if ended.get() == "error":
            raise UserError("the model cannot be run, as was logged: it may need more memory than there is")
        return Server(llm, engine, Registry(model, llm.config, spec), self.adapters, self.timeout)
