"""A base model with adapters as a model of EleutherAI's lm-evaluation-harness, another adapter for each of its tasks.

    from t2l_jax.evaluation.harness import HarnessModel
    lm_eval.simple_evaluate(HarnessModel(llm, {"": adapter}), tasks=["arc_easy"])

What the harness asks is tokenised and cut as its own `hf` model does it, so that scores can be compared. Its requests
go in batches of rows of similar length, whichever tasks they come from, each row with its task's adapter.

Axes: n rows, S sequence, N tokens scored.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from t2l_jax.decoder import Decoder, logits
from t2l_jax.decoder.chat_template import as_they_are, conversation_texts
from t2l_jax.decoder.generation import Params, Sampling, generate_tokens
from t2l_jax.decoder.padding import bucket, pad_rows, prompt_bucket
from t2l_jax.errors import UserError
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter, stack
from t2l_jax.progress import progress_bar


class Asked(NamedTuple):
    """Tokens, of which the last `scored` have a probability to be found, and a task."""

    tokens: list[int]
    scored: int
    task: str


class HarnessModel(TemplateLM):
    """A base model and an adapter for each task of a run; tasks that are not named have that of "", or none.

    A task's name in the harness may continue one of ours: "mmlu" stands for "mmlu_anatomy", too; the longest counts.
    """

    backend = "causal"

    def __init__(
        self, llm: LLM, adapters: Mapping[str, Adapter] | None = None, *, batch: int = 16, max_length: int = 2048
    ) -> None:
        super().__init__()
        self.llm, self.tokenizer, self.batch, self.max_length = llm, llm.tokenizer, batch, max_length
        self.max_gen_toks = 256
        adapters = adapters or {}
        for adapter in adapters.values():
            llm.config.check_adapter(adapter.spec)
        if len({adapter.spec for adapter in adapters.values()}) > 1:
            raise UserError("the tasks' adapters must have the same modules, rank and alpha: they share a batch")
        self._places = {name: place for place, name in enumerate(adapters)}
        self._none = len(adapters)
        self.unused = set(adapters)  # names that no task had so far
        some = list(adapters.values())
        self._adapters = stack([*some, jax.tree.map(jnp.zeros_like, some[0])]) if some else None

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing precedes."""
        first = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text's tokens, with those that the tokenizer adds unless the text begins with its first one."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(str(self.tokenizer.decode([self.prefix_token_id])))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation. One without a system turn gets an empty one, as in training."""
        if not add_generation_prompt:
            raise UserError("a task that begins the answer itself (gen_prefix) is not supported with a chat template")
        if chat_history and chat_history[0]["role"] == "system":
            return as_they_are(self.tokenizer, chat_history)
        return conversation_texts(self.tokenizer, [chat_history])[0]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log probability of each continuation, and whether greedy decoding would write it."""
        asked = []
        for request in requests:
            context, continuation = request.args
            if context:
                before, after = self._encode_pair(context, continuation)
            else:
                after = self.tok_encode(continuation, add_special_tokens=False)
                before = [self.prefix_token_id]
                if after[:1] == before:
                    after = after[1:]
            tokens = (before + after)[-(self.max_length + 1) :]
            asked.append(Asked(tokens, min(len(after), len(tokens) - 1), request.task_name or ""))
        found = self._score(asked)
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log probability of each whole text, in windows of `max_length` tokens."""
        asked, counts = [], []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            pairs = [make_disjoint_window(window) for window in windows]
            asked += [Asked(before + after, len(after), request.task_name or "") for before, after in pairs]
            counts.append(len(pairs))
        found = iter(self._score(asked))
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        return self._score([Asked(before + after, len(after), "") for _, before, after in requests])

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each prompt, up to where one of its stop texts begins."""
        answers: dict[int, str] = {}
        jobs = [(number, *self._generation(request)) for number, request in enumerate(requests)]
        for sampling in dict.fromkeys(job[2] for job in jobs):
            same = sorted((job for job in jobs if job[2] == sampling), key=lambda job: -len(job[1]))
            for some in self._batches(same, "answers"):
                prompts, tasks = [job[1] for job in some], [job[4] for job in some]
                options: dict[str, Any] = {
                    "adapter": self._rows(tasks),
                    "sampling": sampling,
                    "stop_ids": self.llm.stop_ids,
                    "key": jax.random.fold_in(jax.random.key(0), some[0][0]),  # no two batches draw alike
                }
                new = generate_tokens(self.llm.decoder, self.llm.params, prompts, **options)
                for (number, _, _, stops, _), tokens in zip(some, new, strict=True):
                    text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
                    ends = [text.index(stop) for stop in stops if stop in text]
                    answers[number] = text[: min(ends, default=len(text))]
                    self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return [answers[number] for number in range(len(requests))]

    def _generation(self, request: Instance) -> tuple[list[int], Sampling, list[str], str]:
        """Prompt, sampling, stop texts and task of a request to generate."""
        context, options = request.args
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        most, stops = kwargs.pop("max_gen_toks"), [stop for stop in kwargs.pop("until") if stop]
        if most >= self.max_length:
            raise UserError(
                f"{request.task_name}: {most} tokens to generate leave no room for a prompt in "
                f"{self.max_length}: raise the model's max_length"
            )
        sampling = Sampling(most, kwargs.pop("temperature", 0.0), kwargs.pop("top_p", 1.0))
        kwargs.pop("do_sample", None)
        if kwargs:
            raise UserError(f"{request.task_name}: generation_kwargs {', '.join(kwargs)} cannot be followed")
        return self.tok_encode(context)[-(self.max_length - most) :], sampling, stops, request.task_name or ""

    def _score(self, asked: Sequence[Asked]) -> list[tuple[float, bool]]:
        found: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(asked)), key=lambda number: -len(asked[number].tokens))
        for some in self._batches(order, "continuations"):
            rows = [asked[number] for number in some]
            tokens, lengths = pad_rows(
                [[row.tokens] for row in rows],
                (bucket(len(rows)), 1, prompt_bucket(max(len(row.tokens) for row in rows))),
                left=False,
            )
            scored = np.zeros(len(tokens), np.int32)
            scored[: len(rows)] = [row.scored for row in rows]
            tasks = [row.task for row in rows] + [rows[0].task] * (len(tokens) - len(rows))
            most = min(bucket(max(1, *(row.scored for row in rows))), tokens.shape[-1] - 1)
            sums, greedy = jax.device_get(
                _loglikelihoods(
                    self.llm.decoder, most, self.llm.params, tokens[:, 0], lengths[:, 0], scored, self._rows(tasks)
                )
            )
            found |= {number: (float(sums[i]), bool(greedy[i])) for i, number in enumerate(some)}
        return [found[number] for number in range(len(asked))]

    def _batches(self, items: Sequence[Any], what: str) -> Iterator[Sequence[Any]]:
        with progress_bar() as progress:
            bar = progress.add_task(what, total=len(items), rate="")
            for start in range(0, len(items), self.batch):
                yield items[start : start + self.batch]
                progress.advance(bar, min(self.batch, len(items) - start))

    def _rows(self, tasks: Sequence[str]) -> Adapter | None:
        """The adapters of rows of these tasks."""
        if self._adapters is None:
            return None
        return self._adapters[jnp.asarray([self._place(task) for task in tasks])]

    def _place(self, task: str) -> int:
        own = [name for name in self._places if name == "" or task == name or task.startswith(f"{name}_")]
        self.unused.difference_update(own)
        return self._places[max(own, key=len)] if own else self._none


@partial(jax.jit, static_argnums=(0, 1))
def _loglikelihoods(
    decoder: Decoder,
    most: int,
    params: Params,
    tokens: Int[Array, "n S"],
    lengths: Int[Array, " n"],
    scored: Int[Array, " n"],
    adapter: Adapter | None,
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """Log probability of the last `scored` (at most `most`, N) tokens of each row, and whether each is the likeliest.

    Logits are computed where tokens are scored, a row at a time.
    """
    places = jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.shape)
    segments = (places < lengths[:, None]).astype(jnp.int32)
    output: Any = decoder.apply({"params": params}, tokens, adapter, segments=segments)

    def row(one: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        hidden, tokens, length, scored = one
        targets = jnp.clip(length - scored + jnp.arange(most, dtype=jnp.int32), 1, tokens.shape[0] - 1)
        scores = logits(decoder.config, params, hidden[targets - 1])
        wanted = tokens[targets]
        own = jnp.take_along_axis(scores, wanted[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(scores, axis=-1)
        counts = jnp.arange(most) < scored
        likeliest = jnp.argmax(scores, axis=-1) == wanted
        return jnp.sum(jnp.where(counts, own, 0)), jnp.all(likeliest | ~counts)

    return jax.lax.map(row, (output[0], tokens, lengths, scored))
