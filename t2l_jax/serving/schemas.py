"""The bodies of requests: OpenAI's chat and text completions, adapters, and vLLM's loading of adapters.

A field that would change an answer and is not honoured here is refused by name, unless its value says "no"; one that
would not is ignored. Null is the same as leaving a field out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, Strict, ValidationError

from t2l_jax.errors import UserError
from t2l_jax.io.files import parse_json
from t2l_jax.schema import Schema, Several, Text, checked
from t2l_jax.serving.http import Refused
from t2l_jax.serving.ring import BEST

MAX_CHOICES = 128  # rows of one request
MAX_PROMPT = 2**17  # tokens

Body = TypeVar("Body", bound="Request")

Tokens = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(max_length=MAX_PROMPT, fail_fast=True)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=25_000)]

# Fields of OpenAI's and vLLM's that change nothing here, whatever they say.
IGNORED = {
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "reasoning_effort", "verbosity", "prediction", "request_id", "priority",
}  # fmt: skip
# Fields that are not honoured, with the values by which they ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "web_search_options": (),
    "logit_bias": ({},), "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,),
    "suffix": ("",), "best_of": (1,), "top_k": (0, -1), "min_p": (0,), "min_tokens": (0,),
    "stop_token_ids": ([],), "bad_words": ([],), "use_beam_search": (False,), "add_generation_prompt": (True,),
    "skip_special_tokens": (True,), "continue_final_message": (False,),
}  # fmt: skip


class Request(Schema):
    """A body of this server."""


class StreamOptions(Schema):
    """What else a stream tells."""

    include_usage: bool = False


class Completion(Request):
    """What both kinds of completion have."""

    default_tokens: ClassVar[int]
    """How many tokens an answer may have where nothing was said."""

    model: Name
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=16)] = 1
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[Several[Stop], Field(max_length=4)] = ()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    ignore_eos: bool = False  # vLLM's, by which load tests ask for answers of one length

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def most_tokens(self) -> int | None:
        """How many tokens an answer may have, if that was said."""
        return self.max_tokens

    @property
    def best(self) -> int | None:
        """How many of the best tokens are asked for in each place; None: no log probabilities at all."""
        raise NotImplementedError


class Part(Schema):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Turn(Schema):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=64, fail_fast=True)]
    tool_calls: None = None

    def plain(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatCompletion(Completion):
    """The body of /v1/chat/completions."""

    default_tokens = 256
    messages: Annotated[list[Turn], Field(min_length=1, max_length=1024, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=BEST)] = 0

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def best(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class TextCompletion(Completion):
    """The body of /v1/completions."""

    default_tokens = 16
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=BEST)] | None = None
    echo: bool = False

    @property
    def best(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several prompts, each a text or tokens."""
        prompt: Any = self.prompt
        several = isinstance(prompt, list) and not isinstance(prompt[0] if prompt else 0, int)
        return list(prompt) if several else [prompt]


class Share(Schema):
    """An adapter's part in a mixture."""

    name: Name
    weight: Annotated[float, Field(ge=-16, le=16)]


class NewAdapter(Request):
    """The body of POST /v1/adapters: a description, or a mixture of adapters.

    Without a name, the adapter of a description is called `t2l:` and the description, as everywhere, and a mixture gets
    a name. Both are kept while there is room.
    """

    name: Text | None = None
    description: Text | None = None
    mix: Annotated[list[Share], Field(min_length=1, max_length=16)] | None = None


class LoadAdapter(Request):
    """vLLM's body of /v1/load_lora_adapter."""

    lora_name: Text
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False


class UnloadAdapter(Request):
    """vLLM's body of /v1/unload_lora_adapter."""

    lora_name: Text
    lora_int_id: Annotated[int, Strict()] | None = None


def parsed(kind: type[Body], data: bytes) -> Body:
    """A request's body as what it should be. Raises Refused (400) that names the field at fault."""
    try:
        body = parse_json(data, "the body")
        if not isinstance(body, Mapping):
            raise UserError("the body must be a JSON object")
        given = {name: value for name, value in body.items() if value is not None}
        for name, value in given.items():
            _check_known(kind, name, value)
        return checked(kind, given, "the body")
    except UserError as error:
        raise Refused(400, str(error), _field(error)) from error


def _check_known(kind: type[Request], name: str, value: Any) -> None:
    if name in kind.model_fields or name in IGNORED or (name in REFUSED and value in REFUSED[name]):
        return
    if name in REFUSED:
        raise Refused(400, f"{name} is not supported here: leave it out", name, "unsupported_parameter")
    raise Refused(400, f"{name[:80]!r} is no field of this request: leave it out", name[:80], "unknown_parameter")


def _field(error: UserError) -> str | None:
    """The field that an error of the schema is about."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return None
    found = cause.errors(include_url=False, include_input=False, include_context=False)
    return str(found[0]["loc"][0])[:80] if found and found[0]["loc"] else None
